//! One history: a machine, its lives, what its clients wrote, and what must be there afterwards.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use seerdb::{DB, DBOptions, Durability, Error};
use seerdb_io::Env;
use seerdb_io::sim::{Chance, LifeEnd, Moment, Options, Outcome, Sim};

/// What kind of history it shall be.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rules {
    /// Enough writes for flushes and merges.
    pub(crate) large: bool,
}

/// A write that a client has begun.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    /// None for a delete.
    value: Option<u64>,
    durability: Durability,
    seqno: Option<u64>,
}

/// What the clients know of each key: the value that a life began with, and the attempts since.
#[derive(Debug, Default)]
struct Book {
    keys: BTreeMap<Vec<u8>, Vec<Attempt>>,
    next_value: u64,
}

/// A simulated machine with a database on it.
pub(crate) struct Machine {
    sim: Sim,
    chance: Chance,
    rules: Rules,
    options: DBOptions,
    book: Rc<RefCell<Book>>,
    last_end: LifeEnd,
    pub(crate) lives: u32,
    pub(crate) writes: u32,
    pub(crate) merges: u64,
}

const CLIENTS: u64 = 3;
const KEYS: u64 = 8;

fn value(number: u64, key: &[u8], len: usize) -> Vec<u8> {
    let mut value = number.to_le_bytes().to_vec();
    value.extend_from_slice(key);
    value.resize(value.len() + len, (number % 251) as u8);
    value
}

fn number(value: &[u8], key: &[u8], seed: u64) -> u64 {
    let (number, rest) = value.split_at(8);
    let number = u64::from_le_bytes(number.try_into().unwrap());
    assert!(rest.starts_with(key), "seed {seed}: a value of another key");
    let filler = &rest[key.len()..];
    assert!(filler.iter().all(|b| *b == (number % 251) as u8), "seed {seed}: a broken value");
    number
}

impl Machine {
    pub(crate) fn new(seed: u64, rules: Rules) -> Machine {
        let mut chance = Chance::new(seed).fork(77);
        let pick = |chance: &mut Chance, all: &[usize]| *chance.pick(all).unwrap();
        let durability = [Durability::Synced, Durability::Written, Durability::Buffered];
        let options = DBOptions::new()
            .memory_budget(1 << 20)
            .memtable_bytes(pick(&mut chance, &[1 << 10, 4 << 10, 32 << 10]))
            .wal_segment_bytes(pick(&mut chance, &[16 << 10, 32 << 10]))
            .block_bytes(pick(&mut chance, &[64, 512, 4096]))
            .table_bytes(pick(&mut chance, &[1 << 10, 8 << 10]))
            .cache_bytes(if rules.large { 24 << 10 } else { 256 << 10 })
            .durability(*chance.pick(&durability).unwrap());
        let sim = Sim::new(seed, Options { trace: traced(), ..Options::default() });
        let book = Rc::default();
        let last_end = LifeEnd::Kill;
        let (lives, writes, merges) = (0, 0, 0);
        Machine { sim, chance, rules, options, book, last_end, lives, writes, merges }
    }

    pub(crate) fn trace_hash(&self) -> u64 {
        self.sim.trace_hash()
    }

    /// Lives and dies this many times, and checks after each.
    pub(crate) fn play(&mut self, lives: u32) {
        for _ in 0..lives {
            self.live();
            self.recover();
        }
        if traced() {
            eprintln!("{}", self.sim.trace());
        }
    }

    /// One life: open, write, and be cut somewhere.
    fn live(&mut self) {
        let env = self.sim.boot();
        self.lives += 1;
        let seed = self.sim.seed();
        let span = if self.rules.large { 3000 } else { 200 };
        let at = self.sim.ops_submitted() + 1 + self.chance.below(span);
        let moment = if self.chance.one_in(2) { Moment::Before } else { Moment::Middle };
        let end = match self.chance.below(3) {
            0 => LifeEnd::Kill,
            _ => LifeEnd::PowerCut(None),
        };
        self.sim.cut_at_op(at, moment, end);
        let count = if self.rules.large { 150 } else { 25 };
        let plans: Vec<Chance> = (0..CLIENTS).map(|c| self.chance.fork(c)).collect();
        let (options, book) = (self.options.clone().env(env.clone()), Rc::clone(&self.book));
        let outcome = self.sim.run(async {
            let db = options.open("/db").await.unwrap_or_else(|e| fail(seed, "open", &e));
            let clients: Vec<_> = (0..CLIENTS)
                .zip(plans)
                .map(|(id, plan)| {
                    let task = client(db.clone(), id, plan, count, Rc::clone(&book));
                    self.sim.spawn(format!("client {id}"), task)
                })
                .collect();
            for client in clients {
                client.await.unwrap();
            }
            let merges = db.stats().compactions;
            drop(db);
            merges
        });
        let end = match outcome {
            Outcome::Done(merges) => {
                self.merges += merges;
                let cut = LifeEnd::PowerCut(None);
                let drawn = if self.chance.one_in(2) { LifeEnd::Kill } else { cut };
                match drawn {
                    LifeEnd::Kill => self.sim.kill(),
                    LifeEnd::PowerCut(cut) => self.sim.power_cut(cut),
                }
                drawn
            }
            Outcome::Cut(end) => end,
            Outcome::Stuck(stuck) => panic!("seed {seed}: {stuck}"),
            Outcome::Exhausted(steps) => panic!("seed {seed}: no end after {steps} polls"),
        };
        self.writes += u32::try_from(self.book.borrow().next_value).unwrap() - self.writes;
        drop(env);
        self.last_end = end;
    }

    /// The next life reads everything; sometimes it is cut as well, while it recovers.
    fn recover(&mut self) {
        let seed = self.sim.seed();
        let mut survived = matches!(self.last_end, LifeEnd::Kill);
        loop {
            let env = self.sim.boot();
            self.lives += 1;
            if self.chance.one_in(3) {
                let at = self.sim.ops_submitted() + 1 + self.chance.below(60);
                let end =
                    if self.chance.one_in(4) { LifeEnd::Kill } else { LifeEnd::PowerCut(None) };
                self.sim.cut_at_op(at, Moment::Middle, end);
            }
            let keys: Vec<Vec<u8>> = self.book.borrow().keys.keys().cloned().collect();
            let found = self.sim.run(read_all(env, self.options.clone(), keys, seed));
            match found {
                Outcome::Cut(LifeEnd::Kill) => {}
                Outcome::Cut(LifeEnd::PowerCut(_)) => survived = false,
                other => {
                    check(&mut self.book.borrow_mut(), &other.unwrap(), survived, seed);
                    return;
                }
            }
        }
    }
}

fn traced() -> bool {
    std::env::var_os("SEERDB_SIM_TRACE").is_some()
}

fn fail<T>(seed: u64, what: &str, e: &Error) -> T {
    panic!("seed {seed}: {what}: {e}")
}

async fn client(db: DB, id: u64, mut chance: Chance, count: u64, book: Rc<RefCell<Book>>) {
    for _ in 0..chance.below(count) {
        let key = format!("{id}/{}", chance.below(KEYS)).into_bytes();
        let all = [Durability::Synced, Durability::Written, Durability::Buffered];
        let durability = *chance.pick(&all).unwrap();
        let deletes = chance.one_in(5);
        let number = {
            let mut book = book.borrow_mut();
            book.next_value += 1;
            let number = book.next_value;
            let value = (!deletes).then_some(number);
            let attempt = Attempt { value, durability, seqno: None };
            book.keys.entry(key.clone()).or_default().push(attempt);
            number
        };
        let len = if chance.one_in(10) { 3000 } else { chance.index(300) };
        let written = if deletes {
            db.delete(&key).durability(durability).await
        } else {
            db.put(&key, value(number, &key, len)).durability(durability).await
        };
        let Ok(seqno) = written else { return };
        book.borrow_mut().keys.get_mut(&key).unwrap().last_mut().unwrap().seqno = Some(seqno);
        if chance.one_in(30) && db.flush().await.is_err() {
            return;
        }
        if chance.one_in(3) && db.get(&key).await.is_err() {
            return;
        }
    }
}

type Found = BTreeMap<Vec<u8>, Option<u64>>;

async fn read_all(env: Env, options: DBOptions, keys: Vec<Vec<u8>>, seed: u64) -> Found {
    let db = options.env(env).open("/db").await.unwrap_or_else(|e| fail(seed, "reopen", &e));
    let mut found = Found::new();
    for key in keys {
        let got = db.get(&key).await.unwrap_or_else(|e| fail(seed, "get", &e));
        found.insert(key.clone(), got.map(|value| number(&value, &key, seed)));
    }
    db.close().await.unwrap_or_else(|e| fail(seed, "close", &e));
    found
}

/// The recovered state is a prefix of the commit order with every durable write in it.
fn check(book: &mut Book, found: &Found, survived: bool, seed: u64) {
    // The place of each found value among the attempts of its key.
    let place = |attempts: &[Attempt], value: Option<u64>| {
        attempts.iter().rposition(|attempt| attempt.value == value)
    };
    let mut last = 0;
    for (key, attempts) in &book.keys {
        let value = found[key];
        if let Some(at) = place(attempts, value).filter(|_| value.is_some()) {
            last = last.max(attempts[at].seqno.unwrap_or(0));
        }
    }
    for (key, attempts) in &mut book.keys {
        let (name, value) = (String::from_utf8_lossy(key).into_owned(), found[key]);
        let at = place(attempts, value);
        assert!(at.is_some() || value.is_none(), "seed {seed}: {name} has a value from nowhere");
        let must = |attempt: &Attempt| {
            attempt.seqno.is_some_and(|seqno| {
                attempt.durability == Durability::Synced
                    || survived && attempt.durability == Durability::Written
                    || seqno <= last
            })
        };
        let floor = attempts.iter().rposition(must);
        let ok = match (floor, at) {
            (None, _) => true,
            (Some(floor), Some(at)) => at >= floor,
            (Some(_), None) => false,
        };
        assert!(
            ok,
            "seed {seed}: {name} is at {at:?} of {attempts:?}, must be at {floor:?} at least; \
             the last seqno found is {last}"
        );
        let settled = Attempt { value, durability: Durability::Synced, seqno: Some(0) };
        *attempts = vec![settled];
    }
}
