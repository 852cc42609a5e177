//! Point reads: memtables, then the runs of the version, newest data first.
//!
//! Invariants:
//! 1. The first poll does all the work that memory can answer, and allocates nothing then.
//! 2. The runs of a version are walked newest first; the first version of the key that the seqno
//!    may see is the answer, a tombstone included.
//! 3. A read that waits for the disk keeps the state it began with: what a merge removes
//!    meanwhile stays readable for it.

use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::state::ReadState;
use super::values::{Look, pointer_of, unknown};
use super::{Core, DB};
use crate::error::Result;
use crate::filter::key_hash;
use crate::key::{SeqNo, Trailer, ValueKind, check_key};
use crate::probe::{Origin, Probe, ReadStats};
use crate::snapshot::Pin as SeqnoPin;
use crate::sstable::{Lookup, Sought};

/// A get, ready to be awaited; made by [`DB::get`] and [`crate::Snapshot::get`].
#[must_use = "a get does nothing until it is awaited"]
pub struct Get<'a, K> {
    core: &'a Arc<Core>,
    key: K,
    seqno: Option<SeqNo>,
    fill_cache: bool,
    probe: Probe,
}

impl<'a, K: AsRef<[u8]>> Get<'a, K> {
    pub(super) fn new(db: &'a DB, key: K, seqno: Option<SeqNo>) -> Self {
        Get { core: db.core(), key, seqno, fill_cache: true, probe: Probe::default() }
    }

    /// Whether a block read from disk goes into the cache (default: true).
    pub fn fill_cache(mut self, yes: bool) -> Self {
        self.fill_cache = yes;
        self
    }

    /// The value, and what it took to find it.
    ///
    /// ```
    /// # futures::executor::block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let db = seerdb::DB::open(dir.path()).await?;
    /// db.put("key", "value").await?;
    /// let (value, stats) = db.get("key").stats().await?;
    /// assert_eq!(value.as_deref(), Some(&b"value"[..]));
    /// assert_eq!((stats.memtables, stats.blocks.disk), (1, 0));
    /// # db.close().await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub fn stats(mut self) -> GetStats<'a, K> {
        self.probe = Probe::new();
        GetStats { get: self }
    }
}

/// A get that tells what it did; made by [`Get::stats`].
#[must_use = "a get does nothing until it is awaited"]
pub struct GetStats<'a, K> {
    get: Get<'a, K>,
}

impl<'a, K: AsRef<[u8]>> IntoFuture for GetStats<'a, K> {
    type Output = Result<(Option<Bytes>, ReadStats)>;
    type IntoFuture = GetStatsFuture<'a, K>;

    fn into_future(self) -> GetStatsFuture<'a, K> {
        let (core, probe) = (self.get.core, self.get.probe.clone());
        GetStatsFuture { get: self.get.into_future(), core, probe, began: None }
    }
}

/// The future of a [`GetStats`].
pub struct GetStatsFuture<'a, K> {
    get: GetFuture<'a, K>,
    core: &'a Arc<Core>,
    probe: Probe,
    began: Option<Duration>,
}

impl<K: AsRef<[u8]>> Future for GetStatsFuture<'_, K> {
    type Output = Result<(Option<Bytes>, ReadStats)>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let clock = self.core.env.clock();
        let began = *self.began.get_or_insert_with(|| clock.now());
        Pin::new(&mut self.get)
            .poll(cx)
            .map_ok(|value| (value, self.probe.stats(clock.now().saturating_sub(began))))
    }
}

impl<'a, K: AsRef<[u8]>> IntoFuture for Get<'a, K> {
    type Output = Result<Option<Bytes>>;
    type IntoFuture = GetFuture<'a, K>;

    fn into_future(self) -> GetFuture<'a, K> {
        GetFuture { state: State::Start(self), _not_pinned: PhantomData }
    }
}

/// The future of a [`Get`].
pub struct GetFuture<'a, K> {
    state: State<'a, K>,
    _not_pinned: PhantomData<fn(K)>,
}

enum State<'a, K> {
    Start(Get<'a, K>),
    Disk(BoxFuture<'static, Result<Option<Bytes>>>),
    Done,
}

// The key is never pinned: it is only looked at, before the first await.
impl<K> Unpin for GetFuture<'_, K> {}

impl<K: AsRef<[u8]>> Future for GetFuture<'_, K> {
    type Output = Result<Option<Bytes>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Start(get) = &self.state {
            let step = get.core.get_now(get.key.as_ref(), get.seqno, get.fill_cache, &get.probe);
            match step {
                Step::Ready(result) => {
                    self.state = State::Done;
                    return Poll::Ready(result);
                }
                Step::Disk(future) => self.state = State::Disk(future),
            }
        }
        match &mut self.state {
            State::Disk(future) => {
                let poll = future.as_mut().poll(cx);
                if poll.is_ready() {
                    self.state = State::Done;
                }
                poll
            }
            State::Start(_) | State::Done => panic!("a get was polled after it resolved"),
        }
    }
}

/// What the synchronous part of a get came to.
pub(super) enum Step {
    Ready(Result<Option<Bytes>>),
    Disk(BoxFuture<'static, Result<Option<Bytes>>>),
}

/// What a point read looks for.
#[derive(Clone, Copy)]
struct Target<'a> {
    sought: Sought<'a>,
    /// The seqno that was asked for, if it was.
    asked: Option<SeqNo>,
}

/// An entry of the key, newest first.
type Found = (Trailer, Bytes);

impl Core {
    /// Answers from memory, or says what to wait for.
    pub(super) fn get_now(
        self: &Arc<Self>,
        key: &[u8],
        seqno: Option<SeqNo>,
        fill: bool,
        probe: &Probe,
    ) -> Step {
        if self.monitor.samples_get() {
            return self.get_sampled(key, seqno, fill, probe);
        }
        self.get_uncounted(key, seqno, fill, probe)
    }

    /// As [`Core::get_now`], for nobody's statistics but the probe's.
    pub(super) fn get_uncounted(
        self: &Arc<Self>,
        key: &[u8],
        seqno: Option<SeqNo>,
        fill: bool,
        probe: &Probe,
    ) -> Step {
        if let Err(error) = self.check_open().and_then(|()| check_key(key)) {
            return Step::Ready(Err(error));
        }
        let asked = seqno;
        let visible = || asked.unwrap_or_else(|| self.pipeline.visible());
        let (state, seqno) = self.read_states.view(visible);
        for memtable in &state.memtables {
            probe.memtable();
            if let Some(found) = memtable.get(key, seqno) {
                let sought = Sought { key, hash: 0, seqno, fill, probe };
                return self.value_now(&state, Target { sought, asked }, found);
            }
        }
        let sought = Sought { key, hash: key_hash(key), seqno, fill, probe };
        let target = Target { sought, asked };
        let newest = usize::from(planted!(SkipNewestRun));
        for (index, run) in state.version.runs().enumerate().skip(newest) {
            let Some(table) = run.find(key) else { continue };
            match table.lookup_now(&self.cache, sought) {
                Lookup::Found(trailer, value) => {
                    return self.value_now(&state, target, (trailer, value));
                }
                Lookup::Absent => {}
                Lookup::Blocked(block) => {
                    let core = self.clone();
                    let (key, hash, probe) = (key.to_vec(), sought.hash, probe.clone());
                    let state = Arc::clone(&state);
                    return Step::Disk(Box::pin(async move {
                        let sought = Sought { key: &key, hash, seqno, fill, probe: &probe };
                        let got = core.get_from(state, index, block, Target { sought, asked });
                        core.pacer.timed(core.env.clock(), got).await
                    }));
                }
            }
        }
        Step::Ready(Ok(None))
    }

    /// The value of an entry, from memory or to be waited for.
    fn value_now(
        self: &Arc<Self>,
        state: &ReadState,
        target: Target<'_>,
        (trailer, value): Found,
    ) -> Step {
        target.sought.probe.found();
        match trailer.kind() {
            ValueKind::Delete => return Step::Ready(Ok(None)),
            ValueKind::Put => return Step::Ready(Ok(Some(value))),
            ValueKind::Pointer => {}
        }
        let Sought { key, fill, probe, .. } = target.sought;
        match self.look_up(&state.version, key, trailer.seqno(), &value, fill, probe) {
            Ok(Look::Value(value)) => Step::Ready(Ok(Some(value))),
            Ok(Look::Disk(distant)) => {
                probe.value(Origin::Disk);
                let fetched = self.fetch(distant, key, fill);
                Step::Disk(Box::pin(async move { fetched.await.map(Some) }))
            }
            Ok(Look::Unknown) => {
                // The segment was begun after the state was loaded: a later state has it, or what
                // has become of the entry since.
                if self.read_states.load().generation == state.generation {
                    return Step::Ready(Err(unknown(&pointer_of(&value))));
                }
                self.get_uncounted(key, target.asked, fill, probe)
            }
            Err(error) => Step::Ready(Err(error)),
        }
    }

    /// The value of an entry.
    async fn value(
        self: &Arc<Self>,
        state: &ReadState,
        target: Target<'_>,
        found: Found,
    ) -> Result<Option<Bytes>> {
        match self.value_now(state, target, found) {
            Step::Ready(value) => value,
            Step::Disk(future) => future.await,
        }
    }

    /// Goes on from `block` of run `first` of the state, waiting for the disk where needed.
    async fn get_from(
        self: &Arc<Self>,
        state: Arc<ReadState>,
        first: usize,
        block: usize,
        target: Target<'_>,
    ) -> Result<Option<Bytes>> {
        let sought = target.sought;
        let mut begun = Some(block);
        for run in state.version.runs().skip(first) {
            let Some(table) = run.find(sought.key) else { continue };
            let found = match begun.take() {
                Some(block) => table.lookup_from(&self.cache, sought, block).await?,
                None => table.lookup(&self.cache, sought).await?,
            };
            if let Some(found) = found {
                return self.value(&state, target, found).await;
            }
        }
        Ok(None)
    }

    /// Registers a reader at the newest visible seqno.
    pub(super) fn pin_visible(&self) -> SeqnoPin {
        self.snapshots.pin(|| self.pipeline.visible() + u64::from(planted!(SnapshotTooNew)))
    }
}

impl DB {
    /// Reads several keys at one moment: one consistent view, all disk reads submitted together.
    /// The results stand in the order of the keys.
    ///
    /// # Errors
    ///
    /// As for [`DB::get`]; the first error is told.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Bytes>>> {
        let pin = self.core().pin_visible();
        self.get_many_at(keys, pin.seqno()).await
    }

    /// Starts all reads of a batch, then waits for those that need the disk.
    pub(super) async fn get_many_at<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        seqno: SeqNo,
    ) -> Result<Vec<Option<Bytes>>> {
        let core = self.core();
        core.check_open()?;
        let mut values: Vec<Option<Bytes>> = Vec::new();
        let mut slow = Vec::new();
        for (index, key) in keys.into_iter().enumerate() {
            match core.get_now(key.as_ref(), Some(seqno), true, Probe::NONE) {
                Step::Ready(value) => values.push(value?),
                Step::Disk(future) => {
                    values.push(None);
                    slow.push(async move { (index, future.await) });
                }
            }
        }
        let mut slow = futures::future::join_all(slow);
        // The first poll of every read happens under the plug: one submission for all.
        let fs = core.env.fs();
        let done = std::future::poll_fn(|cx| {
            let _plug = fs.plug();
            Pin::new(&mut slow).poll(cx)
        })
        .await;
        for (index, value) in done {
            let index = if planted!(MixUpResults) { index / 2 } else { index };
            let slot = values.get_mut(index).expect("the index came from this list");
            *slot = value?;
        }
        Ok(values)
    }
}
