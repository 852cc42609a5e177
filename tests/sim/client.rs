//! A client of the database: a task that writes, reads, scans, holds snapshots, drops futures.

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use seerdb::{DB, Durability, Error, RangeStream, Snapshot};
use seerdb_io::Env;
use seerdb_io::sim::Chance;

use super::context::{Call, Context};
use super::controls::Pause;
use super::disk;
use super::world::{Fate, Key, Seqno, Value};

/// One logical client.
pub(crate) struct Client {
    pub(crate) context: Rc<Context>,
    pub(crate) db: DB,
    pub(crate) env: Env,
    pub(crate) chance: Chance,
    pub(crate) id: u32,
    pub(crate) default: Durability,
    /// Held snapshots, and the merges and rewrites there were when they were taken.
    pub(crate) held: Vec<(Snapshot, u64, u64)>,
    /// The complete files of the value log, and the rewrites there were, at the last look.
    pub(crate) files: Vec<u64>,
    pub(crate) rewrites: u64,
    pub(crate) pauses: Vec<Pause>,
}

type Ops = Vec<(Key, Option<Value>)>;

/// Polls a future until it is ready, or has been pending this many times.
pub(crate) async fn poll_times<F: Future>(future: F, mut times: usize) -> Option<F::Output> {
    if times == 0 {
        return None;
    }
    let mut future = pin!(future);
    std::future::poll_fn(move |cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if times == 1 => Poll::Ready(None),
        Poll::Pending => {
            times -= 1;
            Poll::Pending
        }
    })
    .await
}

/// The name of a choice, for the report of one that does not end.
fn doing(choice: u64) -> &'static str {
    match choice {
        0..45 => "write",
        45..86 => "read",
        86..90 => "pause",
        90..94 => "control of merging",
        94..96 => "wait_durable",
        96..98 => "flush",
        98 => "compact or verify",
        _ => "close",
    }
}

impl Client {
    /// Does what its seed says.
    pub(crate) async fn run(mut self) {
        for _ in 0..self.chance.below(self.context.plan.ops + 1) {
            let choice = self.chance.below(100);
            self.context.world().doing.insert(self.id, doing(choice));
            match choice {
                0..45 => self.write().await,
                45..60 => self.get().await,
                60..66 => self.get_many().await,
                66..74 => self.scan().await,
                74..79 => self.hold(),
                79..86 => self.look_at_held().await,
                86..90 => self.pause().await,
                90..94 => self.control().await,
                94..96 => self.wait_durable().await,
                96..98 => self.flush().await,
                98 => self.compact_or_verify().await,
                _ => self.close().await,
            }
            self.context.world().probe("operations");
            if self.chance.one_in(4) {
                self.look_at_values();
            }
            if self.chance.one_in(6) {
                self.end_pause();
            }
        }
        self.end_pauses();
        self.context.world().doing.remove(&self.id);
    }

    /// What collection has come to since the last look.
    fn look_at_values(&mut self) {
        let log = self.db.stats().value_log;
        let files: Vec<u64> = log.files.iter().map(|file| file.number).collect();
        let mut world = self.context.world();
        if log.rewrites == self.rewrites {
            let gone = self.files.iter().filter(|number| !files.contains(number)).count();
            world.probe_by("value files dropped as dead", gone as u64);
        }
        world.probe_by("value files kept for readers", u64::from(log.pinned_bytes > 0));
        drop(world);
        (self.files, self.rewrites) = (files, log.rewrites);
    }

    pub(crate) fn key(&mut self) -> Key {
        let count = self.context.world().keys.len();
        u16::try_from(self.chance.index(count)).unwrap()
    }

    pub(crate) fn value(&mut self, key: Key) -> Value {
        let len = match self.chance.below(200) {
            0 => 20_000,
            1..10 => 3_000,
            10..60 => self.chance.index(1000),
            _ => self.chance.index(100),
        };
        self.context.world().new_value(key, len)
    }

    pub(crate) fn durability(&mut self) -> Durability {
        let all = [Durability::Synced, Durability::Written, Durability::Buffered];
        match self.chance.below(100) < self.context.plan.plain_writes {
            true => self.default,
            false => *self.chance.pick(&all).unwrap(),
        }
    }

    fn op(&mut self) -> (Key, Option<Value>) {
        let key = self.key();
        let deletes = self.chance.one_in(4);
        (key, (!deletes).then(|| self.value(key)))
    }

    async fn write(&mut self) {
        let count = if self.chance.one_in(4) { self.chance.between(2, 6) } else { 1 };
        let ops: Ops = (0..count).map(|_| self.op()).collect();
        let durability = self.durability();
        let tries = count == 1 && ops[0].1.is_some() && self.chance.one_in(8);
        let times = if self.context.plan.drops_futures && self.chance.one_in(20) {
            self.chance.index(4)
        } else {
            usize::MAX
        };
        if times == 0 {
            // Made, and dropped before its first poll: nothing happens.
            drop(Box::pin(self.commit(&ops, durability, tries)));
            return;
        }
        let after = self.context.visible(&self.db);
        let was_failed = self.context.world().failed;
        let commit = self.context.world().begin(self.id, ops.clone(), durability, after);
        let done = poll_times(self.commit(&ops, durability, tries), times).await;
        let call = if tries { Call::TryWrite } else { Call::Write };
        match done {
            Some(result) => self.context.write_ended(&self.db, commit, call, was_failed, result),
            None => {
                self.context.world().end(commit, Fate::Dropped);
                self.context.world().probe("writes dropped");
            }
        }
    }

    async fn commit(&self, ops: &Ops, durability: Durability, tries: bool) -> seerdb::Result<u64> {
        let bytes = |value: &Option<Value>| value.map(|value| self.context.world().bytes(value));
        let name = |key: Key| self.context.world().keys[key as usize].clone();
        if let [(key, value)] = ops.as_slice() {
            let write = match bytes(value) {
                Some(value) if tries => self.db.try_put(name(*key), value),
                Some(value) => self.db.put(name(*key), value),
                None => self.db.delete(name(*key)),
            };
            return write.durability(durability).await;
        }
        let mut batch = self.db.batch();
        for (key, value) in ops {
            match bytes(value) {
                Some(value) => batch.put(name(*key), value),
                None => batch.delete(name(*key)),
            };
        }
        batch.commit().durability(durability).await
    }

    /// Notes what a read has found, or its error.
    fn note(&self, at: Seqno, key: Key, found: Result<Option<Bytes>, Error>, how: &'static str) {
        match found {
            Ok(found) => {
                let mut world = self.context.world();
                let found = found.map(|bytes| {
                    world.identify(key, &bytes).unwrap_or_else(|e| panic!("{how} at {at}: {e}"))
                });
                world.read(at, key, found, how);
            }
            Err(error) => self.context.error(Call::Read, &error),
        }
    }

    async fn get(&mut self) {
        let key = self.key();
        let name = self.context.world().keys[key as usize].clone();
        let at = self.context.visible(&self.db);
        if self.chance.one_in(20) {
            let times = self.chance.index(3);
            if let Some(found) = poll_times(self.db.get(&name).into_future(), times).await {
                self.note(at, key, found, "get");
            }
            return;
        }
        let fills = self.chance.one_in(2);
        let found = self.db.get(&name).fill_cache(fills).await;
        self.note_fresh(&found);
        self.note(at, key, found, "get");
    }

    /// Sometimes looks whether a value of the value log was read before it was written.
    fn note_fresh(&mut self, found: &Result<Option<Bytes>, Error>) {
        let threshold = self.context.threshold.get().unwrap_or(usize::MAX).max(16);
        let Ok(Some(value)) = found else { return };
        if value.len() < threshold || !self.chance.one_in(8) {
            return;
        }
        let is_fresh = !disk::holds(&self.context.sim.disk(), &value[..16]);
        self.context.world().probe_by("reads of values that no file has", u64::from(is_fresh));
    }

    async fn get_many(&mut self) {
        let keys: Vec<Key> = (0..self.chance.between(1, 8)).map(|_| self.key()).collect();
        let all = self.context.world().keys.clone();
        let names: Vec<&[u8]> = keys.iter().map(|key| all[*key as usize].as_slice()).collect();
        let (at, found) = match self.chance.pick(&self.held) {
            Some((snapshot, ..)) => (snapshot.seqno(), snapshot.get_many(names).await),
            None => (self.context.visible(&self.db), self.db.get_many(names).await),
        };
        match found {
            Ok(found) => {
                for (key, found) in keys.into_iter().zip(found) {
                    self.note(at, key, Ok(found), "get_many");
                }
            }
            Err(error) => self.context.error(Call::Read, &error),
        }
    }

    /// A stream over a part of the keys, from a snapshot or as they are now.
    async fn scan(&mut self) {
        let (at, stream, low, high) = self.stream();
        let reverses = self.chance.one_in(2);
        let stream = if reverses { stream.rev() } else { stream };
        let limit = if self.chance.one_in(4) { self.chance.index(6) } else { usize::MAX };
        self.drain(at, stream, low..high, reverses, limit).await;
    }

    /// A stream, the seqno that it is exact for, and the keys that it must cover.
    fn stream(&mut self) -> (Seqno, RangeStream, usize, usize) {
        let keys = self.context.world().keys.clone();
        let held = self.chance.pick(&self.held).map(|(snapshot, ..)| snapshot.clone());
        let at = held.as_ref().map_or_else(|| self.context.visible(&self.db), Snapshot::seqno);
        let prefixes: [&[u8]; 6] = [b"a", b"user:", b"user:1", b"\xFF", b"k", b"zz"];
        match self.chance.below(3) {
            0 => {
                let prefix = *self.chance.pick(&prefixes).unwrap();
                let low = keys.partition_point(|key| key.as_slice() < prefix);
                let count = keys[low..].iter().take_while(|key| key.starts_with(prefix)).count();
                let stream = match &held {
                    Some(snapshot) => snapshot.prefix(prefix),
                    None => self.db.prefix(prefix),
                };
                (at, stream, low, low + count)
            }
            1 => {
                let (a, b) = (self.chance.index(keys.len()), self.chance.index(keys.len()));
                let (low, high) = (a.min(b), a.max(b));
                let range = keys[low].as_slice()..keys[high].as_slice();
                let stream = match &held {
                    Some(snapshot) => snapshot.range(range),
                    None => self.db.range(range),
                };
                (at, stream, low, high)
            }
            _ => {
                let stream = match &held {
                    Some(snapshot) => snapshot.iter(),
                    None => self.db.iter(),
                };
                (at, stream, 0, keys.len())
            }
        }
    }

    /// Reads a stream to its end or limit: what it leaves out is not there.
    async fn drain(
        &mut self,
        at: Seqno,
        mut stream: RangeStream,
        keys: std::ops::Range<usize>,
        reverses: bool,
        limit: usize,
    ) {
        let order: Vec<usize> = match reverses {
            false => keys.collect(),
            true => keys.rev().collect(),
        };
        let mut expected = order.into_iter();
        let how = if reverses { "reverse stream" } else { "stream" };
        for _ in 0..limit {
            if self.chance.one_in(8) {
                self.env.clock().sleep(Duration::from_micros(self.chance.below(2000))).await;
            }
            let item = match stream.next().await {
                None => break,
                Some(Ok(item)) => item,
                Some(Err(error)) => return self.context.error(Call::Read, &error),
            };
            let key = self.context.world().key_of(&item.0).unwrap_or_else(|e| panic!("{how}: {e}"));
            loop {
                let Some(next) = expected.next() else {
                    panic!("{how} at {at}: key {key} is out of its range or order");
                };
                let next = u16::try_from(next).unwrap();
                if next == key {
                    break self.note(at, key, Ok(Some(item.1)), how);
                }
                self.note(at, next, Ok(None), how);
            }
        }
        if limit == usize::MAX {
            for next in expected {
                self.note(at, u16::try_from(next).unwrap(), Ok(None), how);
            }
        }
    }

    fn hold(&mut self) {
        if self.held.len() > 2 {
            self.held.remove(self.chance.index(3));
        }
        let stats = self.db.stats();
        self.held.push((self.db.snapshot(), stats.compactions, stats.value_log.rewrites));
    }

    /// Reads a held snapshot from end to end, both ways.
    async fn look_at_held(&mut self) {
        let held = self.chance.pick(&self.held).cloned();
        let Some((snapshot, merges, rewrites)) = held else { return };
        let stats = self.db.stats();
        if stats.compactions > merges {
            self.context.world().probe("snapshots read across a merge");
        }
        if stats.value_log.rewrites > rewrites {
            self.context.world().probe("snapshots read across a rewrite");
        }
        let all = self.context.world().keys.len();
        self.drain(snapshot.seqno(), snapshot.iter(), 0..all, false, usize::MAX).await;
        self.drain(snapshot.seqno(), snapshot.iter().rev(), 0..all, true, usize::MAX).await;
        let key = self.key();
        let name = self.context.world().keys[key as usize].clone();
        let found = snapshot.get(&name).await;
        self.note(snapshot.seqno(), key, found, "get of a snapshot");
    }

    async fn pause(&mut self) {
        let micros = [1, 100, 1_000, 6_000, 20_000];
        let micros = *self.chance.pick(&micros).unwrap();
        self.env.clock().sleep(Duration::from_micros(micros)).await;
    }

    async fn wait_durable(&mut self) {
        let seqno = self.context.visible(&self.db);
        match self.db.wait_durable(seqno).await {
            Ok(()) => self.context.became_durable(&self.db, seqno),
            Err(error) => self.context.error(Call::WaitDurable, &error),
        }
    }

    async fn flush(&mut self) {
        let seqno = self.context.visible(&self.db);
        let done = match self.chance.one_in(10) {
            true => poll_times(self.db.flush(), 2).await,
            false => Some(self.db.flush().await),
        };
        match done {
            Some(Ok(())) => self.context.flushed(seqno),
            Some(Err(error)) => self.context.error(Call::Flush, &error),
            None => {}
        }
    }

    async fn compact_or_verify(&mut self) {
        if self.chance.one_in(2) {
            if let Err(error) = self.db.verify().await {
                self.context.error(Call::Verify, &error);
            }
            return;
        }
        let is_whole = self.chance.one_in(2);
        self.end_pauses();
        self.compact(is_whole).await;
    }

    /// Closes under the feet of all others, rarely.
    async fn close(&mut self) {
        if !self.chance.one_in(8) {
            return;
        }
        self.context.close(&self.db).await;
    }
}
