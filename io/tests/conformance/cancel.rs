//! Futures, files and environments that are dropped while something is in flight.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use seerdb_io::{AlignedBuf, BufResult, Class, Lane, Op};

use crate::lanes::LANES;
use crate::{
    Bed, CLASSES, block_on, buf, creator, direct, eventually, pattern, pause, read, reader, writer,
};

crate::for_each_backend!(
    an_unpolled_operation_does_nothing,
    dropped_futures_leave_nothing_behind,
    dropped_after_any_number_of_polls,
    dropped_writes_happen_or_not,
    leaked_futures_are_harmless,
    everything_dropped_in_flight,
    the_last_handle_may_be_dropped_on_a_lane,
    threads_end_with_the_last_handle,
    queued_tasks_run_before_the_end,
    shutdown_waits_for_the_kernel,
    shutdown_drops_the_tasks_of_the_lanes,
    shutdown_from_a_lane,
    after_the_shutdown,
    wakers_that_panic,
);

fn poll_once(op: &mut Op<BufResult>) -> Poll<BufResult> {
    Pin::new(op).poll(&mut Context::from_waker(Waker::noop()))
}

fn an_unpolled_operation_does_nothing(bed: &Bed) {
    let file = bed.open("f", creator(Class::Log)).unwrap();
    drop(file.write_at(buf(b"abc"), 0));
    drop(file.set_len(10));
    drop(bed.env.fs().remove_file(bed.path("f")));
    drop(bed.env.fs().create_dir(bed.path("d")));
    assert_eq!(block_on(file.len()).unwrap(), 0);
    assert_eq!(block_on(bed.env.fs().list_dir(bed.dir.path())).unwrap().len(), 1);
    assert_eq!(bed.env.in_flight(), 0);
}

/// The kernel writes into buffers whose futures are gone; the driver must own them.
fn dropped_futures_leave_nothing_behind(bed: &Bed) {
    let bytes = pattern(4 << 20, 1);
    let file = bed.file("f", &bytes, direct(reader(Class::Foreground)));
    let mut pending = 0;
    for i in 0..40_000u64 {
        let mut op = file.read_at(AlignedBuf::zeroed(4096), (i * 7 % 1024) * 4096);
        pending += usize::from(poll_once(&mut op).is_pending());
        drop(op);
        if i % 1024 == 0 {
            // Memory that was freed too early would be handed out again here.
            let mut other = AlignedBuf::zeroed(4096);
            other.fill(0xAA);
            std::thread::yield_now();
            assert!(other.iter().all(|b| *b == 0xAA));
        }
    }
    // A read may win the race with its first poll, but not many do.
    assert!(pending > 20_000 || !file.is_direct(), "{pending} of 40000 were dropped in flight");
    bed.settle();
    assert!(read(&file, 4096, 4096) == bytes[4096..8192]);
}

fn dropped_after_any_number_of_polls(bed: &Bed) {
    let bytes = pattern(1 << 20, 2);
    for class in CLASSES {
        let name = format!("{class:?}");
        let file = bed.file(&name, &bytes, direct(writer(class)));
        for polls in 0..6 {
            for i in 0..64u64 {
                let offset = i * 4096;
                let at = usize::try_from(offset).unwrap();
                let same = buf(&bytes[at..at + 4096]);
                let mut ops = [
                    file.read_at(AlignedBuf::zeroed(4096), offset),
                    file.write_at(same, offset),
                    file.write_at_durable(buf(&bytes[at..at + 4096]), offset),
                ];
                let mut sync = file.sync_data();
                for op in &mut ops {
                    for _ in 0..polls {
                        if poll_once(op).is_ready() {
                            break;
                        }
                        std::thread::yield_now();
                    }
                }
                for _ in 0..polls {
                    let mut cx = Context::from_waker(Waker::noop());
                    if Pin::new(&mut sync).poll(&mut cx).is_ready() {
                        break;
                    }
                }
            }
        }
        bed.settle();
        assert!(read(&file, bytes.len(), 0) == bytes);
    }
}

fn dropped_writes_happen_or_not(bed: &Bed) {
    let file = bed.open("f", direct(creator(Class::Log))).unwrap();
    block_on(file.allocate(256 * 4096)).unwrap();
    for i in 0..256u64 {
        let mut op = file.write_at_durable(buf(&[1; 4096]), i * 4096);
        drop(poll_once(&mut op));
    }
    bed.settle();
    for i in 0..256 {
        let block = read(&file, 4096, i * 4096);
        assert!(block == [0; 4096] || block == [1; 4096], "block {i} is torn");
    }
}

fn leaked_futures_are_harmless(bed: &Bed) {
    let file = bed.file("f", &pattern(1 << 20, 3), direct(reader(Class::Foreground)));
    for i in 0..64 {
        let mut op = file.read_at(AlignedBuf::zeroed(4096), i * 4096);
        drop(poll_once(&mut op));
        std::mem::forget(op);
    }
    bed.settle();
}

fn everything_dropped_in_flight(bed: &Bed) {
    let bytes = pattern(1 << 20, 4);
    bed.plant("f", &bytes);
    for _ in 0..10 {
        let env = bed.another();
        let mut ops = Vec::new();
        for class in CLASSES {
            let open = env.fs().open(bed.path("f"), direct(writer(class)));
            let file = block_on(open).unwrap();
            for i in 0..128usize {
                let (offset, part) = (i as u64 * 4096, &bytes[i * 4096..(i + 1) * 4096]);
                ops.push(file.read_at(AlignedBuf::zeroed(4096), offset));
                ops.push(file.write_at(buf(part), offset));
            }
        }
        for op in &mut ops {
            drop(poll_once(op));
        }
        drop(env);
        drop(ops);
    }
    eventually("files stay open", || bed.open_files() == 0);
    assert!(bed.bytes("f") == bytes);
}

fn the_last_handle_may_be_dropped_on_a_lane(bed: &Bed) {
    for lane in LANES {
        let env = bed.another();
        let file = block_on(env.fs().open(bed.path(&format!("{lane:?}")), creator(Class::Log)));
        let spawner = env.spawner().clone();
        let (go, gone) = futures::channel::oneshot::channel::<()>();
        let task = spawner.spawn(lane, "test", async move {
            gone.await.unwrap();
            file.as_ref().unwrap().write_at(buf(b"x"), 0).await.0.unwrap();
            drop((env, file));
            7
        });
        go.send(()).unwrap();
        assert_eq!(block_on(task).unwrap(), 7);
        eventually("the lane lives on", || {
            block_on(spawner.spawn(lane, "late", async {})).is_err()
        });
    }
    eventually("files stay open", || bed.open_files() == 0);
}

/// The memory of a thread that lives on is what this flag stands for.
struct Flag(Arc<AtomicUsize>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn threads_end_with_the_last_handle(bed: &Bed) {
    let dropped = Arc::new(AtomicUsize::new(0));
    let env = bed.another();
    for lane in LANES {
        let flag = Flag(Arc::clone(&dropped));
        // Never woken, and with no handle of its own.
        drop(env.spawner().spawn(lane, "test", async move {
            let _flag = flag;
            std::future::pending::<()>().await;
        }));
    }
    let file = block_on(env.fs().open(bed.path("f"), creator(Class::Foreground))).unwrap();
    let clone = env.clone();
    drop(env);
    drop(clone);
    assert_eq!(block_on(file.write_at(buf(b"abc"), 0)).0.unwrap(), 3, "a file is a handle");
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    drop(file);
    eventually("lanes live on", || dropped.load(Ordering::SeqCst) == 3);
}

fn queued_tasks_run_before_the_end(bed: &Bed) {
    for _ in 0..50 {
        let env = bed.another();
        let tasks: Vec<_> =
            LANES.map(|lane| env.spawner().spawn(lane, "test", async { 5 })).into_iter().collect();
        drop(env);
        for task in tasks {
            assert_eq!(block_on(task).unwrap(), 5);
        }
    }
}

fn shutdown_waits_for_the_kernel(bed: &Bed) {
    let bytes = pattern(1 << 20, 5);
    bed.plant("f", &bytes);
    for class in CLASSES {
        let env = bed.another();
        let file = block_on(env.fs().open(bed.path("f"), direct(reader(class)))).unwrap();
        let mut ops: Vec<_> =
            (0..256).map(|i| file.read_at(AlignedBuf::zeroed(4096), i * 4096)).collect();
        let early: Vec<_> = ops.iter_mut().map(poll_once).collect();
        block_on(env.shutdown());
        for (i, (op, early)) in ops.into_iter().zip(early).enumerate() {
            let (result, back) = match early {
                Poll::Ready(answer) => answer,
                Poll::Pending => block_on(op),
            };
            assert_eq!(result.unwrap(), 4096, "started before the shutdown");
            assert!(back[..] == bytes[i * 4096..(i + 1) * 4096]);
        }
    }
}

fn shutdown_drops_the_tasks_of_the_lanes(bed: &Bed) {
    let env = bed.another();
    let dropped = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    for lane in LANES {
        for kind in 0..3 {
            let (flag, handle) = (Flag(Arc::clone(&dropped)), env.clone());
            tasks.push(env.spawner().spawn(lane, "test", async move {
                let _flag = flag;
                match kind {
                    0 => std::future::pending::<()>().await,
                    1 => handle.clock().sleep(Duration::from_secs(3600)).await,
                    _ => loop {
                        handle.clock().sleep(Duration::ZERO).await;
                        let mut yielded = false;
                        std::future::poll_fn(|cx| {
                            cx.waker().wake_by_ref();
                            let ready = std::mem::replace(&mut yielded, true);
                            if ready { Poll::Ready(()) } else { Poll::Pending }
                        })
                        .await;
                    },
                }
            }));
        }
    }
    pause(5);
    block_on(env.shutdown());
    assert_eq!(dropped.load(Ordering::SeqCst), 9);
    for task in tasks {
        assert!(block_on(task).is_err());
    }
}

/// Whoever shuts down from a lane is dropped with the lane; nobody waits for ever.
fn shutdown_from_a_lane(bed: &Bed) {
    for lane in LANES {
        let env = bed.another();
        let handle = env.clone();
        let task = env.spawner().spawn(lane, "test", async move { handle.shutdown().await });
        assert!(block_on(task).is_err());
        block_on(env.shutdown());
    }
}

fn after_the_shutdown(bed: &Bed) {
    let env = bed.another();
    let files = CLASSES.map(|class| {
        bed.plant(&format!("{class:?}"), &[0; 8192]);
        let open = env.fs().open(bed.path(&format!("{class:?}")), direct(writer(class)));
        block_on(open).unwrap()
    });
    let (fs, spawner, clock) = (env.fs().clone(), env.spawner().clone(), env.clock().clone());
    block_on(env.clone().shutdown());
    block_on(env.shutdown());
    for file in files {
        let e = block_on(file.read_at(AlignedBuf::zeroed(4096), 0)).0.unwrap_err();
        assert!(e.to_string().contains("shut down"), "{e}");
        assert!(block_on(file.write_at_durable(AlignedBuf::zeroed(4096), 0)).0.is_err());
        assert!(block_on(file.sync_data()).is_err());
        assert!(block_on(file.set_len(0)).is_err());
    }
    assert!(block_on(fs.list_dir(bed.dir.path())).is_err());
    for lane in LANES {
        assert!(block_on(spawner.spawn(lane, "test", async {})).is_err());
    }
    block_on(clock.sleep(Duration::from_millis(1)));
}

/// A waker is foreign code; its panic must not take a thread of ours with it.
fn wakers_that_panic(bed: &Bed) {
    struct Angry(AtomicBool);
    impl std::task::Wake for Angry {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
            panic!("do not wake me");
        }
    }
    let file = bed.file("f", &[5; 8192], direct(reader(Class::Foreground)));
    let angry = Arc::new(Angry(AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&angry));
    let mut op = file.read_at(AlignedBuf::zeroed(4096), 0);
    if Pin::new(&mut op).poll(&mut Context::from_waker(&waker)).is_pending() {
        eventually("nobody wakes", || angry.0.load(Ordering::SeqCst));
    }
    assert_eq!(read(&file, 4096, 4096), [5; 4096]);
    let clock = bed.env.clock().clone();
    let angry = Arc::new(Angry(AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&angry));
    let mut sleep = clock.sleep(Duration::from_millis(5));
    assert!(Pin::new(&mut sleep).poll(&mut Context::from_waker(&waker)).is_pending());
    eventually("nobody wakes", || angry.0.load(Ordering::SeqCst));
    block_on(clock.sleep(Duration::from_millis(1)));
    let task = bed.env.spawner().spawn(Lane::Log, "test", async { 3 });
    assert_eq!(block_on(task).unwrap(), 3);
}
