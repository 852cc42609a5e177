//! Plays the operations of a case and writes down every answer, for comparison with another play.
//!
//! An operation whose answer depends on timing is played in a way that does not: a `try_put` as a
//! put, a dropped write as one that is awaited, writes that are made together with each key once,
//! since their order is free. What is held over a close is dropped before.

use std::collections::BTreeSet;
use std::future::IntoFuture;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::join_all;
use seerdb::{DB, Durability, Env, ErrorKind, RangeStream, Result, SeqNo, Snapshot};

use crate::exec::{HELD_MAX, pick, pick_ref, remove};
use crate::ops::{Change, Key, Op, Opts, Scan, Span, filled};

/// An item of a stream.
type Item = (Bytes, Bytes);

/// Plays `ops` in a new database below `dir`; every open takes the next of `opts`, in a circle.
pub(crate) async fn play(env: &Env, dir: &Path, ops: &[Op], opts: &[Opts]) -> Vec<String> {
    let mut player = Player {
        env,
        dir: dir.join("db"),
        opts,
        opens: 0,
        db: None,
        snapshots: Vec::new(),
        streams: Vec::new(),
        writes: 0,
        last: 0,
        lines: Vec::new(),
    };
    player.open().await;
    for (number, op) in ops.iter().enumerate() {
        player.lines.push(format!("{number}: {op:?}"));
        player.step(op).await;
    }
    player.lines.push("the end".into());
    let whole = Scan { span: Span::All, reverse: false, limit: None, fill_cache: true };
    for scan in [whole.clone(), Scan { reverse: true, ..whole }] {
        let stream = player.stream(None, &scan);
        player.drain(stream).await;
    }
    let closed = player.db().close().await;
    player.say(closed);
    player.lines
}

struct Player<'a> {
    env: &'a Env,
    dir: PathBuf,
    opts: &'a [Opts],
    opens: usize,
    /// None between a close and the next open.
    db: Option<DB>,
    snapshots: Vec<Snapshot>,
    streams: Vec<RangeStream>,
    /// Writes so far: it marks their values.
    writes: u64,
    /// The seqno of the last write.
    last: SeqNo,
    lines: Vec<String>,
}

impl Player<'_> {
    fn db(&self) -> &DB {
        self.db.as_ref().expect("operations run on an open database")
    }

    /// Notes an answer.
    fn say<T: std::fmt::Debug>(&mut self, answer: Result<T>) {
        self.lines.push(match answer {
            Ok(answer) => format!("  {answer:?}"),
            Err(error) => format!("  {:?}: {error}", error.kind()),
        });
    }

    async fn step(&mut self, op: &Op) {
        match op {
            Op::Write(change, own) | Op::Dropped(change, own) => self.write(change, *own).await,
            Op::TryPut(key, len) => self.write(&(key.clone(), Some(*len)), None).await,
            Op::Batch(changes, own) => self.batch(changes, *own).await,
            Op::Together(writes) => self.write_together(writes).await,
            Op::Get(key, fill) => {
                let found = self.db().get(key.bytes()).fill_cache(*fill).await;
                self.say(found.map(|value| value.as_ref().map(shown)));
            }
            Op::GetMany(keys) => {
                let found = self.db().get_many(keys.iter().map(Key::bytes)).await;
                self.say(found.map(shown_all));
            }
            Op::Scan(scan) => {
                let stream = self.stream(None, scan);
                self.drain(stream).await;
            }
            Op::Stream(slot, scan) => {
                let stream = self.stream(*slot, scan);
                if self.streams.len() < HELD_MAX {
                    self.streams.push(stream);
                }
            }
            Op::StreamTake(slot, count, polled) => self.take(*slot, *count, *polled).await,
            Op::StreamSeek(slot, key) => {
                if let Some(stream) = pick(&mut self.streams, *slot) {
                    stream.seek(key.bytes());
                }
            }
            Op::Pages(slot, scan, page) => {
                let first = self.stream(*slot, scan).limit(usize::from(*page));
                let cursor = first.cursor();
                self.drain(first).await;
                let again = self.stream(*slot, scan).limit(usize::from(*page)).resume(&cursor);
                self.drain(again).await;
            }
            Op::StreamDrop(slot) => drop(remove(&mut self.streams, *slot)),
            Op::Snapshot
            | Op::SnapshotGet(..)
            | Op::SnapshotGetMany(..)
            | Op::SnapshotScan(..)
            | Op::SnapshotDrop(_) => self.snapshot(op).await,
            Op::Flush | Op::WaitDurable | Op::Settle | Op::Stats => self.control(op).await,
            Op::Reopen(_) => self.reopen(true).await,
            Op::DropReopen(_) => self.reopen(false).await,
        }
    }

    fn filled(&mut self, change: &Change) -> (Vec<u8>, Option<Bytes>) {
        self.writes += 1;
        filled(change, self.writes)
    }

    async fn write(&mut self, change: &Change, own: Option<Durability>) {
        self.write_together(&[(change.clone(), own)]).await;
    }

    async fn write_together(&mut self, writes: &[(Change, Option<Durability>)]) {
        let mut keys = BTreeSet::new();
        let mut futures = Vec::new();
        for (change, own) in writes {
            let (key, value) = self.filled(change);
            if !keys.insert(key.clone()) {
                continue;
            }
            let write = match value {
                Some(value) => self.db().put(&key, value),
                None => self.db().delete(&key),
            };
            futures.push(match own {
                Some(own) => write.durability(*own).into_future(),
                None => write.into_future(),
            });
        }
        let seqnos: Result<BTreeSet<SeqNo>> = join_all(futures).await.into_iter().collect();
        self.last = seqnos.iter().flatten().last().copied().unwrap_or(self.last);
        self.say(seqnos);
    }

    async fn batch(&mut self, changes: &[Change], own: Option<Durability>) {
        let changes: Vec<_> = changes.iter().map(|change| self.filled(change)).collect();
        let mut batch = self.db().batch();
        for (key, value) in changes {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            };
        }
        let commit = batch.commit();
        let seqno = match own {
            Some(own) => commit.durability(own).await,
            None => commit.await,
        };
        self.last = *seqno.as_ref().unwrap_or(&self.last);
        self.say(seqno);
    }

    /// A stream of the present, or of a held snapshot.
    fn stream(&self, slot: Option<u8>, scan: &Scan) -> RangeStream {
        scan.stream(self.db(), slot.and_then(|slot| pick_ref(&self.snapshots, slot)))
    }

    /// Notes an item, or the end.
    fn say_item(&mut self, item: Option<Result<Item>>) {
        match item {
            Some(item) => self.say(item.map(|(key, value)| (shown(&key), shown(&value)))),
            None => self.lines.push("  no more".into()),
        }
    }

    async fn drain(&mut self, mut stream: RangeStream) {
        loop {
            let item = stream.next().await;
            let is_end = item.is_none();
            self.say_item(item);
            if is_end {
                return;
            }
        }
    }

    async fn take(&mut self, slot: u8, count: u8, polled: bool) {
        for _ in 0..count {
            let Some(stream) = pick(&mut self.streams, slot) else { return };
            let early = if polled { stream.next().now_or_never() } else { None };
            let item = match early {
                Some(item) => item,
                None => stream.next().await,
            };
            self.say_item(item);
        }
    }

    async fn snapshot(&mut self, op: &Op) {
        match op {
            Op::Snapshot => {
                let snapshot = self.db().snapshot();
                self.say(Ok(snapshot.seqno()));
                if self.snapshots.len() < HELD_MAX {
                    self.snapshots.push(snapshot);
                }
            }
            Op::SnapshotGet(slot, key) => {
                if let Some(snapshot) = pick_ref(&self.snapshots, *slot) {
                    let found = snapshot.get(key.bytes()).await;
                    self.say(found.map(|value| value.as_ref().map(shown)));
                }
            }
            Op::SnapshotGetMany(slot, keys) => {
                if let Some(snapshot) = pick_ref(&self.snapshots, *slot) {
                    let found = snapshot.get_many(keys.iter().map(Key::bytes)).await;
                    self.say(found.map(shown_all));
                }
            }
            Op::SnapshotScan(slot, scan) => {
                let stream = self.stream(Some(*slot), scan);
                self.drain(stream).await;
            }
            Op::SnapshotDrop(slot) => drop(remove(&mut self.snapshots, *slot)),
            _ => unreachable!("{op:?} is about no snapshot"),
        }
    }

    async fn control(&mut self, op: &Op) {
        match op {
            Op::Flush => {
                let flushed = self.db().flush().await;
                let left = self.db().stats().memtable_bytes;
                self.say(flushed.map(|()| left));
            }
            Op::WaitDurable => {
                let waited = self.db().wait_durable(self.last).await;
                let durable = self.db().durable_seqno();
                self.say(waited.map(|()| durable));
            }
            Op::Settle => self.env.clock().sleep(Duration::from_millis(2)).await,
            _ => {
                let stats = self.db().stats();
                self.say(Ok((stats.visible_seqno, stats.snapshots)));
            }
        }
    }

    async fn reopen(&mut self, closes: bool) {
        self.streams.clear();
        if closes {
            let closed = self.db().close().await;
            self.say(closed);
            for snapshot in std::mem::take(&mut self.snapshots) {
                let found = snapshot.get(b"a").await;
                self.say(found);
            }
        }
        self.snapshots.clear();
        self.db = None;
        self.open().await;
        let seqno = self.db().stats().visible_seqno;
        self.say(Ok(seqno));
    }

    async fn open(&mut self) {
        let opts = self.opts.get(self.opens % self.opts.len()).expect("taken modulo its length");
        self.opens += 1;
        let options = opts.options(self.env);
        self.db = loop {
            match options.open(&self.dir).await {
                // The last handle was dropped; the engine is closing on its own threads.
                Err(e) if e.kind() == ErrorKind::Locked => {
                    self.env.clock().sleep(Duration::from_micros(200)).await;
                }
                opened => break Some(opened.expect("nothing fails here")),
            }
        };
    }
}

/// Bytes in short: the head, the length, and a hash of all.
fn shown(bytes: &Bytes) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let head = bytes.get(..12).unwrap_or(bytes).escape_ascii();
    format!("{head} ({} bytes, {:x})", bytes.len(), hasher.finish())
}

fn shown_all(values: Vec<Option<Bytes>>) -> Vec<Option<String>> {
    values.iter().map(|value| value.as_ref().map(shown)).collect()
}
