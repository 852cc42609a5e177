//! What the clients of a history did and saw: the values, the commits, the reads.
//!
//! Invariants:
//! 1. Every put has a value of its own; its bytes say which one it is, so that any mix-up shows.
//! 2. A commit is noted before its future is polled for the first time, and its end as soon as it
//!    is known.
//! 3. Reads are noted with the seqno that they must be exact for; they are judged when the next
//!    open has told which commits took place.

use std::collections::BTreeMap;

use seerdb::{Durability, ErrorKind};
use seerdb_io::sim::Chance;

/// The index of a key in [`World::keys`].
pub(crate) type Key = u16;
/// The index of a value in [`World::values`].
pub(crate) type Value = u32;
/// A sequence number of the engine.
pub(crate) type Seqno = u64;

const TAG_BYTES: usize = 16;
/// Tags are mixed with these: without repetitions they stand in packed values as they are.
const TAG_MASK: [u8; TAG_BYTES] = *b"\0\0\x91\x2C\xE7\x5A\xB3\x48\xD6\x1F\x74\xA9\x03\xC8\x6D\xF2";

/// A value that a client has put, or tried to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Put {
    pub(crate) key: Key,
    len: u32,
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its future has not resolved.
    InFlight,
    /// The last seqno.
    Acked(Seqno),
    /// An error that means: it may or may not survive, and is never visible before a reopen.
    Indeterminate,
    /// Its future was dropped after it had been polled.
    Dropped,
    /// An error that means: it never took place.
    Refused,
}

/// One batch or single write.
#[derive(Debug, Clone)]
pub(crate) struct Commit {
    pub(crate) client: u32,
    /// None deletes.
    pub(crate) ops: Vec<(Key, Option<Value>)>,
    pub(crate) durability: Durability,
    /// The step of the world at which it began, and that at which its end was known.
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// The newest visible seqno before its first poll.
    pub(crate) after: Seqno,
    pub(crate) fate: Fate,
    /// It was found in the durable bytes of the disk.
    pub(crate) proved: bool,
}

impl Commit {
    /// The number of seqnos that it takes.
    pub(crate) fn len(&self) -> u64 {
        self.ops.len() as u64
    }

    /// First and last seqno, if they are known.
    pub(crate) fn seqnos(&self) -> Option<(Seqno, Seqno)> {
        match self.fate {
            Fate::Acked(last) => Some((last + 1 - self.len(), last)),
            _ => None,
        }
    }

    /// Whether it may have taken place at a seqno that nobody knows.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self.fate, Fate::InFlight | Fate::Indeterminate | Fate::Dropped)
    }
}

/// A key and what was found of it, exact for one seqno.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Read {
    pub(crate) at: Seqno,
    pub(crate) key: Key,
    pub(crate) found: Option<Value>,
    pub(crate) how: &'static str,
}

/// Everything that is known of a database from outside.
pub(crate) struct World {
    seed: u64,
    /// In order.
    pub(crate) keys: Vec<Vec<u8>>,
    pub(crate) values: Vec<Put>,
    /// What happened since the last settled state.
    pub(crate) commits: Vec<Commit>,
    pub(crate) reads: Vec<Read>,
    step: u64,
    /// The last settled state: up to this seqno, each key has this value.
    pub(crate) base: Seqno,
    pub(crate) state: Vec<Option<Value>>,
    /// Up to here everything must survive a power cut.
    pub(crate) durable: Seqno,
    /// Up to here everything must survive a kill.
    pub(crate) written: Seqno,
    /// Up to here the manifest knows of everything.
    pub(crate) noted: Seqno,
    /// What an open has found, until the state is settled.
    pub(crate) reopened: Option<Seqno>,
    /// Of this life: writing has failed; somebody has closed the database.
    pub(crate) failed: bool,
    pub(crate) closing: bool,
    /// How often somebody has called merges off.
    pub(crate) cancels: u64,
    /// What each client is doing.
    pub(crate) doing: BTreeMap<u32, &'static str>,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) probes: BTreeMap<&'static str, u64>,
}

impl World {
    pub(crate) fn new(seed: u64, chance: &mut Chance) -> World {
        let keys = draw_keys(chance);
        World {
            seed,
            state: vec![None; keys.len()],
            keys,
            values: Vec::new(),
            commits: Vec::new(),
            reads: Vec::new(),
            step: 0,
            base: 0,
            durable: 0,
            written: 0,
            noted: 0,
            reopened: None,
            failed: false,
            closing: false,
            cancels: 0,
            doing: BTreeMap::new(),
            errors: BTreeMap::new(),
            probes: BTreeMap::new(),
        }
    }

    /// Something worth knowing that it happens has happened.
    pub(crate) fn probe(&mut self, what: &'static str) {
        self.probe_by(what, 1);
    }

    pub(crate) fn probe_by(&mut self, what: &'static str, count: u64) {
        *self.probes.entry(what).or_default() += count;
    }

    pub(crate) fn count_error(&mut self, what: &str, kind: ErrorKind) {
        *self.errors.entry(format!("{kind:?} of {what}")).or_default() += 1;
    }

    fn tick(&mut self) -> u64 {
        self.step += 1;
        self.step
    }

    /// A value of its own for a put of `key`.
    pub(crate) fn new_value(&mut self, key: Key, len: usize) -> Value {
        let len = u32::try_from(len.max(TAG_BYTES)).unwrap();
        self.values.push(Put { key, len });
        u32::try_from(self.values.len()).unwrap() - 1
    }

    /// What the bytes of every value begin with.
    pub(crate) fn tag(&self, value: Value) -> [u8; TAG_BYTES] {
        let put = self.values[value as usize];
        let mut tag = [0; TAG_BYTES];
        tag[..2].copy_from_slice(b"v:");
        tag[2..6].copy_from_slice(&value.to_le_bytes());
        tag[6..8].copy_from_slice(&put.key.to_le_bytes());
        tag[8..12].copy_from_slice(&put.len.to_le_bytes());
        tag[12..].copy_from_slice(&self.seed.to_le_bytes()[..4]);
        tag.iter_mut().zip(TAG_MASK).for_each(|(byte, mask)| *byte ^= mask);
        tag
    }

    /// The bytes of a value: its tag, then filler that follows from it, partly random.
    pub(crate) fn bytes(&self, value: Value) -> Vec<u8> {
        let mut bytes = self.tag(value).to_vec();
        let len = self.values[value as usize].len as usize;
        let mut chance = Chance::new(u64::from(value) ^ self.seed.rotate_left(32));
        let random = chance.index(len - TAG_BYTES + 1);
        bytes.resize(TAG_BYTES + random, 0);
        chance.fill(&mut bytes[TAG_BYTES..]);
        bytes.resize(len, value.to_le_bytes()[0]);
        bytes
    }

    /// Which value these bytes are; they must be exactly those that were put under this key.
    pub(crate) fn identify(&self, key: Key, bytes: &[u8]) -> Result<Value, String> {
        let name = self.name(key);
        let masked = bytes.get(2..6).map(|b| u32::from_le_bytes(b.try_into().unwrap()));
        let mask = u32::from_le_bytes(TAG_MASK[2..6].try_into().unwrap());
        let value = masked.map(|masked| masked ^ mask);
        let value = value
            .filter(|value| bytes.starts_with(b"v:") && (*value as usize) < self.values.len())
            .ok_or_else(|| format!("{name} has bytes that nobody has put: {bytes:?}"))?;
        let put = self.values[value as usize];
        if put.key != key {
            return Err(format!("{name} has value {value}, put under {}", self.name(put.key)));
        }
        if self.bytes(value) != bytes {
            return Err(format!("{name} has value {value} with other bytes than were put"));
        }
        Ok(value)
    }

    /// The key that these bytes are.
    pub(crate) fn key_of(&self, bytes: &[u8]) -> Result<Key, String> {
        let at = self.keys.binary_search_by(|key| key.as_slice().cmp(bytes));
        at.map(|at| u16::try_from(at).unwrap())
            .map_err(|_| format!("the key {:?} was never written", bytes.escape_ascii()))
    }

    pub(crate) fn name(&self, key: Key) -> String {
        format!("key {key} \"{}\"", self.keys[key as usize].escape_ascii())
    }

    /// A commit is about to be polled for the first time; its place in the list.
    pub(crate) fn begin(
        &mut self,
        client: u32,
        ops: Vec<(Key, Option<Value>)>,
        durability: Durability,
        after: Seqno,
    ) -> usize {
        let (begin, end, fate, proved) = (self.tick(), u64::MAX, Fate::InFlight, false);
        self.commits.push(Commit { client, ops, durability, begin, end, after, fate, proved });
        self.commits.len() - 1
    }

    /// The fate of a commit is known.
    pub(crate) fn end(&mut self, commit: usize, fate: Fate) {
        let end = self.tick();
        let commit = &mut self.commits[commit];
        assert_eq!(commit.fate, Fate::InFlight, "a commit ends once");
        (commit.end, commit.fate) = (end, fate);
        if let Fate::Acked(last) = fate {
            match commit.durability {
                Durability::Synced => self.durable = self.durable.max(last),
                Durability::Written => self.written = self.written.max(last),
                Durability::Buffered => {}
            }
        }
    }

    /// The life has ended: nothing is in flight any more, and what was only in memory is gone.
    pub(crate) fn life_ended(&mut self, keeps_page_cache: bool) {
        let end = self.tick();
        for commit in self.commits.iter_mut().filter(|commit| commit.end == u64::MAX) {
            commit.end = end;
        }
        if !keeps_page_cache {
            self.written = 0;
        }
        (self.failed, self.closing) = (false, false);
    }

    /// What must have survived.
    pub(crate) fn floor(&self) -> Seqno {
        self.durable.max(self.written)
    }

    /// Counts what the commits since the last settled state came to.
    pub(crate) fn count_fates(&mut self) {
        let fates: Vec<Fate> = self.commits.iter().map(|commit| commit.fate).collect();
        for fate in fates {
            self.probe(match fate {
                Fate::InFlight => "commits in flight at the end",
                Fate::Acked(_) => "acks checked",
                Fate::Indeterminate => "commits indeterminate",
                Fate::Dropped => "commits dropped",
                Fate::Refused => "commits refused",
            });
        }
    }

    /// Whether a log that ends at `last` lacks no more than the newest group: nothing that came
    /// later proves that what is behind `last` was durable.
    pub(crate) fn is_newest_group(&self, last: Seqno) -> bool {
        let lost = || {
            let durable = |c: &&Commit| c.durability == Durability::Synced;
            let behind = |c: &&Commit| c.seqnos().is_some_and(|(_, end)| end > last);
            self.commits.iter().filter(durable).filter(behind)
        };
        let first_end = lost().map(|c| c.end).min().unwrap_or(u64::MAX);
        last >= self.noted && !lost().any(|c| c.begin > first_end)
    }

    /// Notes a read that found `found` where the database was at `at`.
    pub(crate) fn read(&mut self, at: Seqno, key: Key, found: Option<Value>, how: &'static str) {
        self.reads.push(Read { at, key, found, how });
    }
}

/// Few keys, many of them prefixes of others.
fn draw_keys(chance: &mut Chance) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = vec![
        Vec::new(),
        vec![0],
        b"a".to_vec(),
        b"a\0".to_vec(),
        b"a\0\0".to_vec(),
        b"aa".to_vec(),
        b"ab".to_vec(),
        b"b".to_vec(),
        vec![0xFF],
        vec![0xFF, 0xFF],
        vec![b'k'; 300],
    ];
    // Some trees shall have more tables than a merge takes at once.
    let users = if chance.one_in(6) { chance.between(100, 300) } else { chance.between(4, 40) };
    keys.extend((0..users).map(|i| format!("user:{i}").into_bytes()));
    let kept = chance.between(2, keys.len() as u64);
    while keys.len() as u64 > kept {
        keys.swap_remove(chance.index(keys.len()));
    }
    keys.sort();
    keys
}
