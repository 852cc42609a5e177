//! Flushes and merges on real files against a plain list of all versions.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::channel::mpsc::{self, UnboundedReceiver};
use futures::executor::block_on;
use parking_lot::Mutex;
use seerdb_io::{AlignedBuf, Env, EnvOptions, OpenOptions};
use tempfile::TempDir;

use super::*;
use crate::compaction::control::{Control, Ticket};
use crate::compaction::picker;
use crate::compaction::policy::Shape;
use crate::compaction::{OutputLevel, Tree};
use crate::error::ErrorKind;
use crate::iter::{Direction, Entry};
use crate::key::{Trailer, ValueKind};
use crate::options::DBOptions;
use crate::sstable::format::{BlockKind, Stored, block_trailer};
use crate::sstable::{BlockSource, RunIter};

/// Key, trailer, value.
type Version3 = (Vec<u8>, Trailer, Vec<u8>);

/// A memtable as a source: blocked before each first entry, to exercise loading.
struct List {
    entries: Vec<Version3>,
    at: usize,
    is_loaded: bool,
    /// Fails when this entry is loaded.
    bad: Option<usize>,
}

impl List {
    fn new(mut entries: Vec<Version3>) -> List {
        entries.sort_by(|a, b| crate::key::compare((&a.0, a.1), (&b.0, b.1)));
        List { entries, at: 0, is_loaded: false, bad: None }
    }
}

#[async_trait]
impl Source for List {
    fn position(&self) -> Position {
        match (self.is_loaded, self.at < self.entries.len()) {
            (false, _) => Position::Blocked,
            (true, true) => Position::At,
            (true, false) => Position::End,
        }
    }

    fn entry(&self) -> Entry<'_> {
        let (key, trailer, value) = &self.entries[self.at];
        Entry { key, trailer: *trailer, value }
    }

    fn value(&self) -> Bytes {
        Bytes::copy_from_slice(&self.entries[self.at].2)
    }

    fn advance(&mut self) {
        self.at += 1;
        self.is_loaded = !self.at.is_multiple_of(100);
    }

    fn seek(&mut self, target: Option<(&[u8], Trailer)>) {
        assert!(target.is_none());
        (self.at, self.is_loaded) = (0, false);
    }

    async fn load(&mut self) -> Result<()> {
        if self.bad.is_some_and(|bad| bad <= self.at) {
            return Err(Error::new(ErrorKind::Io, "no more"));
        }
        self.is_loaded = true;
        Ok(())
    }
}

struct Bed {
    dir: TempDir,
    env: Env,
    settings: Settings,
    set: VersionSet,
    trash: UnboundedReceiver<FileName>,
    snapshots: Vec<SeqNo>,
    seqno: SeqNo,
    /// Every version ever written.
    all: Vec<Version3>,
}

impl Bed {
    fn new(options: DBOptions) -> Bed {
        let env = Env::new(&EnvOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let settings = options.validate().unwrap();
        let (sender, trash) = mpsc::unbounded();
        let open = VersionSet::open(&env, dir.path(), &settings, sender);
        let (set, _) = block_on(open).unwrap();
        Bed { dir, env, settings, set, trash, snapshots: vec![0], seqno: 0, all: Vec::new() }
    }

    fn shape(&self) -> Shape {
        Shape::new(&self.settings, self.settings.first_runs_per_level())
    }

    fn with<R>(&self, work: impl FnOnce(&Context<'_>) -> R) -> R {
        let mut snapshots = self.snapshots.clone();
        snapshots.push(self.seqno);
        let (fs, dir) = (self.env.fs(), self.dir.path());
        work(&Context::new(fs, dir, &self.set, &self.settings, snapshots, &Unpaced))
    }

    fn version(&mut self, key: &str, value: Option<&str>) -> Version3 {
        self.seqno += 1;
        let kind = if value.is_some() { ValueKind::Put } else { ValueKind::Delete };
        let trailer = Trailer::new(self.seqno, kind);
        (key.into(), trailer, value.unwrap_or_default().into())
    }

    fn flush(&mut self, writes: &[(&str, Option<&str>)]) {
        let entries: Vec<Version3> =
            writes.iter().map(|(key, value)| self.version(key, *value)).collect();
        self.all.extend(entries.iter().cloned());
        let mut source = List::new(entries);
        let outcome = self.with(|ctx| block_on(write_level_0(ctx, &mut source, 10.0))).unwrap();
        self.apply(outcome);
    }

    fn apply(&mut self, outcome: Outcome) {
        block_on(self.set.apply(outcome.edit, outcome.opened, |_| ())).unwrap();
        while let Ok(name) = self.trash.try_recv() {
            block_on(self.env.fs().remove_file(name.in_dir(self.dir.path()))).unwrap();
        }
    }

    fn merge(&mut self, choice: &Choice) {
        let staged = stage(&self.set.current(), choice).filter(|_| choice.is_long());
        if let Some(edit) = staged {
            self.apply(Outcome { edit, opened: Vec::new(), entries: 0 });
        }
        for piece in 0..=choice.ends.len() {
            let version = self.set.current();
            let outcome = self.with(|ctx| block_on(run(ctx, &version, choice, piece))).unwrap();
            drop(version);
            self.apply(outcome);
            self.check_reads();
        }
    }

    fn compact(&mut self) {
        loop {
            let version = self.set.current();
            let Some(choice) = picker::pick(&Tree::of(&version), &self.shape()) else { return };
            drop(version);
            self.merge(&choice);
        }
    }

    fn compact_all(&mut self) {
        let version = self.set.current();
        let choice = picker::pick_all(&Tree::of(&version), &self.shape()).unwrap();
        drop(version);
        self.merge(&choice);
    }

    /// All entries of the tree, runs by age.
    fn stored(&self) -> Vec<Version3> {
        let mut out = Vec::new();
        for run in self.set.current().runs() {
            let blocks = BlockSource::ReadAhead { bytes: 4096 };
            let mut iter = RunIter::new(Arc::clone(run), Direction::Forward, blocks);
            iter.seek(None);
            loop {
                match iter.position() {
                    Position::Blocked => block_on(iter.load()).unwrap(),
                    Position::End => break,
                    Position::At => {
                        let entry = iter.entry();
                        out.push((entry.key.to_vec(), entry.trailer, entry.value.to_vec()));
                        iter.advance();
                    }
                }
            }
        }
        out
    }

    /// Every live snapshot sees what it saw when it was taken.
    fn check_reads(&self) {
        let stored = self.stored();
        for &snapshot in self.snapshots.iter().chain([&self.seqno]) {
            let expected = newest(&self.all, snapshot);
            assert_eq!(newest(&stored, snapshot), expected, "at {snapshot}");
        }
    }

    fn tables_on_disk(&self) -> BTreeSet<FileNumber> {
        let entries = block_on(self.env.fs().list_dir(self.dir.path())).unwrap();
        entries
            .iter()
            .filter_map(|entry| match FileName::parse(&entry.name) {
                Some(FileName::Table(number)) => Some(number),
                _ => None,
            })
            .collect()
    }

    fn tables(&self) -> BTreeSet<FileNumber> {
        self.set.current().tables().map(|table| table.meta().number).collect()
    }
}

/// What a reader sees at `snapshot`.
fn newest(versions: &[Version3], snapshot: SeqNo) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut newest: BTreeMap<Vec<u8>, (Trailer, Vec<u8>)> = BTreeMap::new();
    for (key, trailer, value) in versions.iter().filter(|(_, t, _)| t.seqno() <= snapshot) {
        let slot = newest.entry(key.clone()).or_insert((*trailer, value.clone()));
        if slot.0 < *trailer {
            *slot = (*trailer, value.clone());
        }
    }
    newest
        .into_iter()
        .filter(|(_, (trailer, _))| trailer.kind() == ValueKind::Put)
        .map(|(key, (_, value))| (key, value))
        .collect()
}

fn small() -> DBOptions {
    DBOptions::default().memtable_bytes(1024).table_bytes(2048).block_bytes(256)
}

/// A seeded life of flushes, merges and snapshots; the seed is in the message of a failure.
#[test]
fn reads_do_not_change_over_a_life_of_merges() {
    for seed in 1u64..=6 {
        let mut state = seed;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let mut bed = Bed::new(small());
        for step in 0..25 {
            let count = 1 + draw(60);
            let base = if seed % 2 == 0 { step * 40 } else { 0 };
            let writes: Vec<(String, Option<String>)> = (0..count)
                .map(|_| {
                    let key = format!("key{:05}", base + draw(150));
                    let value = (draw(4) > 0).then(|| format!("{:0>40}", draw(1000)));
                    (key, value)
                })
                .collect();
            let writes: Vec<_> =
                writes.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
            bed.flush(&writes);
            if draw(3) == 0 {
                bed.snapshots.push(bed.seqno);
            }
            if draw(4) == 0 && bed.snapshots.len() > 1 {
                let at = 1 + usize::try_from(draw(bed.snapshots.len() as u64 - 1)).unwrap();
                bed.snapshots.remove(at);
            }
            bed.compact();
            bed.check_reads();
            assert_eq!(bed.tables_on_disk(), bed.tables(), "seed {seed}, step {step}");
        }
        bed.snapshots = vec![bed.seqno];
        bed.compact_all();
        bed.check_reads();
        let stored = bed.stored();
        assert!(stored.iter().all(|(_, t, _)| t.kind() == ValueKind::Put), "seed {seed}");
        assert_eq!(stored.len(), newest(&stored, bed.seqno).len(), "seed {seed}");
    }
}

#[test]
fn tables_are_cut_between_user_keys_only() {
    let mut bed = Bed::new(small().compression(Compression::None));
    let value = "x".repeat(500);
    for _ in 0..12 {
        bed.flush(&[("a", Some(&value)), ("b", Some(&value)), ("c", Some(&value))]);
        bed.snapshots.push(bed.seqno);
    }
    bed.compact_all();
    let version = bed.set.current();
    assert_eq!(version.table_count(), 3, "a table for each key, whatever its size");
    assert!(version.tables().all(|table| table.meta().entries == 12));
    bed.check_reads();
}

#[test]
fn merged_tables_keep_clear_of_moved_ones() {
    let mut bed = Bed::new(small().table_bytes(8192).compression(Compression::None));
    let value = "x".repeat(100);
    let wide: Vec<String> = (0..20).map(|i| format!("m{i:02}")).collect();
    let wide: Vec<_> = wide.iter().map(|key| (key.as_str(), Some(value.as_str()))).collect();
    bed.flush(&wide);
    let moved = bed.tables();
    bed.flush(&[("a", Some(&value)), ("b", Some(&value))]);
    bed.flush(&[("b", Some(&value)), ("c", Some(&value))]);
    bed.flush(&[("x", Some(&value)), ("y", Some(&value))]);
    bed.flush(&[("x", Some(&value)), ("z", Some(&value))]);
    let version = bed.set.current();
    let choice = picker::pick(&Tree::of(&version), &bed.shape()).unwrap();
    drop(version);
    assert_eq!(choice.moved.iter().copied().collect::<BTreeSet<_>>(), moved);
    bed.merge(&choice);
    bed.check_reads();
    let version = bed.set.current();
    assert_eq!(version.run_count(), 1);
    let ranges: Vec<_> = version
        .tables()
        .map(|t| (t.meta().smallest.clone(), t.meta().largest.clone()))
        .map(|(a, b)| (String::from_utf8(a).unwrap(), String::from_utf8(b).unwrap()))
        .collect();
    let range = |a: &str, b: &str| (a.to_string(), b.to_string());
    assert_eq!(ranges, [range("a", "c"), range("m00", "m19"), range("x", "z")]);
}

#[test]
fn a_merge_that_drops_everything_leaves_an_empty_tree() {
    let mut bed = Bed::new(small());
    bed.flush(&[("a", Some("1")), ("b", Some("2"))]);
    bed.flush(&[("a", None), ("b", None)]);
    bed.snapshots.clear();
    bed.compact_all();
    assert_eq!(bed.set.current().table_count(), 0);
    assert!(bed.tables_on_disk().is_empty());
}

#[test]
fn a_failed_flush_leaves_nothing_behind() {
    let mut bed = Bed::new(small());
    let keys: Vec<String> = (0..250).map(|i| format!("{i:05}")).collect();
    let value = "x".repeat(50);
    let entries: Vec<Version3> =
        keys.iter().map(|key| bed.version(key, Some(value.as_str()))).collect();
    let mut source = List { bad: Some(200), ..List::new(entries) };
    let failed = bed.with(|ctx| block_on(write_level_0(ctx, &mut source, 10.0)));
    assert_eq!(failed.err().unwrap().kind(), ErrorKind::Io);
    assert!(bed.tables_on_disk().is_empty());
    assert_eq!(bed.set.current().table_count(), 0);
}

#[test]
fn a_damaged_input_fails_the_merge_and_stays() {
    let mut bed = Bed::new(small());
    let keys: Vec<String> = (0..200).map(|i| format!("{i:05}")).collect();
    for _ in 0..2 {
        let writes: Vec<_> = keys.iter().map(|key| (key.as_str(), Some("value"))).collect();
        bed.flush(&writes);
    }
    let tables = bed.tables();
    let victim = FileName::Table(*tables.first().unwrap()).in_dir(bed.dir.path());
    let options = OpenOptions { write: true, ..OpenOptions::default() };
    let file = block_on(bed.env.fs().open(victim.clone(), options)).unwrap();
    file.write_cached(&[0xAA; 16], 1000).unwrap();
    let version = bed.set.current();
    let choice = picker::pick_all(&Tree::of(&version), &bed.shape()).unwrap();
    let failed = bed.with(|ctx| block_on(run(ctx, &version, &choice, 0))).err().unwrap();
    assert!(failed.is_corruption(), "{failed}");
    assert_eq!(failed.location().unwrap().0, victim);
    assert_eq!(bed.tables_on_disk(), tables);
}

/// Held up by a ticket alone.
struct Held<'a>(&'a Ticket);

#[async_trait]
impl Pace for Held<'_> {
    async fn pass(&self, _: u64, entries: u64) -> Result<()> {
        self.0.pass(entries).await
    }
}

#[test]
fn a_merge_that_is_paused_stops_where_it_is() {
    let mut bed = Bed::new(small());
    let (keys, value) = ((0..5000).map(|i| format!("{i:05}")).collect::<Vec<_>>(), "x".repeat(300));
    for _ in 0..2 {
        let writes: Vec<_> = keys.iter().map(|key| (key.as_str(), Some(&*value))).collect();
        bed.flush(&writes);
    }
    let version = bed.set.current();
    let mut choice = picker::pick_all(&Tree::of(&version), &bed.shape()).unwrap();
    choice.ends.clear();
    let (control, clock) = (Arc::new(Control::default()), bed.env.clock().clone());
    let (ticket, ()) = control.begin(|_| Some((choice.newest(), ()))).unwrap();
    ticket.expect(10_000, false);
    control.pause();
    let outcome = bed.with(|ctx| {
        let snapshots = ctx.snapshots.clone();
        let ctx = Context { pace: &Held(&ticket), snapshots, ..*ctx };
        let mut merge = pin!(run(&ctx, &version, &choice, 0));
        // A table's worth are some seven of the entries.
        let mut wait_until = |stops: &dyn Fn(u64) -> bool| {
            for _ in 0..100_000 {
                assert!(merge.as_mut().now_or_never().is_none(), "the merge is paused");
                let (met, all) = control.progress().unwrap();
                assert!(met < 40 && all == 10_000, "{met} of {all}");
                if stops(met) {
                    return;
                }
                block_on(clock.sleep(Duration::from_micros(100)));
            }
            panic!("it does not begin");
        };
        wait_until(&|met| met > 4);
        let polls = Cell::new(0);
        wait_until(&|_| polls.replace(polls.get() + 1) == 100);
        control.resume();
        block_on(merge).unwrap()
    });
    drop(version);
    bed.apply(outcome);
    assert_eq!(bed.stored().len(), 5000);
}

/// A description and its table that disagree must not make a merge drop or invent anything.
#[test]
fn entries_out_of_order_are_corruption() {
    let bed = Bed::new(small());
    let put = |key: &str, seqno| (key.into(), Trailer::new(seqno, ValueKind::Put), Vec::new());
    for entries in [
        vec![put("a", 2), put("a", 2)],
        vec![put("a", 2), put("a", 3)],
        vec![put("b", 2), put("a", 3)],
    ] {
        let mut source = List { entries, at: 0, is_loaded: false, bad: None };
        let failed = bed.with(|ctx| block_on(write_level_0(ctx, &mut source, 10.0)));
        assert!(failed.err().unwrap().is_corruption());
        assert!(bed.tables_on_disk().is_empty());
    }
}

/// They were merged, and the version of the outcome could contradict itself, which is a panic: the
/// manifest and the properties of a table agree, checksums and all, but its entries do not.
#[test]
fn entries_beyond_the_promised_seqnos_are_corruption() {
    let mut bed = Bed::new(small());
    let entries = vec![bed.version("a", Some("1")), bed.version("b", Some("2"))];
    let mut source = List::new(entries);
    let mut outcome = bed.with(|ctx| block_on(write_level_0(ctx, &mut source, 10.0))).unwrap();
    let (true_meta, mut false_meta) =
        (outcome.edit.tables_added[0].2.clone(), (*outcome.edit.tables_added[0].2).clone());
    false_meta.seqno_min = 2;
    outcome.opened = vec![forge(&bed, &true_meta, &false_meta)];
    outcome.edit.tables_added[0].2 = Arc::new(false_meta);
    bed.apply(outcome);
    bed.flush(&[("c", Some("3"))]);
    let version = bed.set.current();
    let choice = picker::pick_all(&Tree::of(&version), &bed.shape()).unwrap();
    let failed = bed.with(|ctx| block_on(run(ctx, &version, &choice, 0))).err().unwrap();
    assert!(failed.is_corruption(), "{failed}");
    assert_eq!(bed.tables_on_disk(), bed.tables());
}

/// Writes other facts of the same length into the properties of a table, under a right checksum,
/// and opens it.
fn forge(bed: &Bed, old: &TableMeta, new: &TableMeta) -> Arc<Table> {
    let facts = |meta: &TableMeta| {
        let mut facts = Vec::new();
        meta.put_facts(&mut facts);
        facts
    };
    let (old, facts) = (facts(old), facts(new));
    assert_eq!(old.len(), facts.len());
    let (fs, dir) = (bed.env.fs(), bed.dir.path());
    let options = OpenOptions { write: true, ..OpenOptions::default() };
    let path = FileName::Table(new.number).in_dir(dir);
    let file = block_on(fs.open(path, options)).unwrap();
    let len = usize::try_from(new.file_bytes).unwrap();
    let (read, buf) = block_on(file.read_at(AlignedBuf::zeroed(len), 0));
    assert_eq!(read.unwrap(), len);
    let at = buf.windows(old.len()).rposition(|window| window == old).unwrap();
    // Behind the facts stand two numbers of four bytes each, then the block's trailer.
    let properties = [&facts, &buf[at + old.len()..][..8]].concat();
    let (kind, how) = (BlockKind::Properties, Stored::Plain);
    let trailer = block_trailer(new.number, at as u64, kind, how, &properties);
    file.write_cached(&[properties.as_slice(), &trailer].concat(), at as u64).unwrap();
    block_on(Table::open(fs, dir, Arc::new(new.clone()), OpenOptions::default())).unwrap()
}

#[test]
fn flushes_during_a_merge_stay_in_front() {
    let mut bed = Bed::new(small());
    for value in ["1", "2", "3", "4"] {
        bed.flush(&[("a", Some(value)), ("b", Some(value))]);
    }
    let version = bed.set.current();
    let mut choice = picker::pick_all(&Tree::of(&version), &bed.shape()).unwrap();
    choice.output = OutputLevel::Fixed(0);
    let outcome = bed.with(|ctx| block_on(run(ctx, &version, &choice, 0))).unwrap();
    bed.flush(&[("a", Some("5"))]);
    bed.apply(outcome);
    let current = bed.set.current();
    let ids: Vec<RunId> = current.levels()[0].runs.iter().map(|run| run.id).collect();
    assert_eq!(ids, [5, 1]);
    bed.check_reads();
}

#[test]
fn a_job_can_run_on_a_lane() {
    fn is_send<T: Send>(_: &T) {}
    let mut bed = Bed::new(small());
    bed.flush(&[("a", Some("1"))]);
    let version = bed.set.current();
    let choice = picker::pick_all(&Tree::of(&version), &bed.shape()).unwrap();
    bed.with(|ctx| {
        is_send(&run(ctx, &version, &choice, 0));
        let mut source = List::new(Vec::new());
        is_send(&write_level_0(ctx, &mut source, 1.0));
        is_send(&bed.set.apply(VersionEdit::default(), Vec::new(), |_| ()));
    });
}

#[test]
fn giving_way_lets_another_task_run() {
    block_on(async {
        let log = Mutex::new(Vec::new());
        let first = async {
            log.lock().push(1);
            give_way().await;
            log.lock().push(3);
        };
        let second = async { log.lock().push(2) };
        futures::join!(first, second);
        assert_eq!(*log.lock(), [1, 2, 3]);
    });
}
