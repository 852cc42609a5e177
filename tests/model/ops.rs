//! The operations of a case, and how they are drawn.

use std::fmt;
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use seerdb::{Compression, DB, DBOptions, Durability, Env, RangeStream, Snapshot};

/// A key: one of a small set that collides and shares prefixes, or a few odd bytes.
#[derive(Clone)]
pub(crate) enum Key {
    Fixed(u8),
    Odd(Vec<u8>),
}

/// The number of fixed keys.
const FIXED: u8 = 64;

impl Key {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Key::Odd(bytes) => bytes.clone(),
            Key::Fixed(number) => fixed(*number),
        }
    }
}

fn fixed(number: u8) -> Vec<u8> {
    let ones = |count: u8| vec![0xFF; usize::from(count)];
    let zeros = |count: u8| vec![0; usize::from(count)];
    match number {
        0..=7 => vec![b'a'; usize::from(number)],
        8..=11 => zeros(number - 7),
        12..=14 => ones(number - 11),
        15 => vec![0xFF; 300],
        16..=18 => [b"a".as_slice(), &zeros(number - 15)].concat(),
        19..=21 => [b"a".as_slice(), &ones(number - 18)].concat(),
        22..=25 => [vec![b'L'; 300], vec![b'0' + number - 22]].concat(),
        26..=27 => [b"prefix/".repeat(120), vec![b'0' + number - 26]].concat(),
        28..=43 => format!("user:{:02}", number - 28).into_bytes(),
        _ => format!("user:07/post:{:04}", u32::from(number - 44) * 37).into_bytes(),
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes();
        let shown = bytes.get(..40).unwrap_or(&bytes).escape_ascii();
        match self {
            Key::Fixed(number) => write!(f, "#{number}=\"{shown}\"({})", bytes.len()),
            Key::Odd(_) => write!(f, "\"{shown}\""),
        }
    }
}

/// A put of so many bytes, or a delete.
pub(crate) type Change = (Key, Option<u32>);

/// The key and the value of the write `number`; the value tells which write it belongs to.
pub(crate) fn filled((key, len): &Change, number: u64) -> (Vec<u8>, Option<Bytes>) {
    // Half of the values compress well.
    let noise = if number.is_multiple_of(2) { 0 } else { 0x9E37_79B9_7F4A_7C15 };
    let value = len.map(|len| {
        let mut state = number;
        let mut bytes = number.to_le_bytes().to_vec();
        while bytes.len() < len as usize {
            state = (state ^ (state >> 29)).wrapping_mul(noise | 1).wrapping_add(noise);
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(len as usize);
        Bytes::from(bytes)
    });
    (key.bytes(), value)
}

/// The keys that a scan covers.
#[derive(Debug, Clone)]
pub(crate) enum Span {
    All,
    Prefix(Key),
    Range(Bound<Key>, Bound<Key>),
}

/// A scan.
#[derive(Debug, Clone)]
pub(crate) struct Scan {
    pub(crate) span: Span,
    pub(crate) reverse: bool,
    pub(crate) limit: Option<u8>,
    pub(crate) fill_cache: bool,
}

impl Scan {
    /// The same range in the same direction to its end.
    pub(crate) fn unlimited(&self) -> Scan {
        Scan { limit: None, ..self.clone() }
    }

    /// The stream of the present, or of a snapshot.
    pub(crate) fn stream(&self, db: &DB, snapshot: Option<&Snapshot>) -> RangeStream {
        let stream = match (snapshot, &self.span) {
            (None, Span::All) => db.iter(),
            (None, Span::Prefix(prefix)) => db.prefix(prefix.bytes()),
            (None, Span::Range(from, to)) => db.range(owned(from, to)),
            (Some(snapshot), Span::All) => snapshot.iter(),
            (Some(snapshot), Span::Prefix(prefix)) => snapshot.prefix(prefix.bytes()),
            (Some(snapshot), Span::Range(from, to)) => snapshot.range(owned(from, to)),
        };
        let stream = if self.reverse { stream.rev() } else { stream };
        let limit = self.limit.map_or(usize::MAX, usize::from);
        stream.limit(limit).fill_cache(self.fill_cache)
    }
}

pub(crate) fn owned(from: &Bound<Key>, to: &Bound<Key>) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    (from.as_ref().map(Key::bytes), to.as_ref().map(Key::bytes))
}

/// One step of a case. A slot is taken modulo the number of snapshots or streams that are held.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Write(Change, Option<Durability>),
    TryPut(Key, u32),
    Batch(Vec<Change>, Option<Durability>),
    /// Writes that are polled together.
    Together(Vec<(Change, Option<Durability>)>),
    /// A write that is polled once and dropped.
    Dropped(Change, Option<Durability>),
    Get(Key, bool),
    GetMany(Vec<Key>),
    Scan(Scan),
    Snapshot,
    SnapshotGet(u8, Key),
    SnapshotGetMany(u8, Vec<Key>),
    SnapshotScan(u8, Scan),
    SnapshotDrop(u8),
    /// Opens a stream, of a snapshot if a slot is given, and holds it.
    Stream(Option<u8>, Scan),
    /// Takes items from a held stream; `true` drops a `next` of each item midway first.
    StreamTake(u8, u8, bool),
    /// Moves a held stream.
    StreamSeek(u8, Key),
    /// Reads a range page by page, each from the cursor of the one before as a client would send
    /// it; of a snapshot if a slot is given.
    Pages(Option<u8>, Scan, u8),
    StreamDrop(u8),
    Flush,
    WaitDurable,
    /// Lets the merges under way come to an end.
    Settle,
    Stats,
    /// Closes and opens again, with other options if there are any.
    Reopen(Option<Opts>),
    /// The same without closing: the handles are dropped.
    DropReopen(Option<Opts>),
}

/// Drawn options.
#[derive(Debug, Clone)]
pub(crate) struct Opts {
    memtable: usize,
    segment: usize,
    block: usize,
    table: usize,
    cache: usize,
    ratio: usize,
    runs: usize,
    runs_last: usize,
    durability: Durability,
    delay_ms: u64,
    compression: Compression,
    filter_bits: f64,
    direct: bool,
    values: Values,
}

/// How values are separated.
#[derive(Debug, Clone)]
struct Values {
    threshold: Option<usize>,
    segment: usize,
    amplification: f64,
}

impl Opts {
    pub(crate) fn options(&self, env: &Env) -> DBOptions {
        DBOptions::new()
            .env(env.clone())
            .memory_budget(1 << 20)
            .memtable_bytes(self.memtable)
            .wal_segment_bytes(self.segment)
            .block_bytes(self.block)
            .table_bytes(self.table)
            .cache_bytes(self.cache)
            .size_ratio(self.ratio)
            .runs_per_level(self.runs)
            .runs_last_level(self.runs_last)
            .durability(self.durability)
            .buffered_delay(Duration::from_millis(self.delay_ms))
            .compression(self.compression)
            .filter_bits_per_key(self.filter_bits)
            .direct_io(self.direct)
            .value_threshold(self.values.threshold)
            .value_segment_bytes(self.values.segment)
            .max_space_amplification(self.values.amplification)
    }
}

/// Options and operations.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) opts: Opts,
    pub(crate) ops: Vec<Op>,
}

fn durability() -> impl Strategy<Value = Durability> {
    prop_oneof![Just(Durability::Buffered), Just(Durability::Written), Just(Durability::Synced)]
}

/// All values inline in half of the cases.
fn values() -> impl Strategy<Value = Values> {
    let threshold = prop_oneof![3 => Just(None), 1 => Just(Some(1)), 2 => Just(Some(100))];
    let amplification = prop_oneof![Just(1.1), Just(1.5), Just(4.0)];
    (threshold, 4usize..=8, amplification).prop_map(|(threshold, segment, amplification)| Values {
        threshold,
        segment: segment * 4096,
        amplification,
    })
}

/// Options so small that a case flushes and merges.
pub(crate) fn opts() -> impl Strategy<Value = Opts> {
    let runs = (2usize..=6).prop_flat_map(|ratio| (Just(ratio), 1..ratio, 1..ratio));
    let sizes = (1024usize..=8192, 4usize..=16, 64usize..=512, 1024usize..=8192);
    let cache = prop_oneof![Just(0usize), Just(2048), Just(64 << 10)];
    let compression = prop_oneof![Just(Compression::None), Just(Compression::Lz4)];
    let filter = prop_oneof![Just(0.0), Just(1.5), Just(10.0), Just(16.0)];
    let delay = prop_oneof![Just(0u64), Just(2), Just(3_600_000)];
    let stored = (compression, values(), proptest::bool::ANY);
    (sizes, cache, runs, durability(), delay, stored, filter).prop_map(
        |(sizes, cache, (ratio, runs, runs_last), durability, delay_ms, stored, bits)| Opts {
            memtable: sizes.0,
            segment: sizes.1 * 4096,
            block: sizes.2,
            table: sizes.3,
            cache,
            ratio,
            runs,
            runs_last,
            durability,
            delay_ms,
            compression: stored.0,
            filter_bits: bits,
            values: stored.1,
            direct: stored.2,
        },
    )
}

fn key() -> impl Strategy<Value = Key> {
    let byte = prop_oneof![Just(0u8), Just(b'a'), Just(b'b'), Just(0xFF)];
    prop_oneof![
        8 => (0..FIXED).prop_map(Key::Fixed),
        1 => prop::collection::vec(byte, 0..6).prop_map(Key::Odd),
    ]
}

fn value_len() -> impl Strategy<Value = u32> {
    prop_oneof![
        30 => 0u32..24,
        40 => 24u32..300,
        20 => 300u32..3000,
        // Larger than any memtable, and than the smallest and the largest segment.
        1 => prop_oneof![Just(9_000u32), Just(17_000), Just(100 << 10)],
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (key(), value_len().prop_map(Some)),
        1 => (key(), Just(None)),
    ]
}

fn bound() -> impl Strategy<Value = Bound<Key>> {
    prop_oneof![
        2 => key().prop_map(Bound::Included),
        2 => key().prop_map(Bound::Excluded),
        1 => Just(Bound::Unbounded),
    ]
}

/// Mostly in order; an inverted range now and then.
fn bounds() -> impl Strategy<Value = Span> {
    (bound(), bound(), prop::bool::weighted(0.9)).prop_map(|(from, to, ordered)| {
        let keys = match (&from, &to) {
            (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => {
                Some((a.bytes(), b.bytes()))
            }
            _ => None,
        };
        match keys {
            Some((a, b)) if ordered && a > b => Span::Range(to, from),
            _ => Span::Range(from, to),
        }
    })
}

fn scan() -> impl Strategy<Value = Scan> {
    let span = prop_oneof![
        1 => Just(Span::All),
        1 => key().prop_map(Span::Prefix),
        2 => bounds(),
    ];
    (span, any::<bool>(), prop::option::weighted(0.2, 0u8..20), any::<bool>())
        .prop_map(|(span, reverse, limit, fill_cache)| Scan { span, reverse, limit, fill_cache })
}

fn writes() -> impl Strategy<Value = Op> {
    let own = || prop::option::weighted(0.3, durability());
    prop_oneof![
        40 => (change(), own()).prop_map(|(change, own)| Op::Write(change, own)),
        3 => (key(), value_len()).prop_map(|(key, len)| Op::TryPut(key, len)),
        8 => (prop::collection::vec(change(), 0..12), own())
            .prop_map(|(changes, own)| Op::Batch(changes, own)),
        5 => prop::collection::vec((change(), own()), 1..10).prop_map(Op::Together),
        3 => (change(), own()).prop_map(|(change, own)| Op::Dropped(change, own)),
    ]
}

fn reads() -> impl Strategy<Value = Op> {
    let slot = any::<u8>;
    let keys = || prop::collection::vec(key(), 0..8);
    prop_oneof![
        8 => (key(), any::<bool>()).prop_map(|(key, fill)| Op::Get(key, fill)),
        2 => keys().prop_map(Op::GetMany),
        5 => scan().prop_map(Op::Scan),
        4 => Just(Op::Snapshot),
        3 => (slot(), key()).prop_map(|(slot, key)| Op::SnapshotGet(slot, key)),
        2 => (slot(), keys()).prop_map(|(slot, keys)| Op::SnapshotGetMany(slot, keys)),
        3 => (slot(), scan()).prop_map(|(slot, scan)| Op::SnapshotScan(slot, scan)),
        3 => slot().prop_map(Op::SnapshotDrop),
        4 => (prop::option::weighted(0.3, slot()), scan())
            .prop_map(|(slot, scan)| Op::Stream(slot, scan)),
        8 => (slot(), 0u8..8, any::<bool>())
            .prop_map(|(slot, count, drop)| Op::StreamTake(slot, count, drop)),
        3 => (slot(), key()).prop_map(|(slot, key)| Op::StreamSeek(slot, key)),
        2 => (prop::option::weighted(0.3, slot()), scan(), 1u8..8)
            .prop_map(|(slot, scan, page)| Op::Pages(slot, scan, page)),
        1 => slot().prop_map(Op::StreamDrop),
    ]
}

fn control() -> impl Strategy<Value = Op> {
    let other = || prop::option::weighted(0.5, opts());
    prop_oneof![
        4 => Just(Op::Flush),
        2 => Just(Op::WaitDurable),
        3 => Just(Op::Settle),
        2 => Just(Op::Stats),
        2 => other().prop_map(Op::Reopen),
        1 => other().prop_map(Op::DropReopen),
    ]
}

/// A case of at most `ops_max` operations.
pub(crate) fn case(ops_max: usize) -> impl Strategy<Value = Case> {
    let op = prop_oneof![6 => writes(), 4 => reads(), 1 => control()];
    let ops = prop::collection::vec(op, 0..=ops_max);
    (opts(), ops).prop_map(|(opts, ops)| Case { opts, ops })
}
