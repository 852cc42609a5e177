//! Executors, tasks and dropped futures: who may poll, and what happens when nobody does.

use std::collections::BTreeMap;
use std::future::{Future, IntoFuture};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, Wake, Waker};

use futures::stream::{FuturesUnordered, StreamExt};
use futures::{FutureExt, TryStreamExt};
use seerdb::{
    Batch, BatchCommit, DB, DBOptions, Durability, Env, Error, ErrorKind, Get, GetFuture,
    RangeStream, Snapshot, Stats, Write, WriteFuture,
};
use tokio::runtime::{Builder, Runtime};

use crate::common::{collect, kind, moment, noise, open, place, reopen, run, tiny};

/// A waker, and a call that blocks until it has been woken.
pub(crate) fn parker() -> (Waker, impl Fn()) {
    struct Ring(mpsc::Sender<()>);
    impl Wake for Ring {
        fn wake(self: Arc<Self>) {
            // Nobody listens any more when the future was dropped.
            self.0.send(()).ok();
        }
    }
    let (sender, receiver) = mpsc::channel();
    (Waker::from(Arc::new(Ring(sender))), move || receiver.recv().unwrap())
}

/// Polls at most so many times, each time after a wake-up.
fn poll_times<F: Future + ?Sized>(mut future: Pin<&mut F>, polls: usize) -> Option<F::Output> {
    let (waker, parked) = parker();
    let mut cx = Context::from_waker(&waker);
    for poll in 0..polls {
        if poll > 0 {
            parked();
        }
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return Some(output);
        }
    }
    None
}

fn multi_thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap()
}

/// Fails to compile when a type or a future may not move to another task.
#[test]
fn everything_may_be_sent_to_another_task() {
    fn owned<T: Send + 'static>() {}
    fn shared<T: Send + Sync + 'static>() {}
    fn spawnable<F: Future + Send + 'static>(future: F) {
        drop(future);
    }
    shared::<DB>();
    shared::<Snapshot>();
    shared::<DBOptions>();
    shared::<Env>();
    shared::<Error>();
    shared::<Stats>();
    shared::<seerdb::blocking::DB>();
    owned::<RangeStream>();
    owned::<Batch>();
    owned::<BatchCommit>();
    owned::<Write>();
    owned::<WriteFuture>();
    owned::<Get<'static, Vec<u8>>>();
    owned::<GetFuture<'static, &'static [u8]>>();

    let (dir, db) = open(&tiny());
    let path = dir.path().join("other");
    spawnable(async move { DB::open(path).await });
    spawnable(db.put("k", "v").into_future());
    let (a, b, c, d) = (db.clone(), db.clone(), db.clone(), db.clone());
    spawnable(async move { a.get("k").await });
    spawnable(async move { a_borrowed_key(&b, String::from("k")).await });
    spawnable(async move { c.get_many(["k"]).await });
    spawnable(async move { d.range("a".."b").rev().try_next().await });
    let (a, b, c, snapshot) = (db.clone(), db.clone(), db.clone(), db.snapshot());
    spawnable(async move { a.flush().await });
    spawnable(async move { b.close().await });
    spawnable(async move { c.wait_durable(1).await });
    spawnable(async move { snapshot.get_many(["k"]).await });
}

async fn a_borrowed_key(db: &DB, key: String) -> seerdb::Result<Option<bytes::Bytes>> {
    db.get(key.as_str()).fill_cache(false).await
}

async fn a_bit_of_everything(db: &DB, name: &str) {
    for i in 0..60u64 {
        db.put(format!("{name}/{i:02}"), noise(i, 70)).await.unwrap();
    }
    db.delete(format!("{name}/07")).await.unwrap();
    let snapshot = db.snapshot();
    let mut batch = db.batch();
    batch.put(format!("{name}/07"), "back").delete(format!("{name}/08"));
    batch.commit().await.unwrap();
    assert_eq!(db.get(format!("{name}/07")).await.unwrap().unwrap(), "back");
    assert_eq!(snapshot.get(format!("{name}/07")).await.unwrap(), None);
    db.flush().await.unwrap();
    let found: Vec<_> = db.prefix(format!("{name}/")).rev().try_collect().await.unwrap();
    assert_eq!(found.len(), 59);
    let found: Vec<_> = snapshot.prefix(format!("{name}/")).try_collect().await.unwrap();
    assert_eq!(found.len(), 59);
}

#[test]
fn any_executor_will_do() {
    let (_dir, db) = open(&tiny());
    run(a_bit_of_everything(&db, "block_on"));
    let current = Builder::new_current_thread().build().unwrap();
    current.block_on(a_bit_of_everything(&db, "current_thread"));
    multi_thread().block_on(async {
        let db = db.clone();
        tokio::spawn(async move { a_bit_of_everything(&db, "multi_thread").await }).await.unwrap();
    });
    let mut pool = futures::executor::LocalPool::new();
    pool.run_until(a_bit_of_everything(&db, "local_pool"));
    assert!(poll_times(pin!(a_bit_of_everything(&db, "by hand")), usize::MAX).is_some());
    assert_eq!(collect(db.iter()).len(), 5 * 59);
}

#[test]
fn a_runtime_may_end_before_the_database() {
    for round in 0..6 {
        let (_dir, db) = open(&tiny());
        let runtime = multi_thread();
        let started = Arc::new(AtomicU64::new(0));
        for task in 0..20u64 {
            let (db, started) = (db.clone(), started.clone());
            runtime.spawn(async move {
                for i in 0u64.. {
                    db.put(format!("{task:02}/{i:05}"), noise(i, 60)).await.unwrap();
                    started.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        while started.load(Ordering::Relaxed) < 40 * round {
            run(moment());
        }
        // Writes that wait for the log or for memory go down with it.
        if round % 2 == 0 {
            drop(runtime)
        } else {
            runtime.shutdown_background()
        }
        let last = run(db.put("zz", "after")).unwrap();
        run(db.wait_durable(last)).unwrap();
        Builder::new_current_thread().build().unwrap().block_on(async {
            db.flush().await.unwrap();
            assert_eq!(db.get("zz").await.unwrap().unwrap(), "after");
        });
        // Each task's writes are there up to its last one.
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for (key, value) in collect(db.prefix("").limit(usize::MAX)) {
            let key = String::from_utf8(key.to_vec()).unwrap();
            let Some((task, i)) = key.split_once('/') else { continue };
            let count = counts.entry(task.into()).or_default();
            assert_eq!((i.parse::<u64>().unwrap(), value), (*count, noise(*count, 60)));
            *count += 1;
        }
        if round % 2 == 0 {
            run(db.close()).unwrap();
        }
    }
}

fn three_parts(db: &DB, i: u64) -> Pin<Box<WriteFuture>> {
    let mut batch = db.batch();
    for part in 0..3 {
        batch.put(format!("{i:03}/{part}"), noise(i, 500));
    }
    Box::pin(batch.commit().into_future())
}

/// How many parts of that batch are there.
fn parts(db: &DB, i: u64) -> usize {
    let found = run(db.get_many((0..3).map(|part| format!("{i:03}/{part}")))).unwrap();
    let found = found.into_iter().flatten();
    found.inspect(|value| assert_eq!(*value, noise(i, 500))).count()
}

#[test]
fn a_write_dropped_after_any_number_of_polls_is_whole_or_absent() {
    for durability in [Durability::Synced, Durability::Written, Durability::Buffered] {
        let (_dir, path) = place();
        let options = tiny().durability(durability).wal_segment_bytes(128 << 10);
        let db = run(options.open(&path)).unwrap();
        let mut present = Vec::new();
        for round in 0..60u64 {
            // Up to six at once: the later ones wait for memory or for a segment.
            let numbers: Vec<u64> = (0..round % 7).map(|i| round * 10 + i).collect();
            let mut writes: Vec<_> = numbers.iter().map(|i| three_parts(&db, *i)).collect();
            let done: Vec<_> = writes.iter_mut().map(|w| poll_times(w.as_mut(), 1)).collect();
            drop(three_parts(&db, 999));
            drop(writes);
            let seqno = run(db.put("behind", "it")).unwrap();
            for (i, done) in numbers.into_iter().zip(done) {
                let count = parts(&db, i);
                assert!(count == 0 || count == 3, "write {i} is torn: {count} of 3");
                assert!(done.is_none_or(|done| done.unwrap() < seqno && count == 3));
                if count == 3 {
                    present.push(i);
                }
            }
        }
        assert_eq!(parts(&db, 999), 0, "an unpolled write took place");
        assert!(present.len() > 50, "too few took place to tell");
        run(db.close()).unwrap();
        let db = run(options.open(&path)).unwrap();
        for i in present {
            assert_eq!(parts(&db, i), 3);
        }
    }
}

#[test]
fn a_write_dropped_when_it_was_granted_memory_gives_it_back() {
    // Memory for two memtables of 4 KiB: each of these fits only where nothing else is.
    let (_dir, db) = open(&tiny());
    for round in 0..5u64 {
        run(db.put("small", noise(round, 500))).unwrap();
        let flushes = db.stats().flushes;
        let mut waiting: Vec<_> = (0..3u64)
            .map(|i| Box::pin(db.put(format!("large/{i}"), noise(i, 9000)).into_future()))
            .collect();
        for write in &mut waiting {
            assert!(poll_times(write.as_mut(), 1).is_none(), "it has to wait");
        }
        // The flush of the small one makes room for the first, which is never polled again.
        while db.stats().flushes == flushes {
            run(moment());
        }
        drop(waiting);
        run(db.put("behind", noise(round, 9000))).unwrap();
        assert_eq!(collect(db.prefix("large/")).len(), 0);
    }
}

#[test]
fn reads_dropped_after_any_number_of_polls_leave_no_trace() {
    let (_dir, db) = open(&tiny().cache_bytes(0));
    for i in 0..300u64 {
        run(db.put(format!("{i:03}"), noise(i, 60))).unwrap();
    }
    run(db.flush()).unwrap();
    for polls in 0..4 {
        for i in (0..300u64).step_by(7) {
            let key = format!("{i:03}");
            poll_times(pin!(db.get(&key).into_future()), polls);
            let keys = [key.as_str(), "100", "200", "none"];
            poll_times(pin!(db.get_many(keys)), polls);
            let mut stream = db.range(key.as_str()..);
            poll_times(pin!(stream.next()), polls);
            assert_eq!(run(db.get(&key)).unwrap().unwrap(), noise(i, 60));
        }
        poll_times(pin!(db.flush()), polls);
        poll_times(pin!(db.wait_durable(300)), polls);
    }
    assert_eq!(db.stats().snapshots, 0);
    assert_eq!(collect(db.iter()).len(), 300);
}

/// Money moves between accounts in batches; every reader finds the same sum.
#[test]
fn a_batch_is_seen_whole_by_every_kind_of_read() {
    const ACCOUNTS: u64 = 16;
    let (_dir, db) = open(&tiny().durability(Durability::Written));
    let key = |account: u64| format!("account/{account:02}");
    let number = |value: &bytes::Bytes| u64::from_le_bytes(value[..8].try_into().unwrap());
    let mut batch = db.batch();
    for account in 0..ACCOUNTS {
        batch.put(key(account), 1000u64.to_le_bytes());
    }
    run(batch.commit()).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let runtime = multi_thread();
    let mut readers = Vec::new();
    for reader in 0..6 {
        let (db, done) = (db.clone(), done.clone());
        readers.push(runtime.spawn(async move {
            let mut reads = 0;
            while reads == 0 || !done.load(Ordering::Relaxed) {
                let values: Vec<u64> = match reader % 3 {
                    0 => {
                        let found = db.get_many((0..ACCOUNTS).map(key)).await.unwrap();
                        found.iter().map(|value| number(value.as_ref().unwrap())).collect()
                    }
                    1 => {
                        let stream = db.prefix("account/");
                        let stream = if reads % 2 == 0 { stream } else { stream.rev() };
                        stream.map(|item| number(&item.unwrap().1)).collect().await
                    }
                    _ => {
                        let snapshot = db.snapshot();
                        let mut values = Vec::new();
                        for account in 0..ACCOUNTS {
                            let value = snapshot.get(key(account)).await.unwrap().unwrap();
                            values.push(number(&value));
                        }
                        values
                    }
                };
                assert_eq!(values.len() as u64, ACCOUNTS, "reader {reader}");
                assert_eq!(values.iter().sum::<u64>(), 1000 * ACCOUNTS, "reader {reader}");
                reads += 1;
            }
            reads
        }));
    }
    runtime.block_on(async {
        for round in 0..3000u64 {
            let (from, to) = (round * 7 % ACCOUNTS, (round * 5 + 1) % ACCOUNTS);
            if from == to {
                continue;
            }
            let found = db.get_many([key(from), key(to)]).await.unwrap();
            let amounts: Vec<u64> = found.iter().flatten().map(number).collect();
            let moved = amounts[0].min(round % 50);
            // Long values, so that memtables fill up and tables are merged meanwhile.
            let padded = |amount: u64| [amount.to_le_bytes().to_vec(), vec![b'.'; 100]].concat();
            let mut batch = db.batch();
            batch.put(key(from), padded(amounts[0] - moved));
            batch.put(key(to), padded(amounts[1] + moved));
            batch.commit().await.unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.await.unwrap();
        }
    });
    assert!(db.stats().flushes > 10, "{:?}", db.stats());
}

async fn one_of_a_thousand(db: DB, task: u64) -> u64 {
    let durabilities = [Durability::Buffered, Durability::Written, Durability::Synced];
    let key = |i: u64| format!("{:02}/{task:04}/{i}", task % 16);
    for (i, durability) in (0..8u64).zip(durabilities.into_iter().cycle().skip(1)) {
        db.put(key(i), noise(task * 10 + i, 120)).durability(durability).await.unwrap();
    }
    let snapshot = db.snapshot();
    let mut batch = db.batch();
    batch.delete(key(0)).put(key(1), noise(task, 40)).put(key(8), noise(task, 3000));
    let seqno = batch.commit().await.unwrap();
    match task % 5 {
        0 => db.flush().await.unwrap(),
        1 => db.wait_durable(seqno).await.unwrap(),
        2 => drop(db.get(key(3)).into_future().now_or_never()),
        3 => drop(db.put(key(9), noise(task, 10)).into_future().now_or_never()),
        _ => {}
    }
    let found = db.get_many((0..9).map(key)).await.unwrap();
    assert_eq!(found[0], None);
    assert_eq!(found[1], Some(noise(task, 40)));
    for (i, found) in (0..8u64).zip(&found).skip(2) {
        assert_eq!(*found, Some(noise(task * 10 + i, 120)));
    }
    assert_eq!(found[8], Some(noise(task, 3000)));
    let prefix = format!("{:02}/{task:04}/", task % 16);
    let before: Vec<_> = snapshot.prefix(&prefix).rev().try_collect().await.unwrap();
    assert_eq!(before.len(), 8);
    assert_eq!(before[7], (key(0).into(), noise(task * 10, 120)));
    let mut stream = db.prefix(&prefix);
    drop(stream.next().now_or_never());
    db.delete(key(2)).await.unwrap();
    assert_eq!(db.get(key(2)).await.unwrap(), None);
    u64::from(db.get(key(9)).await.unwrap().is_some())
}

#[test]
fn a_thousand_tasks_do_everything_at_once() {
    let (dir, db) = open(&tiny().memtable_bytes(32 << 10).wal_segment_bytes(128 << 10));
    let extra = multi_thread().block_on(async {
        let tasks: FuturesUnordered<_> =
            (0..1000).map(|task| tokio::spawn(one_of_a_thousand(db.clone(), task))).collect();
        tasks.map(|extra| extra.unwrap()).collect::<Vec<u64>>().await.into_iter().sum::<u64>()
    });
    let expected = 1000 * 7 + extra;
    let at_least = |found: usize| assert!(found as u64 >= expected, "{found} of {expected}");
    at_least(collect(db.iter()).len());
    let forward = collect(db.iter());
    let mut backward = collect(db.iter().rev());
    backward.reverse();
    assert!(forward == backward);
    run(db.close()).unwrap();
    let db = run(tiny().open(dir.path().join("db"))).unwrap();
    assert!(collect(db.iter()) == forward, "a reopen changes nothing");
}

#[test]
fn a_close_amid_writes_leaves_each_of_them_done_or_refused() {
    for round in 0..8u64 {
        let (_dir, path) = place();
        let db = run(tiny().open(&path)).unwrap();
        let runtime = multi_thread();
        let acked = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = (0..16u64)
            .map(|task| {
                let (db, acked) = (db.clone(), acked.clone());
                runtime.spawn(async move {
                    for i in 0u64.. {
                        match db.put(format!("{task:02}/{i:05}"), noise(i, 300)).await {
                            Ok(_) => acked.fetch_add(1, Ordering::Relaxed),
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
                                return (task, i);
                            }
                        };
                    }
                    unreachable!("the close ends it")
                })
            })
            .collect();
        let counts: Vec<(u64, u64)> = runtime.block_on(async {
            while acked.load(Ordering::Relaxed) < 30 * round {
                tokio::task::yield_now().await;
            }
            db.close().await.unwrap();
            futures::future::join_all(tasks).await.into_iter().map(|count| count.unwrap()).collect()
        });
        assert_eq!(kind(run(db.get("k"))), ErrorKind::Closed);
        drop(db);
        let db = reopen(&tiny(), &path);
        for (task, count) in counts {
            let found = collect(db.prefix(format!("{task:02}/"))).len() as u64;
            assert_eq!(found, count, "task {task}: acknowledged and refused, nothing between");
        }
    }
}

#[test]
fn a_future_may_move_to_another_thread_between_two_polls() {
    let (_dir, db) = open(&tiny());
    let futures: Vec<_> = (0..20u64)
        .map(|i| {
            let mut write = Box::pin(db.put(format!("{i:02}"), noise(i, 500)).into_future());
            let polled = poll_times(write.as_mut(), 1);
            (write, polled)
        })
        .collect();
    std::thread::scope(|scope| {
        for (write, polled) in futures {
            scope.spawn(move || match polled {
                Some(done) => drop(done.unwrap()),
                None => drop(run(write).unwrap()),
            });
        }
    });
    assert_eq!(collect(db.iter()).len(), 20);
}

#[test]
fn polling_a_resolved_future_panics_and_does_no_harm() {
    let (_dir, db) = open(&tiny());
    let mut write = Box::pin(db.put("k", "v").into_future());
    run(write.as_mut()).unwrap();
    let mut get = Box::pin(db.get("k").into_future());
    assert_eq!(run(get.as_mut()).unwrap().unwrap(), "v");
    let again = std::panic::AssertUnwindSafe(|| drop(poll_times(write.as_mut(), 1)));
    assert!(std::panic::catch_unwind(again).is_err());
    let again = std::panic::AssertUnwindSafe(|| drop(poll_times(get.as_mut(), 1)));
    assert!(std::panic::catch_unwind(again).is_err());
    run(db.put("k", "again")).unwrap();
    assert_eq!(run(db.get("k")).unwrap().unwrap(), "again");
    run(db.close()).unwrap();
}

/// What is forgotten keeps its memory and its place, and nothing more.
#[test]
fn a_forgotten_future_hinders_neither_work_nor_close() {
    let (_dir, path) = place();
    let options = tiny().cache_bytes(0);
    let db = run(options.open(&path)).unwrap();
    for i in 0..100u64 {
        run(db.put(format!("{i:03}"), noise(i, 100))).unwrap();
    }
    run(db.flush()).unwrap();
    let mut read = Box::pin(db.get("050").into_future());
    drop(poll_times(read.as_mut(), 1));
    std::mem::forget(read);
    let mut write = Box::pin(db.put("100", noise(100, 100)).into_future());
    drop(poll_times(write.as_mut(), 1));
    std::mem::forget(write);
    let mut stream = db.iter();
    drop(stream.next().now_or_never());
    std::mem::forget(stream);
    let mut flush = Box::pin(db.flush());
    drop(poll_times(flush.as_mut(), 1));
    std::mem::forget(flush);
    std::mem::forget((db.snapshot(), db.batch(), db.put("never", "v").into_future()));
    for i in 101..200u64 {
        run(db.put(format!("{i:03}"), noise(i, 100))).unwrap();
    }
    // The forgotten write took place unless its one poll found no room.
    let taken = run(db.get("100")).unwrap();
    assert!(taken.as_ref().is_none_or(|value| *value == noise(100, 100)));
    run(db.close()).unwrap();
    let db = run(options.open(&path)).unwrap();
    assert_eq!(run(db.get("100")).unwrap(), taken);
    assert_eq!(collect(db.iter()).len(), 199 + usize::from(taken.is_some()));
}
