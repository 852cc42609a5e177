//! The scheduler: one thread, tasks in seeded order, and time that jumps to the next event.
//!
//! Invariants:
//! 1. The order of everything follows from the seed: a runnable task is chosen by chance among
//!    all, and when there is none the time jumps to the next event.
//! 2. No task is polled after the end of its life; all are dropped then, when the process cannot
//!    change anything any more.
//! 3. Only the thread of the simulation polls; wakers may be used anywhere, but nobody else has
//!    reason to.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use parking_lot::Mutex;

use super::chance::Chance;
use super::machine::{Closing, Machine};
use super::{LifeEnd, Outcome, Stuck};

/// What lies beyond this will never come.
const FOR_EVER: Duration = Duration::from_secs(1 << 33);

/// The tasks that can run.
#[derive(Default)]
struct Ready(Mutex<Vec<u64>>);

struct TaskWaker {
    id: u64,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Order: Relaxed, one thread; the lock orders what goes with it.
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.0.lock().push(self.id);
        }
    }
}

struct Entry {
    name: String,
    /// The environment whose lane it runs on; none for tasks of the test.
    env: Option<u64>,
    /// None while it is being polled.
    future: Option<LocalBoxFuture<'static, ()>>,
    waker: Arc<TaskWaker>,
}

/// The tasks of one life.
pub(super) struct Scheduler {
    ready: Arc<Ready>,
    tasks: RefCell<BTreeMap<u64, Entry>>,
    made: Cell<u64>,
    running: Cell<bool>,
    chance: RefCell<Chance>,
}

/// Marks that the scheduler runs, also when a panic ends the run.
struct Mark<'a>(&'a Cell<bool>);

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Scheduler {
    pub(super) fn new(seed: u64) -> Scheduler {
        Scheduler {
            ready: Arc::default(),
            tasks: RefCell::default(),
            made: Cell::new(0),
            running: Cell::new(false),
            chance: RefCell::new(Chance::new(seed).fork(3)),
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.get()
    }

    fn waker(&self) -> Arc<TaskWaker> {
        let id = self.made.get() + 1;
        self.made.set(id);
        Arc::new(TaskWaker { id, queued: AtomicBool::new(false), ready: Arc::clone(&self.ready) })
    }

    /// Takes a task over; it is runnable.
    pub(super) fn add(&self, name: String, env: Option<u64>, future: LocalBoxFuture<'static, ()>) {
        let waker = self.waker();
        waker.wake_by_ref();
        let entry = Entry { name, env, future: Some(future), waker };
        self.tasks.borrow_mut().insert(entry.waker.id, entry);
    }

    /// The names of the tasks that have not ended.
    pub(super) fn names(&self) -> Vec<String> {
        self.tasks.borrow().values().map(|entry| entry.name.clone()).collect()
    }

    /// Drops all tasks.
    pub(super) fn clear(&self) {
        let tasks = self.tasks.take();
        self.ready.0.lock().clear();
        for (_, entry) in tasks {
            crate::lane::guarded("the drop of a task", || drop(entry));
        }
    }

    fn clear_env(&self, env: u64) {
        let tasks = self.tasks.take();
        let (gone, stay) = tasks.into_iter().partition(|(_, entry)| entry.env == Some(env));
        *self.tasks.borrow_mut() = stay;
        let gone: BTreeMap<u64, Entry> = gone;
        for (_, entry) in gone {
            crate::lane::guarded("the drop of a task", || drop(entry));
        }
    }

    /// Runs everything until `main` ends, the life ends, or nothing can happen any more.
    pub(super) fn run<F: Future>(&self, machine: &Machine, main: F) -> Outcome<F::Output> {
        assert!(!self.running.replace(true), "a simulated machine is running already");
        let _mark = Mark(&self.running);
        let mut main = pin!(main);
        let main_waker = self.waker();
        main_waker.wake_by_ref();
        let steps_max = machine.state.lock().options.steps_max;
        for step in 0_u64.. {
            if let Some(end) = self.turn(machine) {
                return Outcome::Cut(end);
            }
            if step >= steps_max {
                return Outcome::Exhausted(step);
            }
            let Some(id) = self.pick() else {
                match self.jump(machine) {
                    Ok(()) => continue,
                    Err(stuck) => return Outcome::Stuck(stuck),
                }
            };
            if id != main_waker.id {
                self.poll(id);
                continue;
            }
            main_waker.queued.store(false, Ordering::Relaxed);
            let waker = Waker::from(Arc::clone(&main_waker));
            let polled = main.as_mut().poll(&mut Context::from_waker(&waker));
            let ending = machine.state.lock().ending.is_some();
            if let Poll::Ready(value) = polled
                && !ending
            {
                return Outcome::Done(value);
            }
        }
        unreachable!("the steps never end by themselves");
    }

    /// Between two polls: new tasks, due events, environments that end, the end of the life.
    fn turn(&self, machine: &Machine) -> Option<LifeEnd> {
        let spent = Duration::from_nanos(100 + self.chance.borrow_mut().below(1900));
        let mut state = machine.state.lock();
        if let Some(end) = state.ending {
            drop(state);
            return Some(self.end(machine, end));
        }
        let now = state.now + spent;
        let wakers = state.fire(now);
        let incoming = std::mem::take(&mut state.incoming);
        drop(state);
        for waker in wakers {
            crate::lane::guarded("the waker of an operation", || waker.wake());
        }
        for task in incoming {
            self.add(task.name.to_owned(), Some(task.env), task.future);
        }
        self.settle(machine);
        None
    }

    /// Ends the environments that have come to their end.
    fn settle(&self, machine: &Machine) {
        let mut state = machine.state.lock();
        let closing: Vec<(u64, Closing)> = state
            .envs
            .iter()
            .filter(|(_, env)| matches!(env.closing, Closing::Quiesce | Closing::Stop))
            .map(|(id, env)| (*id, env.closing))
            .collect();
        let mut ended = Vec::new();
        for (id, closing) in closing {
            let is_idle = state.in_flight(Some(id), |_| true) == 0;
            if is_idle && (closing == Closing::Stop || !self.has_runnable(id)) {
                let Some(env) = state.envs.get_mut(&id) else { continue };
                env.closing = Closing::Ended;
                ended.push((id, std::mem::take(&mut env.waiting)));
            }
        }
        drop(state);
        for (id, waiting) in ended {
            self.clear_env(id);
            drop(waiting);
        }
    }

    fn has_runnable(&self, env: u64) -> bool {
        let tasks = self.tasks.borrow();
        let ready = self.ready.0.lock();
        ready.iter().any(|id| tasks.get(id).is_some_and(|entry| entry.env == Some(env)))
    }

    /// A runnable task, by chance.
    fn pick(&self) -> Option<u64> {
        let mut ready = self.ready.0.lock();
        if ready.is_empty() {
            return None;
        }
        let chosen = self.chance.borrow_mut().index(ready.len());
        Some(ready.swap_remove(chosen))
    }

    /// Lets the time jump to the next event.
    fn jump(&self, machine: &Machine) -> Result<(), Stuck> {
        let mut state = machine.state.lock();
        match state.next_event().filter(|at| *at < FOR_EVER) {
            Some(at) => {
                let wakers = state.fire(at);
                drop(state);
                for waker in wakers {
                    crate::lane::guarded("the waker of an operation", || waker.wake());
                }
                Ok(())
            }
            None => Err(Stuck { waiting: self.names(), now: state.now }),
        }
    }

    fn poll(&self, id: u64) {
        let mut tasks = self.tasks.borrow_mut();
        let Some(entry) = tasks.get_mut(&id) else { return };
        entry.waker.queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&entry.waker));
        let Some(mut future) = entry.future.take() else { return };
        drop(tasks);
        let polled = Pin::new(&mut future).poll(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            drop(self.tasks.borrow_mut().remove(&id));
            drop(future);
        } else if let Some(entry) = self.tasks.borrow_mut().get_mut(&id) {
            entry.future = Some(future);
        }
    }

    /// Ends the life: first for the disk, then for its tasks.
    pub(super) fn end(&self, machine: &Machine, end: LifeEnd) -> LifeEnd {
        let (end, remains) = machine.state.lock().end_life(end);
        remains.bury();
        self.clear();
        end
    }
}
