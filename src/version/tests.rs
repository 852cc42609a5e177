//! Edits: encoding round trips and what they may not contradict.

use proptest::prelude::*;

use super::edit::{BadEdit, SegmentName, VersionEdit};
use super::state::State;
use super::*;
use crate::codec::Sink;
use crate::key::KeyBuf;
use crate::log::format::Stream;
use crate::sstable::format::Handle;
use crate::sstable::{Reference, TableMeta, Trim};
use crate::vlog::{Kind, ValuesMeta};

/// A table of `keys`, with seqnos of its own.
pub(super) fn table(number: FileNumber, keys: &str, seqnos: (u64, u64)) -> Arc<TableMeta> {
    let (smallest, largest) = keys.split_once('-').unwrap();
    Arc::new(TableMeta {
        number,
        file_bytes: 1000 + number,
        checksum: 7,
        entries: 10,
        tombstones: 1,
        smallest: smallest.into(),
        largest: largest.into(),
        seqno_min: seqnos.0,
        seqno_max: seqnos.1,
        references: Vec::new(),
    })
}

/// What a table of `entries` may refer to.
fn references(entries: u64) -> Vec<Reference> {
    let handle = |offset| Handle { offset, stored: 10, raw: 10 };
    let reference =
        |segment, bodies| Reference { segment, bodies, bytes: 100, handle: handle(segment * 15) };
    let all = [reference(3, entries / 2), reference(4, entries / 3)];
    all.into_iter().filter(|reference| reference.bodies > 0).collect()
}

fn values_strategy() -> impl Strategy<Value = ValuesMeta> {
    let segments = proptest::collection::btree_set(any::<u64>(), 1..4);
    (any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>(), segments).prop_map(
        |(number, bytes, salt, is_segment, segments)| {
            let (checksum, segments) = (0xC0FFEE, segments.into_iter().collect());
            let kind = match is_segment {
                true => Kind::Segment { salt },
                false => Kind::Rewritten { checksum, segments },
            };
            ValuesMeta { number, bytes, kind }
        },
    )
}

fn meta_strategy() -> impl Strategy<Value = Arc<TableMeta>> {
    let key = || proptest::collection::vec(any::<u8>(), 0..40);
    (any::<u32>(), any::<u64>(), any::<u32>(), 1..u64::MAX, key(), key(), 0..1u64 << 56).prop_map(
        |(number, file_bytes, checksum, entries, a, b, seqno)| {
            Arc::new(TableMeta {
                number: u64::from(number),
                file_bytes,
                checksum,
                entries,
                tombstones: entries / 2,
                smallest: a.clone().min(b.clone()),
                largest: a.max(b),
                seqno_min: seqno / 2,
                seqno_max: seqno,
                references: references(entries),
            })
        },
    )
}

fn edit_strategy() -> impl Strategy<Value = VersionEdit> {
    let few = 0..4usize;
    let wal = (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(number, salt, values)| {
        let stream = if values { Stream::Values } else { Stream::Wal };
        SegmentName { number, salt, stream }
    });
    let key = proptest::collection::vec(any::<u8>(), 0..40);
    let trim = (key, any::<u64>())
        .prop_map(|(from, entries)| Trim { from: KeyBuf::from_slice(&from), entries });
    (
        proptest::collection::vec((any::<u8>(), any::<u64>(), meta_strategy()), few.clone()),
        proptest::collection::vec(any::<u64>(), few.clone()),
        proptest::collection::vec((any::<u64>(), any::<u8>(), any::<u64>()), few.clone()),
        proptest::collection::vec((any::<u64>(), trim), few.clone()),
        proptest::collection::vec(wal, few.clone()),
        proptest::collection::vec(any::<u64>(), few.clone()),
        proptest::collection::vec(values_strategy(), few.clone()),
        proptest::collection::vec(any::<u64>(), few),
        any::<[Option<u64>; 4]>(),
    )
        .prop_map(
            |(added, removed, moved, trimmed, segments, gone, values, values_gone, counters)| {
                let [flushed_seqno, durable_seqno, next_file, next_run] = counters;
                VersionEdit {
                    tables_added: added,
                    tables_removed: removed,
                    tables_moved: moved,
                    runs_trimmed: trimmed,
                    segments_added: segments,
                    segments_removed: gone,
                    values_added: values,
                    values_removed: values_gone,
                    flushed_seqno,
                    durable_seqno,
                    next_file,
                    next_run,
                }
            },
        )
}

proptest! {
    #[test]
    fn edits_round_trip(edit in edit_strategy()) {
        let mut bytes = Vec::new();
        edit.encode(&mut bytes);
        prop_assert_eq!(VersionEdit::decode(&bytes), Ok(edit));
    }

    #[test]
    fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(VersionEdit::decode(&bytes));
    }

    #[test]
    fn no_edit_makes_applying_panic(edits in proptest::collection::vec(edit_strategy(), 1..4)) {
        let mut state = State::empty();
        for edit in edits {
            state = state.apply(&edit).unwrap_or(state);
        }
    }

    #[test]
    fn a_cut_edit_is_never_taken_for_another_tag(edit in edit_strategy(), at: prop::sample::Index) {
        let mut bytes = Vec::new();
        edit.encode(&mut bytes);
        let cut = at.index(bytes.len() + 1);
        let decoded = VersionEdit::decode(&bytes[..cut]);
        prop_assert!(!matches!(decoded, Err(BadEdit::UnknownTag(_))));
    }
}

#[test]
fn unknown_tags_and_repeated_counters_are_refused() {
    assert_eq!(VersionEdit::decode(&[13]), Err(BadEdit::UnknownTag(13)));
    assert_eq!(VersionEdit::decode(&[0]), Err(BadEdit::UnknownTag(0)));
    assert_eq!(VersionEdit::decode(&[9, 1, 9, 1]), Err(BadEdit::Malformed));
    assert_eq!(VersionEdit::decode(&[6]), Err(BadEdit::Malformed));
    assert_eq!(VersionEdit::decode(&[]), Ok(VersionEdit::default()));
}

#[test]
fn a_description_ends_where_its_length_says() {
    let (level, run, meta) = state().snapshot().tables_added.remove(0);
    let item = |behind: &[u8]| {
        let mut description = Vec::new();
        meta.encode(&mut description);
        description.extend_from_slice(behind);
        let mut bytes = vec![1, level];
        bytes.put_varint(run);
        bytes.put_slice(&description);
        VersionEdit::decode(&bytes)
    };
    assert_eq!(item(b"").unwrap().tables_added, [(level, run, meta.clone())]);
    assert_eq!(item(b"x"), Err(BadEdit::Malformed));
}

/// A state with runs 9 (level 0), 8 (level 0) and 3 (level 2).
fn state() -> State {
    let edit = VersionEdit {
        tables_added: vec![
            (0, 9, table(5, "a-m", (50, 59))),
            (0, 8, table(4, "c-z", (40, 49))),
            (2, 3, table(2, "n-p", (1, 20))),
            (2, 3, table(1, "a-m", (2, 39))),
        ],
        segments_added: vec![SegmentName { number: 6, salt: 1, stream: Stream::Wal }],
        flushed_seqno: Some(59),
        next_file: Some(7),
        next_run: Some(10),
        ..VersionEdit::default()
    };
    State::empty().apply(&edit).unwrap()
}

#[test]
fn a_snapshot_makes_the_same_state() {
    let state = state();
    assert_eq!(State::empty().apply(&state.snapshot()).unwrap(), state);
    let ids: Vec<RunId> = state.levels().iter().flatten().map(|run| run.id).collect();
    assert_eq!(ids, [9, 8, 3]);
    let last: Vec<FileNumber> = state.levels()[2][0].tables.iter().map(|t| t.number).collect();
    assert_eq!(last, [1, 2], "in key order");
}

#[test]
fn a_merge_replaces_neighbours() {
    let edit = VersionEdit {
        tables_added: vec![(2, 9, table(7, "a-m", (2, 59)))],
        tables_removed: vec![5, 4, 1],
        tables_moved: vec![(2, 2, 9)],
        next_file: Some(8),
        ..VersionEdit::default()
    };
    let after = state().apply(&edit).unwrap();
    let runs: Vec<(RunId, Vec<FileNumber>)> = after.levels()[2]
        .iter()
        .map(|run| (run.id, run.tables.iter().map(|t| t.number).collect()))
        .collect();
    assert_eq!(runs, [(9, vec![7, 2])]);
    assert!(after.levels()[0].is_empty());
}

fn trim(from: &str, entries: u64) -> Trim {
    Trim { from: KeyBuf::from_slice(from.as_bytes()), entries }
}

/// The first piece of a merge of all three runs, then the rest.
#[test]
fn a_piece_enters_the_oldest_run_and_trims_the_newer_ones() {
    let piece = VersionEdit {
        tables_added: vec![(2, 3, table(7, "a-m", (2, 59)))],
        tables_removed: vec![5, 1],
        runs_trimmed: vec![(8, trim("n", 6))],
        next_file: Some(8),
        ..VersionEdit::default()
    };
    let untrimmed = VersionEdit { runs_trimmed: vec![], ..piece.clone() };
    let what = state().apply(&untrimmed).unwrap_err();
    assert!(what.contains("table 7 is newer than its run"), "{what}");
    let after = state().apply(&piece).unwrap();
    assert_eq!(after.levels()[0][0].trim, Some(trim("n", 6)));
    assert_eq!(State::empty().apply(&after.snapshot()).unwrap(), after);
    let back = VersionEdit { runs_trimmed: vec![(8, trim("m", 5))], ..VersionEdit::default() };
    assert!(after.apply(&back).unwrap_err().contains("run 8 grows at its beginning"));
    let rest = VersionEdit {
        tables_added: vec![(0, 8, table(8, "x-z", (48, 49)))],
        tables_removed: vec![4],
        next_file: Some(9),
        ..VersionEdit::default()
    };
    // The table that the trim was in is gone, and so is the trim.
    assert_eq!(after.apply(&rest).unwrap().levels()[0][0].trim, None);
    // What takes its place may begin before: with newer runs, in a merge above the old one.
    let anew = VersionEdit { tables_added: vec![(0, 8, table(8, "b-z", (60, 71)))], ..rest };
    assert_eq!(after.apply(&anew).unwrap().levels()[0][0].trim, None);
}

#[test]
fn contradictions_are_named() {
    let edit = VersionEdit::default;
    let added = |level, run, table| VersionEdit {
        tables_added: vec![(level, run, table)],
        next_file: Some(20),
        ..edit()
    };
    let trimmed = |run, from: &str, entries| VersionEdit {
        runs_trimmed: vec![(run, trim(from, entries))],
        ..edit()
    };
    let cases = [
        (VersionEdit { tables_removed: vec![3], ..edit() }, "table 3 is not there to remove"),
        (VersionEdit { tables_moved: vec![(3, 1, 1)], ..edit() }, "table 3 is not there to move"),
        (VersionEdit { tables_moved: vec![(5, 7, 9)], ..edit() }, "table 5 is in level 7, run 9"),
        (VersionEdit { tables_moved: vec![(5, 1, 9)], ..edit() }, "run 9 is not older than run 8"),
        (VersionEdit { tables_moved: vec![(4, 0, 9)], ..edit() }, "tables 5 and 4 overlap"),
        (VersionEdit { segments_removed: vec![5], ..edit() }, "segment 5 is not there to remove"),
        (VersionEdit { next_file: Some(6), ..edit() }, "the next file number falls from 7 to 6"),
        (VersionEdit { next_run: Some(9), ..edit() }, "the next run id falls from 10 to 9"),
        (VersionEdit { flushed_seqno: Some(58), ..edit() }, "the flushed seqno falls"),
        (added(0, 9, table(5, "x-y", (60, 61))), "table 5 cannot be added"),
        (added(0, 9, table(20, "x-y", (60, 61))), "table 20 cannot be added"),
        (added(0, 10, table(19, "x-y", (60, 61))), "table 19 is in level 0, run 10"),
        (added(1, 7, table(19, "x-y", (60, 61))), "table 19 is newer than its run"),
        (added(0, 9, table(19, "y-x", (60, 61))), "the bounds of table 19 are crossed"),
        (trimmed(7, "d", 1), "run 7 is not there to trim"),
        (trimmed(8, "z0", 1), "run 8 is trimmed outside of table 4"),
        (trimmed(8, "d", 10), "run 8 is trimmed outside of table 4"),
        (trimmed(8, "d", 0), "run 8 is trimmed outside of table 4"),
    ];
    for (edit, expected) in cases {
        let what = state().apply(&edit).unwrap_err();
        assert!(what.contains(expected), "{what} instead of {expected}");
    }
}
