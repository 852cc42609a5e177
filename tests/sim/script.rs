//! Scripts: the lives of a single client, step by step, and the player that lives them.
//!
//! A script is played on a machine, with its model beside it ([`Book`]). A strict player takes any
//! error for a failure; a tolerant one allows the errors that the contract names, and checks what
//! each of them promises.

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{Either, select};
use seerdb::{DB, DBOptions, Durability, Error, ErrorKind, RangeStream, Snapshot};
use seerdb_io::Env;
use seerdb_io::sim::{Cut, LifeEnd, OpKind, Sim};

use crate::book::{Book, Ops, State, locate};
use crate::disk;
use crate::look::{self, Pairs};

pub(crate) const SYNCED: Durability = Durability::Synced;
pub(crate) const WRITTEN: Durability = Durability::Written;
pub(crate) const BUFFERED: Durability = Durability::Buffered;

/// How many keys scripts use.
pub(crate) const KEYS: u8 = 32;

/// The key of a number: prefixes of each other, the empty key, and the highest bytes.
pub(crate) fn key(number: u8) -> Vec<u8> {
    assert!(number < KEYS);
    let stems: [&[u8]; 4] = [b"k", b"ka", b"kab\0", b"k\xff\xff"];
    match number {
        0 => Vec::new(),
        _ => [stems[usize::from(number % 4)], format!("{:02}", number / 4).as_bytes()].concat(),
    }
}

/// One step of a script.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Put(u8, usize, Durability),
    Delete(u8, Durability),
    /// Keys and value lengths; no length is a delete.
    Batch(Vec<(u8, Option<usize>)>, Durability),
    /// Writes that are all issued before the first is awaited.
    Burst(Vec<(u8, usize, Durability)>),
    Flush,
    Compact,
    /// Milliseconds in which the client does nothing.
    Idle(u64),
    WaitDurable,
    /// Takes a snapshot, to be looked at by each check from now on.
    Snapshot,
    DropSnapshots,
    /// Opens streams in both directions and takes a little of them.
    Streams,
    /// Writes a key durably, and looks at it before the write has been answered.
    Peek(u8),
    /// Takes the rest.
    Drain,
    /// Compares everything with the model.
    Check,
    Verify,
    /// Closes and opens again.
    Reopen,
    /// The process dies, or the power fails, and the next life begins.
    Die(LifeEnd),
}

/// Which operations of a script are worth a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    All,
    /// Only those while the manifest is being extended or replaced.
    Roll,
}

/// A script with the options that it runs under.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) name: &'static str,
    pub(crate) options: DBOptions,
    pub(crate) steps: Vec<Step>,
    pub(crate) watch: Watch,
    /// Whether recoveries are cut as well.
    pub(crate) twice: bool,
}

/// The end of a life in which nothing pending is kept.
pub(crate) const CUT: LifeEnd = LifeEnd::PowerCut(Some(Cut::NoneKept));

/// Plays one script on one machine.
pub(crate) struct Player<'a> {
    pub(crate) script: &'a Script,
    pub(crate) sim: &'a Sim,
    pub(crate) book: Arc<Mutex<Book>>,
    pub(crate) tolerant: bool,
    /// Whether what goes wrong does so once.
    pub(crate) once: bool,
    /// Whether the last life ends with a close.
    pub(crate) closes: bool,
}

/// An open database and what the client holds of it.
struct Session {
    db: DB,
    snapshots: Vec<(Snapshot, Arc<State>)>,
    streams: Vec<(RangeStream, Pairs)>,
}

/// Whether the kernel may have dropped what was in the page cache: it does so when a sync fails
/// (R5), and then a written commit is gone even for the process that wrote it.
pub(crate) fn pages_lost(sim: &Sim) -> bool {
    sim.injected().iter().any(|fault| fault.kind == OpKind::Sync && fault.is_error)
}

impl Player<'_> {
    /// Plays the script to its end; panics when something is wrong.
    pub(crate) fn play(&self) {
        let mut steps = self.script.steps.as_slice();
        let mut end = None;
        loop {
            let at = steps.iter().position(|step| matches!(step, Step::Die(_)));
            let (life, rest) = steps.split_at(at.unwrap_or(steps.len()));
            let env = self.sim.boot();
            self.sim.run(self.live(env, life, end, rest.is_empty())).unwrap();
            let Some((Step::Die(next), rest)) = rest.split_first() else { return };
            match next {
                LifeEnd::Kill => self.sim.kill(),
                LifeEnd::PowerCut(cut) => {
                    self.sim.power_cut(*cut);
                    self.book().power_failed();
                }
            }
            (steps, end) = (rest, Some(*next));
        }
    }

    fn what(&self, step: &str) -> String {
        format!("{}: {step}", self.script.name)
    }

    /// Whether this error may be: strict players allow none.
    fn allow(&self, step: &str, error: &Error) {
        use ErrorKind::{FailStop, Indeterminate, Io, NoSpace};
        let typed = matches!(error.kind(), FailStop | Indeterminate | Io | NoSpace);
        assert!(self.tolerant && typed, "{}: {error:?}", self.what(step));
    }

    /// As [`Player::allow`], for what only reads: that writing has failed is no reason, unless the
    /// page cache has dropped a value that nobody called durable.
    fn allow_read(&self, step: &str, error: &Error) {
        self.allow(step, error);
        let is_lost = error.kind() == ErrorKind::FailStop
            && pages_lost(self.sim)
            && disk::has_values(&self.sim.disk());
        let is_read = error.kind() == ErrorKind::Io || is_lost;
        assert!(is_read, "{}: a read failed: {error:?}", self.what(step));
    }

    /// Waits for a step of the script. What hangs while something goes wrong must go on when
    /// nothing does any more.
    async fn patiently<T>(&self, env: &Env, what: &str, work: impl Future<Output = T>) -> T {
        if !self.tolerant {
            return work.await;
        }
        let mut work = pin!(work);
        for _ in 0..2 {
            let timer = pin!(env.clock().sleep(Duration::from_secs(100)));
            match select(work.as_mut(), timer).await {
                Either::Left((done, _)) => return done,
                Either::Right(_) => self.sim.stop_faults(),
            }
        }
        panic!("{}: hangs", self.what(what));
    }

    async fn open(&self, env: &Env) -> Option<DB> {
        // A fault that happens once is over at the second attempt.
        for _ in 0..2 {
            let options = self.script.options.clone().env(env.clone());
            match self.patiently(env, "open", options.open("/db")).await {
                Ok(db) => return Some(db),
                Err(error) => self.allow("open", &error),
            }
        }
        None
    }

    /// One life, which begins after the `end` of the one before.
    async fn live(&self, env: Env, steps: &[Step], end: Option<LifeEnd>, is_last: bool) {
        let Some(db) = self.open(&env).await else { return };
        if let Some(end) = end
            && !self.settle_epoch(&db, end).await
        {
            return;
        }
        let mut session = Session { db, snapshots: Vec::new(), streams: Vec::new() };
        for step in steps {
            if let Step::Reopen = step {
                let closed = self.patiently(&env, "close", session.db.close()).await;
                match &closed {
                    Ok(()) => self.book().all_durable(),
                    Err(error) => self.allow("close", error),
                }
                drop(session);
                let Some(db) = self.open(&env).await else { return };
                if closed.is_err() && !self.settle_epoch(&db, LifeEnd::Kill).await {
                    return;
                }
                session = Session { db, snapshots: Vec::new(), streams: Vec::new() };
            } else {
                let name = format!("{step:?}");
                self.patiently(&env, &name, self.step(&env, &mut session, step)).await;
            }
        }
        if is_last && self.tolerant && self.once {
            self.patiently(&env, "resume", self.resume(&env, &session.db)).await;
        }
        if is_last && self.closes {
            let closed = self.patiently(&env, "close", session.db.close()).await;
            if closed.map_err(|error| self.allow("close", &error)).is_ok() {
                self.book().all_durable();
            }
        }
    }

    /// What went wrong once is over: writing goes on without reopening, unless it was stopped.
    async fn resume(&self, env: &Env, db: &DB) {
        self.sim.stop_faults();
        env.clock().sleep(Duration::from_secs(6)).await;
        // The first write may still be told of a segment that could not be prepared.
        drop(db.put(b"resume", b"0").durability(SYNCED).await);
        for round in 1..=40u8 {
            let (key, value) = (b"resume".to_vec(), vec![round; 500]);
            let number = self.book().issue(vec![(key.clone(), Some(value.clone()))]);
            match db.put(key, value).durability(SYNCED).await {
                Ok(seqno) => self.book().acknowledge(number, SYNCED, seqno),
                Err(error) => {
                    let stopped = error.kind() == ErrorKind::FailStop;
                    assert!(stopped, "{}: {error:?}", self.what("resume"));
                    self.book().refuse(number);
                }
            }
        }
    }

    /// Finds out what a crash has left; `false` when it cannot be read.
    async fn settle_epoch(&self, db: &DB, end: LifeEnd) -> bool {
        let found = match look::scan(db.iter()).await {
            Ok(pairs) => pairs.into_iter().collect::<State>(),
            Err(error) => {
                self.allow_read("scan", &error);
                return false;
            }
        };
        let mut book = self.book();
        let bounds = book.bounds(end == LifeEnd::Kill && !pages_lost(self.sim));
        locate(book.states(), bounds, &found, &self.what("next life"));
        book.begin_epoch(found);
        true
    }

    pub(crate) fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    async fn step(&self, env: &Env, session: &mut Session, step: &Step) {
        let name = format!("{step:?}");
        match step {
            Step::Put(number, len, durability) => {
                self.burst(&session.db, &[(*number, *len, *durability)]).await;
            }
            Step::Burst(all) => self.burst(&session.db, all).await,
            Step::Delete(number, durability) => {
                let ops = vec![(key(*number), None)];
                let write = session.db.delete(key(*number)).durability(*durability);
                self.commit(&session.db, ops, *durability, write.into_future()).await;
            }
            Step::Batch(all, durability) => self.batch(&session.db, all, *durability).await,
            Step::Flush => {
                // What is flushed is durable, and so is what comes before it.
                let done = session.db.flush().await;
                self.note(&name, done, |book| book.all_durable());
            }
            Step::Compact => {
                let done = session.db.compact_range(..).await;
                self.note(&name, done, |book| book.all_durable());
            }
            Step::Idle(millis) => {
                env.clock().sleep(Duration::from_millis(*millis)).await;
                if *millis >= 20 && !self.tolerant {
                    self.book().all_written();
                }
            }
            Step::WaitDurable => {
                let last = self.book().last_seqno();
                if let Some(last) = last {
                    let done = session.db.wait_durable(last).await;
                    self.note(&name, done, |book| book.all_durable());
                }
            }
            Step::Snapshot => {
                let live = self.book().live();
                session.snapshots.push((session.db.snapshot(), live));
            }
            Step::DropSnapshots => session.snapshots.clear(),
            Step::Peek(number) => self.peek(&session.db, *number).await,
            Step::Streams => self.streams(session).await,
            Step::Drain => {
                for (stream, expected) in session.streams.drain(..) {
                    self.compare(&name, look::scan(stream).await, &expected);
                }
            }
            Step::Check => self.check(session).await,
            Step::Verify => {
                let done = session.db.verify().await;
                self.note(&name, done, |_| ());
            }
            Step::Reopen | Step::Die(_) => unreachable!("not a step within a session"),
        }
        self.book().durable_upto(session.db.durable_seqno());
    }

    fn note(&self, step: &str, done: Result<(), Error>, then: impl FnOnce(&mut Book)) {
        match done {
            Ok(()) => then(&mut self.book()),
            Err(error) => self.allow(step, &error),
        }
    }

    async fn burst(&self, db: &DB, all: &[(u8, usize, Durability)]) {
        let writes = all.iter().map(|(number, len, durability)| {
            let key = key(*number);
            let value = self.book().value(&key, *len);
            let write = db.put(&key, value.clone()).durability(*durability).into_future();
            self.commit(db, vec![(key, Some(value))], *durability, write)
        });
        futures::future::join_all(writes).await;
    }

    async fn batch(&self, db: &DB, all: &[(u8, Option<usize>)], durability: Durability) {
        let (mut batch, mut ops) = (db.batch(), Ops::new());
        for (number, len) in all {
            let key = key(*number);
            let value = len.map(|len| self.book().value(&key, len));
            match &value {
                Some(value) => batch.put(&key, value.clone()),
                None => batch.delete(&key),
            };
            ops.push((key, value));
        }
        self.commit(db, ops, durability, batch.commit().durability(durability).into_future()).await;
    }

    async fn commit(
        &self,
        db: &DB,
        ops: Ops,
        durability: Durability,
        write: impl Future<Output = Result<u64, Error>>,
    ) {
        let number = self.book().issue(ops);
        match write.await {
            Ok(seqno) => {
                let mut book = self.book();
                book.acknowledge(number, durability, seqno);
                book.durable_upto(db.durable_seqno());
            }
            Err(error) => {
                self.allow("commit", &error);
                if error.kind() != ErrorKind::Indeterminate {
                    self.book().refuse(number);
                }
            }
        }
    }

    fn compare(&self, step: &str, found: Result<Pairs, Error>, expected: &[(Vec<u8>, Vec<u8>)]) {
        match found {
            Ok(found) => look::same(&self.what(step), expected, &found),
            Err(error) => self.allow_read(step, &error),
        }
    }

    /// What is not durable yet is not seen, and is seen as soon as it is acknowledged.
    async fn peek(&self, db: &DB, number: u8) {
        let key = key(number);
        let before = self.book().live().get(&key).cloned();
        let value = self.book().value(&key, 40);
        let write = db.put(&key, value.clone()).durability(SYNCED).into_future();
        let commit = self.commit(db, vec![(key.clone(), Some(value.clone()))], SYNCED, write);
        let mut commit = pin!(commit);
        let is_done = futures::poll!(commit.as_mut()).is_ready();
        let snapshot = db.snapshot();
        let seen = snapshot.get(&key).await;
        if !is_done {
            commit.await;
        }
        let later = snapshot.get(&key).await;
        for seen in [seen, later] {
            match seen {
                Ok(seen) => assert!(
                    is_done || seen.as_deref() == before.as_deref(),
                    "{}: a commit was seen before it was acknowledged",
                    self.what("peek")
                ),
                Err(error) => self.allow_read("peek", &error),
            }
        }
    }

    async fn streams(&self, session: &mut Session) {
        let live = self.book().live();
        let forward: Vec<_> = live.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let reverse: Vec<_> = forward.iter().rev().cloned().collect();
        for (mut stream, expected) in
            [(session.db.iter(), forward), (session.db.iter().rev(), reverse)]
        {
            let mut first = Vec::new();
            while first.len() < 3 {
                match stream.try_next().await {
                    Ok(Some((key, value))) => first.push((key.to_vec(), value.to_vec())),
                    Ok(None) => break,
                    Err(error) => return self.allow_read("stream", &error),
                }
            }
            let (start, rest) = expected.split_at(expected.len().min(3));
            look::same(&self.what("stream"), start, &first);
            session.streams.push((stream, rest.to_vec()));
        }
    }

    async fn check(&self, session: &Session) {
        let live = self.book().live();
        if let Err(error) = look::everything(&session.db, &live, &self.what("check")).await {
            self.allow_read("check", &error);
        }
        for (snapshot, state) in &session.snapshots {
            if let Err(error) = look::snapshot(snapshot, state, &self.what("snapshot")).await {
                self.allow_read("snapshot", &error);
            }
        }
    }
}
