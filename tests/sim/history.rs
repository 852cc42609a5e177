//! One history: a machine from a seed, its lives and their ends.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use seerdb::Durability;
use seerdb_io::sim::{Chance, LifeEnd, Moment, Options, Outcome, Sim};

use super::context::Context;
use super::damage;
use super::disk;
use super::life::{Ending, Life};
use super::plan::{Class, Plan, draw_options, draw_threshold};
use super::world::World;

/// What a history came to, for the report.
#[derive(Debug, Default, Clone)]
pub(crate) struct Report {
    pub(crate) histories: u64,
    pub(crate) lives: u64,
    pub(crate) crashes: u64,
    pub(crate) operations: u64,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) probes: BTreeMap<&'static str, u64>,
    pub(crate) trace: u64,
}

impl Report {
    pub(crate) fn add(&mut self, other: &Report) {
        self.histories += other.histories;
        self.lives += other.lives;
        self.crashes += other.crashes;
        self.operations += other.operations;
        for (what, count) in &other.errors {
            *self.errors.entry(what.clone()).or_default() += count;
        }
        for (what, count) in &other.probes {
            *self.probes.entry(what).or_default() += count;
        }
    }
}

/// A seed's history in progress.
struct History {
    context: Rc<Context>,
    chance: Chance,
    values: bool,
    lives: u64,
    crashes: u64,
}

/// Plays the history of `seed`; panics when the engine breaks its contract.
///
/// With `values` all lives leave values in the log.
pub(crate) fn play(seed: u64, values: bool) -> Report {
    let traced = std::env::var_os("SEERDB_SIM_TRACE").is_some();
    let mut chance = Chance::new(seed).fork(1);
    let plan = Plan::draw(&mut chance);
    let hostile = matches!(plan.class, Class::Hostile | Class::Lying);
    let options = Options { hostile, trace: traced, steps_max: 3_000_000, ..Options::default() };
    let world = World::new(seed, &mut chance);
    let context = Rc::new(Context::new(Sim::new(seed, options), plan, world));
    let mut history = History { context, chance, values, lives: 0, crashes: 0 };
    match traced {
        true => history.play_traced(),
        false => history.play(),
    }
    history.report()
}

impl History {
    fn play(&mut self) {
        let context = Rc::clone(&self.context);
        let undisturbed = !matches!(self.context.plan.class, Class::Lying | Class::Damaged);
        let watches = undisturbed && self.chance.one_in(4);
        let finding = watches.then(|| disk::watch(&context));
        let mut left = self.context.plan.lives;
        // More cuts of recoveries than a history ever has.
        for _ in 0..60 {
            let is_last = left == 0;
            left = left.saturating_sub(u64::from(self.chance.one_in(2)));
            let ending = self.live(is_last);
            if let Some(finding) = &finding {
                let told = std::mem::take(&mut *finding.lock());
                assert!(told.wrong.is_none(), "{}", told.wrong.unwrap_or_default());
                for (what, count) in told.probes {
                    context.world().probe_by(what, count);
                }
            }
            if is_last && ending.is_some() || ending == Some(Ending::Damaged) {
                break;
            }
            if self.context.plan.class == Class::Damaged && self.chance.one_in(2) {
                damage::try_one(&context, &mut self.chance);
            }
        }
        if context.sim.is_alive() {
            context.sim.kill();
        }
    }

    fn play_traced(&mut self) {
        let played = catch_unwind(AssertUnwindSafe(|| self.play()));
        if let Err(panic) = played {
            let context = &self.context;
            eprintln!("{}\n{:#?}", context.sim.trace(), context.plan);
            resume_unwind(panic);
        }
    }

    /// One life; none when it was cut.
    fn live(&mut self, is_last: bool) -> Option<Ending> {
        let context = Rc::clone(&self.context);
        let sim = &context.sim;
        context.injected_before.set(sim.injected().len());
        let env = sim.boot();
        self.lives += 1;
        if !is_last && !self.chance.one_in(6) {
            self.draw_cut();
        }
        let levels = [Durability::Synced, Durability::Written, Durability::Buffered];
        let durability = *self.chance.pick(&levels).unwrap();
        let always = self.values.then_some(1);
        let threshold = draw_threshold(&mut self.chance).or(always);
        context.threshold.set(threshold);
        let options = draw_options(&mut self.chance).value_threshold(threshold);
        let life = Life {
            context: Rc::clone(&context),
            env: env.clone(),
            options: options.durability(durability),
            durability,
            chance: self.chance.fork(self.lives),
            is_last,
        };
        let opens = context.world().probes.get("opens").copied();
        let outcome = sim.run(life.run());
        let (ending, end) = match outcome {
            Outcome::Cut(end) => (None, end),
            Outcome::Done(ending) => (Some(ending), self.end()),
            Outcome::Stuck(stuck) => panic!("O7: {stuck}"),
            Outcome::Exhausted(steps) => panic!("O7: no end after {steps} polls"),
        };
        drop(env);
        if ending.is_none() && opens == context.world().probes.get("opens").copied() {
            context.world().probe("recoveries cut");
        }
        self.ended(end);
        ending
    }

    /// Where the next cut comes: often so soon that it hits the recovery.
    fn draw_cut(&mut self) {
        let span = if self.chance.one_in(3) { 60 } else { self.context.plan.span };
        let at = self.context.sim.ops_submitted() + 1 + self.chance.below(span);
        let moment = if self.chance.one_in(2) { Moment::Before } else { Moment::Middle };
        let end = match self.chance.below(3) {
            0 => LifeEnd::Kill,
            _ => LifeEnd::PowerCut(None),
        };
        self.context.sim.cut_at_op(at, moment, end);
    }

    /// Ends a life that ran to its end.
    fn end(&mut self) -> LifeEnd {
        let end = if self.chance.one_in(2) { LifeEnd::Kill } else { LifeEnd::PowerCut(None) };
        match end {
            LifeEnd::Kill => self.context.sim.kill(),
            LifeEnd::PowerCut(cut) => self.context.sim.power_cut(cut),
        }
        end
    }

    fn ended(&mut self, end: LifeEnd) {
        let sim = &self.context.sim;
        self.crashes += u64::from(!self.context.world().closing);
        // R5: a failed sync may have dropped pages of the log that a kill would have kept.
        let before = self.context.injected_before.get();
        let dropped = sim
            .injected()
            .iter()
            .skip(before)
            .any(|fault| fault.rule == "R5" || self.context.plan.class == Class::Lying);
        let keeps = end == LifeEnd::Kill && !dropped;
        sim.set_capacity(None);
        self.context.was_full.set(false);
        let mut world = self.context.world();
        world.life_ended(keeps);
        let probe = if end == LifeEnd::Kill { "kills" } else { "power cuts" };
        world.probe(probe);
    }

    fn report(&self) -> Report {
        let mut world = self.context.world();
        for fault in self.context.sim.injected() {
            world.probe(fault.what);
        }
        Report {
            histories: 1,
            lives: self.lives,
            crashes: self.crashes,
            operations: world.probes.get("operations").copied().unwrap_or(0),
            errors: world.errors.clone(),
            probes: world.probes.clone(),
            trace: self.context.sim.trace_hash(),
        }
    }
}
