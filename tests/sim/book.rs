//! The model of a script: what was issued, what was acknowledged, and what must have survived.
//!
//! Commits are numbered in the order in which the client issued them; state `k` is the content of
//! the database after the first `k` of them. What was refused stays in the list and changes
//! nothing. A book covers the time between two crashes: after one, what was found is the base of
//! the next.

use std::collections::BTreeMap;
use std::sync::Arc;

use seerdb::Durability;

/// The content of a database.
pub(crate) type State = BTreeMap<Vec<u8>, Vec<u8>>;
/// The operations of a commit; no value is a delete.
pub(crate) type Ops = Vec<(Vec<u8>, Option<Vec<u8>>)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Issued, and not answered, or answered with "indeterminate".
    Open,
    Acknowledged(u64),
    Refused,
}

/// What must be there after a crash: the state after some number of commits within these bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) low: usize,
    pub(crate) high: usize,
}

/// See the module.
pub(crate) struct Book {
    commits: Vec<(Ops, Fate)>,
    states: Vec<Arc<State>>,
    /// So many commits survive a power cut, and so many the death of the process.
    durable: usize,
    written: usize,
    /// All states since the last crash but the present one, by the number of the crash.
    pub(crate) epochs: Vec<Vec<Arc<State>>>,
    /// Values written so far, over all lives.
    values: u64,
}

impl Book {
    pub(crate) fn new() -> Book {
        let states = vec![Arc::default()];
        let (commits, epochs) = (Vec::new(), Vec::new());
        Book { commits, states, durable: 0, written: 0, epochs, values: 0 }
    }

    /// A value that says for which key and when it was made.
    pub(crate) fn value(&mut self, key: &[u8], len: usize) -> Vec<u8> {
        self.values += 1;
        let mut value = format!("{}=", self.values).into_bytes();
        value.extend_from_slice(key);
        let mut state = self.values.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        while value.len() < len {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Half of it can be compressed.
            value.extend_from_slice(if state & 64 == 0 { &[0x5E, 0xED, 0, 0] } else { b"seer" });
            value.extend_from_slice(&state.to_le_bytes()[..3]);
        }
        value
    }

    /// A commit is issued; its number.
    pub(crate) fn issue(&mut self, ops: Ops) -> usize {
        let mut state = State::clone(self.last());
        apply(&mut state, &ops);
        self.states.push(Arc::new(state));
        self.commits.push((ops, Fate::Open));
        self.commits.len() - 1
    }

    fn last(&self) -> &Arc<State> {
        self.states.last().unwrap()
    }

    /// A commit was acknowledged.
    pub(crate) fn acknowledge(&mut self, number: usize, durability: Durability, seqno: u64) {
        let before = self.commits[..number].iter().rev().find_map(|(_, fate)| match fate {
            Fate::Acknowledged(seqno) => Some(*seqno),
            _ => None,
        });
        let behind = self.commits[number + 1..].iter().find_map(|(_, fate)| match fate {
            Fate::Acknowledged(seqno) => Some(*seqno),
            _ => None,
        });
        assert!(before.is_none_or(|before| before < seqno), "seqnos run against the order");
        assert!(behind.is_none_or(|behind| behind > seqno), "a later commit has overtaken this");
        self.commits[number].1 = Fate::Acknowledged(seqno);
        match durability {
            Durability::Synced => self.durable = self.durable.max(number + 1),
            Durability::Written => self.written = self.written.max(number + 1),
            Durability::Buffered => {}
        }
        self.written = self.written.max(self.durable);
    }

    /// A commit was refused: it must never be seen.
    pub(crate) fn refuse(&mut self, number: usize) {
        self.commits[number].1 = Fate::Refused;
        for k in number..self.commits.len() {
            let (ops, fate) = &self.commits[k];
            let mut state = State::clone(&self.states[k]);
            if *fate != Fate::Refused {
                apply(&mut state, ops);
            }
            self.states[k + 1] = Arc::new(state);
        }
    }

    /// The engine says that everything up to this seqno is durable.
    pub(crate) fn durable_upto(&mut self, seqno: u64) {
        let covered = |fate: &Fate| matches!(fate, Fate::Acknowledged(own) if *own <= seqno);
        let last = self.commits.iter().rposition(|(_, fate)| covered(fate));
        self.durable = self.durable.max(last.map_or(0, |last| last + 1));
        self.written = self.written.max(self.durable);
    }

    /// Everything that was acknowledged survives the death of the process.
    pub(crate) fn all_written(&mut self) {
        let answered = |fate: &Fate| matches!(fate, Fate::Acknowledged(_));
        let last = self.commits.iter().rposition(|(_, fate)| answered(fate));
        self.written = self.written.max(last.map_or(0, |last| last + 1));
    }

    /// Everything that was acknowledged is durable.
    pub(crate) fn all_durable(&mut self) {
        self.durable_upto(u64::MAX);
    }

    /// What a reader must see: what was acknowledged.
    pub(crate) fn live(&self) -> Arc<State> {
        if self.commits.iter().all(|(_, fate)| *fate != Fate::Open) {
            return Arc::clone(self.last());
        }
        let mut state = State::clone(&self.states[0]);
        for (ops, fate) in &self.commits {
            if matches!(fate, Fate::Acknowledged(_)) {
                apply(&mut state, ops);
            }
        }
        Arc::new(state)
    }

    /// The power has failed: what was merely written may be gone for good.
    pub(crate) fn power_failed(&mut self) {
        self.written = self.durable;
    }

    /// What a crash now may leave.
    pub(crate) fn bounds(&self, killed: bool) -> Bounds {
        let low = if killed { self.written } else { self.durable };
        Bounds { low, high: self.commits.len() }
    }

    /// The states since the last crash.
    pub(crate) fn states(&self) -> &[Arc<State>] {
        &self.states
    }

    /// The seqno acknowledged last.
    pub(crate) fn last_seqno(&self) -> Option<u64> {
        self.commits.iter().rev().find_map(|(_, fate)| match fate {
            Fate::Acknowledged(seqno) => Some(*seqno),
            _ => None,
        })
    }

    /// This was found after a crash, and is durable.
    pub(crate) fn begin_epoch(&mut self, found: State) {
        self.epochs.push(std::mem::replace(&mut self.states, vec![Arc::new(found)]));
        self.commits.clear();
        (self.durable, self.written) = (0, 0);
    }

    /// The states of the epoch of this number, from 0.
    pub(crate) fn epoch(&self, number: usize) -> &[Arc<State>] {
        self.epochs.get(number).unwrap_or(&self.states)
    }
}

fn apply(state: &mut State, ops: &Ops) {
    for (key, value) in ops {
        match value {
            Some(value) => state.insert(key.clone(), value.clone()),
            None => state.remove(key),
        };
    }
}

/// Panics unless `found` is a state within the bounds; its number.
pub(crate) fn locate(states: &[Arc<State>], bounds: Bounds, found: &State, what: &str) -> usize {
    let Bounds { low, high } = bounds;
    if let Some(k) = (low..=high).rev().find(|k| *states[*k] == *found) {
        return k;
    }
    let other = states.iter().rposition(|state| **state == *found);
    let expected = states.get(low).map(|state| differences(state, found)).unwrap_or_default();
    panic!(
        "{what}: after the crash there must be state {low} to {high}, it is state {other:?}; \
         against {low}: {expected}"
    );
}

/// The keys in which two states differ.
pub(crate) fn differences(expected: &State, found: &State) -> String {
    let show = |value: Option<&Vec<u8>>| match value {
        Some(value) => value.iter().take(12).map(|b| b.escape_ascii().to_string()).collect(),
        None => String::from("none"),
    };
    let keys: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let different = keys.into_iter().filter(|key| expected.get(*key) != found.get(*key));
    let lines = different.take(5).map(|key| {
        let (a, b) = (show(expected.get(key)), show(found.get(key)));
        format!("{} is {b} instead of {a}", key.escape_ascii())
    });
    lines.collect::<Vec<_>>().join("; ")
}
