//! Segments written by the writer, then torn or damaged.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the tests damage files behind the engine's back"
)]

use std::path::PathBuf;
use std::sync::Arc;

use futures::executor::block_on;
use seerdb_io::{BUF_ALIGN, EnvOptions};
use tempfile::TempDir;

use super::*;
use crate::codec::crc32c;
use crate::filename::FileName;
use crate::log::reader::CHUNK_BYTES;
use crate::log::segment::{Plan, Segment, prepare};
use crate::log::writer::{LogBuffer, Payload};
use crate::record::{HEADER_BYTES, HEADER_SPAN, Header};

const UNIT: usize = BUF_ALIGN;
const SEGMENT_BYTES: u64 = 1 << 16;

/// A log on disk. Each commit uses up one seqno; its payload is its seqno, repeated.
struct Log {
    env: Env,
    dir: TempDir,
    refs: Vec<SegmentRef>,
    buffer: LogBuffer,
    grouped: bool,
    /// Where the next group of a page-cached segment goes.
    position: u64,
    /// The segment and offset of each commit.
    places: Vec<(u64, u64)>,
}

fn segment(env: &Env, dir: &TempDir, number: u64, bytes: u64) -> Arc<Segment> {
    let plan = Plan { stream: Stream::Wal, number, bytes, direct: false, recycled: None };
    Arc::new(block_on(prepare(env, dir.path(), plan)).unwrap())
}

impl Log {
    fn new(grouped: bool, bytes: u64) -> Log {
        let env = Env::new(&EnvOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let first = segment(&env, &dir, 1, bytes);
        let refs = vec![SegmentRef { id: first.id, stream: Stream::Wal }];
        let (buffer, position) = (LogBuffer::new(first), UNIT as u64);
        Log { env, dir, refs, buffer, grouped, position, places: Vec::new() }
    }

    /// A commit in a group of its own.
    fn commit(&mut self, payload_bytes: usize, durable: SeqNo) {
        let seqno = u8::try_from(self.places.len() + 1).unwrap();
        let payload = vec![seqno; payload_bytes];
        let bytes = u32::try_from(payload.len()).unwrap();
        let crc = crc32c(&payload);
        let seqno = u64::from(seqno);
        let payload = Payload { parts: &[&payload], bytes, crc };
        self.buffer.append(&payload, seqno..seqno + 1, durable);
        let position = self.write();
        self.places.push((self.buffer.segment().id.number, position));
    }

    fn mark(&mut self, durable: SeqNo) {
        let next = self.places.len() as u64 + 1;
        assert!(self.buffer.append_mark(next, durable));
        self.write();
    }

    /// Writes the group; where it went.
    fn write(&mut self) -> u64 {
        if self.grouped {
            let file = self.buffer.segment().file.clone();
            let group = self.buffer.take_group(AlignedBuf::new()).unwrap();
            block_on(file.write_at(group.buf, group.position)).0.unwrap();
            return group.position;
        }
        let position = self.position;
        self.position += self.buffer.group_bytes() as u64;
        self.buffer.write_cached().unwrap();
        position
    }

    fn rotate(&mut self, bytes: u64) {
        let number = self.buffer.segment().id.number + 1;
        let next = segment(&self.env, &self.dir, number, bytes);
        self.refs.push(SegmentRef { id: next.id, stream: Stream::Wal });
        self.buffer.rotate(next);
        self.position = UNIT as u64;
    }

    fn path(&self, number: u64) -> PathBuf {
        FileName::Wal(number).in_dir(self.dir.path())
    }

    /// Changes bytes of a segment; returns them as they were.
    fn poke(&self, number: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
        let path = self.path(number);
        let mut all = std::fs::read(&path).unwrap();
        let at = usize::try_from(offset).unwrap();
        let old = all[at..at + bytes.len()].to_vec();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&path, all).unwrap();
        old
    }

    /// The last seqno and whether something was dropped, or the place of the corruption.
    fn replay(&self, flushed: SeqNo) -> std::result::Result<(SeqNo, bool), (String, u64)> {
        self.replay_known(Known { flushed, durable: 0 })
    }

    fn replay_known(&self, known: Known) -> std::result::Result<(SeqNo, bool), (String, u64)> {
        let flushed = known.flushed;
        let mut sink = Checker { next: flushed + 1 };
        match block_on(replay(&self.env, self.dir.path(), &self.refs, known, &mut sink)) {
            Ok(replayed) => {
                assert_eq!(replayed.last_seqno + 1, sink.next, "commits came back");
                assert_eq!(replayed.commits, replayed.last_seqno - flushed);
                Ok((replayed.last_seqno, replayed.torn))
            }
            Err(error) => {
                assert!(error.is_corruption(), "{error}");
                let (path, offset) = error.location().unwrap();
                Err((path.file_name().unwrap().to_str().unwrap().to_owned(), offset))
            }
        }
    }
}

/// Takes commits in order and checks what is in them, and where they are said to come from.
pub(in crate::log) struct Checker {
    pub(in crate::log) next: SeqNo,
}

impl Sink for Checker {
    fn commit(&mut self, header: &Header, payload: &[u8], origin: &Origin<'_>) -> Result<()> {
        assert_eq!(header.first_seqno, self.next);
        assert!(payload.iter().all(|byte| u64::from(*byte) == self.next));
        let name = origin.segment.stream.file_name(origin.segment.id.number);
        assert!(origin.path.ends_with(name.to_string()));
        self.next += 1;
        Ok(())
    }

    async fn breathe(&mut self) -> Result<()> {
        Ok(())
    }
}

fn name(number: u64) -> String {
    FileName::Wal(number).to_string()
}

/// Three segments of three commits; a record says that all commits before the one before it are
/// durable, as with two groups in flight. Nothing says so of the last two.
fn three_segments(grouped: bool) -> Log {
    let mut log = Log::new(grouped, SEGMENT_BYTES);
    for seqno in 1..=9 {
        log.commit(100 * usize::try_from(seqno).unwrap(), SeqNo::saturating_sub(seqno, 2));
        if seqno % 3 == 0 && seqno < 9 {
            log.rotate(SEGMENT_BYTES);
        }
    }
    log
}

#[test]
fn all_commits_come_back_from_where_tables_end() {
    for grouped in [false, true] {
        let log = three_segments(grouped);
        for flushed in 0..=9 {
            assert_eq!(log.replay(flushed), Ok((9, false)), "flushed {flushed}");
        }
        // More in tables than in the log: the log was not synced, the tables were.
        let mut sink = Checker { next: 0 };
        let refs = &log.refs;
        let known = Known { flushed: 20, durable: 20 };
        let replayed = block_on(replay(&log.env, log.dir.path(), refs, known, &mut sink)).unwrap();
        assert_eq!((replayed.last_seqno, replayed.commits, replayed.torn), (20, 0, false));
    }
}

#[test]
fn a_bad_record_is_damage_when_a_later_one_calls_it_durable_and_a_torn_tail_otherwise() {
    for grouped in [false, true] {
        for marked in [false, true] {
            let mut log = three_segments(grouped);
            if marked {
                log.mark(9);
            }
            for (seqno, (number, offset)) in (1..).zip(log.places.clone()) {
                // In the header, in the payload, and all of the record.
                let len = HEADER_BYTES + 100 * usize::try_from(seqno).unwrap();
                for (at, size) in [(10, 1), (HEADER_BYTES, 1), (0, len)] {
                    let at = offset + at as u64;
                    let old = log.poke(number, at, &vec![0xAA; size]);
                    let expected = if marked || seqno <= 7 {
                        Err((name(number), offset))
                    } else {
                        Ok((seqno - 1, true))
                    };
                    let found = log.replay(0);
                    // Nothing valid may follow the very last one: then the log just ends there.
                    let found = found.map(|(last, torn)| (last, torn || seqno == 9));
                    assert_eq!(found, expected, "{grouped} {marked} {seqno} {size}");
                    log.poke(number, at, &old);
                }
            }
            assert_eq!(log.replay(0), Ok((9, false)));
        }
    }
}

/// It was taken for a torn tail: a write that went astray onto the one before it left nothing of
/// either at its place, and no later record to tell of them.
#[test]
fn a_write_that_strayed_onto_the_one_before_it_tells_that_it_was_durable() {
    for (behind, expected) in [(1, Err(2)), (2, Ok(1))] {
        let mut log = Log::new(true, SEGMENT_BYTES);
        for seqno in 1..=3 {
            log.commit(100, SeqNo::saturating_sub(seqno, behind));
        }
        let ((number, second), (_, third)) = (log.places[1], log.places[2]);
        let strayed = log.poke(number, third, &[0; UNIT]);
        log.poke(number, second, &strayed);
        let found = log.replay(0).map(|(last, _)| last);
        let expected = expected.map_err(|_| (name(number), second));
        assert_eq!(found, expected, "a record calls durable what is {behind} before it");
    }
}

/// It was taken: its second half would have entered a table beside the first one, and the version
/// of both would have contradicted itself, which is a panic.
#[test]
fn a_commit_that_is_half_in_tables_is_damage() {
    let mut log = Log::new(true, SEGMENT_BYTES);
    let payload =
        Payload { parts: &[b"two operations"], bytes: 14, crc: crc32c(b"two operations") };
    log.buffer.append(&payload, 1..3, 0);
    let position = log.write();
    let place = (name(1), position + HEADER_BYTES as u64);
    assert_eq!(log.replay(1), Err(place));
    assert_eq!(log.replay(2), Ok((2, false)));
}

#[test]
fn a_gap_at_a_segment_border_is_found() {
    for grouped in [false, true] {
        for durable in [2, 3] {
            let mut log = Log::new(grouped, SEGMENT_BYTES);
            for _ in 0..3 {
                log.commit(50, 0);
            }
            log.rotate(SEGMENT_BYTES);
            log.commit(50, durable);
            let (number, offset) = log.places[2];
            log.poke(number, offset, &[0; HEADER_BYTES + 50]);
            let expected = if durable == 3 { Err((name(1), offset)) } else { Ok((2, true)) };
            assert_eq!(log.replay(0), expected);
        }
    }
}

#[test]
fn a_segment_that_is_gone_is_damage_whatever_was_in_it() {
    let mut log = three_segments(true);
    std::fs::remove_file(log.path(2)).unwrap();
    assert_eq!(log.replay(0), Err((name(2), 0)));
    // Not even named any more: what it had is missed by what follows.
    log.refs.remove(1);
    assert_eq!(log.replay(0).unwrap_err().0, name(1), "the log breaks off there");
}

#[test]
fn a_segment_that_was_cut_is_damage_and_one_that_is_longer_is_not() {
    let log = three_segments(true);
    let bytes = std::fs::read(log.path(3)).unwrap();
    for len in [0, 1, UNIT - 1, UNIT, bytes.len() - 1] {
        std::fs::write(log.path(3), &bytes[..len]).unwrap();
        assert_eq!(log.replay(0).unwrap_err().0, name(3), "cut to {len}");
    }
    // Space behind the segment is never looked at: a terabyte of it would take hours.
    std::fs::write(log.path(3), &bytes).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(log.path(3)).unwrap();
    file.set_len(1 << 40).unwrap();
    assert_eq!(log.replay(0), Ok((9, false)));
}

/// A mark says nothing that the records behind it do not: its damage takes nothing with it.
#[test]
fn damaged_marks_are_passed_over() {
    for grouped in [false, true] {
        for marks in 1..=2 {
            for marked in [false, true] {
                let mut log = Log::new(grouped, SEGMENT_BYTES);
                log.commit(50, 0);
                for _ in 0..marks {
                    log.mark(1);
                }
                log.commit(50, 1);
                if marked {
                    log.mark(2);
                }
                // All that stands between the two commits.
                let (from, to) = (log.places[0].1 + HEADER_BYTES as u64 + 50, log.places[1].1);
                let len = usize::try_from(to - from).unwrap();
                let old = log.poke(1, from, &vec![0; len]);
                assert_ne!(old, vec![0; len], "the marks stand there");
                assert_eq!(log.replay(0), Ok((2, false)), "{grouped} {marks} {marked}");
                // Without the commit behind them they are the end.
                log.poke(1, to, &[0; HEADER_BYTES]);
                let expected = if marked { Err(()) } else { Ok((1, false)) };
                assert_eq!(log.replay(0).map_err(drop), expected, "{grouped} {marks} {marked}");
            }
        }
    }
}

/// A commit that was torn off must not be replaced by one that stands where a mark could.
#[test]
fn a_missing_commit_is_no_damaged_mark() {
    for grouped in [false, true] {
        let mut log = Log::new(grouped, SEGMENT_BYTES);
        for _ in 0..3 {
            log.commit(0, 0);
        }
        let (number, offset) = log.places[1];
        log.poke(number, offset, &[0; HEADER_BYTES]);
        assert_eq!(log.replay(0), Ok((1, true)));
    }
}

#[test]
fn a_log_that_ends_too_early_for_the_manifest_is_damage() {
    for grouped in [false, true] {
        let log = three_segments(grouped);
        assert_eq!(log.replay_known(Known { flushed: 3, durable: 9 }), Ok((9, false)));
        let refused = log.replay_known(Known { flushed: 3, durable: 10 });
        assert_eq!(refused.unwrap_err().0, name(3));
        let (number, offset) = log.places[8];
        log.poke(number, offset, &[0; HEADER_BYTES]);
        assert_eq!(log.replay_known(Known { flushed: 3, durable: 8 }).map(|r| r.0), Ok(8));
        let refused = log.replay_known(Known { flushed: 3, durable: 9 });
        assert_eq!(refused, Err((name(number), offset)));
    }
}

#[test]
fn records_larger_than_a_chunk_come_back() {
    for grouped in [false, true] {
        let sizes = [10, CHUNK_BYTES - 7, 3, 2 * CHUNK_BYTES + 12345, CHUNK_BYTES, 0, 77];
        let total: usize = sizes.iter().sum();
        let mut log = Log::new(grouped, (total + 32 * UNIT).next_multiple_of(UNIT) as u64);
        for (size, seqno) in sizes.into_iter().zip(1..) {
            log.commit(size, seqno - 1);
        }
        assert_eq!(log.replay(0), Ok((7, false)));
        let (number, offset) = log.places[3];
        log.poke(number, offset + 2 * CHUNK_BYTES as u64, &[0xAA]);
        assert_eq!(log.replay(0), Err((name(1), offset)));
    }
}

/// No record of ours is like these, though their headers are sealed: they end the log.
#[test]
fn a_record_of_another_kind_or_beyond_the_segment_is_bad() {
    for wrong in [0, 1] {
        let mut log = Log::new(false, SEGMENT_BYTES);
        for _ in 0..3 {
            log.commit(50, 0);
        }
        let (number, offset) = log.places[2];
        let id = log.refs[0].id;
        let bytes = log.poke(number, offset, &[0; HEADER_BYTES]);
        let header = Header::decode(&bytes, id, offset).unwrap();
        log.poke(number, offset, &header.encode(id, offset));
        assert_eq!(log.replay(0), Ok((3, false)), "as it was");
        let bad = match wrong {
            0 => Header { kind: RecordType::Edit, ..header },
            _ => {
                let payload_bytes = u32::try_from(SEGMENT_BYTES).unwrap();
                Header { payload_bytes, span: payload_bytes + HEADER_SPAN, ..header }
            }
        };
        log.poke(number, offset, &bad.encode(id, offset));
        assert_eq!(log.replay(0), Ok((2, true)), "{bad:?}");
    }
}

/// Damaged marks, and behind them a commit larger than a chunk that is damaged as well: looking at
/// it moves the reader on, and it must come back to where the log ends.
#[test]
fn a_large_damaged_commit_behind_damaged_marks_is_the_end() {
    for grouped in [false, true] {
        let mut log = Log::new(grouped, 8 * CHUNK_BYTES as u64);
        for _ in 0..3 {
            log.commit(50, 0);
        }
        log.mark(0);
        log.commit(2 * CHUNK_BYTES, 0);
        let (from, to) = (log.places[2].1 + HEADER_BYTES as u64 + 50, log.places[3].1);
        log.poke(1, from, &vec![0; usize::try_from(to - from).unwrap()]);
        assert_eq!(log.replay(0), Ok((4, false)));
        log.poke(1, to + CHUNK_BYTES as u64, &[0xAA]);
        assert_eq!(log.replay(0), Ok((3, true)));
        let missing = log.replay_known(Known { flushed: 0, durable: 4 });
        assert_eq!(missing.unwrap_err().0, name(1));
    }
}

/// The only proof stands across the border of two chunks of the search, at every place.
#[test]
fn a_proof_at_the_border_of_two_chunks_is_found() {
    for chunks in [1, 2] {
        for before in (0..=2 * HEADER_BYTES).step_by(3) {
            let mut log = Log::new(false, 3 << 20);
            // The search begins at the unit of the gap, which is the first one.
            log.commit(chunks * CHUNK_BYTES - HEADER_BYTES - before, 0);
            log.commit(5, 1);
            let (_, offset) = log.places[0];
            log.poke(1, offset + HEADER_BYTES as u64, &[0xAA]);
            assert_eq!(log.replay(0), Err((name(1), offset)), "{chunks} {before}");
        }
    }
}

/// A segment that was recycled is full of records of its former life.
#[test]
fn records_of_a_former_life_prove_nothing() {
    let mut log = Log::new(true, 1 << 20);
    for seqno in 1..200 {
        log.commit(100, seqno - 1);
    }
    let recycled = Some(log.path(1));
    let plan = Plan { stream: Stream::Wal, number: 2, bytes: 1 << 20, direct: false, recycled };
    let again = Arc::new(block_on(prepare(&log.env, log.dir.path(), plan)).unwrap());
    log.refs = vec![SegmentRef { id: again.id, stream: Stream::Wal }];
    log.buffer = LogBuffer::new(again);
    log.places.clear();
    assert_eq!(log.replay(0), Ok((0, false)));
    log.commit(100, 0);
    assert_eq!(log.replay(0), Ok((1, false)));
}

#[test]
fn an_unnamed_segment_that_goes_on_is_told_from_an_old_one() {
    let mut log = three_segments(true);
    log.mark(9);
    let look = |number, last| {
        block_on(prove_behind(&log.env, log.dir.path(), Stream::Wal, number, last))
            .map_err(|error| assert!(error.is_corruption(), "{error}"))
            .is_err()
    };
    assert!(look(2, 3), "segment 2 begins with commit 4");
    assert!(!look(2, 2), "a dropped tail behind a gap");
    assert!(!look(2, 9) && !look(1, 9), "all of it is known");
    assert!(!look(17, 9), "no such file");
    log.poke(2, 0, &[0; 44]);
    assert!(!look(2, 3), "a segment in the making");
}
