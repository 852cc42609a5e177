//! The log task: writes and syncs what the commit pipeline has framed, on the log lane.
//!
//! Invariants:
//! 1. At most two group writes are in flight; they are acknowledged in the order of the log,
//!    whatever order they complete in. Syncs go one at a time.
//! 2. A failed write or sync is never repeated: the pipeline fails.
//! 3. When the pipeline is closed, everything in the log is durable, a mark says so, and the task
//!    ends.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use seerdb_io::{AlignedBuf, Clock};

use super::commit::Pipeline;
use super::log_work::Work;
use super::stats::Metrics;
use crate::error::Result;
use crate::key::SeqNo;
use crate::log::writer::Group;

struct Done {
    seqno: SeqNo,
    result: Result<()>,
    buf: Option<AlignedBuf>,
}

/// Runs until the pipeline is closed or has failed.
pub(crate) async fn run(pipeline: Arc<Pipeline>, clock: Clock, metrics: Arc<Metrics>) {
    let mut in_flight: FuturesOrdered<BoxFuture<'static, Done>> = FuturesOrdered::new();
    loop {
        pipeline.log_signal.clear();
        let deadline = match pipeline.next_work(in_flight.len()) {
            Work::Exit if in_flight.is_empty() => {
                pipeline.log_ended();
                return;
            }
            Work::Exit => None,
            Work::Write(group) => {
                metrics.log_group(group.buf.len());
                in_flight.push_back(Box::pin(write_group(group)));
                // A first poll starts the write; the next group is built meanwhile.
                if let Some(done) = Now(in_flight.next()).await.flatten() {
                    finish(&pipeline, done);
                }
                continue;
            }
            Work::Sync(segments, seqno) => {
                metrics.log_sync();
                in_flight.push_back(Box::pin(async move {
                    let mut result = Ok(());
                    for segment in segments {
                        if planted!(AckBeforeSyncOfSegment) {
                            break;
                        }
                        if planted!(RetryFailedSync) && segment.file.sync_data().await.is_err() {
                            tracing::warn!("a sync failed and is repeated");
                        }
                        if let Err(e) = segment.file.sync_data().await {
                            result = Err(e.into());
                            break;
                        }
                    }
                    Done { seqno, result, buf: None }
                }));
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

async fn write_group(group: Group) -> Done {
    let file = group.segment.file.clone();
    let (mut written, buf) = match planted!(AckBeforeSyncOfGroup) {
        true => file.write_at(group.buf, group.position).await,
        false => file.write_at_durable(group.buf, group.position).await,
    };
    if planted!(RetryFailedSync) && written.is_err() {
        written = file.sync_data().await.map(|()| 0);
    }
    let result = written.map(drop).map_err(Into::into);
    Done { seqno: group.last_seqno, result, buf: Some(buf) }
}

fn finish(pipeline: &Pipeline, done: Done) {
    match done.result {
        Ok(()) => pipeline.made_durable(done.seqno, done.buf),
        Err(_) if planted!(IgnoreFailedLogWrite) => pipeline.made_durable(done.seqno, done.buf),
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
