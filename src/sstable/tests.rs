//! Tests of tables as a whole: written, opened, looked up, scanned, damaged.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the tests damage files behind the engine's back"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::executor::block_on;
use proptest::prelude::*;
use seerdb_io::sim::{Options, Sim};
use seerdb_io::{Env, Fs, OpenOptions};

use super::*;
use crate::appender::Manner;
use crate::error::{Error, ErrorKind, Result};
use crate::filename::FileName;
use crate::filter::key_hash;
use crate::iter::{Direction, Position, Source};
use crate::key::{Trailer, ValueKind, compare};
use crate::options::Compression;
use crate::pointer::Pointer;
use crate::probe::Probe;
use crate::sstable::format::Handle;

/// Internal keys in their order, with values; tombstones have empty ones.
type Entries = Vec<(Vec<u8>, Trailer, Vec<u8>)>;

mod decoding;
mod runs;

fn fs() -> Fs {
    Env::new(&Default::default()).unwrap().fs().clone()
}

fn options(block_bytes: usize, compression: Compression) -> TableWriterOptions {
    let manner = Manner { direct: true, chunk_bytes: 512 << 10 };
    TableWriterOptions { block_bytes, compression, filter_bits_per_key: 10.0, manner }
}

async fn write(
    fs: &Fs,
    dir: &Path,
    number: u64,
    options: TableWriterOptions,
    entries: &Entries,
) -> Result<TableMeta> {
    let mut writer = TableWriter::create(fs, dir, number, options).await?;
    for (key, trailer, value) in entries {
        writer.add(key, *trailer, value);
        if writer.needs_write() {
            writer.write_full_chunks().await?;
        }
    }
    writer.finish().await
}

fn opened(fs: &Fs, dir: &Path, meta: TableMeta) -> Arc<Table> {
    block_on(Table::open(fs, dir, Arc::new(meta), OpenOptions::default())).unwrap()
}

fn sought(key: &[u8], seqno: SeqNo) -> Sought<'_> {
    Sought { key, hash: key_hash(key), seqno, fill: true, probe: Probe::NONE }
}

/// What a correct lookup answers.
fn model_get<'a>(entries: &'a Entries, key: &[u8], seqno: SeqNo) -> Option<(Trailer, &'a [u8])> {
    entries
        .iter()
        .find(|(k, trailer, _)| k == key && trailer.seqno() <= seqno)
        .map(|(_, trailer, value)| (*trailer, value.as_slice()))
}

fn sort(entries: &mut Entries) {
    entries.sort_by(|a, b| compare((&a.0, a.1), (&b.0, b.1)));
    entries.dedup_by(|a, b| a.0 == b.0 && a.1.seqno() == b.1.seqno());
}

/// Keys over a small alphabet, so that prefixes, neighbours and several versions are frequent.
fn any_key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![0u8, b'a', b'b', 0xFF]), 0..5)
}

fn any_entries(max: usize) -> impl Strategy<Value = Entries> {
    let entry = (any_key(), 1u64..40, any::<bool>(), prop::collection::vec(any::<u8>(), 0..40));
    prop::collection::vec(entry, 1..max).prop_map(|raw| {
        let mut entries: Entries = raw
            .into_iter()
            .map(|(key, seqno, put, value)| match put {
                true => (key, Trailer::new(seqno, ValueKind::Put), value),
                false => (key, Trailer::new(seqno, ValueKind::Delete), Vec::new()),
            })
            .collect();
        sort(&mut entries);
        entries
    })
}

fn collect(iter: &mut dyn Source) -> Result<Entries> {
    let mut out = Entries::new();
    loop {
        match iter.position() {
            Position::End => return Ok(out),
            Position::Blocked => block_on(iter.load())?,
            Position::At => {
                let entry = iter.entry();
                assert_eq!(iter.value(), entry.value);
                out.push((entry.key.to_vec(), entry.trailer, entry.value.to_vec()));
                iter.advance();
            }
        }
    }
}

/// The policies that a scan must not be able to tell apart by its answers.
fn block_sources() -> Vec<BlockSource> {
    let cache = |bytes| Arc::new(BlockCache::new(bytes));
    vec![
        BlockSource::Cached { cache: cache(1 << 20), fill: true },
        BlockSource::Cached { cache: cache(1 << 20), fill: false },
        BlockSource::Cached { cache: cache(600), fill: true },
        BlockSource::ReadAhead { bytes: 1 },
        BlockSource::ReadAhead { bytes: 200 },
        BlockSource::ReadAhead { bytes: 1 << 20 },
    ]
}

fn check_scans(run: &Arc<Run>, entries: &Entries, targets: &[(Vec<u8>, Trailer)]) {
    let reversed: Entries = entries.iter().rev().cloned().collect();
    for source in block_sources() {
        let mut forward = RunIter::new(run.clone(), Direction::Forward, source.clone());
        let mut reverse = RunIter::new(run.clone(), Direction::Reverse, source);
        for _ in 0..2 {
            forward.seek(None);
            assert_eq!(&collect(&mut forward).unwrap(), entries);
            reverse.seek(None);
            assert_eq!(collect(&mut reverse).unwrap(), reversed);
        }
        for (key, trailer) in targets {
            let target = (key.as_slice(), *trailer);
            forward.seek(Some(target));
            let from = entries.partition_point(|e| compare((&e.0, e.1), target).is_lt());
            assert_eq!(collect(&mut forward).unwrap(), entries[from..], "from {target:?}");
            reverse.seek(Some(target));
            let to = entries.partition_point(|e| compare((&e.0, e.1), target).is_le());
            let expected = &reversed[entries.len() - to..];
            assert_eq!(collect(&mut reverse).unwrap(), expected, "down from {target:?}");
        }
    }
}

/// Cuts the entries into tables at the given places, never within the versions of a key.
fn write_run(fs: &Fs, dir: &Path, entries: &Entries, cuts: &[usize], how: Compression) -> Run {
    let mut parts: Vec<Entries> = vec![Vec::new()];
    for (at, entry) in entries.iter().enumerate() {
        let new_key = at > 0 && entries[at - 1].0 != entry.0;
        if new_key && cuts.contains(&at) {
            parts.push(Vec::new());
        }
        parts.last_mut().unwrap().push(entry.clone());
    }
    let tables = parts.iter().enumerate().map(|(number, part)| {
        block_on(async {
            let meta = write(fs, dir, number as u64, options(64, how), part).await.unwrap();
            Table::open(fs, dir, Arc::new(meta), OpenOptions::default()).await.unwrap()
        })
    });
    Run::new(1, tables.collect(), None)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn tables_answer_like_the_model(
        entries in any_entries(120),
        cuts in prop::collection::vec(0usize..120, 0..4),
        seeks in prop::collection::vec((any_key(), 0u64..42), 1..6),
        lz4 in any::<bool>(),
    ) {
        let fs = fs();
        let dir = tempfile::tempdir().unwrap();
        let how = if lz4 { Compression::Lz4 } else { Compression::None };
        let run = Arc::new(write_run(&fs, dir.path(), &entries, &cuts, how));
        for table in &run.tables {
            block_on(table.verify()).unwrap();
        }
        prop_assert_eq!(run.entries(), entries.len() as u64);
        let cache = BlockCache::new(1 << 20);
        let keys = entries.iter().map(|e| e.0.clone()).chain(seeks.iter().map(|s| s.0.clone()));
        for key in keys {
            for seqno in [0, 1, 7, 20, 39, 100, SEQNO_MAX] {
                let expected = model_get(&entries, &key, seqno);
                let found = run.find(&key).and_then(|table| {
                    let sought = sought(&key, seqno);
                    let loaded = block_on(table.lookup(&cache, sought)).unwrap();
                    match table.lookup_now(&cache, sought) {
                        Lookup::Found(trailer, value) => {
                            assert_eq!(loaded, Some((trailer, value)));
                        }
                        Lookup::Absent => assert_eq!(loaded, None),
                        Lookup::Blocked(_) => panic!("the block was just loaded"),
                    }
                    loaded
                });
                let found = found.as_ref().map(|(trailer, value)| (*trailer, value.as_ref()));
                prop_assert_eq!(found, expected, "{:?} at {}", key, seqno);
            }
        }
        let targets: Vec<_> =
            seeks.into_iter().map(|(key, seqno)| (key, Trailer::seek(seqno))).collect();
        check_scans(&run, &entries, &targets);
        let exact: Vec<_> = entries.iter().step_by(9).map(|e| (e.0.clone(), e.1)).collect();
        check_scans(&run, &entries, &exact);
    }
}

/// Ten keys in less than 2 KiB, one of them with versions over several blocks, one with values
/// elsewhere.
fn small_table() -> Entries {
    let mut entries = Entries::new();
    for key in 0..10u64 {
        let versions = if key == 5 { 8 } else { 2 };
        for version in 0..versions {
            let kind = match (key, version) {
                (3, 0) => ValueKind::Delete,
                (7, _) => ValueKind::Pointer,
                _ => ValueKind::Put,
            };
            let trailer = Trailer::new(100 + key * 20 - version, kind);
            let name = format!("key{key:02}").into_bytes();
            let value = format!("value {version} of {key}, {}", "-".repeat(24)).into_bytes();
            let value = match kind {
                ValueKind::Put => value,
                ValueKind::Delete => Vec::new(),
                ValueKind::Pointer => {
                    let position = 5000 - 100 * u32::try_from(version).unwrap();
                    let raw = u32::try_from(value.len()).unwrap();
                    Pointer::new(4 + version, position, &name, &value, raw, trailer.seqno())
                        .encode()
                        .to_vec()
                }
            };
            entries.push((name, trailer, value));
        }
    }
    entries
}

/// Opens the table and reads all of it by lookup and by scan: the right answers or an error.
fn read_all(fs: &Fs, dir: &Path, meta: &TableMeta, entries: &Entries) -> Result<()> {
    let table = block_on(Table::open(fs, dir, Arc::new(meta.clone()), OpenOptions::default()))?;
    let cache = Arc::new(BlockCache::new(1 << 20));
    let mut failed = None;
    for (key, trailer, value) in entries {
        match block_on(table.lookup(&cache, sought(key, trailer.seqno()))) {
            Ok(found) => assert_eq!(found, Some((*trailer, Bytes::copy_from_slice(value)))),
            Err(error) => failed = Some(error),
        }
    }
    let run = Arc::new(Run::new(1, vec![table.clone()], None));
    for source in [BlockSource::Cached { cache, fill: true }, BlockSource::ReadAhead { bytes: 300 }]
    {
        let mut iter = RunIter::new(run.clone(), Direction::Forward, source);
        iter.seek(None);
        match collect(&mut iter) {
            Ok(found) => assert_eq!(&found, entries),
            Err(error) => failed = Some(error),
        }
    }
    let verified = block_on(table.verify());
    match failed {
        Some(error) => {
            assert!(verified.is_err(), "verify must find what a read found");
            Err(error)
        }
        None => verified,
    }
}

fn assert_corruption(error: &Error, path: &Path, what: &str) {
    assert_eq!(error.kind(), ErrorKind::Corruption, "{what}: {error}");
    let (file, _) = error.location().expect("corruption has a location");
    assert_eq!(file, path, "{what}");
}

fn flip_every_bit(how: Compression) {
    use std::os::unix::fs::FileExt;
    let fs = fs();
    let dir = tempfile::tempdir().unwrap();
    let entries = small_table();
    let meta = block_on(write(&fs, dir.path(), 9, options(150, how), &entries)).unwrap();
    let path = FileName::Table(9).in_dir(dir.path());
    read_all(&fs, dir.path(), &meta, &entries).unwrap();
    let good = std::fs::read(&path).unwrap();
    assert!((1000..3000).contains(&good.len()), "{}", good.len());
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    for bit in 0..good.len() * 8 {
        let at = bit / 8;
        file.write_all_at(&[good[at] ^ 1 << (bit % 8)], at as u64).unwrap();
        let error = read_all(&fs, dir.path(), &meta, &entries).expect_err("a flip is found");
        assert_corruption(&error, &path, &format!("bit {bit} of {}", good.len() * 8));
        file.write_all_at(&[good[at]], at as u64).unwrap();
    }
    read_all(&fs, dir.path(), &meta, &entries).unwrap();
}

#[test]
fn every_bit_flip_is_found() {
    flip_every_bit(Compression::None);
}

#[test]
fn every_bit_flip_of_compressed_blocks_is_found() {
    flip_every_bit(Compression::Lz4);
}

#[test]
fn every_truncation_and_extension_is_refused() {
    let fs = fs();
    let dir = tempfile::tempdir().unwrap();
    let entries = small_table();
    let options = options(150, Compression::Lz4);
    let meta = block_on(write(&fs, dir.path(), 9, options, &entries)).unwrap();
    let path = FileName::Table(9).in_dir(dir.path());
    let good = std::fs::read(&path).unwrap();
    for len in 0..good.len() {
        std::fs::write(&path, &good[..len]).unwrap();
        let error = read_all(&fs, dir.path(), &meta, &entries).unwrap_err();
        assert_corruption(&error, &path, "cut");
        // A manifest that was wrong about the length must not help either.
        let lying = TableMeta { file_bytes: len as u64, ..meta.clone() };
        let error = read_all(&fs, dir.path(), &lying, &entries).unwrap_err();
        assert_corruption(&error, &path, "cut and believed");
    }
    let longer = [good.as_slice(), &[0]].concat();
    std::fs::write(&path, longer).unwrap();
    assert_corruption(&read_all(&fs, dir.path(), &meta, &entries).unwrap_err(), &path, "longer");
    std::fs::remove_file(&path).unwrap();
    assert_corruption(&read_all(&fs, dir.path(), &meta, &entries).unwrap_err(), &path, "missing");
}

#[test]
fn a_table_under_another_number_is_refused() {
    let fs = fs();
    let dir = tempfile::tempdir().unwrap();
    let entries = small_table();
    let how = options(150, Compression::None);
    let meta = block_on(write(&fs, dir.path(), 9, how, &entries)).unwrap();
    let other = block_on(write(&fs, dir.path(), 10, how, &entries)).unwrap();
    let (nine, ten) =
        (FileName::Table(9).in_dir(dir.path()), FileName::Table(10).in_dir(dir.path()));
    std::fs::copy(&nine, &ten).unwrap();
    let error = read_all(&fs, dir.path(), &other, &entries).unwrap_err();
    assert_corruption(&error, &ten, "copied");
    // Footer and metadata of the right file, data blocks of the other one.
    std::fs::remove_file(&ten).unwrap();
    let other = block_on(write(&fs, dir.path(), 10, how, &entries)).unwrap();
    let (from, mut to) = (std::fs::read(&nine).unwrap(), std::fs::read(&ten).unwrap());
    // Longer than the first block with its checksum, shorter than all of them.
    to[..220].copy_from_slice(&from[..220]);
    std::fs::write(&ten, to).unwrap();
    let error = read_all(&fs, dir.path(), &other, &entries).unwrap_err();
    assert_corruption(&error, &ten, "mixed");
    read_all(&fs, dir.path(), &meta, &entries).unwrap();
}

#[test]
fn a_newer_format_is_not_supported() {
    let fs = fs();
    let dir = tempfile::tempdir().unwrap();
    let entries = small_table();
    let how = options(150, Compression::None);
    let meta = block_on(write(&fs, dir.path(), 9, how, &entries)).unwrap();
    let path = FileName::Table(9).in_dir(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - format::FOOTER_BYTES;
    let file = format::FileRef { path: &path, number: 9 };
    let footer = format::Footer::decode(file, meta.file_bytes, &bytes[at..]).unwrap();
    bytes[at..].copy_from_slice(&footer.encode_version(9, format::FORMAT_VERSION + 1));
    std::fs::write(&path, bytes).unwrap();
    let error = read_all(&fs, dir.path(), &meta, &entries).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported);
}

#[test]
fn large_and_many_entries_go_through_several_chunks() {
    let fs = fs();
    for how in [Compression::None, Compression::Lz4] {
        let dir = tempfile::tempdir().unwrap();
        let mut entries = Entries::new();
        for key in 0..6000u64 {
            let len = if key % 1000 == 7 { 700_000 } else { 300 };
            let mut value = key_hash(&key.to_le_bytes()).to_le_bytes().repeat(len / 8);
            value[0] = 1;
            let trailer = Trailer::new(key + 1, ValueKind::Put);
            entries.push((key.to_be_bytes().to_vec(), trailer, value));
        }
        let meta = block_on(write(&fs, dir.path(), 3, options(4096, how), &entries)).unwrap();
        assert_eq!(meta.entries, 6000);
        assert_eq!((meta.seqno_min, meta.seqno_max), (1, 6000));
        let path = FileName::Table(3).in_dir(dir.path());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), meta.file_bytes);
        let table = opened(&fs, dir.path(), meta);
        assert!(table.resident_bytes() > 6000);
        block_on(table.verify()).unwrap();
        let run = Arc::new(Run::new(1, vec![table], None));
        let targets = vec![(500u64.to_be_bytes().to_vec(), Trailer::seek(SEQNO_MAX))];
        check_scans(&run, &entries, &targets);
    }
}

#[test]
fn the_last_handle_of_a_retired_table_names_its_file() {
    let fs = fs();
    let dir = tempfile::tempdir().unwrap();
    let how = options(150, Compression::Lz4);
    let meta = block_on(write(&fs, dir.path(), 9, how, &small_table())).unwrap();
    let table = opened(&fs, dir.path(), meta);
    let (send, mut receive) = futures::channel::mpsc::unbounded();
    let other = table.clone();
    let pinned = PinnedMemory::default();
    table.retire(send.clone(), &pinned);
    table.retire(send, &pinned);
    assert_eq!(pinned.load(Ordering::Relaxed), table.resident_bytes());
    drop(table);
    assert!(receive.try_recv().is_err(), "a handle is left");
    drop(other);
    assert_eq!(receive.try_recv().unwrap(), FileName::Table(9));
    assert!(receive.try_recv().is_err(), "once");
    assert_eq!(pinned.load(Ordering::Relaxed), 0);
}

#[test]
fn an_abandoned_table_leaves_no_file() {
    let fs = fs();
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let how = options(150, Compression::Lz4);
        let mut writer = TableWriter::create(&fs, dir.path(), 9, how).await.unwrap();
        writer.add(b"key", Trailer::new(1, ValueKind::Put), b"value");
        writer.write_full_chunks().await.unwrap();
        assert_eq!(writer.entries(), 1);
        writer.abandon().await;
    });
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_table_abandoned_amid_writes_waits_for_them_and_leaves_no_file() {
    let sim = Sim::new(1, Options::default());
    let env = sim.boot();
    let (fs, dir) = (env.fs(), Path::new("/"));
    let outcome = sim.run(async {
        let how = options(4096, Compression::None);
        let mut writer = TableWriter::create(fs, dir, 9, how).await.unwrap();
        for seqno in 1..60u64 {
            let trailer = Trailer::new(seqno, ValueKind::Put);
            writer.add(&seqno.to_be_bytes(), trailer, &[7; 40_000]);
            if writer.needs_write() {
                writer.write_full_chunks().await.unwrap();
            }
        }
        assert!(sim.in_flight() > 0, "nothing is under way");
        writer.abandon().await;
        assert_eq!(sim.in_flight(), 0);
        assert!(fs.list_dir(dir).await.unwrap().is_empty());
    });
    outcome.unwrap();
}

#[test]
fn a_direct_table_is_read_around_the_page_cache() {
    let fs = fs();
    let dir = tempfile::tempdir().unwrap();
    for how in [Compression::None, Compression::Lz4] {
        let entries = small_table();
        let number = 9 + how as u64;
        let meta = block_on(write(&fs, dir.path(), number, options(150, how), &entries)).unwrap();
        let direct = OpenOptions { direct: true, ..OpenOptions::default() };
        let table = block_on(Table::open(&fs, dir.path(), Arc::new(meta), direct)).unwrap();
        let cache = Arc::new(BlockCache::new(0));
        let is_direct = table.reader().file.is_direct();
        assert_eq!(table.block_now(&cache, false, 0).is_none(), is_direct);
        for (key, trailer, value) in &entries {
            let look = table.lookup(&cache, sought(key, trailer.seqno()));
            let (found, stored) = block_on(look).unwrap().unwrap();
            assert_eq!((found, &stored[..]), (*trailer, &value[..]));
        }
        let run = Arc::new(Run::new(1, vec![table], None));
        let source = BlockSource::Cached { cache, fill: true };
        let mut iter = RunIter::new(run, Direction::Forward, source);
        iter.seek(None);
        assert_eq!(collect(&mut iter).unwrap(), entries);
    }
}

/// The file of an open table is cut: reads tell so, whichever way they go.
#[test]
fn a_table_that_is_cut_while_open_is_damaged() {
    let fs = fs();
    let dir = tempfile::tempdir().unwrap();
    let how = options(150, Compression::None);
    let entries = small_table();
    let meta = block_on(write(&fs, dir.path(), 9, how, &entries)).unwrap();
    let table = opened(&fs, dir.path(), meta);
    let path = FileName::Table(9).in_dir(dir.path());
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    let cache = BlockCache::new(1 << 20);
    assert!(table.block_now(&cache, true, 0).is_none(), "not from half a block");
    for source in block_sources() {
        let run = Arc::new(Run::new(1, vec![table.clone()], None));
        let mut iter = RunIter::new(run, Direction::Forward, source);
        iter.seek(None);
        assert_corruption(&collect(&mut iter).unwrap_err(), &path, "ends before its blocks do");
    }
    assert_corruption(&block_on(table.verify()).unwrap_err(), &path, "ends before its blocks do");
}

#[test]
#[should_panic(expected = "the iterator is not at an entry")]
fn an_iterator_at_its_end_has_no_entry() {
    let fs = fs();
    let dir = tempfile::tempdir().unwrap();
    let run = write_run(&fs, dir.path(), &small_table(), &[], Compression::None);
    let source = BlockSource::ReadAhead { bytes: 1 };
    let mut iter = RunIter::new(Arc::new(run), Direction::Forward, source);
    iter.seek(None);
    collect(&mut iter).unwrap();
    iter.advance();
}

#[test]
fn a_block_is_filled_even_when_entries_are_a_quarter_of_it() {
    let fs = fs();
    let dir = tempfile::tempdir().unwrap();
    let value = vec![7; 1024];
    let entry = |key: u64| {
        (key.to_be_bytes().to_vec(), Trailer::new(key + 1, ValueKind::Put), value.clone())
    };
    let entries: Entries = (0..80).map(entry).collect();
    let how = options(4096, Compression::None);
    let meta = block_on(write(&fs, dir.path(), 9, how, &entries)).unwrap();
    let table = opened(&fs, dir.path(), meta);
    assert_eq!(table.blocks(), 20, "four entries of 1,040 bytes each");
    // An entry that would make the block far too long begins one of its own.
    let large = vec![7; 100_000];
    let entries: Entries = [(0u64, &value), (1, &large), (2, &value)]
        .map(|(k, v)| (k.to_be_bytes().to_vec(), Trailer::new(k + 1, ValueKind::Put), v.clone()))
        .into();
    let meta = block_on(write(&fs, dir.path(), 10, how, &entries)).unwrap();
    let table = opened(&fs, dir.path(), meta);
    assert_eq!(table.blocks(), 3);
}
