//! Judging what was read and recovered: the replay of the commit order, and the search for the
//! places of commits whose seqno nobody knows.
//!
//! Acknowledged commits have seqnos, so they are totally ordered. What was in flight at a crash,
//! dropped, or indeterminate may have taken any gap in the seqnos up to the recovered one; every
//! gap must be filled exactly, in an order that real time and the recovered contents allow.

use std::collections::{BTreeSet, HashSet};

use super::world::{Commit, Fate, Key, Read, Seqno, Value, World};

/// More steps than any solvable case of a history takes.
const NODES_MAX: u64 = 300_000;

/// What an open has found of a key; none when the medium refused it.
pub(crate) type Found = Option<Option<Value>>;

/// Versions of one key, by seqno.
type Versions = Vec<(Seqno, Option<Value>)>;

/// What a resolution has found out.
pub(crate) struct Settled {
    versions: Vec<Versions>,
    /// Keys whose versions are not known for certain.
    fuzzy: Vec<bool>,
    /// Commits that took place though nobody was told.
    pub(crate) silent: usize,
    /// Commits behind the recovered seqno.
    pub(crate) lost: usize,
    pub(crate) ambiguous: bool,
}

fn at(versions: &Versions, seqno: Seqno) -> Option<Value> {
    let index = versions.partition_point(|(s, _)| *s <= seqno);
    index.checked_sub(1).and_then(|index| versions[index].1)
}

/// The seqno of the newest version that `seqno` sees; 0 when there is none.
fn at_seqno(versions: &Versions, seqno: Seqno) -> Seqno {
    versions.iter().map(|(s, _)| *s).filter(|s| *s <= seqno).max().unwrap_or(0)
}

impl World {
    /// Finds a commit order that explains why a database is at `last` with these contents.
    pub(crate) fn explain(&self, last: Seqno, found: &[Found]) -> Result<Settled, String> {
        let mut acked: Vec<&Commit> =
            self.commits.iter().filter(|c| c.seqnos().is_some()).collect();
        acked.sort_by_key(|c| c.seqnos());
        self.check_order(&acked)?;
        let mut versions: Vec<Versions> =
            self.state.iter().map(|value| vec![(self.base, *value)]).collect();
        let (mut gaps, mut next, mut lost) = (Vec::new(), self.base + 1, 0);
        for commit in &acked {
            let (first, end) = commit.seqnos().unwrap();
            if first <= last && end > last {
                return Err(format!("a batch was torn at {last}: {commit:?}"));
            }
            lost += usize::from(first > last);
            if first > next && next <= last {
                gaps.push((next, (first - 1).min(last)));
            }
            next = end + 1;
            add(&mut versions, commit, first);
        }
        if next <= last {
            gaps.push((next, last));
        }
        let unknown: Vec<&Commit> = self.commits.iter().filter(|c| c.is_unknown()).collect();
        let touched: BTreeSet<Key> =
            unknown.iter().flat_map(|c| c.ops.iter().map(|(key, _)| *key)).collect();
        for (key, found) in (0..).zip(found) {
            let expected = at(&versions[key as usize], last);
            if !touched.contains(&key) && found.is_some_and(|found| found != expected) {
                let name = self.name(key);
                return Err(format!(
                    "{name} is {found:?} at {last}, must be {expected:?}; versions {:?}",
                    versions[key as usize]
                ));
            }
        }
        let mut search = Search::new(&unknown, &acked, &versions, found, &touched, last);
        search.fill(&gaps, gaps.first().map_or(0, |gap| gap.0));
        let Some(solution) = search.solutions.first() else {
            return Err(self.unexplained(&search, &gaps, last, found));
        };
        let ambiguous = search.solutions.len() > 1;
        let silent = solution.len();
        for (index, first) in solution.clone() {
            if !ambiguous {
                add(&mut versions, unknown[index], first);
            }
        }
        for versions in &mut versions {
            versions.sort_by_key(|(seqno, _)| *seqno);
        }
        let mut fuzzy = vec![false; self.keys.len()];
        for (index, commit) in unknown.iter().enumerate() {
            let is_placed = solution.iter().any(|(placed, _)| *placed == index);
            for (key, _) in commit.ops.iter().filter(|_| ambiguous || !is_placed) {
                fuzzy[*key as usize] = true;
            }
        }
        Ok(Settled { versions, fuzzy, silent, lost, ambiguous })
    }

    /// Seqnos of acknowledged commits: apart from each other, and in the order of real time.
    fn check_order(&self, acked: &[&Commit]) -> Result<(), String> {
        let mut before = self.base;
        for commit in acked {
            let (first, last) = commit.seqnos().unwrap();
            if first <= before || first <= commit.after {
                return Err(format!("seqnos were given twice: {commit:?}, after {before}"));
            }
            before = last;
        }
        let mut earliest = u64::MAX;
        for commit in acked.iter().rev() {
            if commit.begin > earliest {
                return Err(format!("the order of seqnos is not that of time: {commit:?}"));
            }
            earliest = earliest.min(commit.end);
        }
        Ok(())
    }

    fn unexplained(
        &self,
        search: &Search<'_>,
        gaps: &[(Seqno, Seqno)],
        last: Seqno,
        found: &[Found],
    ) -> String {
        let mut text = format!(
            "no order of commits explains the state at {last}; base {}, gaps {gaps:?}, {} steps\n",
            self.base, search.nodes
        );
        for commit in &search.unknown {
            text += &format!("  unknown: {commit:?}\n");
        }
        for key in search.touched {
            let versions = &search.versions[*key as usize];
            let found = found[*key as usize];
            text += &format!("  {}: found {found:?} of {versions:?}\n", self.name(*key));
        }
        text
    }

    /// The state is settled: judges all reads and begins anew from here.
    pub(crate) fn settle(
        &mut self,
        last: Seqno,
        found: &[Found],
        settled: &Settled,
    ) -> Result<(), String> {
        for read in &self.reads {
            self.judge(read, settled)?;
        }
        self.base = last;
        self.state = found.iter().map(|found| found.flatten()).collect();
        (self.durable, self.written, self.noted) = (last, last, last);
        self.commits.clear();
        self.reads.clear();
        self.reopened = None;
        Ok(())
    }

    fn judge(&self, read: &Read, settled: &Settled) -> Result<(), String> {
        let versions = &settled.versions[read.key as usize];
        let expected = at(versions, read.at);
        let writer = read.found.and_then(|value| {
            let wrote = |c: &&Commit| c.ops.contains(&(read.key, Some(value)));
            self.commits.iter().find(wrote)
        });
        if let Some(commit) = writer.filter(|c| c.fate == Fate::Indeterminate) {
            return Err(format!("{read:?} saw a commit that was indeterminate: {commit:?}"));
        }
        if read.found == expected {
            return Ok(());
        }
        let may_be = |commit: &Commit| {
            let writes = |op: &(Key, Option<Value>)| *op == (read.key, read.found);
            commit.is_unknown() && commit.after < read.at && commit.ops.iter().any(writes)
        };
        if settled.fuzzy[read.key as usize] && self.commits.iter().any(may_be) {
            return Ok(());
        }
        let name = self.name(read.key);
        Err(format!(
            "{name}: {} at {} found {:?}, must be {expected:?}; versions {versions:?}; base {}; \
             client {:?} has written it: {writer:?}",
            read.how,
            read.at,
            read.found,
            self.base,
            writer.map(|c| c.client)
        ))
    }
}

fn add(versions: &mut [Versions], commit: &Commit, first: Seqno) {
    for (seqno, (key, value)) in (first..).zip(&commit.ops) {
        versions[*key as usize].push((seqno, *value));
    }
}

/// All that the rest of a search depends on, besides what never changes. In which order a value was
/// written that was found, `Search::fits` judges.
#[derive(PartialEq, Eq, Hash)]
struct Partial {
    placed: Vec<bool>,
    position: Seqno,
    /// Of each key that was found absent: whether the last write placed is newer than all whose
    /// place was known, and whether it is a value.
    last_writes: Vec<Option<(bool, bool)>>,
}

/// A search for places of the unknown commits.
struct Search<'a> {
    unknown: Vec<&'a Commit>,
    /// Each unknown commit must end before this seqno: one that began later has it.
    before: Vec<Seqno>,
    versions: &'a [Versions],
    found: &'a [Found],
    touched: &'a BTreeSet<Key>,
    last: Seqno,
    placed: Vec<(usize, Seqno)>,
    /// Commits that must be placed, as they wrote what was found and nobody else did.
    needed: Vec<usize>,
    /// Where no solution lies.
    hopeless: HashSet<Partial>,
    nodes: u64,
    /// The first two at most.
    solutions: Vec<Vec<(usize, Seqno)>>,
}

impl<'a> Search<'a> {
    fn new(
        unknown: &[&'a Commit],
        acked: &[&Commit],
        versions: &'a [Versions],
        found: &'a [Found],
        touched: &'a BTreeSet<Key>,
        last: Seqno,
    ) -> Search<'a> {
        let before = |commit: &&Commit| {
            let later = acked.iter().filter(|other| other.begin > commit.end);
            later.filter_map(|other| other.seqnos()).map(|(first, _)| first).min()
        };
        let is_needed = |commit: &Commit| {
            commit.ops.iter().any(|(key, value)| {
                let found = found[*key as usize].flatten();
                let newest = at(&versions[*key as usize], last);
                found.is_some() && found == *value && newest != found
            })
        };
        Search {
            needed: (0..unknown.len()).filter(|index| is_needed(unknown[*index])).collect(),
            hopeless: HashSet::new(),
            before: unknown.iter().map(|c| before(c).unwrap_or(u64::MAX)).collect(),
            unknown: unknown.to_vec(),
            versions,
            found,
            touched,
            last,
            placed: Vec::new(),
            nodes: 0,
            solutions: Vec::new(),
        }
    }

    /// Fills the gaps from `position` in the first one on.
    fn fill(&mut self, gaps: &[(Seqno, Seqno)], position: Seqno) {
        self.nodes += 1;
        let Some((gap, rest)) = gaps.split_first() else {
            if self.is_explained() {
                self.solutions.push(self.placed.clone());
            }
            return;
        };
        let partial = self.partial(position);
        if self.hopeless.contains(&partial) || !self.has_room(gaps, position) {
            return;
        }
        let solved = self.solutions.len();
        for index in 0..self.unknown.len() {
            if self.solutions.len() > 1 || self.nodes > NODES_MAX {
                return;
            }
            let end = position + self.unknown[index].len() - 1;
            if end > gap.1 || !self.fits(index, position) {
                continue;
            }
            self.placed.push((index, position));
            if end == gap.1 {
                self.fill(rest, rest.first().map_or(0, |gap| gap.0));
            } else {
                self.fill(gaps, end + 1);
            }
            self.placed.pop();
        }
        if self.solutions.len() == solved {
            self.hopeless.insert(partial);
        }
    }

    fn is_placed(&self, index: usize) -> bool {
        self.placed.iter().any(|placed| placed.0 == index)
    }

    fn partial(&self, position: Seqno) -> Partial {
        let last_write = |key: &Key| {
            let newest = at_seqno(&self.versions[*key as usize], self.last);
            let writes = self.placed.iter().flat_map(|(index, first)| {
                (*first..).zip(&self.unknown[*index].ops).filter(|(_, op)| op.0 == *key)
            });
            let (seqno, op) = writes.max_by_key(|(seqno, _)| *seqno)?;
            Some((seqno > newest, op.1.is_some()))
        };
        let absent = self.touched.iter().filter(|key| self.found[**key as usize] == Some(None));
        Partial {
            placed: (0..self.unknown.len()).map(|index| self.is_placed(index)).collect(),
            position,
            last_writes: absent.map(last_write).collect(),
        }
    }

    /// Whether what must be placed still can be.
    fn has_room(&self, gaps: &[(Seqno, Seqno)], position: Seqno) -> bool {
        let room: u64 = gaps.iter().map(|gap| gap.1 + 1 - gap.0.max(position)).sum();
        let missing = self.needed.iter().filter(|index| !self.is_placed(**index));
        missing.map(|index| self.unknown[*index].len()).sum::<u64>() <= room
    }

    fn fits(&self, index: usize, position: Seqno) -> bool {
        let commit = self.unknown[index];
        let is_placed = |placed: &(usize, Seqno)| {
            placed.0 == index || commit.end < self.unknown[placed.0].begin
        };
        if position <= commit.after || position >= self.before[index] {
            return false;
        }
        if self.placed.iter().any(is_placed) {
            return false;
        }
        // What was found cannot have been written over: [`Partial`] forgets where it was placed.
        let mut ops = (position..).zip(&commit.ops);
        ops.all(|(seqno, (key, value))| {
            let Some(found) = self.found[*key as usize] else { return true };
            if found.is_none() {
                return true;
            }
            if found == *value {
                return at_seqno(&self.versions[*key as usize], self.last) < seqno;
            }
            let kept = self.versions[*key as usize].iter().find(|version| version.1 == found);
            let wrote =
                |placed: &(usize, Seqno)| self.unknown[placed.0].ops.contains(&(*key, found));
            kept.is_none_or(|kept| kept.0 > seqno) && !self.placed.iter().any(wrote)
        })
    }

    fn is_explained(&self) -> bool {
        self.touched.iter().all(|key| {
            let Some(found) = self.found[*key as usize] else { return true };
            let versions = self.versions[*key as usize].iter().filter(|v| v.0 <= self.last);
            let mut newest = versions.copied().max_by_key(|v| v.0).unwrap_or((0, None));
            for (index, first) in &self.placed {
                for (seqno, op) in (*first..).zip(&self.unknown[*index].ops) {
                    if op.0 == *key && seqno > newest.0 {
                        newest = (seqno, op.1);
                    }
                }
            }
            newest.1 == found
        })
    }
}

/// The search remembered a hopeless order, and took another one of the same commits for it.
#[test]
fn an_order_is_not_given_up_for_another_one() {
    use seerdb::Durability;
    let mut world = World::new(1, &mut seerdb_io::sim::Chance::new(1));
    let commit = |key: Key, value: Value, fate| Commit {
        client: 0,
        ops: vec![(key, Some(value))],
        durability: Durability::Buffered,
        begin: 1,
        end: 2,
        after: 0,
        fate,
        proved: false,
    };
    // The first came third, as it was not written over at 2; the third began after the fourth.
    world.commits = vec![
        commit(0, 10, Fate::InFlight),
        commit(1, 11, Fate::InFlight),
        commit(2, 12, Fate::InFlight),
        commit(0, 20, Fate::Acked(2)),
        commit(1, 21, Fate::Acked(4)),
    ];
    world.commits[2].after = 4;
    let mut found: Vec<Found> = vec![Some(None); world.keys.len()];
    for (key, value) in [(0, 10), (1, 21), (2, 12)] {
        found[key] = Some(Some(value));
    }
    let settled = world.explain(5, &found);
    assert_eq!(settled.map(|settled| settled.silent), Ok(3));
    found[1] = Some(Some(11));
    assert!(world.explain(5, &found).is_err(), "two can only have come last");
}
