//! Callers at once: tasks of a runtime for an async engine, threads for a blocking one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::Result;
use crate::engine::Engine;
use crate::report::histogram;

/// Runs `work` in `count` tasks or threads until `time` is over: for each what it is told its
/// number and when to stop. The time until the last one stopped, and the times of all.
pub fn run<E, W>(
    runtime: &Runtime,
    count: u64,
    time: Duration,
    work: impl Fn(u64, Arc<AtomicBool>) -> W,
) -> Result<(Duration, Histogram<u64>)>
where
    E: Engine,
    W: Future<Output = Result<Histogram<u64>>> + Send + 'static,
{
    let (elapsed, results) = run_each::<E, _, _>(runtime, count, time, work)?;
    let mut times = histogram()?;
    for own in results {
        times.add(own)?;
    }
    Ok((elapsed, times))
}

/// As [`run`], but what each of them has to tell.
pub fn run_each<E, T, W>(
    runtime: &Runtime,
    count: u64,
    time: Duration,
    work: impl Fn(u64, Arc<AtomicBool>) -> W,
) -> Result<(Duration, Vec<T>)>
where
    E: Engine,
    T: Send + 'static,
    W: Future<Output = Result<T>> + Send + 'static,
{
    let is_stopped = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let mut receivers = Vec::new();
    for number in 0..count {
        let work = work(number, Arc::clone(&is_stopped));
        let (sender, receiver) = oneshot::channel();
        let work = async move {
            let result = work.await;
            // The receiver is gone only if another one failed, and that error is reported.
            drop(sender.send((Instant::now(), result)));
        };
        if E::IS_ASYNC {
            runtime.spawn(work);
        } else {
            let handle = runtime.handle().clone();
            std::thread::spawn(move || handle.block_on(work));
        }
        receivers.push(receiver);
    }
    std::thread::sleep(time);
    is_stopped.store(true, Ordering::Relaxed);
    let mut elapsed = Duration::ZERO;
    let mut results = Vec::new();
    for receiver in receivers {
        let (finish, own) = runtime.block_on(receiver)?;
        elapsed = elapsed.max(finish - start);
        results.push(own?);
    }
    Ok((elapsed, results))
}
