//! The layout of groups and marks, and what the zeros ahead of them leave alone.
#![expect(clippy::disallowed_methods, reason = "the test looks at the segment from outside")]

use std::path::Path;

use futures::executor::block_on;
use seerdb_io::{Env, EnvOptions};

use super::*;
use crate::codec::crc32c;
use crate::log::format::Stream;
use crate::log::segment::{Plan, prepare};
use crate::record::FileId;

const UNIT: usize = BUF_ALIGN;

fn segment(dir: &Path, number: u64, bytes: u64) -> Arc<Segment> {
    let env = Env::new(&EnvOptions::default()).unwrap();
    let plan = Plan { stream: Stream::Wal, number, bytes, direct: false, recycled: None };
    Arc::new(block_on(prepare(&env, dir, plan)).unwrap())
}

/// Appends the commit `seqno`.
fn append(log: &mut LogBuffer, payload: &[u8], seqno: SeqNo, durable: SeqNo) {
    let bytes = u32::try_from(payload.len()).unwrap();
    let payload = Payload { parts: &[payload], bytes, crc: crc32c(payload) };
    log.append(&payload, seqno..seqno + 1, durable);
}

/// The records of a group: place in the segment and header.
fn records(id: FileId, position: u64, buf: &[u8]) -> Vec<(u64, Header)> {
    let mut records = Vec::new();
    let mut at = 0;
    while at < buf.len() {
        let header = Header::decode(&buf[at..], id, position + at as u64).expect("a record");
        records.push((position + at as u64, header));
        at += header.span as usize;
    }
    assert_eq!(at, buf.len(), "the spans end where the group does");
    records
}

/// Damage to one unit must never take a group and the proof that it was durable.
#[test]
fn a_mark_shares_its_unit_with_nothing_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let segment = segment(dir.path(), 1, 1 << 20);
    // Every distance of the end to the unit's end, those without room for a header included.
    for payload in (0..2 * UNIT).step_by(7).chain(UNIT - 3 * HEADER_BYTES..UNIT) {
        let mut log = LogBuffer::new(segment.clone());
        append(&mut log, &vec![1; payload], 1, 0);
        assert!(log.append_mark(2, 1));
        let mut records = records(segment.id, SEGMENT_HEADER_BYTES as u64, &log.buf);
        let (at, mark) = records.pop().unwrap();
        assert_eq!((mark.kind, mark.durable_seqno, mark.first_seqno), (RecordType::Mark, 1, 2));
        assert_eq!(at % ALIGN, 0, "payload {payload}");
        let (data_at, data) = records[0];
        let data_end = data_at + HEADER_BYTES as u64 + u64::from(data.payload_bytes);
        assert!(data_end <= at, "payload {payload}");
        assert!(records[1..].iter().all(|(_, header)| header.kind == RecordType::Mark));
        assert_eq!(log.stamped(), 1);
    }
}

/// A segment without room for the mark of its last record would leave that record without proof
/// until the next commit.
#[test]
fn there_is_always_room_for_the_mark_of_the_last_record() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = (SEGMENT_HEADER_BYTES + 6 * UNIT) as u64;
    let segment = segment(dir.path(), 1, bytes);
    for grouped in [false, true] {
        for payload in (0..5 * UNIT).step_by(11) {
            let mut log = LogBuffer::new(segment.clone());
            let mut seqno = 0;
            while log.has_room(payload) {
                append(&mut log, &vec![1; payload], seqno + 1, seqno);
                seqno += 1;
                if grouped {
                    log.take_group(AlignedBuf::new()).unwrap();
                } else if seqno % 3 == 0 {
                    log.write_cached().unwrap();
                }
                assert!(log.end() <= bytes);
            }
            assert!(seqno == 0 || log.append_mark(seqno + 1, seqno), "payload {payload}");
            assert!(log.end().next_multiple_of(ALIGN) <= bytes, "payload {payload}");
        }
    }
}

#[test]
fn marks_stop_where_the_segment_ends() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = (SEGMENT_HEADER_BYTES + 8 * UNIT) as u64;
    let mut log = LogBuffer::new(segment(dir.path(), 1, bytes));
    append(&mut log, b"payload", 1, 0);
    let mut marks = 0;
    while log.append_mark(2, 1) {
        marks += 1;
        assert!(log.end() <= bytes);
    }
    assert!(marks >= 6, "{marks} marks in 8 units");
}

#[test]
fn groups_are_whole_units_and_follow_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let segment = segment(dir.path(), 1, 1 << 20);
    let mut log = LogBuffer::new(segment.clone());
    assert!(log.take_group(AlignedBuf::new()).is_none(), "nothing to write");
    let mut position = SEGMENT_HEADER_BYTES as u64;
    let mut chained = chain_start(segment.id);
    let mut seqno = 10;
    for sizes in [vec![1], vec![0], vec![100, 5000, 3], vec![UNIT - HEADER_BYTES], vec![9000; 4]] {
        for (size, seqno) in sizes.iter().zip(seqno + 1..) {
            append(&mut log, &vec![2; *size], seqno, 12.min(seqno - 1));
        }
        let group = log.take_group(AlignedBuf::new()).unwrap();
        assert_eq!(group.position, position);
        assert_eq!(group.buf.len() % UNIT, 0);
        let records = records(segment.id, position, &group.buf);
        assert_eq!(records.len(), sizes.len());
        for ((at, header), size) in records.into_iter().zip(&sizes) {
            assert_eq!(header.first_seqno, seqno + 1);
            let start = usize::try_from(at - position).unwrap() + HEADER_BYTES;
            assert!(header.matches(chained, &group.buf[start..start + size]));
            chained = header.chain;
            seqno += 1;
        }
        position += group.buf.len() as u64;
    }
    assert_eq!(log.stamped(), 12);
}

#[test]
fn a_rotation_begins_a_new_chain() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (segment(dir.path(), 1, 1 << 16), segment(dir.path(), 2, 1 << 16));
    let mut log = LogBuffer::new(first.clone());
    append(&mut log, b"one", 1, 0);
    log.write_cached().unwrap();
    assert!(log.is_empty() && log.group_bytes() == 0);
    assert_eq!(log.rotate(second.clone()).id, first.id);
    append(&mut log, b"two", 2, 1);
    let records = records(second.id, SEGMENT_HEADER_BYTES as u64, &log.buf);
    let (_, header) = records[0];
    assert_eq!((header.first_seqno, header.durable_seqno), (2, 1));
    assert!(header.matches(chain_start(second.id), b"two"));
}

#[test]
fn a_segment_made_for_a_record_has_room_for_it() {
    let dir = tempfile::tempdir().unwrap();
    for payload in [0, 1, UNIT - HEADER_BYTES, UNIT, 3 * UNIT + 1] {
        let segment = segment(dir.path(), payload as u64 + 1, segment_bytes_for(payload));
        assert!(LogBuffer::new(segment).has_room(payload), "{payload}");
    }
}

/// Zeros over a record would lose an acknowledged write.
#[test]
fn zeros_go_ahead_of_records_and_never_over_them() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = 1 << 20;
    let segment = segment(dir.path(), 1, bytes);
    let path = segment.file.path().to_path_buf();
    let start = SEGMENT_HEADER_BYTES;
    let mut file = std::fs::read(&path).unwrap();
    file[start..].fill(0xFF);
    std::fs::write(&path, &file).unwrap();
    let mut log = LogBuffer::new(segment);
    let mut written = Vec::new();
    for seed in 1u64.. {
        let ahead = AHEAD_BYTES;
        let size = [1, 100, 4056, 5000, ahead - 40, ahead, ahead + 1, 3 * ahead];
        let payload = vec![1; size[usize::try_from(seed * 5 % 8).unwrap()]];
        if !log.has_room(payload.len()) {
            break;
        }
        append(&mut log, &payload, seed, 0);
        written.extend_from_slice(&log.buf);
        log.write_cached().unwrap();
        let file = std::fs::read(&path).unwrap();
        let end = start + written.len();
        assert!(file[start..end] == written, "what was written before, after {seed}");
        let zeroed = usize::try_from(log.zeroed).unwrap();
        assert!(zeroed >= end, "after {seed}");
        // Behind a large group the unit that it ends in stays as it was.
        let is_zero = file[end..zeroed].iter().all(|&b| b == 0);
        assert!(is_zero || zeroed - end < UNIT, "after {seed}");
        assert!(file[zeroed.next_multiple_of(UNIT)..].iter().all(|&b| b == 0xFF), "untouched");
        assert_eq!(file.len() as u64, bytes, "the segment keeps its length");
    }
}
