//! The merge tasks: they run what the picker chooses, a long merge in pieces, and newer runs above
//! it meanwhile.
//!
//! Invariants:
//! 1. The snapshots that a piece honours are read after its inputs are fixed: a reader that begins
//!    later sees at least what is visible then, and every version it may need is kept.
//! 2. A piece that fails changed nothing, and what the pieces before it changed is a tree like any
//!    other. Damage in an input stops merging until the database is reopened, so that damaged bytes
//!    are never dropped or copied; other failures are repeated.
//! 3. A merge holds no file that a piece before has merged: its space is free for the next one.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use event_listener::EventListener;
use futures::channel::oneshot;
use futures::future::select;

use super::{Core, stats};
use crate::compaction::control::Ticket;
use crate::compaction::job::Pace;
use crate::compaction::policy::Shape;
use crate::compaction::tombstones::{self, Ripe};
use crate::compaction::{Choice, MergeReason, RunView, Tree, job, pace, picker};
use crate::error::{Error, ErrorKind, Result};
use crate::filename::FileName;
use crate::sstable::{Run, Table};
use crate::version::edit::VersionEdit;
use crate::version::{RunId, Version};

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// With fewer runs in level 0 nothing is begun beside the merges that run while somebody waits for
/// their end.
const PATIENT_RUNS: usize = 12;

/// Somebody who waits for everything to be merged.
pub(super) type Request = oneshot::Sender<Result<()>>;

/// Asks for everything to be merged, and waits for it.
pub(super) async fn request(core: &Core) -> Result<()> {
    let (sender, receiver) = oneshot::channel();
    {
        // Under the lock: a task that ends refuses what was asked before, and says so first.
        let mut requests = core.compact_requests.lock();
        if let Some(damage) = core.merge_damage() {
            return Err(damage);
        }
        if let Some(failure) = core.pipeline.failure() {
            return Err(failure);
        }
        core.check_open()?;
        requests.push(sender);
    }
    core.version_event.notify(usize::MAX);
    receiver.await.unwrap_or_else(|_| Err(Error::closed()))
}

fn answer(requests: Vec<Request>, outcome: &Result<()>) {
    for request in requests {
        // Who gave up waiting needs no answer.
        request.send(outcome.clone()).ok();
    }
}

/// A merge that has begun.
struct Begun {
    ticket: Ticket,
    choice: Choice,
    /// Who asked for it.
    requests: Vec<Request>,
}

/// Merges until the database is closed.
pub(super) async fn run(core: Arc<Core>) {
    let mut pause = RETRY_MIN;
    loop {
        let (listener, freed) = (core.version_event.listen(), core.snapshots.freed());
        if core.is_closed() || core.pipeline.failure().is_some() {
            return core.refuse_requests(&core.pipeline.failure().unwrap_or_else(Error::closed));
        }
        if let Some(damage) = core.merge_damage() {
            return core.refuse_requests(&damage);
        }
        let Some(Begun { ticket, choice, requests }) = begin(&core) else {
            core.wait_for_work(listener, freed).await;
            continue;
        };
        let outcome = merge(&core, &ticket, &choice, !requests.is_empty()).await;
        // It is over when its counters are right, for those who wait for that.
        drop(ticket);
        core.resize_cache();
        let is_hushed = outcome.is_err() && planted!(CancelledIsDone);
        answer(requests, if is_hushed { &Ok(()) } else { &outcome });
        match outcome {
            Ok(()) => {
                pause = RETRY_MIN;
                *core.merge_error.lock() = None;
                core.version_event.notify(usize::MAX);
            }
            Err(error) if core.is_closed() => return core.refuse_requests(&error),
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                core.version_event.notify(usize::MAX);
            }
            Err(error) => {
                let is_damage = error.is_corruption();
                *core.merge_error.lock() = Some(error.clone());
                core.version_event.notify(usize::MAX);
                if is_damage {
                    tracing::error!(%error, "merging has stopped: a table is damaged");
                } else {
                    tracing::warn!(%error, "a merge failed and will be repeated");
                    core.pause(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }
}

/// Begins the merge that is due beside those that run, if one is.
fn begin(core: &Arc<Core>) -> Option<Begun> {
    let begun = core.control.begin(|busy| {
        if core.control.is_paused() && !planted!(BeginWhilePaused) {
            return None;
        }
        let version = core.versions.current();
        let mut requests = core.compact_requests.lock();
        // Who asked for everything waits for what runs, and no longer than that.
        let runs = version.levels().first().map_or(0, |level| level.runs.len());
        if busy.is_some() && !requests.is_empty() && runs < PATIENT_RUNS {
            return None;
        }
        let asked = if busy.is_none() { std::mem::take(&mut *requests) } else { Vec::new() };
        drop(requests);
        match core.next_merge(&version, busy, !asked.is_empty()) {
            Some(choice) => Some((choice.newest(), (choice, asked))),
            None => {
                answer(asked, &Ok(()));
                None
            }
        }
    });
    begun.map(|(ticket, (choice, requests))| Begun { ticket, choice, requests })
}

/// Whether there is nothing to merge; who waits for that looks again with every version.
pub(super) fn is_idle(core: &Core) -> bool {
    core.compact_requests.lock().is_empty()
        && core.control.busy().is_none()
        && core.next_merge(&core.versions.current(), None, false).is_none()
}

async fn merge(
    core: &Arc<Core>,
    ticket: &Ticket,
    choice: &Choice,
    is_asked_for: bool,
) -> Result<()> {
    let rewritten = choice.rewrite_bytes;
    tracing::debug!(inputs = choice.inputs.len(), rewritten, "merge begins");
    let version = core.versions.current();
    let (entries, mut met) = (merged_entries(&version, choice), Overlap::of(&version, choice));
    ticket.expect(entries, is_asked_for);
    let is_staged = choice.is_long() && !planted!(ForgetStage);
    let staged = is_staged.then(|| job::stage(&version, choice)).flatten();
    // Its files shall go with the pieces that merge them.
    drop(version);
    if let Some(edit) = staged {
        change_tables(core, edit, Vec::new()).await?;
    }
    for piece in 0..=choice.ends.len() {
        let version = core.versions.current();
        let (pace, began) = (MergePace::new(core, ticket), core.env.clock().now());
        let context = core.job_context(&pace);
        let outcome = core.unless_closed(job::run(&context, &version, choice, piece)).await?;
        drop(version);
        let took = core.env.clock().now().saturating_sub(began + pace.held());
        let bytes: u64 = outcome.opened.iter().map(|t| t.meta().file_bytes).sum();
        if planted!(DeleteInputsEarly) {
            for number in &outcome.edit.tables_removed {
                super::background::remove(core.env.fs(), &core.dir, FileName::Table(*number)).await;
            }
        }
        met.written += referred(&outcome.opened);
        change_tables(core, outcome.edit, outcome.opened).await?;
        ticket.end_piece(outcome.entries);
        stats::add(&core.metrics.compacted_bytes, bytes);
        core.monitor.merged(bytes, took);
    }
    if choice.bottommost {
        core.overwritten.learn(met.came, met.dropped());
    }
    stats::add(&core.metrics.compactions, 1);
    tracing::debug!("merge ended");
    Ok(())
}

/// What holds a merge up.
struct MergePace<'a> {
    core: &'a Core,
    ticket: &'a Ticket,
    /// For how long, in nanoseconds.
    held: AtomicU64,
}

impl<'a> MergePace<'a> {
    fn new(core: &'a Core, ticket: &'a Ticket) -> Self {
        MergePace { core, ticket, held: AtomicU64::new(0) }
    }

    fn held(&self) -> Duration {
        Duration::from_nanos(self.held.load(Ordering::Relaxed))
    }
}

#[async_trait]
impl Pace for MergePace<'_> {
    async fn pass(&self, bytes: u64, entries: u64) -> Result<()> {
        let clock = self.core.env.clock();
        let began = clock.now();
        self.ticket.pass(entries).await?;
        self.core.keep_pace(bytes).await;
        let held = clock.now().saturating_sub(began).as_nanos();
        // Order: read by the same task.
        self.held.fetch_add(u64::try_from(held).unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }
}

async fn change_tables(core: &Core, edit: VersionEdit, opened: Vec<Arc<Table>>) -> Result<()> {
    core.apply(edit, opened, |version| {
        core.read_states.install(version.clone(), None);
    })
    .await
}

fn is_moved(choice: &Choice, table: &Arc<Table>) -> bool {
    choice.moved.binary_search(&table.meta().number).is_ok()
}

fn inputs<'a>(version: &'a Version, choice: &'a Choice) -> impl Iterator<Item = &'a Arc<Run>> {
    version.runs().filter(|run| choice.inputs.iter().any(|(_, id)| *id == run.id))
}

/// The entries that the merge reads.
fn merged_entries(version: &Version, choice: &Choice) -> u64 {
    let entries = |table: &Arc<Table>| table.meta().entries;
    let moved = |run: &Arc<Run>| -> u64 {
        run.tables.iter().filter(|table| is_moved(choice, table)).map(entries).sum()
    };
    inputs(version, choice).map(|run| run.entries() - moved(run)).sum()
}

fn referred<'a>(tables: impl IntoIterator<Item = &'a Arc<Table>>) -> u64 {
    tables.into_iter().map(|table| table.meta().referenced_bytes()).sum()
}

/// How much of what comes into the last run is there already, in bytes of references.
struct Overlap {
    /// What comes.
    came: u64,
    /// What is written of that and of the last run, less what is moved.
    all: u64,
    written: u64,
}

impl Overlap {
    fn of(version: &Version, choice: &Choice) -> Overlap {
        let runs: Vec<u64> =
            inputs(version, choice).map(|run| referred(run.tables.iter())).collect();
        let (all, last): (u64, u64) = (runs.iter().sum(), runs.last().copied().unwrap_or(0));
        let moved = referred(version.tables().filter(|table| is_moved(choice, table)));
        Overlap { came: all - last, all: all - moved, written: 0 }
    }

    fn dropped(&self) -> u64 {
        self.all.saturating_sub(self.written)
    }
}

impl Core {
    /// The shape that the tree shall have.
    pub(super) fn shape(&self) -> Shape {
        let shape = Shape::new(&self.settings, self.monitor.runs_per_level());
        self.metrics.unit_bytes().map_or(shape, |bytes| shape.with_flushes_of(bytes))
    }

    /// Before the first flush: one will bring what the largest run of level 0 has, if that is no
    /// remainder. Too small a unit would turn the tree at once, too large a one does no harm.
    pub(super) fn guess_unit(&self) {
        let version = self.versions.current();
        let memtable_bytes = self.settings.memtable_bytes as u64;
        let first = Tree::of(&version).level(0).iter().map(RunView::bytes).max();
        let is_likely = |bytes: &u64| (memtable_bytes / 4..memtable_bytes).contains(bytes);
        self.metrics.guess_unit(first.filter(is_likely).unwrap_or(memtable_bytes));
    }

    /// The task ends: nobody will be merged for any more.
    pub(super) fn refuse_requests(&self, error: &Error) {
        let requests = std::mem::take(&mut *self.compact_requests.lock());
        answer(requests, &Err(error.clone()));
    }

    /// Why merging has stopped for good, if it has.
    fn merge_damage(&self) -> Option<Error> {
        self.merge_error.lock().clone().filter(Error::is_corruption)
    }

    /// The merge that is due in `version` beside those of the run `busy` and of older ones; of
    /// everything when `all` is asked for.
    pub(super) fn next_merge(
        &self,
        version: &Version,
        busy: Option<RunId>,
        all: bool,
    ) -> Option<Choice> {
        let (tree, shape) = (Tree::of(version), self.shape());
        if let Some(busy) = busy {
            return picker::pick(&tree.newer_than(busy), &shape);
        }
        if all {
            return picker::pick_all(&tree, &shape);
        }
        let pick = picker::pick(&tree, &shape);
        let pick = pick.or_else(|| self.pick_for_tombstones(&tree, &shape));
        pick.or_else(|| {
            let hides = tree.runs().count() > 1 && self.hides_too_much(version);
            let choice = if hides { picker::pick_all(&tree, &shape)? } else { return None };
            Some(Choice { reason: MergeReason::HiddenValues, ..choice })
        })
    }

    /// The merge that tombstones call for. Those that a reader holds back call again when it ends.
    fn pick_for_tombstones(&self, tree: &Tree<'_>, shape: &Shape) -> Option<Choice> {
        loop {
            let strata = self.snapshots.strata(|| self.pipeline.visible());
            let oldest = strata.first().copied().unwrap_or(0);
            let visible = strata.last().copied().unwrap_or(0);
            let aged = self.ages.note(self.env.clock().now(), visible);
            let droppable = if planted!(DroppableTooHigh) { visible } else { oldest };
            let choice = tombstones::pick(tree, shape, Ripe { droppable, aged });
            if choice.is_some() || oldest == visible {
                return choice;
            }
            let is_held_back =
                tombstones::pick(tree, shape, Ripe { droppable: visible, aged }).is_some();
            if !is_held_back || self.snapshots.await_oldest(oldest) {
                return None;
            }
        }
    }

    /// How far merges are behind; see [`pace::debt`].
    pub(super) fn debt(&self) -> f64 {
        pace::debt(&Tree::of(&self.versions.current()), &self.shape())
    }

    /// Pauses after work on so many bytes that can wait, as the limits want it.
    pub(super) async fn keep_pace(&self, bytes: u64) {
        let clock = self.env.clock();
        let pause = self.pacer.pause(bytes, clock.now(), clock.unix_time(), self.debt());
        if pause > Duration::ZERO {
            self.pause(pause).await;
        }
    }

    /// Waits for another version, for the end of a reader that held deletions back, or until
    /// deletions have come of age.
    async fn wait_for_work(&self, listener: EventListener, freed: EventListener) {
        let now = self.env.clock().now();
        let work = select(listener, freed);
        match self.ages.next(now) {
            Some(due) => drop(select(work, pin!(self.pause(due - now))).await),
            None => drop(work.await),
        }
    }

    /// Filter bits for a new run of level 0.
    pub(super) fn flush_filter_bits(&self) -> f64 {
        let last = self.versions.current().last_level();
        self.shape().filter_bits_for(0, last)
    }
}
