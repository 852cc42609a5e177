//! Any executor may poll the futures.

use futures::future::join_all;
use seerdb_io::{AlignedBuf, Class, Env, File, Lane};

use crate::{Bed, block_on, direct, pattern, reader};

crate::for_each_backend!(
    on_a_bare_block_on;
    not_simulated:
    on_many_threads => "only the scheduler of the machine lets its time pass",
    on_tokio_multi_thread => "as above",
    on_tokio_current_thread => "as above",
    on_an_async_executor => "as above",
    on_tokio_uring => "as above",
    when_the_runtime_ends_first => "as above",
    moved_between_threads_while_pending => "as above",
);

const BLOCKS: u64 = 256;

fn prepare(bed: &Bed) -> (File, File, Vec<u8>) {
    let bytes = pattern((BLOCKS as usize) << 12, 1);
    let file = bed.file("f", &bytes, direct(reader(Class::Foreground)));
    let cached = bed.open("f", reader(Class::Background)).unwrap();
    (file, cached, bytes)
}

/// What a user's task does: reads, durable writes by a lane, sleeps.
async fn work(env: Env, file: File, bytes: Vec<u8>, start: u64) {
    for i in 0..32 {
        let block = (start * 31 + i * 7) % BLOCKS;
        let (result, back) = file.read_at(AlignedBuf::zeroed(4096), block << 12).await;
        assert_eq!(result.unwrap(), 4096);
        let at = (block << 12) as usize;
        assert!(back[..] == bytes[at..at + 4096]);
    }
    env.clock().sleep(std::time::Duration::from_millis(1)).await;
    let task = env.spawner().spawn(Lane::Log, "test", async move { start });
    assert_eq!(task.await.unwrap(), start);
    assert!(env.fs().open("/nowhere/at/all", reader(Class::Log)).await.is_err());
}

fn jobs(bed: &Bed) -> Vec<impl Future<Output = ()> + Send + 'static> {
    let (file, cached, bytes) = prepare(bed);
    (0..16)
        .map(|i| {
            let file = if i % 4 == 0 { &cached } else { &file };
            work(bed.env.clone(), file.clone(), bytes.clone(), i)
        })
        .collect()
}

fn on_a_bare_block_on(bed: &Bed) {
    block_on(join_all(jobs(bed)));
}

fn on_many_threads(bed: &Bed) {
    let threads: Vec<_> =
        jobs(bed).into_iter().map(|job| std::thread::spawn(|| block_on(job))).collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

fn on_tokio_multi_thread(bed: &Bed) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let tasks: Vec<_> = jobs(bed).into_iter().map(|job| runtime.spawn(job)).collect();
    runtime.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
}

fn on_tokio_current_thread(bed: &Bed) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let tasks: Vec<_> = jobs(bed).into_iter().map(|job| runtime.spawn(job)).collect();
    runtime.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// The executor of smol.
fn on_an_async_executor(bed: &Bed) {
    let executor = async_executor::Executor::new();
    let tasks: Vec<_> = jobs(bed).into_iter().map(|job| executor.spawn(job)).collect();
    block_on(executor.run(join_all(tasks)));
}

#[cfg(target_os = "linux")]
fn on_tokio_uring(bed: &Bed) {
    let Ok(runtime) = tokio_uring::Runtime::new(&tokio_uring::builder()) else {
        eprintln!("skipped: the kernel refuses the ring");
        return;
    };
    drop(runtime);
    tokio_uring::start(async {
        let tasks: Vec<_> = jobs(bed).into_iter().map(tokio_uring::spawn).collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

#[cfg(not(target_os = "linux"))]
fn on_tokio_uring(_bed: &Bed) {}

/// Tasks are dropped in the middle of their reads, and the threads that polled them exit.
fn when_the_runtime_ends_first(bed: &Bed) {
    for _ in 0..10 {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        for job in jobs(bed) {
            runtime.spawn(job);
        }
        runtime.shutdown_background();
    }
    bed.settle();
    block_on(join_all(jobs(bed)));
}

fn moved_between_threads_while_pending(bed: &Bed) {
    let (file, _, bytes) = prepare(bed);
    for i in 0..64usize {
        let offset = i as u64 * 4096;
        let polled = std::thread::spawn({
            let file = file.clone();
            move || {
                let mut op = file.read_at(AlignedBuf::zeroed(4096), offset);
                let early = block_on(async { futures::poll!(&mut op) });
                (op, early)
            }
        });
        // The thread that started the read is gone before the read ends.
        let (op, early) = polled.join().unwrap();
        let (result, back) = match early {
            std::task::Poll::Ready(answer) => answer,
            std::task::Poll::Pending => block_on(op),
        };
        assert_eq!(result.unwrap(), 4096);
        assert!(back[..] == bytes[i << 12..(i + 1) << 12]);
    }
}
