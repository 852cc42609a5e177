//! A whole simulated machine from one seed: disk, clock, scheduler, and what can go wrong.
//!
//! [`Sim`] is a machine; [`Sim::boot`] starts a process on it and gives its [`Env`]. Everything
//! that runs on that environment runs on one thread, in an order that follows from the seed, on a
//! disk that keeps exactly what a real one must keep and loses what it may lose. A failing run is
//! repeated by its seed.
//!
//! ```
//! use seerdb_io::sim::{Cut, Options, Outcome, Sim};
//! use seerdb_io::{AlignedBuf, OpenOptions};
//!
//! let sim = Sim::new(7, Options::default());
//! let env = sim.boot();
//! let outcome = sim.run(async {
//!     let options = OpenOptions { write: true, create_new: true, ..OpenOptions::default() };
//!     let file = env.fs().open("/note", options).await.unwrap();
//!     file.write_at_durable(AlignedBuf::zeroed(100), 0).await.0.unwrap();
//!     env.fs().sync_dir("/").await.unwrap();
//!     file.write_cached(b"not durable", 0).unwrap();
//! });
//! assert!(matches!(outcome, Outcome::Done(())));
//! sim.power_cut(Cut::NoneKept);
//! assert_eq!(sim.disk().visible_bytes("/note"), Some(vec![0; 100]));
//! ```
//!
//! # The fault model
//!
//! A file has durable bytes and an ordered list of pending changes; a directory likewise has
//! durable entries and pending ones. The death of a process ([`Sim::kill`]) keeps what is pending,
//! a power cut ([`Sim::power_cut`]) resolves it.
//!
//! | Rule | What it says | Where |
//! |---|---|---|
//! | S1 | Reads, lengths and listings see all pending changes; closing never syncs; a kill keeps them | `FileNode::change` |
//! | S2 | A sync makes durable what had completed before it was submitted, length included, no name | `FileNode::sync`, `FileNode::sync_write` |
//! | S3 | A sync of a directory makes its earlier entries durable, no data | `Disk::sync_dir` |
//! | C1 | Each sector of a pending write: old, new, zeros, garbage, shorn; runs may share their fate | `Style::resolve` |
//! | C2 | Bytes beside a pending write stay; on a hostile disk ([`Options::hostile`]) the page may go | `Style::break_neighbours` |
//! | C3 | The size lies anywhere between durable and pending, whatever the data; growth is zeros or garbage | `crash::mixed` |
//! | C4 | Nothing orders files or sectors; a directory keeps a prefix, a hostile one any subset | `crash::resolve_names` |
//! | C5 | What was submitted and had not completed is pending: none, a part or all of it | `State::pull_in_flight` |
//! | C6 | A cut may hit the recovery: boot again and cut again | [`Sim::boot`] |
//! | R1 | Reads fail once, or until the page is rewritten | [`Faults::read_transient`], [`Faults::read_latent`] |
//! | R2 | Bits are inverted on the medium or in flight | [`Faults::flip_media`], [`Faults::flip_in_flight`] |
//! | R3 | Transfers come in pieces; the layer hides it, so it is time, and counted | [`Faults::short`] |
//! | R4 | Writes fail after any prefix of their sectors; a full disk | [`Faults::write_error`], [`Sim::set_capacity`] |
//! | R5 | A sync fails: pages are clean, hold new or old bytes, any subset is durable; later syncs succeed, but each open file reports it once | [`Faults::sync_error`] |
//! | R6 | One misdirected or phantom write, or misdirected read, in a life | [`Faults::write_misdirected`] |
//! | R7 | Completions in any order, slow operations, stalls | [`Options::latency_us`], [`Faults::slow`], [`Faults::stall`] |
//! | R8 | Names, listings and lengths fail; listings come in any order | [`Faults::name_error`] |
//! | R9 | The monotonic clock stalls, the wall clock jumps | [`Faults::clock_stall`], [`Faults::wall_jump`] |
//! | R10 | No memory for a transfer beyond a size | [`Faults::transfer_max`] |
//!
//! All rates are 0 unless asked for; [`Faults::swarm`] draws them. Faults can also be scripted, by
//! the number of an operation: [`Sim::fail_op`], [`Sim::cut_at_op`].
//!
//! # How to test with it
//!
//! Boot, run, cut, boot again, look. [`Sim::run`] drives a future and all tasks: those of the
//! lanes and those of [`Sim::spawn`]; it says how it ended ([`Outcome`]). To try every crash point
//! of a history run it once, with a hook ([`Sim::on_op`]) that keeps a crash image of each
//! operation ([`OpEvent::crash_clone`]; an image shares its pages with the disk, so it is cheap),
//! and then boot a machine of its own on each ([`Sim::with_disk`]).
//!
//! Oracles look at [`Sim::disk`] (what is visible, what is durable), [`Sim::injected`] (which
//! faults there were), [`Sim::open_files`], [`Sim::tasks`] and [`Sim::in_flight`] (what is left
//! over). Damage is planted with [`Sim::edit_disk`].
//!
//! # What determinism asks of the code under test
//!
//! 1. Time, randomness, files and background tasks come from the [`Env`] alone; no threads.
//! 2. Nothing observable depends on the order of a `HashMap` of the standard library, nor on
//!    addresses.
//! 3. What one machine leaves in global state must not matter to the next.
//!
//! [`Sim::trace_hash`] of two runs with one seed tells whether that holds.

mod chance;
mod clock;
mod crash;
mod disk;
mod effect;
pub mod errno;
mod faults;
mod file;
mod image;
mod inspect;
mod machine;
mod schedule;
mod trace;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::oneshot;
use parking_lot::Mutex;

pub use chance::Chance;
pub use crash::{CrashRules, Cut};
pub use disk::Disk;
pub use faults::{Faults, FilePredicate};
pub use trace::{Injected, OpKind};

use crate::env::{Env, Parts, Task};
use crate::fs::Fs;
use machine::{Closing, EnvState, Machine, State};
use schedule::Scheduler;

/// What kind of machine it is.
#[derive(Debug, Clone)]
pub struct Options {
    /// What goes wrong while it runs; nothing by default.
    pub faults: Faults,
    /// The fewest and the most microseconds of an operation that waits for the device; syncs take
    /// three times as long. Default: 20 to 200.
    pub latency_us: (u64, u64),
    /// Of a million reads through the page cache, how many it can answer; drawn by default.
    pub cached_reads: Option<u32>,
    /// The sector size, 512 or 4096; drawn by default.
    pub sector: Option<usize>,
    /// C2 and C4: a disk that breaks what lies beside a pending write, and keeps any subset of
    /// names. Default: false.
    pub hostile: bool,
    /// The size of the disk in bytes; a file takes its length. Default: no limit.
    pub capacity: Option<u64>,
    /// The most polls of one run. Default: ten million.
    pub steps_max: u64,
    /// Whether to keep the full text of the trace. Default: false.
    pub trace: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            faults: Faults::none(),
            latency_us: (20, 200),
            cached_reads: None,
            sector: None,
            hostile: false,
            capacity: None,
            steps_max: 10_000_000,
            trace: false,
        }
    }
}

/// How a life ends, other than by the program's own will.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifeEnd {
    /// The process dies; the machine lives on, with its page cache (S1).
    Kill,
    /// The power fails. `None` draws how: 10 % all kept, 10 % none, 80 % mixed.
    PowerCut(Option<Cut>),
}

/// When the life ends, relative to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The operation never reaches the disk.
    Before,
    /// It is in flight (C5).
    Middle,
}

/// How a run ended.
#[derive(Debug)]
#[must_use = "a run may have ended before the future did"]
pub enum Outcome<T> {
    /// The future has resolved. Other tasks may go on in the next run.
    Done(T),
    /// The life has ended, in this way; a drawn cut says which it was.
    Cut(LifeEnd),
    /// Nothing can run and nothing will happen.
    Stuck(Stuck),
    /// After [`Options::steps_max`] polls.
    Exhausted(u64),
}

impl<T> Outcome<T> {
    /// The output of the future.
    ///
    /// # Panics
    ///
    /// When the run ended in another way.
    #[track_caller]
    pub fn unwrap(self) -> T {
        match self {
            Outcome::Done(value) => value,
            Outcome::Cut(end) => panic!("the life ended: {end:?}"),
            Outcome::Stuck(stuck) => panic!("{stuck}"),
            Outcome::Exhausted(steps) => panic!("no end after {steps} polls"),
        }
    }

    /// The output of the future, or nothing when the life ended first.
    ///
    /// # Panics
    ///
    /// When nothing could happen any more, or the polls were used up.
    #[track_caller]
    pub fn unless_cut(self) -> Option<T> {
        match self {
            Outcome::Cut(_) => None,
            other => Some(other.unwrap()),
        }
    }
}

/// Why nothing happens any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// The names of the tasks that wait, besides the main future.
    pub waiting: Vec<String>,
    /// The virtual time.
    pub now: Duration,
}

impl std::fmt::Display for Stuck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = self.waiting.join(", ");
        write!(f, "nothing can happen any more at {:?}; waiting: {waiting}", self.now)
    }
}

/// What a hook sees of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is about to be submitted.
    Submitted,
    /// It has completed; nobody knows yet.
    Completed,
}

/// An operation, as a hook sees it.
pub struct OpEvent<'a> {
    /// Submitted or completed.
    pub phase: Phase,
    /// The number of the operation.
    pub number: u64,
    /// The number of the life, from 1.
    pub life: u64,
    /// The virtual time.
    pub now: Duration,
    /// What it does.
    pub kind: OpKind,
    /// The file or directory.
    pub path: &'a Path,
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: usize,
    state: &'a State,
}

impl OpEvent<'_> {
    /// The disk as it would be if the power failed now; the run goes on undisturbed.
    pub fn crash_clone(&self, cut: Cut, seed: u64) -> Disk {
        self.state.crash_image(cut, seed)
    }

    /// The disk as it is.
    pub fn disk(&self) -> &Disk {
        &self.state.disk
    }
}

/// A simulated machine; see the module.
pub struct Sim {
    seed: u64,
    machine: Arc<Machine>,
    scheduler: Scheduler,
}

impl Sim {
    /// A machine with an empty disk.
    pub fn new(seed: u64, options: Options) -> Sim {
        Sim::with_disk(seed, options, Disk::new())
    }

    /// A machine with this disk.
    pub fn with_disk(seed: u64, options: Options, disk: Disk) -> Sim {
        let state = Mutex::new(State::new(seed, options, disk));
        Sim { seed, machine: Arc::new(Machine { state }), scheduler: Scheduler::new(seed) }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Starts a process, after the one that runs, if any, was killed.
    pub fn boot(&self) -> Env {
        if self.is_alive() {
            self.kill();
        }
        let mut state = self.machine.state.lock();
        state.alive = true;
        state.life += 1;
        state.planner.begin_life();
        drop(state);
        self.another_env()
    }

    /// One more environment of the process that runs.
    pub fn another_env(&self) -> Env {
        let mut state = self.machine.state.lock();
        let env = state.timers_made + 1;
        state.timers_made = env;
        state.envs.insert(env, EnvState { closing: Closing::Open, waiting: Vec::new() });
        let (life, rng) = (state.life, state.chance.next_u64());
        drop(state);
        let machine = Arc::clone(&self.machine);
        let keeper = Arc::new(file::Keeper { machine: Arc::clone(&machine), life, env });
        Env::simulated(Parts {
            fs: Fs::simulated(Arc::new(file::Names(Arc::clone(&keeper)))),
            keeper,
            clock: Arc::new(clock::LifeClock { machine: Arc::clone(&machine), life }),
            lanes: Arc::new(clock::LifeLanes { machine, life, env }),
            seeds: (self.seed, rng),
        })
    }

    /// Whether a process runs.
    pub fn is_alive(&self) -> bool {
        self.machine.state.lock().alive
    }

    /// Drives `main` and all tasks on this thread. Panics of `main` and of tasks of
    /// [`Sim::spawn`] pass through; those of lanes reach who waits for them.
    ///
    /// # Panics
    ///
    /// When it is called inside of a run.
    pub fn run<F: Future>(&self, main: F) -> Outcome<F::Output> {
        self.scheduler.run(&self.machine, main)
    }

    /// Adds a task of the test: a client of the process. It ends with the life, at the latest.
    pub fn spawn<F>(&self, name: impl Into<String>, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
    {
        let (reply, done) = oneshot::channel();
        let task = async move {
            // Nobody waits for it: it has run all the same.
            reply.send(Ok(future.await)).ok();
        };
        self.scheduler.add(name.into(), None, Box::pin(task));
        Task { done }
    }

    /// Ends the life: the process dies, the page cache stays. Inside of a run it takes effect as
    /// soon as the task that polls has paused; what that task does until then is refused.
    pub fn kill(&self) {
        self.end(LifeEnd::Kill);
    }

    /// Ends the life: the power fails. `None` draws how. Inside of a run as [`Sim::kill`].
    pub fn power_cut(&self, cut: impl Into<Option<Cut>>) {
        self.end(LifeEnd::PowerCut(cut.into()));
    }

    fn end(&self, end: LifeEnd) {
        if self.scheduler.is_running() {
            self.machine.state.lock().end_soon(end);
        } else {
            self.scheduler.end(&self.machine, end);
        }
    }

    /// Ends the life at the operation of this number.
    pub fn cut_at_op(&self, number: u64, moment: Moment, end: LifeEnd) {
        self.machine.state.lock().cuts.insert(number, (moment, end));
    }

    /// Fails the operation of this number; `sticky` fails all later ones of its kind as well,
    /// until the end of the life.
    pub fn fail_op(&self, number: u64, errno: i32, sticky: bool) {
        self.machine.state.lock().planner.script(number, errno, sticky);
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.machine.state.lock().planner.faults = faults;
    }

    /// From now on nothing goes wrong any more; what is damaged stays so.
    pub fn stop_faults(&self) {
        self.machine.state.lock().planner.heal();
    }

    /// Changes the size of the disk.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.machine.state.lock().options.capacity = bytes;
    }

    /// The number of operations so far, which is the number of the last one.
    pub fn ops_submitted(&self) -> u64 {
        self.machine.state.lock().ops_submitted()
    }

    /// The virtual time since some fixed point.
    pub fn now(&self) -> Duration {
        self.machine.state.lock().now
    }

    /// Calls `hook` for every operation, when it is submitted and when it completes. It must not
    /// use the machine, only the event.
    pub fn on_op(&self, hook: impl FnMut(&OpEvent<'_>) + Send + 'static) {
        let old = self.machine.state.lock().hook.replace(Box::new(hook));
        drop(old);
    }

    /// How this disk behaves at a power cut.
    pub fn crash_rules(&self) -> CrashRules {
        self.machine.state.lock().rules
    }

    /// The disk as it would be if the power failed now; nothing is disturbed.
    pub fn crash_clone(&self, cut: Cut, seed: u64) -> Disk {
        self.machine.state.lock().crash_image(cut, seed)
    }

    /// The disk as it is; a cheap copy.
    pub fn disk(&self) -> Disk {
        self.machine.state.lock().disk.clone()
    }

    /// Changes the disk behind the back of the process.
    pub fn edit_disk<R>(&self, edit: impl FnOnce(&mut Disk) -> R) -> R {
        edit(&mut self.machine.state.lock().disk)
    }

    /// The number of open files, counted as the kernel counts them; locks are apart.
    pub fn open_files(&self) -> usize {
        self.machine.state.lock().open_files()
    }

    /// The number of locks that are held.
    pub fn locks_held(&self) -> usize {
        self.machine.state.lock().locks_held()
    }

    /// The names of the tasks that have not ended, of lanes and of [`Sim::spawn`].
    pub fn tasks(&self) -> Vec<String> {
        self.scheduler.names()
    }

    /// The number of operations of all kinds that were submitted and have not completed.
    pub fn in_flight(&self) -> usize {
        self.machine.state.lock().in_flight(None, |_| true)
    }

    /// A hash of all operations with their data, times and answers, of all faults and ends.
    pub fn trace_hash(&self) -> u64 {
        self.machine.state.lock().trace.hash()
    }

    /// The operations as text, for a person to read; empty unless [`Options::trace`] is set.
    pub fn trace(&self) -> String {
        self.machine.state.lock().trace.text()
    }

    /// All faults that were injected, of all lives.
    pub fn injected(&self) -> Vec<Injected> {
        self.machine.state.lock().trace.injected.clone()
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        let mut state = self.machine.state.lock();
        state.alive = false;
        let hook = state.hook.take();
        drop(state);
        drop(hook);
        if !std::thread::panicking() {
            self.scheduler.end(&self.machine, LifeEnd::Kill);
        }
    }
}
