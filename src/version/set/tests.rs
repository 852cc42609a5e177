//! Opening, applying, failing and reopening, on real files.

use std::collections::BTreeSet;

use futures::channel::mpsc::{self, UnboundedReceiver};
use futures::executor::block_on;
use seerdb_io::{AlignedBuf, EnvOptions, OpenOptions};
use tempfile::TempDir;

use super::*;
use crate::appender::Manner;
use crate::key::{SEQNO_MAX, Trailer, ValueKind};
use crate::log::format::Stream;
use crate::options::{Compression, DBOptions};
use crate::sstable::{Table, TableMeta, TableWriter, TableWriterOptions};

struct Bed {
    dir: TempDir,
    env: Env,
}

type OpenSet = (VersionSet, Recovered, UnboundedReceiver<FileName>);

impl Bed {
    fn new() -> Bed {
        let env = Env::new(&EnvOptions::default()).unwrap();
        Bed { dir: tempfile::tempdir().unwrap(), env }
    }

    fn try_open(&self, options: DBOptions) -> Result<OpenSet> {
        let (trash, names) = mpsc::unbounded();
        let settings = options.validate().unwrap();
        let open = VersionSet::open(&self.env, self.dir.path(), &settings, trash);
        block_on(open).map(|(set, recovered)| (set, recovered, names))
    }

    fn open(&self) -> OpenSet {
        self.try_open(DBOptions::default()).unwrap()
    }

    fn path(&self, name: FileName) -> PathBuf {
        name.in_dir(self.dir.path())
    }

    fn names(&self) -> BTreeSet<String> {
        let entries = block_on(self.env.fs().list_dir(self.dir.path())).unwrap();
        entries.into_iter().map(|entry| entry.name.into_string().unwrap()).collect()
    }

    fn put(&self, name: FileName, bytes: &[u8]) {
        let path = self.path(name);
        block_on(async {
            drop(self.env.fs().remove_file(path.clone()).await);
            let options = OpenOptions { write: true, create_new: true, ..OpenOptions::default() };
            let file = self.env.fs().open(path, options).await.unwrap();
            file.write_cached(bytes, 0).unwrap();
        });
    }

    fn get(&self, name: FileName) -> Vec<u8> {
        block_on(async {
            let file = self.env.fs().open(self.path(name), OpenOptions::default()).await.unwrap();
            let len = usize::try_from(file.len().await.unwrap()).unwrap();
            let (result, buf) = file.read_at(AlignedBuf::zeroed(len), 0).await;
            assert_eq!(result.unwrap(), len);
            buf.to_vec()
        })
    }

    /// Writes a table of `keys` with rising seqnos from `seqno` on.
    fn table(&self, set: &VersionSet, keys: &[&str], seqno: SeqNo) -> Arc<Table> {
        let options = TableWriterOptions {
            manner: Manner { direct: true, chunk_bytes: 512 << 10 },
            block_bytes: 4096,
            compression: Compression::None,
            filter_bits_per_key: 10.0,
        };
        block_on(async {
            let (fs, dir) = (self.env.fs(), self.dir.path());
            let number = set.new_file_number();
            let mut writer = TableWriter::create(fs, dir, number, options).await.unwrap();
            for (key, seqno) in keys.iter().zip(seqno..) {
                writer.add(key.as_bytes(), Trailer::new(seqno, ValueKind::Put), b"value");
            }
            let meta = writer.finish().await.unwrap();
            Table::open(fs, dir, Arc::new(meta), OpenOptions::default()).await.unwrap()
        })
    }

    /// Adds a run of one table to level 0.
    fn flush(&self, set: &VersionSet, keys: &[&str], seqno: SeqNo) -> Arc<TableMeta> {
        let table = self.table(set, keys, seqno);
        let meta = Arc::clone(table.meta());
        let edit = VersionEdit {
            tables_added: vec![(0, set.new_run_id(), Arc::clone(&meta))],
            flushed_seqno: Some(meta.seqno_max),
            ..VersionEdit::default()
        };
        block_on(set.apply(edit, vec![table], |_| ())).unwrap();
        meta
    }
}

/// Levels as `level: run[tables]`.
fn show(version: &Version) -> String {
    let mut out = Vec::new();
    for (i, level) in version.levels().iter().enumerate() {
        for run in &level.runs {
            let tables: Vec<u64> = run.tables.iter().map(|t| t.meta().number).collect();
            out.push(format!("{i}: {}{tables:?}", run.id));
        }
    }
    out.join(", ")
}

fn manifest_of(bed: &Bed) -> FileName {
    let id = block_on(manifest::read_current(bed.env.fs(), bed.dir.path())).unwrap();
    FileName::Manifest(id.number)
}

#[test]
fn a_new_database_is_created_once() {
    let bed = Bed::new();
    let refused = bed.try_open(DBOptions::default().create_if_missing(false));
    assert_eq!(refused.err().unwrap().kind(), ErrorKind::InvalidArgument);
    assert!(bed.names().is_empty());
    let (set, recovered, _) = bed.open();
    assert_eq!(recovered, Recovered { created: true, ..Recovered::default() });
    assert_eq!(set.current().table_count(), 0);
    drop(set);
    let refused = bed.try_open(DBOptions::default().error_if_exists(true));
    assert_eq!(refused.err().unwrap().kind(), ErrorKind::InvalidArgument);
    let (_, recovered, _) = bed.open();
    assert!(!recovered.created);
}

#[test]
fn edits_survive_reopening_and_numbers_are_not_reused() {
    let bed = Bed::new();
    let (set, _, _names) = bed.open();
    let a = bed.flush(&set, &["a", "b"], 1);
    let b = bed.flush(&set, &["b", "c"], 10);
    let wal = SegmentName { number: set.new_file_number(), salt: 5, stream: Stream::Wal };
    let edit = VersionEdit { segments_added: vec![wal], ..VersionEdit::default() };
    let shown = block_on(set.apply(edit, vec![], |version| show(version))).unwrap();
    assert_eq!(shown, format!("0: 2[{}], 0: 1[{}]", b.number, a.number));
    bed.put(FileName::Wal(wal.number), b"");
    drop(set);
    // A file that is in no edit.
    bed.put(FileName::Table(500), b"orphan");
    let mut last = 500;
    for _ in 0..3 {
        let (set, recovered, _names) = bed.open();
        assert_eq!(show(&set.current()), shown);
        assert_eq!(recovered.segments, [wal]);
        assert_eq!(recovered.flushed_seqno, 11);
        let next = set.new_file_number();
        assert!(next > last, "{next} after {last}");
        assert_eq!(set.new_run_id(), 3);
        last = next;
    }
}

#[test]
fn runs_that_an_edit_leaves_alone_are_shared() {
    let bed = Bed::new();
    let (set, _, _names) = bed.open();
    bed.flush(&set, &["a"], 1);
    let other = bed.flush(&set, &["b"], 2);
    let before = set.current();
    // The other run ends as another table with the same age.
    let table = bed.table(&set, &["b", "c"], 2);
    let edit = VersionEdit {
        tables_added: vec![(0, 2, Arc::clone(table.meta()))],
        tables_removed: vec![other.number],
        ..VersionEdit::default()
    };
    let after = block_on(set.apply(edit, vec![table], Arc::clone)).unwrap();
    let same: Vec<bool> = before.runs().zip(after.runs()).map(|(a, b)| Arc::ptr_eq(a, b)).collect();
    assert_eq!(same, [false, true]);
    assert!(after.runs().next().unwrap().find(b"c").is_some());
}

#[test]
fn tables_that_leave_are_retired_after_their_last_reader() {
    let bed = Bed::new();
    let (set, _, mut names) = bed.open();
    let a = bed.flush(&set, &["a"], 1);
    let b = bed.flush(&set, &["b"], 2);
    let pinned = set.current();
    let merged = bed.table(&set, &["a", "b"], 1);
    let edit = VersionEdit {
        tables_added: vec![(1, 2, Arc::clone(merged.meta()))],
        tables_removed: vec![a.number, b.number],
        ..VersionEdit::default()
    };
    let installed = block_on(set.apply(edit, vec![merged], Arc::clone)).unwrap();
    assert!(Arc::ptr_eq(&installed, &set.current()));
    assert!(names.try_recv().is_err(), "a reader still holds the tables");
    drop(pinned);
    let mut gone = vec![names.try_recv().unwrap(), names.try_recv().unwrap()];
    gone.sort();
    assert_eq!(gone, [FileName::Table(a.number), FileName::Table(b.number)]);
    drop((set, installed));
    assert!(names.try_recv().is_err(), "tables in use are no trash");
}

#[test]
fn orphans_go_and_foreign_files_stay() {
    let bed = Bed::new();
    let (set, _, _names) = bed.open();
    let a = bed.flush(&set, &["a"], 1);
    drop(set);
    for name in [FileName::Table(90), FileName::Wal(91), FileName::Wal(92), FileName::Manifest(93)]
    {
        bed.put(name, b"x");
    }
    bed.put(FileName::CurrentTemp, b"x");
    bed.put(FileName::Lock, b"");
    let foreign = bed.dir.path().join("000001.sst.bak");
    block_on(async {
        let options = OpenOptions { write: true, create_new: true, ..OpenOptions::default() };
        bed.env.fs().open(foreign, options).await.unwrap();
    });
    let (set, _, _names) = bed.open();
    // A file of this life is not an orphan, though no edit names it yet.
    let young = set.new_file_number();
    bed.put(FileName::Table(young), b"x");
    let removed = block_on(set.remove_orphans(&[92])).unwrap();
    // Both manifests before this one, the table, one segment; CURRENT.tmp was used up.
    assert_eq!(removed, 4);
    let mut expected: BTreeSet<String> =
        [FileName::Current, FileName::Lock, FileName::Wal(92), manifest_of(&bed)]
            .iter()
            .map(ToString::to_string)
            .collect();
    expected.extend(["000001.sst.bak".into(), FileName::Table(a.number).to_string()]);
    expected.insert(FileName::Table(young).to_string());
    assert_eq!(bed.names(), expected);
}

#[test]
fn missing_and_resized_files_are_corruption() {
    let bed = Bed::new();
    let (set, _, _names) = bed.open();
    let a = bed.flush(&set, &["a", "b"], 1);
    drop(set);
    let name = FileName::Table(a.number);
    let bytes = bed.get(name);
    let refused = |what: &str| {
        let error = bed.try_open(DBOptions::default()).err().unwrap();
        assert!(error.is_corruption(), "{what}: {error}");
        assert_eq!(error.location().unwrap().0, bed.path(name), "{what}");
    };
    bed.put(name, &bytes[..bytes.len() - 1]);
    refused("short");
    bed.put(name, b"");
    refused("empty");
    bed.put(name, &[&bytes[..], b"x"].concat());
    refused("long");
    block_on(bed.env.fs().remove_file(bed.path(name))).unwrap();
    refused("missing");
    bed.put(name, &bytes);
    bed.open();
}

#[test]
fn every_damage_to_current_is_noticed() {
    let bed = Bed::new();
    drop(bed.open());
    let good = bed.get(FileName::Current);
    let refused = |what: &str| {
        let error = bed.try_open(DBOptions::default()).err().unwrap();
        assert!(error.is_corruption(), "{what}: {error}");
        assert_eq!(error.location().unwrap(), (&*bed.path(FileName::Current), 0), "{what}");
    };
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        bed.put(FileName::Current, &bad);
        refused(&format!("bit {bit}"));
    }
    for len in 0..good.len() {
        bed.put(FileName::Current, &good[..len]);
        refused(&format!("cut to {len}"));
    }
    bed.put(FileName::Current, &[&good[..], b"\n"].concat());
    refused("long");
    bed.put(FileName::Current, &good);
    let manifest = manifest_of(&bed);
    block_on(bed.env.fs().remove_file(bed.path(manifest))).unwrap();
    let error = bed.try_open(DBOptions::default()).err().unwrap();
    assert_eq!(error.location().unwrap(), (&*bed.path(manifest), 0));
}

#[test]
fn a_lost_current_is_told_from_a_half_created_database() {
    let bed = Bed::new();
    bed.put(FileName::Lock, b"");
    bed.put(FileName::Manifest(1), b"half");
    bed.put(FileName::CurrentTemp, b"half");
    let (set, recovered, _names) = bed.open();
    assert!(recovered.created);
    bed.flush(&set, &["a"], 1);
    drop(set);
    let current = bed.path(FileName::Current);
    block_on(bed.env.fs().remove_file(current.clone())).unwrap();
    let error = bed.try_open(DBOptions::default()).err().unwrap();
    assert!(error.is_corruption(), "{error}");
    assert_eq!(error.location().unwrap(), (&*current, 0));

    for name in [FileName::Manifest(2), FileName::Wal(2), FileName::Table(2)] {
        let bed = Bed::new();
        bed.put(name, b"");
        assert!(bed.try_open(DBOptions::default()).err().unwrap().is_corruption(), "{name}");
    }
}

/// A crash between the fresh manifest of an open and the swap of CURRENT, twice in a row.
#[test]
fn an_open_that_never_came_to_its_end_changes_nothing() {
    let bed = Bed::new();
    let (set, _, _names) = bed.open();
    let a = bed.flush(&set, &["a"], 1);
    let shown = show(&set.current());
    drop(set);
    let current = bed.get(FileName::Current);
    let mut last = 0;
    for _ in 0..2 {
        let (set, _, _names) = bed.open();
        assert_eq!(show(&set.current()), shown);
        let FileName::Manifest(number) = manifest_of(&bed) else { panic!("no manifest") };
        assert!(number > last && number > a.number, "{number} is used again");
        last = number;
        drop(set);
        bed.put(FileName::Current, &current);
        bed.put(FileName::CurrentTemp, b"half");
    }
    let (set, recovered, _names) = bed.open();
    assert_eq!((show(&set.current()), recovered.flushed_seqno), (shown, 1));
}

#[test]
fn absurd_numbers_are_foreign() {
    let bed = Bed::new();
    drop(bed.open());
    bed.put(FileName::Table(u64::MAX), b"");
    let (set, _, _names) = bed.open();
    assert!(set.new_file_number() < 10);
    block_on(set.remove_orphans(&[])).unwrap();
    assert!(bed.names().contains(&FileName::Table(u64::MAX).to_string()));
}

/// The checksums are right here, and each of these was taken: later steps would have panicked.
#[test]
fn a_state_that_no_life_leads_to_is_corruption() {
    type Falsify = fn(&mut VersionEdit, &mut TableMeta);
    let falsify: [Falsify; 3] = [
        |edit, _| edit.flushed_seqno = Some(SEQNO_MAX + 1),
        |edit, _| edit.flushed_seqno = Some(6),
        |_, meta| meta.entries = SEQNO_MAX,
    ];
    for falsify in falsify {
        let bed = Bed::new();
        let (set, _, _names) = bed.open();
        let table = bed.table(&set, &["a", "b"], 6);
        let mut meta = (**table.meta()).clone();
        let mut edit = VersionEdit { flushed_seqno: Some(7), ..VersionEdit::default() };
        falsify(&mut edit, &mut meta);
        edit.tables_added = vec![(0, set.new_run_id(), Arc::new(meta))];
        block_on(set.apply(edit, vec![table], |_| ())).unwrap();
        drop(set);
        let error = bed.try_open(DBOptions::default()).err().unwrap();
        assert!(error.is_corruption(), "{error}");
        assert_eq!(error.location().unwrap().0, bed.path(manifest_of(&bed)));
    }
}

/// The whole open, for damage in the manifest: the state or an error, never an older state.
#[test]
fn a_damaged_manifest_never_opens_as_an_older_database() {
    let bed = Bed::new();
    let (set, _, _names) = bed.open();
    for seqno in 1..4 {
        bed.flush(&set, &["a"], seqno);
    }
    let shown = show(&set.current());
    let name = manifest_of(&bed);
    drop(set);
    let current = bed.get(FileName::Current);
    let good = bed.get(name);
    let used = good.iter().rposition(|&b| b != 0).unwrap() + 1;
    for start in (0..used).step_by(512) {
        let mut bad = good.clone();
        bad[start..start + 512].fill(0);
        bed.put(name, &bad);
        match bed.try_open(DBOptions::default()) {
            Ok((set, _, _names)) => {
                assert_eq!(show(&set.current()), shown, "zeros at {start}");
                bed.put(FileName::Current, &current);
            }
            Err(error) => {
                assert!(error.is_corruption(), "zeros at {start}: {error}");
                assert_eq!(error.location().unwrap().0, bed.path(name), "zeros at {start}");
            }
        }
    }
}

#[test]
fn a_failed_append_stops_everything_and_deletes_nothing() {
    let bed = Bed::new();
    let (set, _, mut names) = bed.open();
    let a = bed.flush(&set, &["a"], 1);
    // The file of the log is replaced by one that cannot be written.
    let path = bed.path(manifest_of(&bed));
    block_on(async {
        let file = bed.env.fs().open(path, OpenOptions::default()).await.unwrap();
        set.log.lock().await.writer.replace_file(file);
    });
    let edit = VersionEdit { tables_removed: vec![a.number], ..VersionEdit::default() };
    for _ in 0..2 {
        let mut was_installed = false;
        let result = block_on(set.apply(edit.clone(), vec![], |_| was_installed = true));
        assert_eq!(result.unwrap_err().kind(), ErrorKind::FailStop);
        assert!(!was_installed);
    }
    assert_eq!(set.failure().unwrap().kind(), ErrorKind::Io);
    assert_eq!(block_on(set.remove_orphans(&[])).unwrap_err().kind(), ErrorKind::FailStop);
    assert_eq!(set.current().table_count(), 1);
    drop(set);
    assert!(names.try_recv().is_err());
    let (set, _, _names) = bed.open();
    assert_eq!(set.current().table_count(), 1);
}

#[test]
fn an_abandoned_apply_poisons_the_set() {
    let bed = Bed::new();
    let (set, _, _names) = bed.open();
    drop(Midway { set: &set, is_armed: true });
    let result = block_on(set.apply(VersionEdit::default(), vec![], |_| ()));
    assert_eq!(result.unwrap_err().kind(), ErrorKind::FailStop);
    assert_eq!(set.failure().unwrap().kind(), ErrorKind::Indeterminate);
}

#[test]
fn an_apply_that_is_never_polled_does_nothing() {
    let bed = Bed::new();
    let (set, _, _names) = bed.open();
    drop(set.apply(VersionEdit::default(), vec![], |_| ()));
    block_on(set.apply(VersionEdit::default(), vec![], |_| ())).unwrap();
}

#[test]
fn a_large_manifest_is_replaced() {
    let bed = Bed::new();
    let (set, _, mut names) = bed.open();
    let a = bed.flush(&set, &["a"], 1);
    let first = manifest_of(&bed);
    block_on(async { set.log.lock().await.roll_bytes = 40_000 });
    for seqno in 2..6 {
        bed.flush(&set, &["a"], seqno);
    }
    let second = manifest_of(&bed);
    assert_ne!(first, second);
    assert_eq!(names.try_recv().unwrap(), first);
    assert_eq!(block_on(set.log.lock()).roll_bytes, MANIFEST_BYTES);
    let shown = show(&set.current());
    assert!(shown.ends_with(&format!("1[{}]", a.number)), "{shown}");
    drop(set);
    let (set, _, _names) = bed.open();
    assert_eq!(show(&set.current()), shown);
}

#[test]
fn a_manifest_that_cannot_be_replaced_grows_on() {
    let bed = Bed::new();
    let (set, _, mut names) = bed.open();
    bed.flush(&set, &["a"], 1);
    let first = manifest_of(&bed);
    block_on(async { set.log.lock().await.roll_bytes = 0 });
    // Files stand where the next manifests would go.
    let next = set.new_file_number();
    for number in next..next + 8 {
        bed.put(FileName::Manifest(number), b"in the way");
    }
    bed.flush(&set, &["a"], 2);
    assert!(set.failure().is_none());
    assert_eq!(manifest_of(&bed), first);
    assert_eq!(block_on(set.log.lock()).roll_bytes, MANIFEST_BYTES, "it tries again later");
    assert!(names.try_recv().is_err(), "nothing was replaced");
    let shown = show(&set.current());
    drop(set);
    assert_eq!(show(&bed.open().0.current()), shown);
}

#[test]
fn files_that_nobody_deletes_go_with_the_next_open() {
    let bed = Bed::new();
    let (set, _, names) = bed.open();
    drop(names);
    let first = manifest_of(&bed);
    block_on(async { set.log.lock().await.roll_bytes = 0 });
    bed.flush(&set, &["a"], 1);
    assert_ne!(manifest_of(&bed), first);
    drop(set);
    let (set, _, _names) = bed.open();
    bed.put(FileName::CurrentTemp, b"left over");
    assert!(bed.names().contains(&first.to_string()));
    assert_eq!(block_on(set.remove_orphans(&[])).unwrap(), 3, "two manifests and the rest");
    let left = bed.names();
    assert!(!left.contains(&first.to_string()), "{left:?}");
    assert!(!left.contains(&FileName::CurrentTemp.to_string()), "{left:?}");
}

/// A database whose whole manifest is this edit, and the error of its open.
fn open_of(edit: &VersionEdit) -> (Bed, Error) {
    let bed = Bed::new();
    drop(bed.open());
    let id = FileId { number: 50, salt: 5 };
    block_on(async {
        let (fs, dir) = (bed.env.fs(), bed.dir.path());
        Writer::create(fs, dir, id, edit).await.unwrap();
        manifest::point_current(fs, dir, id).await.unwrap();
    });
    let error = bed.try_open(DBOptions::default()).err().unwrap();
    assert!(error.is_corruption(), "{error}");
    assert_eq!(error.location().unwrap().0, bed.path(FileName::Manifest(50)));
    (bed, error)
}

#[test]
fn a_manifest_of_wrong_edits_is_damaged() {
    let wrong = VersionEdit { tables_removed: vec![77], ..VersionEdit::default() };
    let (_bed, error) = open_of(&wrong);
    assert!(error.to_string().contains("table 77 is not there to remove"), "{error}");
    let files = VersionEdit { next_file: Some(u64::MAX), ..VersionEdit::default() };
    let (_bed, error) = open_of(&files);
    assert!(error.to_string().contains("the next file number is"), "{error}");
    let runs = VersionEdit { next_run: Some((1 << 56) + 1), ..VersionEdit::default() };
    let (_bed, error) = open_of(&runs);
    assert!(error.to_string().contains("the next run id is"), "{error}");
}

#[test]
fn a_manifest_longer_than_any_is_refused_unread() {
    let bed = Bed::new();
    drop(bed.open());
    let path = bed.path(manifest_of(&bed));
    block_on(async {
        let options = OpenOptions { write: true, ..OpenOptions::default() };
        let file = bed.env.fs().open(path.clone(), options).await.unwrap();
        file.set_len((1 << 30) + 1).await.unwrap();
    });
    let error = bed.try_open(DBOptions::default()).err().unwrap();
    assert!(error.is_corruption() && error.to_string().contains("longer than any"), "{error}");
    assert_eq!(error.location().unwrap().0, path);
}

/// What a version of these runs, newest first and all in level 0, is refused for.
fn refused(runs: Vec<Arc<crate::sstable::Run>>) -> String {
    let mut version = Version::default();
    version.levels[0].runs = runs;
    let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| version.check()));
    let said = checked.expect_err("the version must be refused");
    said.downcast_ref::<String>().expect("a sentence").clone()
}

#[test]
fn versions_that_break_an_invariant_are_told_apart() {
    let bed = Bed::new();
    let (set, _, _names) = bed.open();
    let (old, new) = (bed.table(&set, &["a"], 1), bed.table(&set, &["a"], 2));
    let run =
        |id, table: &Arc<Table>| Arc::new(crate::sstable::Run::new(id, vec![table.clone()], None));
    let said = refused(vec![run(1, &new), run(2, &old)]);
    assert!(said.contains("run 1 stands before run 2"), "{said}");
    let said = refused(vec![run(2, &old), run(1, &old)]);
    assert!(said.contains("a table number occurs twice"), "{said}");
}

#[test]
#[should_panic(expected = "a wrong version edit: table 77 is not there to remove")]
fn a_wrong_edit_of_ours_panics_before_it_is_written() {
    let bed = Bed::new();
    let (set, _, _names) = bed.open();
    let edit = VersionEdit { tables_removed: vec![77], ..VersionEdit::default() };
    drop(block_on(set.apply(edit, vec![], |_| ())));
}
