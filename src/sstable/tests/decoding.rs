//! Descriptions of tables, and bytes that are none of ours.

use super::*;

#[test]
fn descriptions_round_trip_and_nonsense_is_refused() {
    let meta = TableMeta {
        number: 7,
        file_bytes: 4711,
        checksum: 0xDEAD_BEEF,
        entries: 10,
        tombstones: 3,
        smallest: b"a".to_vec(),
        largest: b"b".to_vec(),
        seqno_min: 5,
        seqno_max: 9,
        references: vec![Reference {
            segment: 3,
            bodies: 7,
            bytes: 700,
            handle: Handle { offset: 40, stored: 50, raw: 50 },
        }],
    };
    let mut bytes = Vec::new();
    meta.encode(&mut bytes);
    assert_eq!(TableMeta::decode(&mut Cursor::new(&bytes)), Some(meta.clone()));
    for len in 0..bytes.len() {
        assert_eq!(TableMeta::decode(&mut Cursor::new(&bytes[..len])), None);
    }
    for bad in [
        TableMeta { tombstones: 11, ..meta.clone() },
        TableMeta { seqno_min: 10, ..meta.clone() },
        TableMeta { largest: b"".to_vec(), ..meta.clone() },
        TableMeta { entries: 0, tombstones: 0, ..meta },
    ] {
        let mut bytes = Vec::new();
        bad.encode(&mut bytes);
        assert_eq!(TableMeta::decode(&mut Cursor::new(&bytes)), None);
    }
}

/// Checksums are no authentication: whatever a block holds, decoding it answers or refuses.
fn poke(bytes: Bytes) {
    if let Ok(block) = Block::decode(bytes) {
        for index in 0..block.len() {
            let entry = block.at(index);
            let key = block.key(entry).to_vec();
            assert_eq!(block.value(entry), block.value_bytes(entry));
            block.seek(&key, entry.trailer);
            block.get(&key, block.tags()[index], entry.trailer.seqno());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_make_a_decoder_panic(
        entries in any_entries(12),
        noise in prop::collection::vec(any::<u8>(), 0..200),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        poke(Bytes::from(noise.clone()));
        drop(index::Index::decode(&noise, 100));
        drop(TableMeta::decode(&mut Cursor::new(&noise)));
        let file = format::FileRef { path: Path::new("x"), number: 1 };
        drop(format::Footer::decode(file, 1000, &noise));
        let mut builder = block::BlockBuilder::default();
        let mut index = index::IndexBuilder::default();
        let mut last: Option<&[u8]> = None;
        for (at, (key, trailer, value)) in entries.iter().enumerate() {
            builder.add(key, *trailer, value, 0);
            index.begin_block(last, key, *trailer);
            last = Some(key);
            index.end_block(Handle { offset: at as u64 * 15, stored: 10, raw: 10 });
        }
        let mut bytes = builder.finish().to_vec();
        for (at, byte) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        poke(Bytes::from(bytes));
        let mut bytes = index.finish();
        prop_assert!(index::Index::decode(&bytes, entries.len() as u64 * 15).is_ok());
        for (at, byte) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        drop(index::Index::decode(&bytes, entries.len() as u64 * 15));
    }
}
