//! The log task: writes and syncs what the commit pipeline has framed, on the log lane.
//!
//! Invariants:
//! 1. At most two units are in flight; they are acknowledged in the order of the log,
//!    whatever order they complete in. Syncs go one at a time.
//! 2. A failed write or sync is never repeated: the pipeline fails.
//! 3. When the pipeline is closed, everything in the log is durable, a mark says so, and the task
//!    ends.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, join_all};
use futures::stream::{FuturesOrdered, StreamExt};
use seerdb_io::{AlignedBuf, Clock};
use smallvec::SmallVec;

use super::commit::Pipeline;
use super::log_work::Work;
use super::pacer::Pacer;
use super::stats::Metrics;
use super::streams::Unit;
use crate::error::Result;
use crate::key::SeqNo;
use crate::log::segment::Segment;
use crate::log::writer::Group;

struct Done {
    seqno: SeqNo,
    result: Result<()>,
    bufs: SmallVec<[AlignedBuf; 2]>,
}

/// Runs until the pipeline is closed or has failed.
pub(super) async fn run(
    pipeline: Arc<Pipeline>,
    clock: Clock,
    metrics: Arc<Metrics>,
    pacer: Arc<Pacer>,
) {
    let timed = |work: BoxFuture<'static, Done>| -> BoxFuture<'static, Done> {
        let (pacer, clock) = (pacer.clone(), clock.clone());
        Box::pin(async move { pacer.timed(&clock, work).await })
    };
    let mut in_flight: FuturesOrdered<BoxFuture<'static, Done>> = FuturesOrdered::new();
    loop {
        pipeline.log_signal.clear();
        let deadline = match pipeline.next_work(in_flight.len()) {
            Work::Exit if in_flight.is_empty() => {
                pipeline.log_ended();
                return;
            }
            Work::Exit => None,
            Work::Write(unit) => {
                metrics.log_group();
                in_flight.push_back(timed(Box::pin(write_unit(unit))));
                // A first poll starts the write; the next group is built meanwhile.
                if let Some(done) = Now(in_flight.next()).await.flatten() {
                    finish(&pipeline, done);
                }
                continue;
            }
            Work::Sync(segments, seqno) => {
                metrics.log_sync();
                let syncs = sync_all(pipeline.clone(), segments, seqno);
                in_flight.push_back(timed(Box::pin(syncs)));
                None
            }
            Work::Sleep(deadline) => deadline,
        };
        let mut timer = deadline.map(|at| clock.sleep(at.saturating_sub(clock.now())));
        let done = std::future::poll_fn(|cx| {
            pipeline.log_signal.poll_or(cx, |cx| {
                if let Poll::Ready(Some(done)) = in_flight.poll_next_unpin(cx) {
                    return Poll::Ready(Some(done));
                }
                match &mut timer {
                    Some(timer) => Pin::new(timer).poll(cx).map(|()| None),
                    None => Poll::Pending,
                }
            })
        })
        .await;
        if let Some(done) = done.flatten() {
            finish(&pipeline, done);
        }
    }
}

/// Syncs segments side by side. A failure is told at once and not when the slowest sync is done:
/// readers may miss before that what it has taken from the page cache.
async fn sync_all(pipeline: Arc<Pipeline>, segments: Vec<Arc<Segment>>, seqno: SeqNo) -> Done {
    let syncs = segments.iter().map(async |segment| {
        let synced = sync(segment).await;
        synced.inspect_err(|cause| {
            if !planted!(IgnoreFailedLogWrite) {
                pipeline.fail(cause);
            }
        })
    });
    let result = join_all(syncs).await.into_iter().collect();
    Done { seqno, result, bufs: SmallVec::new() }
}

async fn sync(segment: &Segment) -> Result<()> {
    if planted!(AckBeforeSyncOfSegment) {
        return Ok(());
    }
    if planted!(RetryFailedSync) && segment.file.sync_data().await.is_err() {
        tracing::warn!("a sync failed and is repeated");
    }
    Ok(segment.file.sync_data().await?)
}

/// Writes the groups of a unit side by side.
async fn write_unit(unit: Unit) -> Done {
    let mut done = Done { seqno: unit.last_seqno, result: Ok(()), bufs: SmallVec::new() };
    for (result, buf) in join_all(unit.groups.into_iter().map(write_group)).await {
        done.result = done.result.and(result);
        done.bufs.push(buf);
    }
    done
}

async fn write_group(group: Group) -> (Result<()>, AlignedBuf) {
    let file = group.segment.file.clone();
    let (mut written, buf) = match planted!(AckBeforeSyncOfGroup) {
        true => file.write_at(group.buf, group.position).await,
        false => file.write_at_durable(group.buf, group.position).await,
    };
    if planted!(RetryFailedSync) && written.is_err() {
        written = file.sync_data().await.map(|()| 0);
    }
    (written.map(drop).map_err(Into::into), buf)
}

fn finish(pipeline: &Pipeline, done: Done) {
    match done.result {
        Ok(()) => pipeline.made_durable(done.seqno, done.bufs),
        Err(_) if planted!(IgnoreFailedLogWrite) => pipeline.made_durable(done.seqno, done.bufs),
        Err(cause) => pipeline.fail(&cause),
    }
}

/// Polls a future once: its output if it was ready.
struct Now<F>(F);

impl<F: Future + Unpin> Future for Now<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match pin!(&mut self.0).poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Poll::Ready(None),
        }
    }
}
