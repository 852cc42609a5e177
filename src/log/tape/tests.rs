//! Two streams that are read as one log.
#![expect(clippy::disallowed_methods, reason = "the tests damage files behind the engine's back")]

use std::sync::Arc;

use futures::executor::block_on;
use seerdb_io::EnvOptions;
use tempfile::TempDir;

use super::*;
use crate::codec::crc32c;
use crate::log::format::Stream;
use crate::log::replay::tests::Checker;
use crate::log::replay::{Known, replay};
use crate::log::segment::{Plan, Segment, prepare};
use crate::log::writer::{LogBuffer, Payload};
use crate::record::HEADER_BYTES;

const PAYLOAD_BYTES: usize = 40;
const STREAMS: [Stream; 2] = [Stream::Wal, Stream::Values];

/// A log of two streams. Each commit uses up one seqno; its payload is its seqno, repeated.
struct Twins {
    env: Env,
    dir: TempDir,
    refs: Vec<SegmentRef>,
    buffers: [LogBuffer; 2],
    /// The stream, the segment and the offset of each commit.
    places: Vec<(Stream, u64, u64)>,
}

fn segment(env: &Env, dir: &TempDir, stream: Stream, number: u64) -> Arc<Segment> {
    let plan = Plan { stream, number, bytes: 1 << 15, direct: false, recycled: None };
    Arc::new(block_on(prepare(env, dir.path(), plan)).unwrap())
}

impl Twins {
    fn new() -> Twins {
        let env = Env::new(&EnvOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let [wal, values] = [1, 2].map(|number| {
            let stream = if number == 1 { Stream::Wal } else { Stream::Values };
            segment(&env, &dir, stream, number)
        });
        let refs = [&wal, &values].map(|s| SegmentRef { id: s.id, stream: s.stream }).to_vec();
        let buffers = [LogBuffer::new(wal), LogBuffer::new(values)];
        Twins { env, dir, refs, buffers, places: Vec::new() }
    }

    fn commit(&mut self, stream: Stream, durable: SeqNo) {
        let seqno = self.places.len() as u64 + 1;
        let bytes = [u8::try_from(seqno).unwrap(); PAYLOAD_BYTES];
        let payload = Payload {
            parts: &[&bytes],
            bytes: u32::try_from(PAYLOAD_BYTES).unwrap(),
            crc: crc32c(&bytes),
        };
        let log = &mut self.buffers[stream as usize];
        let at = log.append(&payload, seqno..seqno + 1, durable) - HEADER_BYTES as u64;
        log.write_cached().unwrap();
        self.places.push((stream, log.segment().id.number, at));
    }

    fn mark(&mut self, durable: SeqNo) {
        let log = &mut self.buffers[0];
        assert!(log.append_mark(self.places.len() as u64 + 1, durable));
        log.write_cached().unwrap();
    }

    fn rotate(&mut self, stream: Stream) {
        let next = segment(&self.env, &self.dir, stream, self.refs.len() as u64 + 1);
        self.refs.push(SegmentRef { id: next.id, stream });
        self.buffers[stream as usize].rotate(next);
    }

    fn path(&self, stream: Stream, number: u64) -> PathBuf {
        stream.file_name(number).in_dir(self.dir.path())
    }

    fn poke(&self, commit: usize, bytes: &[u8]) -> Vec<u8> {
        let (stream, number, offset) = self.places[commit];
        let path = self.path(stream, number);
        let mut all = std::fs::read(&path).unwrap();
        let at = usize::try_from(offset).unwrap();
        let old = all[at..at + bytes.len()].to_vec();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&path, all).unwrap();
        old
    }

    /// The last seqno and whether something was dropped, or where the corruption is.
    fn replay(&self, flushed: SeqNo) -> std::result::Result<(SeqNo, bool), Place> {
        let mut sink = Checker { next: flushed + 1 };
        let known = Known { flushed, durable: 0 };
        match block_on(replay(&self.env, self.dir.path(), &self.refs, known, &mut sink)) {
            Ok(replayed) => {
                assert_eq!(replayed.last_seqno + 1, sink.next, "commits came back");
                Ok((replayed.last_seqno, replayed.torn))
            }
            Err(error) => {
                assert!(error.is_corruption(), "{error}");
                let (path, offset) = error.location().unwrap();
                Err((path.to_path_buf(), offset))
            }
        }
    }
}

/// Twelve commits in both streams, by the bits of `pattern`, with a rotation of each stream; each
/// says that all but the two before it are durable.
fn twelve(pattern: u32) -> Twins {
    let mut log = Twins::new();
    for commit in 0..12u64 {
        let stream = STREAMS[(pattern >> commit & 1) as usize];
        log.commit(stream, commit.saturating_sub(2));
        match commit {
            4 => log.rotate(Stream::Wal),
            7 => log.rotate(Stream::Values),
            _ => {}
        }
    }
    log
}

#[test]
fn commits_come_back_in_order_whichever_stream_they_are_in() {
    for pattern in (0..1 << 12).step_by(37) {
        let log = twelve(pattern);
        for flushed in 0..=12 {
            assert_eq!(log.replay(flushed), Ok((12, false)), "{pattern:012b}, {flushed}");
        }
    }
}

/// A commit that is missing ends the log, in both streams; it is damage when anything that is
/// left of either of them calls it durable.
#[test]
fn a_gap_in_one_stream_is_a_gap_of_the_log() {
    for pattern in (0..1 << 12).step_by(101) {
        for marked in [false, true] {
            let mut log = twelve(pattern);
            if marked {
                log.mark(12);
            }
            for commit in 0..12 {
                for size in [4, HEADER_BYTES + PAYLOAD_BYTES] {
                    let old = log.poke(commit, &vec![0xAA; size]);
                    let missing = commit as u64 + 1;
                    // The proof must not be in the damaged record itself.
                    let proven = marked || missing <= 9;
                    let what = format!("{pattern:012b} {marked} {missing} {size}");
                    match log.replay(0) {
                        Err((path, offset)) => {
                            assert!(proven, "{what}: false alarm");
                            let (stream, number, at) = log.places[commit];
                            let there = (log.path(stream, number), at);
                            // The last record of a segment may have been in the other stream.
                            let behind = log.places.get(commit + 1..).unwrap_or_default();
                            let is_last = behind.iter().all(|place| place.1 != number);
                            assert!((path, offset) == there || is_last, "{what}");
                        }
                        Ok((last, torn)) => {
                            assert!(!proven, "{what}: a silent loss");
                            assert_eq!(last, missing - 1, "{what}");
                            assert!(torn || missing == 12, "{what}");
                        }
                    }
                    log.poke(commit, &old);
                }
            }
            assert_eq!(log.replay(0), Ok((12, false)));
        }
    }
}

/// The last group of one stream was lost whole, and the other one says nothing of it.
#[test]
fn what_stands_behind_a_lost_group_of_the_other_stream_is_dropped() {
    let mut log = Twins::new();
    for stream in [Stream::Wal, Stream::Values, Stream::Wal, Stream::Wal] {
        log.commit(stream, 0);
    }
    log.poke(1, &[0; HEADER_BYTES + PAYLOAD_BYTES]);
    assert_eq!(log.replay(0), Ok((1, true)));
    assert_eq!(log.replay(2), Ok((4, false)), "it is in tables already");
    log.mark(2);
    assert!(log.replay(0).is_err());
}
