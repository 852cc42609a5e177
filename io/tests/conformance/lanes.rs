//! Tasks on the lanes, and the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use seerdb_io::{AlignedBuf, Lane};

use crate::{Bed, CLASSES, block_on, buf, creator, direct, eventually, pattern, reader};

crate::for_each_backend!(
    a_panic_reaches_who_waits,
    a_detached_task_runs_on,
    tasks_of_a_lane_take_turns,
    every_class_on_every_lane,
    two_log_writes_overlap,
    names_change_on_lanes,
    sleeping_anywhere,
    many_sleepers_wake_in_order,
    sleeps_may_be_dropped_and_moved,
    a_lane_wakes_a_lane,
    clocks_and_numbers;
    not_simulated:
    tasks_return_what_they_return => "it compares threads, of which there is one",
);

pub(crate) const LANES: [Lane; 3] = [Lane::Log, Lane::Flush, Lane::Compaction];

fn tasks_return_what_they_return(bed: &Bed) {
    for lane in LANES {
        let task = bed.env.spawner().spawn(lane, "test", async { std::thread::current().id() });
        let id = block_on(task).unwrap();
        assert_ne!(id, std::thread::current().id());
        let again = bed.env.spawner().spawn(lane, "test", async { std::thread::current().id() });
        assert_eq!(block_on(again).unwrap(), id, "a lane is one thread");
    }
}

fn a_panic_reaches_who_waits(bed: &Bed) {
    for lane in LANES {
        let spawner = bed.env.spawner();
        let task = spawner.spawn(lane, "test", async { panic!("at once") });
        let e: Result<(), _> = block_on(task);
        assert_eq!(e.unwrap_err().0, "at once");
        let clock = bed.env.clock().clone();
        let task = spawner.spawn(lane, "test", async move {
            clock.sleep(Duration::from_millis(1)).await;
            assert_eq!(format!("{}", 1 + 1), "3", "later");
        });
        let e = block_on(task).unwrap_err();
        assert!(e.0.contains("later") && e.to_string().contains("panicked"), "{e}");
        assert_eq!(block_on(spawner.spawn(lane, "test", async { 7 })).unwrap(), 7);
    }
}

fn a_detached_task_runs_on(bed: &Bed) {
    let done = Arc::new(AtomicUsize::new(0));
    for lane in LANES {
        let (done, clock) = (Arc::clone(&done), bed.env.clock().clone());
        drop(bed.env.spawner().spawn(lane, "test", async move {
            clock.sleep(Duration::from_millis(2)).await;
            done.fetch_add(1, Ordering::Relaxed);
        }));
    }
    eventually("detached tasks vanish", || done.load(Ordering::Relaxed) == 3);
}

/// A task that is always ready must not starve files, timers or other tasks.
fn tasks_of_a_lane_take_turns(bed: &Bed) {
    for (lane, class) in LANES.into_iter().zip(CLASSES.into_iter().skip(1).cycle()) {
        let bytes = pattern(8192, 1);
        let name = format!("{lane:?}");
        let file = bed.file(&name, &bytes, direct(reader(class)));
        let stop = Arc::new(AtomicUsize::new(0));
        let busy = Arc::clone(&stop);
        let spinner = bed.env.spawner().spawn(lane, "test", async move {
            let mut turns = 0u64;
            while busy.load(Ordering::Relaxed) == 0 {
                turns += 1;
                yield_now().await;
            }
            turns
        });
        let clock = bed.env.clock().clone();
        let task = bed.env.spawner().spawn(lane, "test", async move {
            clock.sleep(Duration::from_millis(3)).await;
            file.read_at(AlignedBuf::zeroed(8192), 0).await
        });
        let (result, back) = block_on(task).unwrap();
        assert_eq!(result.unwrap(), 8192);
        assert!(back[..] == bytes[..]);
        stop.store(1, Ordering::Relaxed);
        assert!(block_on(spinner).unwrap() > 0);
    }
}

async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

fn every_class_on_every_lane(bed: &Bed) {
    let mut tasks = Vec::new();
    for lane in LANES {
        for class in CLASSES {
            for options in [creator(class), direct(creator(class))] {
                let name = format!("{lane:?}{class:?}{}", options.direct);
                let (path, fs) = (bed.path(&name), bed.env.fs().clone());
                tasks.push(bed.env.spawner().spawn(lane, "test", async move {
                    let bytes = pattern(300 << 12, 2);
                    let file = fs.open(&path, options).await.unwrap();
                    file.allocate(bytes.len() as u64).await.unwrap();
                    let writes = bytes.chunks(10 << 12).enumerate().map(|(i, part)| {
                        let offset = i as u64 * (10 << 12);
                        if i % 3 == 0 {
                            file.write_at_durable(buf(part), offset)
                        } else {
                            file.write_at(buf(part), offset)
                        }
                    });
                    for (result, back) in join_all(writes).await {
                        assert_eq!(result.unwrap(), back.len());
                    }
                    file.sync_data().await.unwrap();
                    let reads = (0..300u64).map(|i| {
                        let file = file.clone();
                        async move { file.read_at(AlignedBuf::zeroed(4096), i << 12).await }
                    });
                    for (i, (result, back)) in join_all(reads).await.into_iter().enumerate() {
                        assert_eq!(result.unwrap(), 4096);
                        assert!(back[..] == bytes[i << 12..(i + 1) << 12]);
                    }
                    file.set_len(100).await.unwrap();
                    assert_eq!(file.len().await.unwrap(), 100);
                }));
            }
        }
    }
    for task in tasks {
        block_on(task).unwrap();
    }
}

fn two_log_writes_overlap(bed: &Bed) {
    let file = bed.open("log", direct(creator(seerdb_io::Class::Log))).unwrap();
    block_on(file.allocate(1 << 20)).unwrap();
    let writer = file.clone();
    let task = bed.env.spawner().spawn(Lane::Log, "test", async move {
        let mut older = writer.write_at_durable(buf(&[1; 4096]), 0);
        for i in 1..256u64 {
            let mut newer = writer.write_at_durable(buf(&[i as u8; 4096]), i * 4096);
            // Started, not awaited: two are in flight.
            let early = futures::poll!(&mut newer);
            assert_eq!(older.await.0.unwrap(), 4096);
            older = match early {
                std::task::Poll::Ready((result, back)) => {
                    assert_eq!(result.unwrap(), 4096);
                    writer.write_at(back, i * 4096)
                }
                std::task::Poll::Pending => newer,
            };
        }
        older.await.0.unwrap();
    });
    block_on(task).unwrap();
    for i in 1..256u64 {
        assert_eq!(crate::read(&file, 4096, i * 4096), [i as u8; 4096]);
    }
}

fn names_change_on_lanes(bed: &Bed) {
    for lane in LANES {
        let (fs, dir) = (bed.env.fs().clone(), bed.path(&format!("{lane:?}")));
        let task = bed.env.spawner().spawn(lane, "test", async move {
            fs.create_dir(&dir).await?;
            fs.open(dir.join("a"), creator(seerdb_io::Class::Background)).await?;
            fs.rename(dir.join("a"), dir.join("b")).await?;
            fs.sync_dir(&dir).await?;
            let names = fs.list_dir(&dir).await?.len();
            let held = fs.lock(dir.join("LOCK")).await?;
            assert!(held.is_some() && fs.lock(dir.join("LOCK")).await?.is_none());
            fs.remove_file(dir.join("b")).await?;
            Ok::<_, seerdb_io::Error>(names)
        });
        assert_eq!(block_on(task).unwrap().unwrap(), 1);
    }
}

fn sleeping_anywhere(bed: &Bed) {
    let clock = bed.env.clock();
    let start = clock.now();
    block_on(clock.sleep(Duration::from_millis(20)));
    assert!(clock.now() - start >= Duration::from_millis(20));
    block_on(clock.sleep(Duration::ZERO));
    for lane in LANES {
        let clock = clock.clone();
        let task = bed.env.spawner().spawn(lane, "test", async move {
            let start = clock.now();
            for _ in 0..5 {
                clock.sleep(Duration::from_millis(4)).await;
            }
            clock.now() - start
        });
        assert!(block_on(task).unwrap() >= Duration::from_millis(20));
    }
}

fn many_sleepers_wake_in_order(bed: &Bed) {
    let clock = bed.env.clock();
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sleeper = |ms: u64| {
        let (clock, order) = (clock.clone(), Arc::clone(&order));
        async move {
            clock.sleep(Duration::from_millis(ms)).await;
            order.lock().unwrap().push(ms);
        }
    };
    for lane in LANES {
        let sleepers = join_all((0..50).rev().map(|i| sleeper(10 + i * 2)));
        block_on(bed.env.spawner().spawn(lane, "test", sleepers)).unwrap();
        assert_eq!(std::mem::take(&mut *order.lock().unwrap()).len(), 50);
    }
    block_on(join_all((0..1000).map(|i| sleeper(i % 20))));
    assert_eq!(order.lock().unwrap().len(), 1000);
}

fn sleeps_may_be_dropped_and_moved(bed: &Bed) {
    let clock = bed.env.clock();
    for lane in LANES {
        let theirs = clock.clone();
        let task = bed.env.spawner().spawn(lane, "test", async move {
            let mut dropped = theirs.sleep(Duration::from_secs(3600));
            assert!(futures::poll!(&mut dropped).is_pending());
            drop(dropped);
            let mut moved = theirs.sleep(Duration::from_millis(20));
            assert!(futures::poll!(&mut moved).is_pending());
            Some(moved)
        });
        // Polled on a lane before, and here from now on.
        block_on(block_on(task).unwrap().unwrap());
        let mut moved = clock.sleep(Duration::from_millis(20));
        block_on(async { assert!(futures::poll!(&mut moved).is_pending()) });
        block_on(bed.env.spawner().spawn(lane, "test", moved)).unwrap();
    }
    drop(clock.sleep(Duration::MAX));
    let mut endless = clock.sleep(Duration::MAX);
    block_on(async { assert!(futures::poll!(&mut endless).is_pending()) });
}

/// Wakes between threads are what the arming protocol is about: none may be lost.
fn a_lane_wakes_a_lane(bed: &Bed) {
    use futures::channel::mpsc;
    use futures::{SinkExt, StreamExt};
    let (mut first, mut last) = mpsc::channel::<u32>(0);
    let mut tasks = Vec::new();
    for i in 0..6 {
        let (sender, receiver) = mpsc::channel::<u32>(0);
        let (mut from, mut to) = (std::mem::replace(&mut last, receiver), sender);
        tasks.push(bed.env.spawner().spawn(LANES[i % 3], "test", async move {
            while let Some(token) = from.next().await {
                to.send(token + 1).await.unwrap();
            }
        }));
    }
    block_on(async {
        for i in 0..2000 {
            first.send(i).await.unwrap();
            assert_eq!(last.next().await, Some(i + 6));
        }
    });
    drop(first);
    for task in tasks {
        block_on(task).unwrap();
    }
}

fn clocks_and_numbers(bed: &Bed) {
    let clock = bed.env.clock();
    let mut before = clock.now();
    for _ in 0..1000 {
        let now = clock.now();
        assert!(now >= before);
        before = now;
    }
    assert!(clock.unix_time() > Duration::from_secs(1_700_000_000));
    let numbers: std::collections::HashSet<u64> =
        (0..1000).map(|_| bed.env.rng().next_u64()).collect();
    assert_eq!(numbers.len(), 1000);
}
