//! The lives of a machine: open, check what came back, let clients loose, end somehow.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures::future::{Either, join_all, select};
use seerdb::{DB, DBOptions, Durability, ErrorKind};
use seerdb_io::Env;
use seerdb_io::sim::{Chance, Faults};

use super::client::Client;
use super::context::{Call, Context};
use super::disk::{self, DIR};
use super::model::Found;
use super::plan::Class;
use super::world::Key;

/// Longer than anything takes when nothing is wrong.
const PATIENCE: Duration = Duration::from_secs(600);

/// How a life ended that was not cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Handles are gone, or the database is closed.
    Done,
    /// Damage was found that ends the history.
    Damaged,
}

/// One process.
pub(crate) struct Life {
    pub(crate) context: Rc<Context>,
    pub(crate) env: Env,
    pub(crate) options: DBOptions,
    pub(crate) durability: Durability,
    pub(crate) chance: Chance,
    /// The last life of a history: nobody writes any more.
    pub(crate) is_last: bool,
}

/// Fails when `future` takes longer than anything may in virtual time.
pub(crate) async fn bounded<F: Future>(env: &Env, what: &str, future: F) -> F::Output {
    match select(pin!(future), env.clock().sleep(PATIENCE)).await {
        Either::Left((output, _)) => output,
        Either::Right(_) => panic!("O7: {what} does not come to an end"),
    }
}

impl Life {
    pub(crate) async fn run(mut self) -> Ending {
        let faults = self.context.plan.faults.clone();
        if !self.is_last && self.chance.one_in(2) {
            self.context.sim.set_faults(faults.clone());
        }
        if disk::has_values(&self.context.sim.disk()) {
            self.context.world().probe("opens with a value log");
        }
        let before = disk::value_files(&self.context.sim.disk());
        self.contradict().await;
        let Some(db) = self.open().await else { return Ending::Damaged };
        let log = db.stats().value_log;
        if log.rewrites == 0 && log.files.iter().any(|file| !before.contains(&file.number)) {
            self.context.world().probe("recoveries that copied values");
        }
        self.heal();
        self.context.world().failed = false;
        self.context.world().probe("opens");
        if !self.check_recovered(&db).await {
            return Ending::Damaged;
        }
        if !self.is_last {
            self.context.sim.set_faults(faults);
            self.clients(&db).await;
            self.heal();
            self.go_on(&db).await;
        }
        self.settle(&db).await;
        self.look_around(&db).await;
        self.leave(db).await;
        Ending::Done
    }

    /// From now on nothing goes wrong any more.
    fn heal(&self) {
        self.context.sim.set_capacity(None);
        self.context.is_full.set(false);
        if self.context.plan.faults.transfer_max.is_none() {
            self.context.sim.set_faults(Faults::none());
        }
        self.context.sim.stop_faults();
    }

    /// Opens, again and again; none when the medium is damaged.
    async fn open(&mut self) -> Option<DB> {
        let class = self.context.plan.class;
        for attempt in 0..6 {
            let opening = self.options.clone().env(self.env.clone());
            match bounded(&self.env, "an open", opening.open(DIR)).await {
                Ok(db) => return Some(db),
                Err(error) => {
                    self.context.error(Call::Open, &error);
                    if error.is_corruption() {
                        self.context.world().probe("damage told by an open");
                        return None;
                    }
                    let is_over = class == Class::Lying && attempt > 3;
                    if is_over {
                        return None;
                    }
                    assert!(attempt < 4, "it does not open though faults have stopped: {error}");
                    if attempt == 3 {
                        self.heal();
                    }
                    self.env.clock().sleep(Duration::from_millis(1)).await;
                }
            }
        }
        None
    }

    /// O1: what is there is a prefix of the commit order with everything that was acknowledged.
    async fn check_recovered(&mut self, db: &DB) -> bool {
        let last = self.context.visible(db);
        let lying = self.context.plan.class == Class::Lying;
        let excused = lying && self.is_excused(last);
        {
            let mut world = self.context.world();
            let floor = world.floor();
            if last < floor && !excused {
                let lost = world.commits.iter();
                let lost: Vec<_> =
                    lost.filter(|c| c.seqnos().is_some_and(|s| s.1 > last)).collect();
                let faults: Vec<_> = self.context.sim.injected();
                let faults: Vec<_> = faults.iter().filter(|fault| fault.rule != "R3").collect();
                panic!(
                    "O1: recovered {last}, but {floor} was durable, and nobody was told; noted \
                     {}, faults {faults:#?}, lost {lost:#?}",
                    world.noted
                );
            }
            if let Some(before) = world.reopened.replace(last).filter(|before| *before != last) {
                assert!(lying, "O1: one open recovered {before}, the next one {last}");
            }
            // The open has put everything into tables, and what it dropped is gone for good.
            (world.durable, world.written, world.noted) = (last, last, last);
        }
        let (found, is_whole) = self.read_all(db).await;
        let mut world = self.context.world();
        world.count_fates();
        let settled = world.explain(last, &found).unwrap_or_else(|e| panic!("O1: {e}"));
        world.settle(last, &found, &settled).unwrap_or_else(|e| panic!("O2: {e}"));
        world.probe_by("commits nobody was told of", settled.silent as u64);
        world.probe_by("acknowledged commits lost in a cut", settled.lost as u64);
        world.probe_by("ambiguous recoveries", u64::from(settled.ambiguous));
        world.probe("recoveries explained");
        is_whole
    }

    /// Whether the medium may have lost what is behind `last` undetectably: the newest group.
    fn is_excused(&self, last: u64) -> bool {
        let world = self.context.world();
        if last >= world.floor() {
            return true;
        }
        let injected = self.context.sim.injected();
        let hits = injected.iter().filter(|fault| {
            !fault.is_error && matches!(fault.rule, "R2" | "R6") || fault.what.contains("page")
        });
        // Something durable was written after the loss: one hit cannot explain both away.
        world.is_newest_group(last) || hits.count() > 1
    }

    /// The contents; a key that cannot be read is left open, and then it is not whole.
    async fn read_all(&mut self, db: &DB) -> (Vec<Found>, bool) {
        let count = self.context.world().keys.len();
        let mut found: Vec<Found> = vec![Some(None); count];
        let mut stream = if self.chance.one_in(2) { db.iter() } else { db.iter().rev() };
        let mut is_whole = true;
        while let Some(item) = stream.next().await {
            match item {
                Ok((key, value)) => {
                    let world = self.context.world();
                    let key = world.key_of(&key).unwrap_or_else(|e| panic!("recovered: {e}"));
                    let value = world.identify(key, &value);
                    let value = value.unwrap_or_else(|e| panic!("recovered: {e}"));
                    found[key as usize] = Some(Some(value));
                }
                Err(error) => {
                    self.context.error(Call::Read, &error);
                    is_whole = false;
                }
            }
        }
        if !is_whole || self.chance.one_in(4) {
            is_whole &= self.get_all(db, &mut found, is_whole).await;
        }
        (found, is_whole)
    }

    /// Every key by itself; where a stream has read all, it must have read the same.
    async fn get_all(&self, db: &DB, found: &mut [Found], compares: bool) -> bool {
        let names = self.context.world().keys.clone();
        let mut is_whole = true;
        for (key, name) in names.iter().enumerate() {
            let value = match db.get(name).await {
                Ok(value) => value,
                Err(error) => {
                    self.context.error(Call::Read, &error);
                    (found[key], is_whole) = (None, false);
                    continue;
                }
            };
            let world = self.context.world();
            let value = value.map(|value| {
                let key = Key::try_from(key).unwrap();
                world.identify(key, &value).unwrap_or_else(|e| panic!("recovered: {e}"))
            });
            assert!(
                !compares || found[key] == Some(value),
                "O2: a stream found {:?} where a get found {value:?}, key {key}",
                found[key]
            );
            found[key] = Some(value);
        }
        is_whole
    }

    /// Lets clients loose; after a while nothing goes wrong any more, and they must get done.
    async fn clients(&mut self, db: &DB) {
        let context = &self.context;
        let mut tasks = Vec::new();
        for id in 0..context.plan.clients {
            let client = Client {
                context: Rc::clone(context),
                db: db.clone(),
                env: self.env.clone(),
                chance: self.chance.fork(id.into()),
                id,
                default: self.durability,
                held: Vec::new(),
                files: Vec::new(),
                rewrites: 0,
                pauses: Vec::new(),
            };
            tasks.push(context.sim.spawn(format!("client {id}"), client.run()));
        }
        let stops = Rc::new(Cell::new(false));
        let filler = (context.plan.class == Class::Full).then(|| {
            let fill = fill_disk(
                Rc::clone(context),
                self.env.clone(),
                self.chance.fork(99),
                Rc::clone(&stops),
            );
            context.sim.spawn("filler", fill)
        });
        let all = join_all(tasks);
        match select(all, self.env.clock().sleep(Duration::from_secs(60))).await {
            Either::Left((ended, _)) => ended.into_iter().for_each(|client| client.unwrap()),
            Either::Right((_, all)) => {
                self.heal();
                stops.set(true);
                let more = self.env.clock().sleep(PATIENCE);
                let Either::Left((ended, _)) = select(all, more).await else {
                    panic!("O7: clients do not come to an end: {:?}", self.context.world().doing);
                };
                ended.into_iter().for_each(|client| client.unwrap());
            }
        }
        stops.set(true);
        if let Some(filler) = filler {
            filler.await.unwrap();
        }
    }

    /// O7: nothing goes wrong any more, so a write must succeed unless writing has stopped.
    async fn go_on(&mut self, db: &DB) {
        let started = self.env.clock().now();
        loop {
            let (after, was_failed) = {
                let world = self.context.world();
                if world.closing || world.failed {
                    return;
                }
                (self.context.visible(db), world.failed)
            };
            let (value, key) = {
                let mut world = self.context.world();
                (world.new_value(0, 20), world.keys[0].clone())
            };
            let bytes = self.context.world().bytes(value);
            let ops = vec![(0, Some(value))];
            let commit = self.context.world().begin(u32::MAX, ops, Durability::Synced, after);
            let write = async { db.put(key, bytes).durability(Durability::Synced).await };
            let result = bounded(&self.env, "a write after the faults", write).await;
            let is_full = matches!(&result, Err(e) if e.kind() == ErrorKind::NoSpace);
            let ended = result.is_ok();
            self.context.write_ended(db, commit, Call::Write, was_failed, result);
            if ended {
                let resumed = self.context.was_full.get();
                self.context.world().probe_by("writes after a full disk", u64::from(resumed));
                return;
            }
            let waited = self.env.clock().now() - started;
            assert!(waited < PATIENCE, "O7: writes still fail; disk full: {is_full}");
            self.env.clock().sleep(Duration::from_millis(100)).await;
        }
    }

    /// O3: the structure is sound, and after a while no table is left that nothing refers to.
    async fn look_around(&mut self, db: &DB) {
        let stats = db.stats();
        {
            let mut world = self.context.world();
            world.probe_by("flushes", stats.flushes);
            world.probe_by("merges", stats.compactions);
            world.probe_by("values rewritten", stats.value_log.rewrites);
            world.probe_by("stalled writes", stats.stalled_writes);
            if world.closing || world.failed {
                return;
            }
        }
        let checks = self.chance.one_in(3);
        if checks && let Err(error) = bounded(&self.env, "a verification", db.verify()).await {
            self.context.error(Call::Verify, &error);
            assert_eq!(self.context.plan.class, Class::Lying, "{error}");
        }
        if !self.context.plan.class.is_perfect() || !(self.is_last || self.chance.one_in(3)) {
            return;
        }
        let (mut found, mut told) = (0, 1);
        for _ in 0..200 {
            found = disk::tables(&self.context.sim.disk());
            told = db.stats().levels.iter().map(|level| level.tables).sum();
            if found == told {
                break;
            }
            self.env.clock().sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(found, told, "O3: table files on the disk, and those of the version");
        self.context.world().probe("no orphans after a while");
        self.look_at_values().await;
    }

    /// As for tables: what is there of the value log is what the manifest names.
    async fn look_at_values(&self) {
        let (mut found, mut named) = (Vec::new(), None);
        for _ in 0..200 {
            let disk = self.context.sim.disk();
            (found, named) = (disk::value_files(&disk), disk::values_named(&disk));
            if named.as_ref() == Some(&found) {
                break;
            }
            self.env.clock().sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(named.as_ref(), Some(&found), "O3: the value log as named, and on the disk");
        let is_log = u64::from(!found.is_empty());
        self.context.world().probe_by("no orphaned values after a while", is_log);
    }

    /// Closes, or lets go of all handles. O8: nothing is left of the process then.
    async fn leave(&mut self, db: DB) {
        let closes = self.is_last || !self.chance.one_in(3);
        let was_closed = self.context.world().closing;
        if closes && !was_closed {
            bounded(&self.env, "a close", self.context.close(&db)).await;
        } else if !self.is_last && !was_closed && self.chance.one_in(2) {
            // The process ends with the database open.
            return;
        }
        self.context.world().closing = true;
        drop(db);
        let sim = &self.context.sim;
        let left = || {
            (sim.open_files(), sim.locks_held(), sim.in_flight(), sim.tasks()) == (0, 0, 0, vec![])
        };
        for _ in 0..600 {
            if left() {
                return;
            }
            self.env.clock().sleep(Duration::from_millis(100)).await;
        }
        panic!(
            "O8: after the close there are {} open files, {} locks, {} operations, tasks {:?}",
            sim.open_files(),
            sim.locks_held(),
            sim.in_flight(),
            sim.tasks()
        );
    }
}

/// Makes the disk full now and then.
async fn fill_disk(context: Rc<Context>, env: Env, mut chance: Chance, stops: Rc<Cell<bool>>) {
    while !stops.get() {
        env.clock().sleep(Duration::from_micros(chance.below(5_000))).await;
        let disk = context.sim.disk();
        let lens = disk.names().into_iter().filter_map(|name| disk.visible_bytes(name));
        let used: u64 = lens.map(|bytes| bytes.len() as u64).sum();
        context.was_full.set(true);
        context.is_full.set(true);
        context.sim.set_capacity(Some(used + chance.below(64 << 10)));
        env.clock().sleep(Duration::from_micros(chance.below(30_000))).await;
        context.sim.set_capacity(None);
        context.is_full.set(false);
        context.world().probe("full disks");
    }
}
