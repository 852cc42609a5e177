//! What is done with the database, counted for the choice of K (`compaction::workload`).
//!
//! Invariants:
//! 1. One get in [`GET_EVERY`] is counted, for all of them, and the time of one scan in
//!    [`SCAN_EVERY`] is taken: the others pay for counting down in memory that is their thread's.
//!    Both are primes, so that what repeats itself is not always caught at the same place. Puts
//!    are counted by their seqnos, which cost nothing.
//! 2. With a K that was asked for nothing is counted.
//! 3. Nobody is woken while nothing is done: the watch task then waits without a timer, until the
//!    next count. One that comes between its look and its sleep is missed; the next is not.
//! 4. Which memory a thread counts in does not matter to any sum, and time is that of the
//!    environment: a simulated machine stays what its seed says.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use event_listener::{Event, EventListener};
use futures::future::select;
use parking_lot::Mutex;
use seerdb_io::Clock;

use super::Core;
use super::read::Step;
use crate::compaction::Tree;
use crate::compaction::cost::last_run_bytes;
use crate::compaction::policy::Shape;
use crate::compaction::workload::{
    Chooser, PIECE_BYTES, RunsChoice, SHORT_KEYS, Sample, Sight, Totals,
};
use crate::iter::visible::{self, Visible};
use crate::key::SeqNo;
use crate::options::Settings;
use crate::probe::{Now, Probe, Took};

const GET_EVERY: u32 = 31;
const SCAN_EVERY: u32 = 7;
/// Threads beyond this many share memory to count in, and may lose a count.
const SHARDS: usize = 16;

/// Watches what is done, unless K is fixed.
pub(super) struct Monitor {
    /// K.
    runs_per_level: AtomicUsize,
    /// The last seqno of the lives before, and the last one in a table.
    start: SeqNo,
    flushed: AtomicU64,
    watch: Option<Arc<Watch>>,
}

struct Watch {
    shards: [Shard; SHARDS],
    chooser: Mutex<Chooser>,
    now: Now,
    /// The watch task waits for something to be done.
    is_asleep: AtomicBool,
    woken: Event,
}

/// Where some threads count.
#[derive(Default)]
#[repr(align(128))]
struct Shard {
    gets_left: AtomicU32,
    scans_left: AtomicU32,
    sums: Mutex<Totals>,
    /// A probe for the next get that is counted, which so allocates nothing.
    spare: Mutex<Option<Probe>>,
}

/// The number of threads that have counted.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Which of them this one is.
    static THREAD: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn thread() -> usize {
    THREAD.with(|thread| match thread.get() {
        usize::MAX => {
            thread.set(THREADS.fetch_add(1, Ordering::Relaxed));
            thread.get()
        }
        known => known,
    })
}

/// Whether it is the turn of this one. Two threads that share a countdown may both be told so.
#[inline]
fn is_turn(left: &AtomicU32, every: u32) -> bool {
    // Order: a load and a store instead of one change: an estimate orders nothing, and is cheap.
    let now = left.load(Ordering::Relaxed);
    left.store(now.checked_sub(1).unwrap_or(every - 1), Ordering::Relaxed);
    now == 0
}

fn sample((count, time): Took) -> Sample {
    Sample::of(count, time)
}

impl Watch {
    #[inline]
    fn shard(&self) -> &Shard {
        self.shards.get(thread() % SHARDS).expect("the remainder is below the number")
    }

    fn count(&self, count: impl FnOnce(&mut Totals)) {
        count(&mut self.shard().sums.lock());
        if self.is_asleep.load(Ordering::Relaxed) && self.is_asleep.swap(false, Ordering::Relaxed) {
            self.woken.notify(usize::MAX);
        }
    }

    /// A probe that takes times.
    fn probe(&self) -> Probe {
        let spare = self.shard().spare.lock().take();
        spare.unwrap_or_else(|| Probe::timed(self.now.clone()))
    }

    /// A get has ended that nobody else counted.
    fn end_get(&self, mut probe: Probe) {
        self.count_get(&probe);
        if probe.renew() {
            *self.shard().spare.lock() = Some(probe);
        }
    }

    /// A get has ended; it stands for [`GET_EVERY`].
    fn count_get(&self, probe: &Probe) {
        let (stats, taken) = (probe.stats(Duration::ZERO), probe.taken());
        let (is_found, every) = (probe.is_found(), u64::from(GET_EVERY));
        let passed = u64::from(stats.filters.saturating_sub(stats.filtered));
        self.count(|sums| {
            let kind = match (is_found, stats.filters) {
                (true, 0) => &mut sums.gets_memory,
                (true, _) => &mut sums.gets_found,
                (false, _) => &mut sums.gets_absent,
            };
            *kind += every;
            sums.runs_asked += every * u64::from(stats.filters);
            sums.false_positives += every * passed.saturating_sub(u64::from(is_found));
            sums.probes.add(sample(taken.filters));
            sums.hits.add(sample(taken.hits));
            sums.misses.add(sample(taken.misses));
        });
    }
}

impl Monitor {
    pub(super) fn new(settings: &Settings, clock: &Clock, start: SeqNo) -> Monitor {
        let runs = settings.first_runs_per_level();
        let watch = || {
            let (chooser, clock) = (Mutex::new(Chooser::new(runs, clock.now())), clock.clone());
            let now: Now = Arc::new(move || clock.now());
            let shard = |_| Shard {
                spare: Mutex::new(Some(Probe::timed(now.clone()))),
                ..Shard::default()
            };
            Arc::new(Watch {
                shards: std::array::from_fn(shard),
                chooser,
                now: now.clone(),
                is_asleep: AtomicBool::new(false),
                woken: Event::new(),
            })
        };
        Monitor {
            runs_per_level: AtomicUsize::new(runs),
            start,
            flushed: AtomicU64::new(start),
            watch: settings.runs_per_level.is_none().then(watch),
        }
    }

    /// K.
    pub(super) fn runs_per_level(&self) -> usize {
        // Order: a threshold; whoever sees it late merges by the one before.
        self.runs_per_level.load(Ordering::Relaxed)
    }

    /// Whether the get that begins shall be counted, for others as well.
    #[inline]
    pub(super) fn samples_get(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| is_turn(&watch.shard().gets_left, GET_EVERY))
    }

    /// Counts a stream.
    pub(super) fn tally(&self) -> Tally {
        Tally { watch: self.watch.clone(), keys: 0, is_begun: false, sought: None }
    }

    /// Everything up to `seqno` is in tables.
    pub(super) fn flushed(&self, seqno: SeqNo) {
        self.flushed.fetch_max(seqno, Ordering::Relaxed);
    }

    /// A merge wrote `bytes`.
    pub(super) fn merged(&self, bytes: u64, took: Duration) {
        if let Some(watch) = &self.watch {
            watch.count(|sums| sums.merges.add(Sample::of(bytes / PIECE_BYTES, took)));
        }
    }
}

/// Looks at the workload until the database is closed.
pub(super) async fn run(core: Arc<Core>) {
    while core.monitor.watch.is_some() {
        let listener = core.version_event.listen();
        if core.is_closed() || core.pipeline.failure().is_some() {
            return;
        }
        let again_in = core.look_at_workload();
        core.rest(listener, again_in).await;
    }
}

/// What a stream counts of itself.
pub(super) struct Tally {
    watch: Option<Arc<Watch>>,
    keys: u64,
    is_begun: bool,
    /// When it began to look for its first key, in how many runs, if that is timed.
    sought: Option<(Duration, u64)>,
}

impl Tally {
    /// The stream is about to look for its first key.
    pub(super) fn begin(&mut self, core: &Core) {
        let Some(watch) = &self.watch else { return };
        self.is_begun = true;
        if is_turn(&watch.shard().scans_left, SCAN_EVERY) {
            let runs = core.read_states.load().version.runs().count() as u64;
            self.sought = Some(((watch.now)(), runs));
        }
    }

    /// The next step of the stream.
    #[inline]
    pub(super) fn step(&mut self, merged: &mut Visible) -> visible::Step {
        let step = merged.step();
        if matches!(step, visible::Step::Item { .. }) {
            self.keys += 1;
            if self.sought.is_some() {
                self.arrive();
            }
        }
        step
    }

    #[cold]
    fn arrive(&mut self) {
        if let (Some((began, runs)), Some(watch)) = (self.sought.take(), &self.watch) {
            let took = (watch.now)().saturating_sub(began);
            watch.count(|sums| sums.seeks.add(Sample::of(runs, took)));
        }
    }

    /// The stream has ended, or goes on elsewhere.
    pub(super) fn end(&mut self) {
        let keys = std::mem::take(&mut self.keys);
        self.sought = None;
        if let Some(watch) = self.watch.as_ref().filter(|_| self.is_begun) {
            watch.count(|sums| {
                let is_short = keys <= SHORT_KEYS;
                *if is_short { &mut sums.scans_short } else { &mut sums.scans_long } += 1;
                sums.scan_keys += keys;
            });
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.end();
    }
}

impl Core {
    /// A get that is counted.
    #[cold]
    pub(super) fn get_sampled(
        self: &Arc<Self>,
        key: &[u8],
        seqno: Option<SeqNo>,
        fill: bool,
        probe: &Probe,
    ) -> Step {
        let Some(watch) = &self.monitor.watch else {
            return self.get_uncounted(key, seqno, fill, probe);
        };
        // A caller that counts reads its own probe: it stays the one, and no times are taken.
        let is_own = !probe.counts();
        let probe = if is_own { watch.probe() } else { probe.clone() };
        let end = move |watch: &Watch, probe| {
            if is_own { watch.end_get(probe) } else { watch.count_get(&probe) }
        };
        match self.get_uncounted(key, seqno, fill, &probe) {
            Step::Ready(result) => {
                end(watch, probe);
                Step::Ready(result)
            }
            Step::Disk(future) => {
                let watch = watch.clone();
                Step::Disk(Box::pin(async move {
                    let result = future.await;
                    end(&watch, probe);
                    result
                }))
            }
        }
    }

    /// Looks whether K still suits what is done; when to look again, if anything is.
    fn look_at_workload(&self) -> Option<Duration> {
        let watch = self.monitor.watch.as_ref()?;
        let totals = self.totals(watch);
        let now = (watch.now)();
        let look = watch.chooser.lock().look(now, &totals, || self.sight());
        if let Some(runs) = look.switched {
            tracing::info!(runs, "K follows the workload");
            self.monitor.runs_per_level.store(runs, Ordering::Relaxed);
            // Merges may be due now, or not be due any more.
            self.version_event.notify(usize::MAX);
        }
        look.again_in
    }

    /// Rests until there is a new version, or a reason to look at the workload again.
    async fn rest(&self, version: EventListener, again_in: Option<Duration>) {
        let Some(watch) = &self.monitor.watch else { return version.await };
        if let Some(time) = again_in {
            select(version, self.env.clock().sleep(time)).await;
            return;
        }
        let woken = watch.woken.listen();
        // Order: Relaxed, a count that does not see it wakes nobody; the next one does.
        watch.is_asleep.store(true, Ordering::Relaxed);
        select(version, woken).await;
        watch.is_asleep.store(false, Ordering::Relaxed);
    }

    /// Why K is what it is; none if it is fixed.
    pub(super) fn runs_choice(&self) -> Option<RunsChoice> {
        let watch = self.monitor.watch.as_ref()?;
        let totals = self.totals(watch);
        Some(watch.chooser.lock().explain((watch.now)(), &totals))
    }

    fn totals(&self, watch: &Watch) -> Totals {
        let mut totals = Totals::default();
        for shard in &watch.shards {
            totals.add(&shard.sums.lock());
        }
        let since_open = |seqno: SeqNo| seqno.saturating_sub(self.monitor.start);
        totals.puts = since_open(self.pipeline.visible());
        totals.put_bytes = self.metrics.user_bytes.load(Ordering::Relaxed);
        totals.flushed_puts = since_open(self.monitor.flushed.load(Ordering::Relaxed));
        totals.flushed_bytes = self.metrics.flushed_bytes.load(Ordering::Relaxed);
        totals
    }

    /// What the tree is expected to cost with each K.
    fn sight(&self) -> Sight {
        let version = self.versions.current();
        let tree = Tree::of(&version);
        let (last, last_bytes) = (tree.last_level(), last_run_bytes(&tree));
        let shape = |runs_upper| Shape { runs_upper, ..self.shape() };
        let candidates = 1..=self.settings.first_runs_per_level();
        let costs = candidates.map(|runs| shape(runs).expected_costs(last, last_bytes)).collect();
        let turnover_bytes = self.shape().capacity(last - 1);
        Sight { costs, turnover_bytes }
    }
}
