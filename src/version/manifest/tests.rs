//! The pure reader against every torn tail, every flipped bit and every zeroed sector.

use super::*;
use crate::log::format::Stream;
use crate::version::edit::SegmentName;

const ID: FileId = FileId { number: 9, salt: 0x0123_4567_89AB_CDEF };

fn edits() -> Vec<VersionEdit> {
    let wal = |number| SegmentName { number, salt: number * 77, stream: Stream::Wal };
    vec![
        VersionEdit { next_file: Some(10), segments_added: vec![wal(3)], ..VersionEdit::default() },
        // Longer than a unit.
        VersionEdit { segments_added: (100..445).map(wal).collect(), ..VersionEdit::default() },
        VersionEdit { flushed_seqno: Some(5), ..VersionEdit::default() },
    ]
}

/// A manifest built without files, with its spare unit, and the offset of each edit record.
fn manifest(edits: &[VersionEdit]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = format::encode_header(ID);
    let mut chain = record::chain_start(ID);
    let mut offsets = Vec::new();
    for (edit, number) in edits.iter().zip(1u64..) {
        offsets.push(bytes.len());
        let payload = encode(edit);
        for (kind, seqno, count, durable, payload) in [
            (RecordType::Edit, number, 1, number - 1, payload.as_slice()),
            (RecordType::Mark, number + 1, 0, number, &[]),
        ] {
            chain = record::chain(chain, crate::codec::crc32c(payload));
            let span = span(payload.len());
            let header = Header {
                kind,
                payload_bytes: u32::try_from(payload.len()).unwrap(),
                span: u32::try_from(span).unwrap(),
                count,
                first_seqno: seqno,
                durable_seqno: durable,
                chain,
            };
            let end = bytes.len() + usize::try_from(span).unwrap();
            let header = header.encode(ID, bytes.len() as u64);
            bytes.extend_from_slice(&header);
            bytes.extend_from_slice(payload);
            bytes.resize(end, 0);
        }
    }
    bytes.resize(bytes.len() + UNIT, 0);
    (bytes, offsets)
}

fn read_all(bytes: &[u8]) -> Result<Vec<VersionEdit>> {
    let edits = replay(Path::new("MANIFEST-000009"), bytes, ID)?;
    Ok(edits.into_iter().map(|(_, edit)| edit).collect())
}

#[test]
fn edits_come_back_with_their_offsets() {
    let (mut bytes, offsets) = manifest(&edits());
    let read = replay(Path::new("m"), &bytes, ID).unwrap();
    let expected: Vec<ReadEdit> = offsets.iter().map(|&at| at as u64).zip(edits()).collect();
    assert_eq!(read, expected);
    bytes.resize(bytes.len() + 100_000, 0);
    assert_eq!(read_all(&bytes).unwrap(), edits(), "allocated ahead");
}

#[test]
fn the_writer_writes_what_the_tests_build() {
    let dir = tempfile::tempdir().unwrap();
    let env = seerdb_io::Env::new(&seerdb_io::EnvOptions::default()).unwrap();
    futures::executor::block_on(async {
        let mut writer = Writer::create(env.fs(), dir.path(), ID, &edits()[0]).await.unwrap();
        for edit in &edits()[1..] {
            let payload = encode(edit);
            writer.reserve(&payload).await.unwrap();
            writer.append(&payload).await.unwrap();
        }
        let (bytes, _) = manifest(&edits());
        assert_eq!(writer.bytes(), (bytes.len() - UNIT) as u64);
        let path = FileName::Manifest(9).in_dir(dir.path());
        let file = env.fs().open(path, OpenOptions::default()).await.unwrap();
        let len = usize::try_from(file.len().await.unwrap()).unwrap();
        assert!(len >= bytes.len());
        let (_, written) = file.read_at(AlignedBuf::zeroed(len), 0).await;
        assert_eq!(&written[..bytes.len()], &bytes);
        assert!(written[bytes.len()..].iter().all(|&b| b == 0));
    });
}

/// A crash while the last edit is appended: zeros from anywhere on.
#[test]
fn a_torn_last_edit_is_dropped_and_a_whole_one_taken() {
    let all = edits();
    for count in 2..=all.len() {
        let (bytes, offsets) = manifest(&all[..count]);
        let start = offsets[count - 1];
        let mark = bytes.len() - 2 * UNIT;
        let whole = start + HEADER_BYTES + encode(&all[count - 1]).len();
        for cut in start..mark {
            let expected = if cut < whole { &all[..count - 1] } else { &all[..count] };
            // The encoding may end in zero bytes, which a run of zeros does not tear.
            let zeros_tear = bytes[cut..whole.max(cut)].iter().any(|&b| b != 0);
            let zeroed_expected = if zeros_tear { expected } else { &all[..count] };
            let mut zeroed = bytes.clone();
            zeroed[cut..].fill(0);
            assert_eq!(read_all(&zeroed).unwrap(), zeroed_expected, "zeros from {cut}");
        }
        for cut in mark..bytes.len() {
            let mut zeroed = bytes.clone();
            zeroed[cut..].fill(0);
            assert_eq!(read_all(&zeroed).unwrap(), all[..count], "mark zeroed from {cut}");
        }
    }
}

/// A manifest that was cut short passed for one with a torn tail: the database came back as it had
/// been when it was opened last, or empty.
#[test]
fn a_manifest_cut_short_is_damaged() {
    let (mut bytes, _) = manifest(&edits());
    for cut in 0..bytes.len() {
        let error = read_all(&bytes[..cut]).unwrap_err();
        assert!(error.is_corruption(), "cut at {cut}: {error}");
        assert!(error.location().unwrap().1 <= cut as u64, "cut at {cut}: {error}");
    }
    // A torn edit does not hide the cut.
    let end = bytes.len();
    bytes[end - 2 * UNIT..].fill(0);
    assert!(read_all(&bytes).is_ok());
    assert!(read_all(&bytes[..end - 2 * UNIT]).unwrap_err().is_corruption());
}

#[test]
fn a_manifest_without_its_first_edit_is_damaged() {
    let (bytes, offsets) = manifest(&edits());
    for cut in 0..offsets[0] + HEADER_BYTES {
        let error = read_all(&bytes[..cut]).unwrap_err();
        assert!(error.is_corruption(), "{cut}: {error}");
        let (file, _) = error.location().unwrap();
        assert_eq!(file, Path::new("MANIFEST-000009"));
    }
}

/// Nothing may bring back an older state: the damaged manifest is right or refused.
fn right_or_refused(bad: &[u8], what: &str) -> bool {
    match read_all(bad) {
        Ok(read) => {
            assert_eq!(read, edits(), "{what}: an older state");
            true
        }
        Err(error) => {
            assert!(error.is_corruption(), "{what}: {error}");
            assert!(error.location().is_some(), "{what}");
            false
        }
    }
}

#[test]
fn no_flipped_bit_brings_back_an_older_state() {
    let (bytes, offsets) = manifest(&edits());
    let mut refused = 0;
    let mut bad = bytes.clone();
    for at in 0..bytes.len() {
        // The bits of the header page have a test of their own; of padding a sample will do.
        let is_padding = bytes[at..(at + 16).min(bytes.len())].iter().all(|&b| b == 0);
        let is_sampled = is_padding || at < offsets[0];
        if is_sampled && at % 16 > 0 {
            continue;
        }
        for bit in 0..if is_sampled { 1 } else { 8 } {
            bad[at] ^= 1 << bit;
            refused += usize::from(!right_or_refused(&bad, &format!("byte {at} bit {bit}")));
            bad[at] ^= 1 << bit;
        }
    }
    assert!(refused > UNIT * 7, "only {refused} flips were noticed");
}

#[test]
fn no_zeroed_sector_or_unit_brings_back_an_older_state() {
    let (bytes, _) = manifest(&edits());
    for size in [512, UNIT] {
        for start in (0..bytes.len()).step_by(size) {
            let mut bad = bytes.clone();
            bad[start..start + size].fill(0);
            right_or_refused(&bad, &format!("{size} zeros at {start}"));
            bad[start..start + size].fill(0xED);
            right_or_refused(&bad, &format!("{size} bytes of garbage at {start}"));
        }
    }
}

/// A damaged edit that is followed by edits in force is never cut, even without its mark.
#[test]
fn damage_in_the_middle_names_its_place() {
    let (bytes, offsets) = manifest(&edits());
    let mut bad = bytes.clone();
    bad[offsets[1] + HEADER_BYTES + 7] ^= 1;
    let error = read_all(&bad).unwrap_err();
    let (file, offset) = error.location().unwrap();
    assert_eq!((file, offset), (Path::new("MANIFEST-000009"), offsets[1] as u64));
}

#[test]
fn foreign_and_newer_content_is_refused() {
    let (bytes, offsets) = manifest(&edits());
    let other = FileId { salt: 1, ..ID };
    assert!(replay(Path::new("m"), &bytes, other).unwrap_err().is_corruption());

    // A whole record that holds no edit of ours.
    for (payload, kind) in
        [(vec![99u8], ErrorKind::NotSupported), (vec![1u8, 7], ErrorKind::Corruption)]
    {
        let mut chain = record::chain_start(ID);
        chain = record::chain(chain, crate::codec::crc32c(&payload));
        let header = Header {
            kind: RecordType::Edit,
            payload_bytes: u32::try_from(payload.len()).unwrap(),
            span: u32::try_from(UNIT).unwrap(),
            count: 1,
            first_seqno: 1,
            durable_seqno: 0,
            chain,
        };
        let mut bad = bytes.clone();
        let at = offsets[0];
        bad[at..at + HEADER_BYTES].copy_from_slice(&header.encode(ID, at as u64));
        bad[at + HEADER_BYTES..at + HEADER_BYTES + payload.len()].copy_from_slice(&payload);
        assert_eq!(read_all(&bad).unwrap_err().kind(), kind);
    }
}
