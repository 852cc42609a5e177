//! Runs a case on a database and on the model, and compares.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{Either, join_all, select};
use seerdb::{Cursor, DB, Durability, Env, ErrorKind, SeqNo, Snapshot, WriteFuture};

use crate::held::{Check, Held, ensure, shown_value};
use crate::ops::{Case, Change, Key, Op, Opts, Scan, Span, filled};
use crate::oracle::Model;

/// A case that takes longer hangs; on a loaded machine it takes milliseconds.
const HANGS: Duration = Duration::from_secs(60);
/// Snapshots, and streams, held at the same time.
pub(crate) const HELD_MAX: usize = 5;

/// What all cases together made the engine do.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    ops: AtomicU64,
    flushes: AtomicU64,
    merges: AtomicU64,
    reopens: AtomicU64,
    stalls: AtomicU64,
    /// Cases that had a table below level 0.
    deep: AtomicU64,
}

impl Totals {
    /// Cases must flush and merge, or they test little.
    pub(crate) fn check_floors(&self, cases: u64) {
        let floors = [
            (&self.flushes, 4 * cases, "flushes"),
            (&self.merges, cases, "merges"),
            (&self.reopens, cases / 2, "reopens"),
            (&self.deep, cases / 4, "cases with a second level"),
        ];
        for (counter, floor, name) in floors {
            let count = counter.load(Ordering::Relaxed);
            assert!(count >= floor, "only {count} {name} in {cases} cases, expected {floor}");
        }
    }
}

/// Runs `case` in the directory `dir`.
pub(crate) fn run(env: &Env, dir: &Path, case: &Case, totals: &Totals) -> Check {
    futures::executor::block_on(async {
        let at = AtomicU64::new(0);
        let running = pin!(run_ops(env, dir, case, totals, &at));
        match select(running, env.clock().sleep(HANGS)).await {
            Either::Left((outcome, _)) => {
                outcome.map_err(|what| format!("{what}{}", place(case, &at)))
            }
            Either::Right(_) => Err(format!("the case hangs{}", place(case, &at))),
        }
    })
}

fn place(case: &Case, at: &AtomicU64) -> String {
    let at = at.load(Ordering::Relaxed);
    match usize::try_from(at).ok().and_then(|at| case.ops.get(at)) {
        Some(op) => format!(" (operation {at}: {op:?})"),
        None => " (after the last operation)".into(),
    }
}

async fn run_ops(env: &Env, dir: &Path, case: &Case, totals: &Totals, at: &AtomicU64) -> Check {
    let mut world = World::open(env, dir, &case.opts, totals).await?;
    for op in &case.ops {
        world.step(op).await?;
        at.fetch_add(1, Ordering::Relaxed);
    }
    totals.ops.fetch_add(case.ops.len() as u64, Ordering::Relaxed);
    world.check_all().await?;
    for snapshot in std::mem::take(&mut world.snapshots) {
        world.check_snapshot(&snapshot).await?;
    }
    for mut held in std::mem::take(&mut world.streams) {
        held.take(usize::MAX, false).await?;
    }
    world.count();
    world.db().close().await.map_err(|e| format!("the last close: {e}"))
}

struct World<'a> {
    env: &'a Env,
    dir: &'a Path,
    opts: Opts,
    totals: &'a Totals,
    /// None between a close and the next open.
    db: Option<DB>,
    model: Model,
    snapshots: Vec<Snapshot>,
    streams: Vec<Held>,
    /// Writes so far: it marks their values.
    writes: u64,
}

impl<'a> World<'a> {
    async fn open(env: &'a Env, dir: &'a Path, opts: &Opts, totals: &'a Totals) -> Check<Self> {
        let db = opts.options(env).open(dir.join("db")).await;
        let db = db.map_err(|e| format!("the first open: {e}"))?;
        Ok(World {
            env,
            dir,
            opts: opts.clone(),
            totals,
            db: Some(db),
            model: Model::default(),
            snapshots: Vec::new(),
            streams: Vec::new(),
            writes: 0,
        })
    }

    fn db(&self) -> &DB {
        self.db.as_ref().expect("operations run on an open database")
    }

    async fn step(&mut self, op: &Op) -> Check {
        match op {
            Op::Write(..) | Op::TryPut(..) | Op::Batch(..) | Op::Together(..) | Op::Dropped(..) => {
                self.write(op).await
            }
            Op::Get(key, fill) => {
                let key = key.bytes();
                let found = self.db().get(&key).fill_cache(*fill).await;
                self.compare(&key, found, self.model.last)
            }
            Op::GetMany(keys) => {
                let found = self.db().get_many(keys.iter().map(Key::bytes)).await;
                self.compare_many(keys, found, self.model.last)
            }
            Op::Scan(scan) => {
                let mut held = self.stream(None, scan);
                held.take(usize::MAX, false).await
            }
            Op::Stream(slot, scan) => {
                let held = self.stream(*slot, scan);
                if self.streams.len() < HELD_MAX {
                    self.streams.push(held);
                }
                Ok(())
            }
            Op::StreamTake(slot, count, polled) => match pick(&mut self.streams, *slot) {
                Some(held) => held.take(usize::from(*count), *polled).await,
                None => Ok(()),
            },
            Op::StreamSeek(slot, key) => {
                if let Some(held) = pick(&mut self.streams, *slot) {
                    held.seek(&key.bytes());
                }
                Ok(())
            }
            Op::Pages(slot, scan, page) => self.pages(*slot, scan, *page).await,
            Op::StreamDrop(slot) => {
                remove(&mut self.streams, *slot);
                Ok(())
            }
            Op::Snapshot
            | Op::SnapshotGet(..)
            | Op::SnapshotGetMany(..)
            | Op::SnapshotScan(..)
            | Op::SnapshotDrop(_) => self.snapshot(op).await,
            Op::Flush | Op::WaitDurable | Op::Settle | Op::Stats => self.control(op).await,
            Op::Reopen(opts) => {
                self.close().await?;
                self.reopen(opts.as_ref(), false).await
            }
            Op::DropReopen(opts) => {
                self.drop_handles().await?;
                self.reopen(opts.as_ref(), true).await
            }
        }
    }

    /// The bytes of a change; they tell which write they belong to.
    fn change(&mut self, change: &Change) -> (Vec<u8>, Option<Bytes>) {
        self.writes += 1;
        filled(change, self.writes)
    }

    fn future(&self, change: &(Vec<u8>, Option<Bytes>), own: Option<Durability>) -> WriteFuture {
        let (key, value) = change;
        let write = match value {
            Some(value) => self.db().put(key, value.clone()),
            None => self.db().delete(key),
        };
        match own {
            Some(durability) => write.durability(durability).into_future(),
            None => write.into_future(),
        }
    }

    async fn write(&mut self, op: &Op) -> Check {
        match op {
            Op::Write(change, own) => {
                let change = self.change(change);
                let seqno = self.future(&change, *own).await;
                self.wrote(vec![change], seqno)
            }
            Op::TryPut(key, len) => {
                let (key, value) = self.change(&(key.clone(), Some(*len)));
                let value = value.unwrap_or_default();
                match self.db().try_put(&key, value.clone()).await {
                    Err(e) if e.kind() == ErrorKind::WouldStall => Ok(()),
                    seqno => self.wrote(vec![(key, Some(value))], seqno),
                }
            }
            Op::Batch(changes, own) => {
                let changes: Vec<_> = changes.iter().map(|change| self.change(change)).collect();
                let mut batch = self.db().batch();
                for (key, value) in &changes {
                    match value {
                        Some(value) => batch.put(key, value.clone()),
                        None => batch.delete(key),
                    };
                }
                let commit = batch.commit();
                let seqno = match own {
                    Some(own) => commit.durability(*own).await,
                    None => commit.await,
                };
                self.wrote(changes, seqno)
            }
            Op::Together(writes) => self.write_together(writes).await,
            Op::Dropped(change, own) => {
                let change = self.change(change);
                self.write_dropped(change, *own).await
            }
            _ => unreachable!("{op:?} is no write"),
        }
    }

    /// The changes were made in this order, as one commit that resolved to `seqno`.
    fn wrote(
        &mut self,
        changes: Vec<(Vec<u8>, Option<Bytes>)>,
        seqno: seerdb::Result<SeqNo>,
    ) -> Check {
        let seqno = seqno.map_err(|e| format!("a write failed: {e}"))?;
        for (key, value) in changes {
            self.model.write(key, value);
        }
        let last = self.model.last;
        ensure!(seqno == last, "a write got seqno {seqno} instead of {last}");
        Ok(())
    }

    async fn write_together(&mut self, writes: &[(Change, Option<Durability>)]) -> Check {
        let mut changes = Vec::new();
        let mut futures = Vec::new();
        for (change, own) in writes {
            let change = self.change(change);
            futures.push(self.future(&change, *own));
            changes.push(change);
        }
        // Each of them gets a seqno of its own, in any order.
        let mut ordered = BTreeMap::new();
        for (seqno, change) in join_all(futures).await.into_iter().zip(changes) {
            let seqno = seqno.map_err(|e| format!("a write among others failed: {e}"))?;
            ensure!(ordered.insert(seqno, change).is_none(), "seqno {seqno} was given twice");
        }
        for (seqno, change) in ordered {
            self.wrote(vec![change], Ok(seqno))?;
        }
        Ok(())
    }

    async fn write_dropped(
        &mut self,
        change: (Vec<u8>, Option<Bytes>),
        own: Option<Durability>,
    ) -> Check {
        match self.future(&change, own).now_or_never() {
            Some(seqno) => self.wrote(vec![change], seqno),
            None => {
                // The seqno of a write behind it tells whether it took place.
                let behind = (b"behind".to_vec(), None);
                let seqno = self.future(&behind, None).await;
                if seqno.as_ref().is_ok_and(|seqno| *seqno == self.model.last + 2) {
                    self.model.write(change.0, change.1);
                }
                self.wrote(vec![behind], seqno)
            }
        }
    }

    fn compare(&self, key: &[u8], found: seerdb::Result<Option<Bytes>>, at: SeqNo) -> Check {
        let shown_key = key.get(..40).unwrap_or(key).escape_ascii();
        let found = found.map_err(|e| format!("a get of \"{shown_key}\" at {at}: {e}"))?;
        let wanted = self.model.get(key, at);
        ensure!(
            found == wanted,
            "a get of \"{shown_key}\" at {at} finds {} instead of {}",
            shown_value(found.as_ref()),
            shown_value(wanted.as_ref())
        );
        Ok(())
    }

    fn compare_many(
        &self,
        keys: &[Key],
        found: seerdb::Result<Vec<Option<Bytes>>>,
        at: SeqNo,
    ) -> Check {
        let found = found.map_err(|e| format!("get_many at {at}: {e}"))?;
        ensure!(found.len() == keys.len(), "{} answers to {} keys", found.len(), keys.len());
        keys.iter()
            .zip(found)
            .try_for_each(|(key, value)| self.compare(&key.bytes(), Ok(value), at))
    }

    /// A stream of the present, or of a held snapshot.
    fn stream(&self, slot: Option<u8>, scan: &Scan) -> Held {
        let snapshot = slot.and_then(|slot| pick_ref(&self.snapshots, slot));
        let at = snapshot.map_or(self.model.last, Snapshot::seqno);
        let all = self.model.scan(&scan.unlimited(), at);
        Held::new(scan.stream(self.db(), snapshot), scan, all)
    }

    /// Reads a range page by page.
    async fn pages(&self, slot: Option<u8>, scan: &Scan, page: u8) -> Check {
        let snapshot = slot.and_then(|slot| pick_ref(&self.snapshots, slot));
        let at = snapshot.map_or(self.model.last, Snapshot::seqno);
        let Some(expected) = self.model.scan(&scan.unlimited(), at) else { return Ok(()) };
        let mut found = Vec::new();
        let mut token = scan.stream(self.db(), snapshot).cursor().to_string();
        loop {
            let cursor: Cursor = token.parse().map_err(|e| format!("the cursor {token}: {e}"))?;
            let stream = scan.unlimited().stream(self.db(), snapshot).limit(usize::from(page));
            let mut stream = stream.resume(&cursor);
            let before = found.len();
            while let Some((key, value)) =
                stream.try_next().await.map_err(|e| format!("a page: {e}"))?
            {
                found.push((key.to_vec(), value));
            }
            token = stream.cursor().to_string();
            if found.len() - before < usize::from(page) {
                break;
            }
        }
        ensure!(found == expected, "pages have {} items, not {}", found.len(), expected.len());
        Ok(())
    }

    async fn snapshot(&mut self, op: &Op) -> Check {
        match op {
            Op::Snapshot => {
                let snapshot = self.db().snapshot();
                let (seqno, last) = (snapshot.seqno(), self.model.last);
                ensure!(seqno == last, "a snapshot is at {seqno} instead of {last}");
                if self.snapshots.len() < HELD_MAX {
                    self.snapshots.push(snapshot);
                }
            }
            Op::SnapshotGet(slot, key) => {
                if let Some(snapshot) = pick_ref(&self.snapshots, *slot) {
                    let key = key.bytes();
                    let found = snapshot.get(&key).await;
                    self.compare(&key, found, snapshot.seqno())?;
                }
            }
            Op::SnapshotGetMany(slot, keys) => {
                if let Some(snapshot) = pick_ref(&self.snapshots, *slot) {
                    let found = snapshot.get_many(keys.iter().map(Key::bytes)).await;
                    self.compare_many(keys, found, snapshot.seqno())?;
                }
            }
            Op::SnapshotScan(slot, scan) => {
                self.stream(Some(*slot), scan).take(usize::MAX, false).await?;
            }
            Op::SnapshotDrop(slot) => drop(remove(&mut self.snapshots, *slot)),
            _ => unreachable!("{op:?} is about no snapshot"),
        }
        Ok(())
    }

    async fn control(&mut self, op: &Op) -> Check {
        match op {
            Op::Flush => {
                self.db().flush().await.map_err(|e| format!("a flush: {e}"))?;
                let memory = self.db().stats().memtable_bytes;
                ensure!(memory == 0, "after a flush {memory} bytes are in memtables");
            }
            Op::WaitDurable => {
                let last = self.model.last;
                self.db().wait_durable(last).await.map_err(|e| format!("wait_durable: {e}"))?;
                let durable = self.db().durable_seqno();
                ensure!(durable == last, "{durable} is durable after waiting for {last}");
            }
            Op::Settle => self.settle().await,
            _ => {
                let stats = self.db().stats();
                let (held, last) = (self.snapshots.len() + self.streams.len(), self.model.last);
                ensure!(stats.snapshots == held, "{} readers, not {held}", stats.snapshots);
                ensure!(stats.visible_seqno == last, "{} visible", stats.visible_seqno);
                ensure!(stats.durable_seqno <= last, "{} durable", stats.durable_seqno);
                let is_sane = self.db().pressure().level >= 0.0;
                ensure!(is_sane, "negative pressure");
            }
        }
        Ok(())
    }

    /// Gives merges the time to end; nothing depends on whether they do.
    async fn settle(&self) {
        let mut before = None;
        for _ in 0..20 {
            let merges = Some(self.db().stats().compactions);
            if merges == before {
                return;
            }
            before = merges;
            self.env.clock().sleep(Duration::from_millis(1)).await;
        }
    }

    /// Adds what this open has done to the totals.
    fn count(&self) {
        let stats = self.db().stats();
        let deep = stats.levels.iter().skip(1).any(|level| level.runs > 0);
        let adds = [
            (&self.totals.flushes, stats.flushes),
            (&self.totals.merges, stats.compactions),
            (&self.totals.stalls, stats.stalled_writes),
            (&self.totals.deep, u64::from(deep)),
        ];
        for (counter, count) in adds {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Closes; what is still held tells so.
    async fn close(&mut self) -> Check {
        self.count();
        self.db().close().await.map_err(|e| format!("a close: {e}"))?;
        for held in std::mem::take(&mut self.streams) {
            held.check_closed().await?;
        }
        for snapshot in std::mem::take(&mut self.snapshots) {
            let found = snapshot.get(b"a").await;
            let is_closed = matches!(&found, Err(e) if e.kind() == ErrorKind::Closed);
            ensure!(is_closed, "a snapshot of a closed database finds {found:?}");
        }
        self.db = None;
        Ok(())
    }

    /// Drops the handle; snapshots and streams go on until they are dropped too.
    async fn drop_handles(&mut self) -> Check {
        self.count();
        self.db = None;
        for snapshot in std::mem::take(&mut self.snapshots) {
            self.check_snapshot(&snapshot).await?;
        }
        for mut held in std::mem::take(&mut self.streams) {
            held.take(usize::MAX, false).await?;
        }
        Ok(())
    }

    async fn reopen(&mut self, opts: Option<&Opts>, is_closing: bool) -> Check {
        self.totals.reopens.fetch_add(1, Ordering::Relaxed);
        if let Some(opts) = opts {
            self.opts = opts.clone();
        }
        let options = self.opts.options(self.env);
        let dir = self.dir.join("db");
        let db = loop {
            match options.open(&dir).await {
                // The last handle was dropped; the engine is closing on its own threads.
                Err(e) if is_closing && e.kind() == ErrorKind::Locked => {
                    self.env.clock().sleep(Duration::from_micros(200)).await;
                }
                opened => break opened.map_err(|e| format!("a reopen: {e}"))?,
            }
        };
        self.db = Some(db);
        let (visible, last) = (self.db().stats().visible_seqno, self.model.last);
        ensure!(visible == last, "after a reopen {visible} is visible instead of {last}");
        Ok(())
    }

    /// Forward scan = reverse scan = point gets = model.
    async fn check_all(&self) -> Check {
        let mut scan = Scan { span: Span::All, reverse: false, limit: None, fill_cache: true };
        self.stream(None, &scan).take(usize::MAX, false).await?;
        scan.reverse = true;
        self.stream(None, &scan).take(usize::MAX, false).await?;
        for key in self.model.keys() {
            let found = self.db().get(key).await;
            self.compare(key, found, self.model.last)?;
        }
        Ok(())
    }

    async fn check_snapshot(&self, snapshot: &Snapshot) -> Check {
        let at = snapshot.seqno();
        let mut scan = Scan { span: Span::All, reverse: false, limit: None, fill_cache: true };
        let all = self.model.scan(&scan, at);
        Held::new(snapshot.iter(), &scan, all).take(usize::MAX, false).await?;
        scan.reverse = true;
        let stream = snapshot.iter().rev();
        let all = self.model.scan(&scan, at);
        Held::new(stream, &scan, all).take(usize::MAX, false).await?;
        for key in self.model.keys() {
            let found = snapshot.get(key).await;
            self.compare(key, found, at)?;
        }
        Ok(())
    }
}

pub(crate) fn pick<T>(held: &mut [T], slot: u8) -> Option<&mut T> {
    let index = usize::from(slot).checked_rem(held.len())?;
    held.get_mut(index)
}

pub(crate) fn pick_ref<T>(held: &[T], slot: u8) -> Option<&T> {
    let index = usize::from(slot).checked_rem(held.len())?;
    held.get(index)
}

pub(crate) fn remove<T>(held: &mut Vec<T>, slot: u8) -> Option<T> {
    let index = usize::from(slot).checked_rem(held.len())?;
    Some(held.swap_remove(index))
}
