//! What all parts of a running history share, and which errors its class allows.

use std::cell::{Cell, RefCell, RefMut};

use seerdb::{DB, Error, ErrorKind};
use seerdb_io::sim::Sim;

use super::disk;
use super::plan::{Class, Plan};
use super::world::{Commit, Fate, Seqno, World};

/// A history in progress.
pub(crate) struct Context {
    pub(crate) sim: Sim,
    pub(crate) plan: Plan,
    world: RefCell<World>,
    /// Faults of the lives before.
    pub(crate) injected_before: Cell<usize>,
    /// A full disk was arranged in this life.
    pub(crate) was_full: Cell<bool>,
    /// The disk is full now.
    pub(crate) is_full: Cell<bool>,
    /// From which length on this life leaves values in the log, if it does.
    pub(crate) threshold: Cell<Option<usize>>,
}

/// What a client was doing when an error came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Open,
    Write,
    TryWrite,
    Read,
    Flush,
    Compact,
    Settle,
    Verify,
    WaitDurable,
    Close,
}

impl Context {
    pub(crate) fn new(sim: Sim, plan: Plan, world: World) -> Context {
        let world = RefCell::new(world);
        let (injected_before, was_full, is_full) =
            (Cell::new(0), Cell::new(false), Cell::new(false));
        let threshold = Cell::new(None);
        Context { sim, plan, world, injected_before, was_full, is_full, threshold }
    }

    pub(crate) fn world(&self) -> RefMut<'_, World> {
        self.world.borrow_mut()
    }

    /// The newest seqno that reads see.
    pub(crate) fn visible(&self, db: &DB) -> Seqno {
        db.snapshot().seqno()
    }

    /// An error has reached a client: fails unless the contract allows it here.
    pub(crate) fn error(&self, call: Call, error: &Error) {
        if !self.sim.is_alive() {
            return;
        }
        assert!(!error.to_string().contains("panicked"), "{call:?}: {error}");
        let mut world = self.world();
        world.count_error(&format!("{call:?}"), error.kind());
        if matches!(error.kind(), ErrorKind::FailStop | ErrorKind::Indeterminate) {
            world.failed = true;
        }
        let (closing, failed) = (world.closing, world.failed);
        drop(world);
        if error.kind() == ErrorKind::WouldStall && call == Call::TryWrite
            || error.kind() == ErrorKind::Closed && closing
        {
            return;
        }
        assert!(!self.plan.class.is_perfect(), "{call:?} failed though nothing was wrong: {error}");
        assert!(self.is_allowed(call, error), "{call:?} must not fail with {error:?}");
        if self.plan.class == Class::Full {
            assert!(self.was_full.get(), "{call:?} failed though there was room: {error:?}");
            return;
        }
        // O6: what clients see has a cause. Damage done in former lives is found in later ones.
        let injected = self.sim.injected();
        let since = match self.plan.class {
            Class::Lying => 0,
            _ => self.injected_before.get(),
        };
        let has_cause = injected[since..].iter().any(|fault| fault.is_error || fault.rule != "R3");
        assert!(has_cause || failed, "{call:?} failed without a cause: {error:?}");
    }

    fn is_allowed(&self, call: Call, error: &Error) -> bool {
        let writes = matches!(call, Call::Write | Call::TryWrite);
        let reads = matches!(call, Call::Read | Call::Verify);
        match (self.plan.class, error.kind()) {
            (_, ErrorKind::NoSpace) => !reads,
            (Class::Full, _) => false,
            (_, ErrorKind::Io) => true,
            // What a failed sync has dropped from the page cache: a value nobody called durable.
            (_, ErrorKind::FailStop) if call == Call::Read => disk::has_values(&self.sim.disk()),
            (_, ErrorKind::FailStop) => !reads,
            (_, ErrorKind::Indeterminate) => writes,
            (Class::Lying, ErrorKind::Corruption) => error.location().is_some(),
            _ => false,
        }
    }

    /// A write has resolved.
    pub(crate) fn write_ended(
        &self,
        db: &DB,
        commit: usize,
        call: Call,
        was_failed: bool,
        result: Result<Seqno, Error>,
    ) {
        // What a process hears while it dies, nobody has seen.
        if !self.sim.is_alive() {
            return;
        }
        match result {
            Ok(seqno) => {
                let visible = self.visible(db);
                assert!(visible >= seqno, "{seqno} is acknowledged, but visible is {visible}");
                assert!(!was_failed, "a write succeeded after writing had stopped");
                let mut world = self.world();
                world.end(commit, Fate::Acked(seqno));
                let is_synced = world.durable >= seqno;
                drop(world);
                if is_synced {
                    self.became_durable(db, seqno);
                }
            }
            Err(error) => {
                self.error(call, &error);
                let fate = match error.kind() {
                    ErrorKind::Indeterminate => Fate::Indeterminate,
                    _ => Fate::Refused,
                };
                self.world().end(commit, fate);
            }
        }
    }

    /// The database says that everything up to `seqno` is durable: so it must be on the disk.
    pub(crate) fn became_durable(&self, db: &DB, seqno: Seqno) {
        if !self.sim.is_alive() {
            return;
        }
        let mut world = self.world();
        world.durable = world.durable.max(seqno);
        drop(world);
        if self.plan.class != Class::Lying {
            let told = db.durable_seqno();
            assert!(told >= seqno, "{seqno} is durable, but durable_seqno is {told}");
            disk::check_durable(self, seqno);
        }
    }

    /// A flush has resolved that began when the database was at `seqno`.
    pub(crate) fn flushed(&self, seqno: Seqno) {
        if !self.sim.is_alive() {
            return;
        }
        let mut world = self.world();
        world.durable = world.durable.max(seqno);
        world.noted = world.noted.max(seqno);
        drop(world);
        if self.plan.class != Class::Lying {
            disk::check_durable(self, seqno);
        }
    }

    /// Closes the database, which others may be using.
    pub(crate) async fn close(&self, db: &DB) {
        self.world().closing = true;
        if let Err(error) = db.close().await {
            return self.error(Call::Close, &error);
        }
        let last = self.world().commits.iter().filter_map(Commit::seqnos).map(|s| s.1).max();
        if let Some(last) = last {
            self.became_durable(db, last);
            self.world().noted = last;
        }
        self.world().probe("closed");
    }
}
