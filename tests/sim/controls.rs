//! The hands that a history has on merging: pauses, limits, calling off, waiting.

use std::time::Duration;

use futures::future::join;
use seerdb::{CompactionPause, DB, ErrorKind};

use super::client::{Client, poll_times};
use super::context::Call;
use super::disk::DIR;
use super::life::{Life, bounded};
use super::plan::{Class, draw_absurd_limits, draw_contradiction, draw_limits};

/// A pause that a client holds.
pub(crate) struct Pause {
    pause: CompactionPause,
    /// The merges that had ended, if none was running when it began.
    merges: Option<u64>,
}

impl Client {
    /// Does something about merging.
    pub(crate) async fn control(&mut self) {
        match self.chance.below(10) {
            0..3 => self.begin_pause(),
            3..5 => self.call_off().await,
            5 => self.wait_for_merges().await,
            6..8 => self.limit(),
            _ => self.try_again_and_again().await,
        }
    }

    fn begin_pause(&mut self) {
        let pause = self.db.pause_compaction();
        let is_idle = self.db.compaction_progress().is_none();
        let merges = is_idle.then(|| self.db.stats().compactions);
        self.pauses.push(Pause { pause, merges });
        self.context.world().probe("pauses of merging");
    }

    /// Ends the oldest pause that it holds: no merge may have begun during it.
    pub(crate) fn end_pause(&mut self) {
        if self.pauses.is_empty() {
            return;
        }
        let Pause { pause, merges } = self.pauses.remove(0);
        if let Some(merges) = merges {
            let (progress, now) = (self.db.compaction_progress(), self.db.stats().compactions);
            assert_eq!((progress, now), (None, merges), "a merge began while merging was paused");
            self.context.world().probe("pauses without a merge");
        }
        drop(pause);
    }

    /// Who waits for merges must not hold them up.
    pub(crate) fn end_pauses(&mut self) {
        while !self.pauses.is_empty() {
            self.end_pause();
        }
    }

    /// Merges everything. `Cancelled` is an answer only if somebody has called merges off.
    pub(crate) async fn compact(&self, is_whole: bool) {
        let seqno = self.context.visible(&self.db);
        let cancels = self.context.world().cancels;
        let done = match is_whole {
            true => self.db.compact_range(..).await,
            false => self.db.compact_range(b"a".as_slice()..b"user:5".as_slice()).await,
        };
        match done {
            Ok(()) => self.context.flushed(seqno),
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                let mut world = self.context.world();
                assert!(world.cancels > cancels, "nobody has called a merge off: {error}");
                // It is called off behind its flush.
                world.probe("merges called off");
                drop(world);
                self.context.flushed(seqno);
            }
            Err(error) => self.context.error(Call::Compact, &error),
        }
    }

    /// Calls merges off, those that others asked for or one of its own.
    async fn call_off(&mut self) {
        let micros = *self.chance.pick(&[0, 50, 500, 2_000, 10_000]).unwrap();
        let (asks, is_whole) = (self.chance.one_in(2), self.chance.one_in(2));
        if asks {
            self.end_pauses();
        }
        let call_off = async {
            self.env.clock().sleep(Duration::from_micros(micros)).await;
            self.context.world().cancels += 1;
            self.db.cancel_compaction();
        };
        if asks {
            join(self.compact(is_whole), call_off).await;
        } else {
            call_off.await;
        }
    }

    async fn wait_for_merges(&mut self) {
        self.end_pauses();
        let merges = self.db.wait_for_compaction();
        let done = match self.context.plan.class {
            // A sector that cannot be read any more holds a merge up for ever.
            Class::Lying => poll_times(merges, 20).await.unwrap_or(Ok(())),
            _ => merges.await,
        };
        match done {
            Ok(()) => self.context.world().probe("waits for merges"),
            Err(error) => self.context.error(Call::Settle, &error),
        }
    }

    fn limit(&mut self) {
        if self.chance.one_in(4) {
            let before = self.db.compaction_limits();
            let absurd = draw_absurd_limits(&mut self.chance);
            let error = self.db.set_compaction_limits(absurd).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{absurd:?}");
            assert_eq!(self.db.compaction_limits(), before, "refused limits hold");
            return;
        }
        let limits = draw_limits(&mut self.chance);
        self.db.set_compaction_limits(limits).unwrap();
        assert_eq!(self.db.compaction_limits(), limits);
        self.context.world().probe("limits of merging");
    }

    /// Writes without waiting, and comes back when it is told to.
    async fn try_again_and_again(&mut self) {
        for attempt in 0..8 {
            let key = self.key();
            let (value, durability) = (self.value(key), self.durability());
            let (name, bytes, after, was_failed) = {
                let after = self.context.visible(&self.db);
                let world = self.context.world();
                (world.keys[key as usize].clone(), world.bytes(value), after, world.failed)
            };
            let ops = vec![(key, Some(value))];
            let commit = self.context.world().begin(self.id, ops, durability, after);
            let result = self.db.try_put(name, bytes).durability(durability).await;
            let stalls = result.as_ref().err().filter(|e| e.kind() == ErrorKind::WouldStall);
            let pause =
                stalls.map(|e| e.retry_after().expect("a stalled write says when to retry"));
            self.context.write_ended(&self.db, commit, Call::TryWrite, was_failed, result);
            let Some(pause) = pause else {
                let retried = u64::from(attempt > 0);
                return self.context.world().probe_by("writes that came back later", retried);
            };
            assert!(pause <= Duration::from_secs(5) && !pause.is_zero(), "{pause:?}");
            self.env.clock().sleep(pause).await;
        }
    }
}

impl Life {
    /// Now and then tries options that contradict each other: they are refused, and nothing is
    /// touched.
    pub(crate) async fn contradict(&mut self) {
        if !self.chance.one_in(8) {
            return;
        }
        let options = draw_contradiction(&mut self.chance, self.options.clone());
        let before = self.context.sim.ops_submitted();
        let told = options.clone().env(self.env.clone()).open(DIR).await.map(drop).unwrap_err();
        assert_eq!(told.kind(), ErrorKind::InvalidArgument, "{options:?}: {told}");
        assert_eq!(self.context.sim.ops_submitted(), before, "{options:?} did something");
        self.context.world().probe("contradictions refused");
    }

    /// O7: nobody writes, nobody pauses, nothing goes wrong any more: merging comes to rest.
    pub(crate) async fn settle(&self, db: &DB) {
        let is_over = {
            let world = self.context.world();
            world.closing || world.failed
        };
        if is_over || self.context.plan.class == Class::Lying {
            return;
        }
        match bounded(&self.env, "merging", db.wait_for_compaction()).await {
            Ok(()) => {
                assert_eq!(db.compaction_progress(), None, "a merge goes on");
                self.context.world().probe("merging at rest");
            }
            Err(error) => self.context.error(Call::Settle, &error),
        }
    }
}
