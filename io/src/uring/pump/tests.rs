//! Who serves a read, and that it ends whatever becomes of the runtime that started it.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests look at the layer from outside: at threads, real time and real files"
)]

use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use futures::executor::block_on;
use futures::future::join_all;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::{AlignedBuf, Backend, Class, Env, EnvOptions, File, OpenOptions};

const BLOCKS: usize = 512;

/// A file of blocks that each begin with their number, read around the page cache.
struct Bed {
    env: Env,
    file: File,
    dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Option<Bed> {
        let env = Env::new(&EnvOptions { backend: Backend::Uring }).ok()?;
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![0; BLOCKS << 12];
        for (number, block) in bytes.chunks_mut(1 << 12).enumerate() {
            block[..8].copy_from_slice(&number.to_le_bytes());
        }
        std::fs::write(dir.path().join("f"), bytes).unwrap();
        let options = OpenOptions { direct: true, class: Class::Foreground, ..Default::default() };
        let file = block_on(env.fs().open(dir.path().join("f"), options)).unwrap();
        if !file.is_direct() {
            eprintln!("skipped: the file system has no direct files");
            return None;
        }
        Some(Bed { env, file, dir })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.file.system().unwrap().handle.system().shared
    }

    fn pumps(&self) -> Vec<Option<Arc<Pump>>> {
        self.shared().pumps.table.read().pumps.iter().map(|(_, pump)| pump.clone()).collect()
    }

    /// The reads that rings of runtimes have done.
    fn pumped(&self) -> u64 {
        self.pumps().iter().flatten().map(|pump| pump.ring.progress().reaped).sum()
    }

    fn reads(&self, count: usize) -> impl Iterator<Item = impl Future<Output = ()> + use<>> {
        (0..count).map(|i| read(self.file.clone(), i * 7 % BLOCKS))
    }

    fn settle(&self) {
        let start = Instant::now();
        while self.env.in_flight() > 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "in flight for ever");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

async fn read(file: File, block: usize) {
    let (result, bytes) = file.read_at(AlignedBuf::zeroed(4096), (block as u64) << 12).await;
    assert_eq!(result.unwrap(), 4096);
    assert_eq!(bytes[..8], block.to_le_bytes());
}

fn runtime(workers: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(workers).enable_io().build().unwrap()
}

fn within_a_minute(work: impl FnOnce() + Send + 'static) {
    let (done, waiting) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        work();
        done.send(()).ok();
    });
    let waited = waiting.recv_timeout(Duration::from_secs(60));
    assert!(waited != Err(std::sync::mpsc::RecvTimeoutError::Timeout), "it hangs");
    thread.join().unwrap();
}

#[test]
fn a_runtime_serves_its_reads() {
    for workers in [1, 4] {
        let Some(bed) = Bed::new() else { return };
        let runtime = runtime(workers);
        let tasks: Vec<_> = bed.reads(2000).map(|read| runtime.spawn(read)).collect();
        for task in tasks {
            runtime.block_on(task).unwrap();
        }
        // Beyond what a ring takes at once, from one task, and from a thread that is no worker.
        let all = bed.reads(500).collect::<Vec<_>>();
        runtime.block_on(runtime.spawn(join_all(all))).unwrap();
        runtime.block_on(join_all(bed.reads(500)));
        assert_eq!((bed.pumped(), bed.env.in_flight()), (3000, 0));
    }
}

#[test]
fn plugged_reads_are_submitted_at_the_end_of_the_plug() {
    let Some(bed) = Bed::new() else { return };
    let runtime = runtime(2);
    let (fs, reads) = (bed.env.fs().clone(), bed.reads(300).collect::<Vec<_>>());
    let task = runtime.spawn(async move {
        let mut all = Box::pin(join_all(reads));
        let plugged = std::future::poll_fn(|cx| {
            let _plug = fs.plug();
            Poll::Ready(all.as_mut().poll(cx))
        });
        assert!(plugged.await.is_pending());
        all.await;
    });
    runtime.block_on(task).unwrap();
    assert_eq!(bed.pumped(), 300);
}

/// Other runtimes are served as everybody else: those without an I/O driver, those that a user's
/// thread drives, and no runtime at all.
#[test]
fn others_are_served_by_the_thread() {
    let Some(bed) = Bed::new() else { return };
    let runtime = Builder::new_multi_thread().worker_threads(2).build().unwrap();
    for _ in 0..2 {
        runtime.block_on(join_all(bed.reads(50)));
    }
    assert!(matches!(bed.pumps()[..], [None]), "found out once");
    Builder::new_current_thread().enable_io().build().unwrap().block_on(join_all(bed.reads(50)));
    block_on(join_all(bed.reads(50)));
    assert_eq!(bed.pumps().len(), 1);
}

/// A worker may be confined further than the process: what it queued is served by the thread that
/// watches, and later reads go to that thread at once.
#[test]
fn workers_that_may_not_submit_are_served_by_the_thread() {
    let Some(bed) = Bed::new() else { return };
    let confined = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&confined);
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_io()
        .on_thread_start(move || {
            refuse_submission();
            count.fetch_add(1, Ordering::Relaxed);
        })
        .build()
        .unwrap();
    let reads: Vec<_> = bed.reads(400).collect();
    let (first, later) = (reads.into_iter(), bed.reads(100).collect::<Vec<_>>());
    within_a_minute(move || {
        let tasks: Vec<_> = first.map(|read| runtime.spawn(read)).collect();
        for task in tasks {
            runtime.block_on(task).unwrap();
        }
        runtime.block_on(runtime.spawn(join_all(later))).unwrap();
    });
    assert_eq!(confined.load(Ordering::Relaxed), 2);
    bed.settle();
    let start = Instant::now();
    while !matches!(bed.pumps()[..], [None]) {
        assert!(start.elapsed() < Duration::from_secs(60), "the refused ring is not given up");
        std::thread::sleep(Duration::from_millis(1));
    }
    // The process is as free as before.
    block_on(join_all(bed.reads(50)));
}

/// From now on this thread may enter no ring.
fn refuse_submission() {
    let filter = SeccompFilter::new(
        [(libc::SYS_io_uring_enter, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn blocked_workers_do_not_hang() {
    let Some(bed) = Bed::new() else { return };
    for workers in [1, 2] {
        let reads: Vec<_> = bed.reads(20).collect();
        within_a_minute(move || {
            let runtime = runtime(workers);
            let blocked = reads.into_iter().map(|read| runtime.spawn(async { block_on(read) }));
            for task in blocked.collect::<Vec<_>>() {
                runtime.block_on(task).unwrap();
            }
        });
    }
}

#[test]
fn reads_outlive_their_runtime() {
    let Some(bed) = Bed::new() else { return };
    for round in 0..20 {
        let runtime = runtime(2);
        // Started there, and awaited here.
        let mut started = Vec::new();
        for block in 0..40 {
            let file = bed.file.clone();
            started.push(runtime.spawn(async move {
                let mut op = file.read_at(AlignedBuf::zeroed(4096), block << 12);
                let early = futures::poll!(&mut op);
                (op, early)
            }));
        }
        let started = block_on(join_all(started));
        // And some whose tasks are dropped with it.
        for read in bed.reads(40) {
            drop(runtime.spawn(read));
        }
        if round % 2 == 0 {
            runtime.shutdown_background();
        } else {
            drop(runtime);
        }
        for (block, started) in started.into_iter().enumerate() {
            let (op, early) = started.unwrap();
            let (result, bytes) = match early {
                Poll::Ready(answer) => answer,
                Poll::Pending => block_on(op),
            };
            assert_eq!(result.unwrap(), 4096);
            assert_eq!(bytes[..8], block.to_le_bytes());
        }
        bed.settle();
    }
    let start = Instant::now();
    while !bed.pumps().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "rings of ended runtimes stay");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn dropped_reads_leave_nothing_behind() {
    let Some(bed) = Bed::new() else { return };
    let runtime = runtime(2);
    let dropped = Arc::new(AtomicUsize::new(0));
    let tasks = (0..8).map(|_| {
        let (file, dropped) = (bed.file.clone(), Arc::clone(&dropped));
        runtime.spawn(async move {
            for block in 0..BLOCKS as u64 {
                let mut op = file.read_at(AlignedBuf::zeroed(4096), block << 12);
                if futures::poll!(&mut op).is_pending() {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        runtime.block_on(task).unwrap();
    }
    bed.settle();
    assert!(dropped.load(Ordering::Relaxed) > 0);
    runtime.block_on(join_all(bed.reads(10)));
}

/// What was in flight has ended, well; what had not started is refused.
#[test]
fn shutdown_waits_for_what_a_runtime_reads() {
    let mut ended = [0; 2];
    for _ in 0..20 {
        let Some(bed) = Bed::new() else { return };
        let runtime = runtime(2);
        let started: Vec<_> = (0..60)
            .map(|block| {
                let op = bed.file.read_at(AlignedBuf::zeroed(4096), block << 12);
                runtime.spawn(async move { (op.await, block) })
            })
            .collect();
        runtime.block_on(bed.reads(1).next().unwrap());
        block_on(bed.env.clone().shutdown());
        assert!(bed.shared().pumps.are_idle());
        for answer in runtime.block_on(join_all(started)) {
            let ((result, bytes), block) = answer.unwrap();
            match result {
                Ok(len) => assert_eq!((len, &bytes[..8]), (4096, &block.to_le_bytes()[..])),
                Err(ref e) => assert!(e.to_string().contains("shut down"), "{e}"),
            }
            ended[usize::from(result.is_ok())] += 1;
        }
        let (result, _) = runtime.block_on(bed.file.read_at(AlignedBuf::zeroed(4096), 0));
        assert!(result.is_err());
        assert_eq!(bed.env.in_flight(), 0);
    }
    assert!(ended[1] > 0, "{ended:?}");
}

/// U14: an unknown completion means that nothing can be believed any more.
#[test]
fn a_broken_ring_fails_every_operation() {
    let Some(bed) = Bed::new() else { return };
    let runtime = runtime(2);
    std::fs::write(bed.dir.path().join("forged"), vec![0; 1 << 16]).unwrap();
    let options = OpenOptions { direct: true, ..Default::default() };
    let forged = bed.env.fs().open(bed.dir.path().join("forged"), options);
    let forged = runtime.block_on(forged).unwrap();
    let reads = (0..300).map(|i| forged.read_at(AlignedBuf::zeroed(4096), i % 16 * 4096));
    let answers = runtime.block_on(runtime.spawn(join_all(reads))).unwrap();
    let failed: Vec<_> = answers.into_iter().filter_map(|(result, _)| result.err()).collect();
    assert!(!failed.is_empty());
    assert!(failed.iter().all(|e| e.to_string().contains("ring has failed")), "{failed:?}");
    let (result, _) = runtime.block_on(bed.file.read_at(AlignedBuf::zeroed(4096), 0));
    assert!(result.unwrap_err().to_string().contains("unknown operation"));
    block_on(bed.env.clone().shutdown());
}

/// Reads that the page cache answers at once never reach a ring, and those that it cannot answer
/// come back when the thread that submitted them is gone.
#[test]
fn threads_that_end_do_not_lose_reads() {
    let Some(bed) = Bed::new() else { return };
    let runtime = runtime(2);
    let path = bed.file.path().to_owned();
    let cached = block_on(bed.env.fs().open(path.clone(), OpenOptions::default())).unwrap();
    for _ in 0..20 {
        let std = std::fs::File::open(&path).unwrap();
        rustix::fs::fadvise(&std, 0, None, rustix::fs::Advice::Random).unwrap();
        rustix::fs::fadvise(&std, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let threads = (0..16).map(|i| {
            let (handle, file) = (runtime.handle().clone(), cached.clone());
            std::thread::spawn(move || {
                let _runtime = handle.enter();
                let mut op = file.read_at(AlignedBuf::zeroed(4096), (i * 32) << 12);
                let early = block_on(async { futures::poll!(&mut op) });
                (op, early)
            })
        });
        for (i, thread) in threads.collect::<Vec<_>>().into_iter().enumerate() {
            let (op, early) = thread.join().unwrap();
            let (result, bytes) = match early {
                Poll::Ready(answer) => answer,
                Poll::Pending => runtime.block_on(op),
            };
            assert_eq!(result.unwrap(), 4096);
            assert_eq!(bytes[..8], (i * 32).to_le_bytes());
        }
    }
}
