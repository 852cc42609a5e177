//! The state of one simulated machine: operations in flight, virtual time, lives.
//!
//! Invariants:
//! 1. Operations are numbered in the order of their submission, from 1, over all lives.
//! 2. After the end of a life no handle of it changes anything: its operations are refused.
//! 3. Foreign code (wakers, futures) never runs under the lock of the state, but for the hook,
//!    which gets to see the state and cannot get at the lock.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::path::Path;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::chance::Chance;
use super::crash::{CrashRules, Cut, resolve};
use super::disk::{Disk, Ino};
use super::effect::{self, Action, Answer, FileRef, Slot};
use super::errno::{EIO, error};
use super::faults::{Planner, Target};
use super::trace::{Entry, OpKind, Trace};
use super::{LifeEnd, Moment, OpEvent, Options, Phase};
use crate::buf::AlignedBuf;

/// The lock around everything.
pub(super) struct Machine {
    pub(super) state: Mutex<State>,
}

/// A hook that sees every operation.
pub(super) type Hook = Box<dyn FnMut(&OpEvent<'_>) + Send>;

/// A task of a lane that the scheduler has not taken over yet.
pub(super) struct NewTask {
    pub(super) env: u64,
    pub(super) name: &'static str,
    pub(super) future: BoxFuture<'static, ()>,
}

/// How far the end of an environment has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Closing {
    Open,
    /// It ends when nothing is in flight and no task can run.
    Quiesce,
    /// It ends when nothing is in flight.
    Stop,
    Ended,
}

pub(super) struct EnvState {
    pub(super) closing: Closing,
    pub(super) waiting: Vec<oneshot::Sender<()>>,
}

pub(super) struct State {
    pub(super) options: Options,
    pub(super) now: Duration,
    /// R9: the last reading of the monotonic clock, and how far the wall clock is off.
    pub(super) last_reading: Duration,
    pub(super) wall_offset_s: i64,
    pub(super) disk: Disk,
    pub(super) rules: CrashRules,
    pub(super) life: u64,
    pub(super) alive: bool,
    /// Set when the life shall end; the scheduler sees to it.
    pub(super) ending: Option<LifeEnd>,
    next: u64,
    stamp: u64,
    ops: BTreeMap<u64, Slot>,
    events: BTreeMap<(Duration, u64), u64>,
    pub(super) timers: BTreeMap<(Duration, u64), Waker>,
    pub(super) timers_made: u64,
    pub(super) envs: BTreeMap<u64, EnvState>,
    locks: BTreeSet<Ino>,
    open: BTreeMap<u64, Ino>,
    /// R5: the failed syncs that each open file has reported.
    reported: BTreeMap<u64, u64>,
    pub(super) chance: Chance,
    crash_chance: Chance,
    pub(super) planner: Planner,
    pub(super) trace: Trace,
    pub(super) hook: Option<Hook>,
    pub(super) incoming: Vec<NewTask>,
    pub(super) cuts: BTreeMap<u64, (Moment, LifeEnd)>,
    /// Of a million buffered reads, how many the page cache answers.
    cached_reads: u32,
}

/// What became of a submission.
pub(super) enum Submitted {
    Ready(io::Result<Answer>, AlignedBuf),
    Waiting(u64),
    /// The life ended with it.
    Never,
}

/// How long the caller can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// As long as it takes.
    Waits,
    /// The operation happens at once.
    AtOnce,
}

/// Who asks for what.
pub(super) struct Request {
    pub(super) life: u64,
    pub(super) env: u64,
    pub(super) action: Action,
    pub(super) path: Arc<Path>,
    pub(super) offset: u64,
    pub(super) buf: AlignedBuf,
    pub(super) patience: Patience,
}

impl State {
    pub(super) fn new(seed: u64, options: Options, disk: Disk) -> State {
        let mut chance = Chance::new(seed);
        let mut crash_chance = chance.fork(1);
        let planner = Planner::new(options.faults.clone(), chance.fork(2));
        let drawn = if crash_chance.one_in(2) { 512 } else { 4096 };
        let stale = crash_chance.one_in(4);
        let rates = [0, 300_000, 900_000, 1_000_000];
        let drawn_reads = chance.pick(&rates).copied().unwrap_or(0);
        State {
            rules: CrashRules {
                sector: options.sector.unwrap_or(drawn),
                hostile: options.hostile,
                stale,
            },
            cached_reads: options.cached_reads.unwrap_or(drawn_reads),
            trace: Trace::new(options.trace),
            now: Duration::from_millis(chance.below(10_000)),
            last_reading: Duration::ZERO,
            wall_offset_s: 1_700_000_001 + chance.below(100_000_000).cast_signed(),
            disk,
            life: 0,
            alive: false,
            ending: None,
            next: 1,
            stamp: 1,
            ops: BTreeMap::new(),
            events: BTreeMap::new(),
            timers: BTreeMap::new(),
            timers_made: 0,
            envs: BTreeMap::new(),
            locks: BTreeSet::new(),
            open: BTreeMap::new(),
            reported: BTreeMap::new(),
            chance,
            crash_chance,
            planner,
            hook: None,
            incoming: Vec::new(),
            cuts: BTreeMap::new(),
            options,
        }
    }

    pub(super) fn ops_submitted(&self) -> u64 {
        self.next - 1
    }

    pub(super) fn open_files(&self) -> usize {
        self.open.len()
    }

    pub(super) fn locks_held(&self) -> usize {
        self.locks.len()
    }

    /// Operations that have not ended; of one environment, or of all.
    pub(super) fn in_flight(&self, env: Option<u64>, counts: impl Fn(OpKind) -> bool) -> usize {
        let of_env = |slot: &&Slot| env.is_none_or(|env| env == slot.env) && !slot.done;
        self.ops.values().filter(of_env).filter(|slot| counts(slot.action.kind())).count()
    }

    fn refusal(&self, life: u64, env: u64) -> Option<io::Error> {
        if !self.alive || life != self.life {
            return Some(io::Error::other("the simulated process has ended"));
        }
        let closing = self.envs.get(&env).map_or(Closing::Ended, |env| env.closing);
        (closing >= Closing::Stop).then(|| io::Error::other("the file layer has been shut down"))
    }

    fn notify(&mut self, phase: Phase, number: u64, slot: &Slot) {
        let Some(mut hook) = self.hook.take() else { return };
        hook(&OpEvent {
            phase,
            number,
            life: self.life,
            now: self.now,
            kind: slot.action.kind(),
            path: &slot.path,
            offset: slot.offset,
            len: slot.buf.len(),
            state: self,
        });
        self.hook = Some(hook);
    }

    fn submit(&mut self, request: Request) -> Submitted {
        let Request { life, env, action, path, offset, buf, patience } = request;
        if self.ending.is_some() {
            // The task that polls does not know yet that its process is dead.
            return Submitted::Never;
        }
        if let Some(refusal) = self.refusal(life, env) {
            return Submitted::Ready(Err(refusal), buf);
        }
        let number = self.next;
        self.next += 1;
        self.stamp += 1;
        let (kind, now) = (action.kind(), self.now);
        let at = if offset == 0 { action.operand() } else { offset };
        let entry = Entry { now, number, kind, path: &path, offset: at, len: buf.len() };
        self.trace.submitted(&entry, if kind.is_write() { &buf } else { &[] });
        let target = Target { op: number, kind, path: &path, len: buf.len() };
        let trace = &mut self.trace;
        let verdict = self.planner.plan(&target, &mut |fault| trace.fault(fault));
        let mut slot = Slot {
            env,
            action,
            path,
            offset,
            buf,
            stamp: self.stamp,
            verdict,
            outcome: None,
            done: false,
            abandoned: false,
            waker: None,
        };
        self.notify(Phase::Submitted, number, &slot);
        if let Some((moment, end)) = self.cuts.remove(&number) {
            if moment == Moment::Middle {
                self.ops.insert(number, slot);
            }
            self.end_soon(end);
            return Submitted::Never;
        }
        self.start(number, &mut slot, patience);
        if slot.done {
            let outcome = slot.outcome.take().unwrap_or_else(|| Err(error(EIO)));
            return Submitted::Ready(outcome, slot.buf);
        }
        self.ops.insert(number, slot);
        Submitted::Waiting(number)
    }

    /// Lets the operation happen now, or sets the time of its end (R7, C5).
    fn start(&mut self, number: u64, slot: &mut Slot, patience: Patience) {
        let is_cached = match &slot.action {
            Action::Read(file) => !file.direct && self.chance.rate(self.cached_reads),
            _ => false,
        };
        if patience == Patience::AtOnce || is_cached {
            self.complete(number, slot);
            return;
        }
        let (low, high) = self.options.latency_us;
        let scale = match slot.action.kind() {
            OpKind::Sync | OpKind::SyncDir | OpKind::WriteDurable => 3,
            _ => 1,
        };
        let nanos = self.chance.between(low * 1000, high * 1000) * scale;
        let mut wait = Duration::from_nanos(nanos * (1 + slot.verdict.pieces));
        wait += Duration::from_micros(slot.verdict.slow_us);
        if slot.verdict.stall_us > 0 {
            let stall = Duration::from_micros(slot.verdict.stall_us);
            wait += stall;
            let events = mem::take(&mut self.events);
            self.events = events.into_iter().map(|((t, n), op)| ((t + stall, n), op)).collect();
        }
        self.events.insert((self.now + wait, number), number);
        if !matches!(slot.action, Action::Read(_)) && self.chance.one_in(2) {
            self.apply(number, slot);
        }
    }

    /// Makes the effect visible.
    fn apply(&mut self, number: u64, slot: &mut Slot) {
        let capacity = self.options.capacity;
        let outcome = match slot.action {
            Action::Read(file) => {
                let disk = &mut self.disk;
                effect::read(disk, file, &mut slot.buf, slot.offset, &slot.verdict)
            }
            _ => effect::act(&mut self.disk, number, slot, capacity),
        };
        slot.outcome = Some(outcome.map(|answer| self.hand_out(number, slot, answer)));
    }

    /// What belongs to the process: open files, locks, the order of listings.
    fn hand_out(&mut self, number: u64, slot: &Slot, answer: Answer) -> Answer {
        match answer {
            Answer::Node(ino, direct) => {
                let writable = matches!(slot.action, Action::Open(options) if options.write);
                self.open.insert(number, ino);
                let failures = self.disk.file(ino).map_or(0, |file| file.failures);
                self.reported.insert(number, failures);
                Answer::Opened(FileRef { id: number, ino, writable, direct })
            }
            Answer::Locked(Some(ino)) if !self.locks.insert(ino) => Answer::Locked(None),
            // R8: listings come in any order.
            Answer::Entries(mut entries) => {
                for i in (1..entries.len()).rev() {
                    entries.swap(i, self.chance.index(i + 1));
                }
                Answer::Entries(entries)
            }
            other => other,
        }
    }

    /// Ends an operation; its answer is in the slot.
    fn complete(&mut self, number: u64, slot: &mut Slot) {
        if slot.outcome.is_none() {
            self.apply(number, slot);
        }
        self.stamp += 1;
        let (disk, chance) = (&mut self.disk, &mut self.crash_chance);
        effect::complete(disk, number, slot, self.stamp, chance, self.rules);
        self.report_failure(slot);
        if matches!(slot.action, Action::SyncDir) {
            let open: BTreeSet<Ino> = self.open.values().copied().collect();
            self.disk.sweep(|ino| open.contains(&ino));
        }
        let (result, read) = match &slot.outcome {
            Some(Ok(Answer::Count(n))) => (Ok(*n as u64), *n),
            Some(Ok(Answer::Len(n))) => (Ok(*n), 0),
            Some(Err(e)) => (Err(e.raw_os_error().unwrap_or(-1)), 0),
            _ => (Ok(0), 0),
        };
        let is_read = slot.action.kind() == OpKind::Read;
        let data = if is_read { slot.buf.get(..read).unwrap_or_default() } else { &[] };
        self.trace.answered(self.now, number, result, data);
        slot.done = true;
        self.notify(Phase::Completed, number, slot);
    }

    /// R5: every file that was open when a sync failed reports it once, by its own next sync.
    fn report_failure(&mut self, slot: &mut Slot) {
        let Action::Sync(file) = slot.action else { return };
        let failures = self.disk.file(file.ino).map_or(0, |node| node.failures);
        let Some(reported) = self.reported.get_mut(&file.id) else { return };
        if *reported < failures && !matches!(slot.outcome, Some(Err(_))) {
            slot.outcome = Some(Err(error(EIO)));
        }
        *reported = failures;
    }

    /// The operations in flight at a crash: none, a part or all of each is applied (C5).
    fn pull_in_flight(&self, disk: &mut Disk, chance: &mut Chance) {
        for (number, slot) in self.ops.iter().filter(|(_, slot)| slot.outcome.is_none()) {
            let mut slot = Slot {
                env: slot.env,
                action: slot.action.clone(),
                path: Arc::clone(&slot.path),
                offset: slot.offset,
                buf: AlignedBuf::new(),
                stamp: slot.stamp,
                verdict: slot.verdict.clone(),
                outcome: None,
                done: false,
                abandoned: false,
                waker: None,
            };
            let is_write = slot.action.kind().is_write();
            match chance.below(3) {
                0 => continue,
                1 if is_write => slot.verdict.keep = Some(chance.next_u64()),
                _ => {}
            }
            if is_write && let Some(original) = self.ops.get(number) {
                slot.buf.extend_from_slice(&original.buf);
            }
            // Nobody will hear the answer.
            drop(effect::act(disk, *number, &slot, self.options.capacity));
        }
    }

    /// The disk as it would be after the power failed now.
    pub(super) fn crash_image(&self, cut: Cut, seed: u64) -> Disk {
        let mut chance = Chance::new(seed);
        let mut disk = self.disk.clone();
        if cut != Cut::NoneKept {
            self.pull_in_flight(&mut disk, &mut chance);
        }
        resolve(&mut disk, cut, self.rules, &mut chance);
        disk
    }

    /// The life is over; the scheduler will clear up.
    pub(super) fn end_soon(&mut self, end: LifeEnd) {
        if self.alive {
            self.alive = false;
            self.ending = Some(end);
        }
    }

    /// The end of a life for the disk and the kernel; what is left is to be dropped by the caller.
    #[must_use]
    pub(super) fn end_life(&mut self, end: LifeEnd) -> (LifeEnd, Remains) {
        let mut chance = self.crash_chance.fork(self.next);
        let end = match end {
            LifeEnd::PowerCut(None) => LifeEnd::PowerCut(Some(Cut::draw(&mut chance))),
            other => other,
        };
        let mut disk = self.disk.clone();
        if end != LifeEnd::PowerCut(Some(Cut::NoneKept)) {
            self.pull_in_flight(&mut disk, &mut chance);
        }
        if let LifeEnd::PowerCut(Some(cut)) = end {
            resolve(&mut disk, cut, self.rules, &mut chance);
        } else {
            disk.complete_all(self.stamp);
            disk.sweep(|_| false);
        }
        self.disk = disk;
        self.stamp += 1;
        self.trace.note(self.now, &format!("{end:?}"));
        self.locks.clear();
        self.open.clear();
        self.reported.clear();
        self.events.clear();
        self.cuts.clear();
        self.alive = false;
        self.ending = None;
        let remains = Remains {
            ops: mem::take(&mut self.ops),
            timers: mem::take(&mut self.timers),
            envs: mem::take(&mut self.envs),
            incoming: mem::take(&mut self.incoming),
        };
        (end, remains)
    }

    /// Advances the time to `now` and ends what is due; the wakers to wake.
    pub(super) fn fire(&mut self, now: Duration) -> Vec<Waker> {
        self.now = self.now.max(now);
        let mut wakers = Vec::new();
        while let Some(event) = self.events.first_entry().filter(|e| e.key().0 <= self.now) {
            let number = event.remove();
            let Some(mut slot) = self.ops.remove(&number) else { continue };
            self.complete(number, &mut slot);
            wakers.extend(slot.waker.take());
            if slot.abandoned {
                self.take_back(&slot.outcome);
            } else {
                self.ops.insert(number, slot);
            }
        }
        while let Some(timer) = self.timers.first_entry().filter(|t| t.key().0 <= self.now) {
            wakers.push(timer.remove());
        }
        wakers
    }

    /// When the next thing happens by itself.
    pub(super) fn next_event(&self) -> Option<Duration> {
        let event = self.events.keys().next().map(|(at, _)| *at);
        let timer = self.timers.keys().next().map(|(at, _)| *at);
        event.into_iter().chain(timer).min()
    }

    /// Nobody waits for this answer: what it gave is given back.
    fn take_back(&mut self, outcome: &Option<io::Result<Answer>>) {
        match outcome {
            Some(Ok(Answer::Opened(file))) => self.close(file.id),
            Some(Ok(Answer::Locked(Some(ino)))) => {
                self.locks.remove(ino);
            }
            _ => {}
        }
    }

    fn close(&mut self, id: u64) {
        self.open.remove(&id);
        self.reported.remove(&id);
    }
}

/// What is left of a life, to be dropped without the lock.
pub(super) struct Remains {
    ops: BTreeMap<u64, Slot>,
    timers: BTreeMap<(Duration, u64), Waker>,
    envs: BTreeMap<u64, EnvState>,
    incoming: Vec<NewTask>,
}

impl Remains {
    pub(super) fn bury(self) {
        drop((self.ops, self.timers, self.envs, self.incoming));
    }
}

impl Machine {
    pub(super) fn submit(&self, request: Request) -> Submitted {
        self.state.lock().submit(request)
    }

    /// The answer of an operation in flight, or the waker to wake is noted.
    pub(super) fn poll(
        &self,
        number: u64,
        waker: &Waker,
    ) -> Poll<(io::Result<Answer>, AlignedBuf)> {
        let mut state = self.state.lock();
        let Some(slot) = state.ops.get_mut(&number) else {
            let ended = io::Error::other("the simulated process has ended");
            return Poll::Ready((Err(ended), AlignedBuf::new()));
        };
        if !slot.done {
            let old = slot.waker.replace(waker.clone());
            drop(state);
            drop(old);
            return Poll::Pending;
        }
        let slot = state.ops.remove(&number);
        drop(state);
        let outcome = slot.and_then(|slot| Some((slot.outcome?, slot.buf)));
        Poll::Ready(outcome.unwrap_or_else(|| (Err(error(EIO)), AlignedBuf::new())))
    }

    /// Nobody waits for an operation any more; it goes on.
    pub(super) fn abandon(&self, number: u64) {
        let mut state = self.state.lock();
        let Some(slot) = state.ops.get_mut(&number) else { return };
        slot.abandoned = true;
        let mut garbage = (slot.waker.take(), None);
        if slot.done
            && let Some(slot) = state.ops.remove(&number)
        {
            state.take_back(&slot.outcome);
            garbage.1 = Some(slot);
        }
        drop(state);
        drop(garbage);
    }

    /// Whether the page cache answers this read, by chance.
    pub(super) fn is_cached(&self) -> bool {
        let mut state = self.state.lock();
        let rate = state.cached_reads;
        state.chance.rate(rate)
    }

    pub(super) fn close_file(&self, life: u64, id: u64) {
        let mut state = self.state.lock();
        if state.alive && state.life == life {
            state.close(id);
        }
    }

    pub(super) fn unlock(&self, life: u64, ino: Ino) {
        let mut state = self.state.lock();
        if state.alive && state.life == life {
            state.locks.remove(&ino);
        }
    }
}
