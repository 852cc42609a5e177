//! What is written: every writer owns its keys and does the same operations in every life, numbered
//! by stamps, so that the state after each stamp is known.

use std::collections::BTreeMap;

use seerdb::{DB, DBOptions, Durability, Error};

pub(crate) const WRITERS: usize = 4;
pub(crate) const DURABILITIES: [Durability; 3] =
    [Durability::Synced, Durability::Written, Durability::Buffered];
const KEYS: u64 = 20;

/// What the keys of one writer hold.
pub(crate) type State = BTreeMap<String, String>;

pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Small everything, so that a short life has flushes, merges and changes of segments.
pub(crate) fn options(default: Durability) -> DBOptions {
    DBOptions::default()
        .durability(default)
        .memory_budget(8 << 20)
        .memtable_bytes(24 << 10)
        .wal_segment_bytes(64 << 10)
        .block_bytes(512)
        .table_bytes(16 << 10)
        .size_ratio(2)
        .runs_per_level(1)
}

/// The keys that operation `stamp` of `writer` sets, and those that it deletes.
fn operation(writer: usize, stamp: u64) -> Vec<(String, Option<String>)> {
    let dice = mix(stamp << 8 | writer as u64);
    let count = match dice % 4 {
        0 => 2 + (dice >> 8) % 5,
        _ => 1,
    };
    let first = (dice >> 16) % KEYS;
    let one = |n: u64| {
        let key = format!("w{writer}-{:02}", (first + n) % KEYS);
        let len = usize::try_from(mix(dice + n) % 500).unwrap();
        let value = format!("{stamp:010}{}", "v".repeat(len));
        (key, (!mix(dice ^ n).is_multiple_of(5)).then_some(value))
    };
    (0..count).map(one).collect()
}

pub(crate) fn apply(state: &mut State, writer: usize, stamp: u64) {
    for (key, value) in operation(writer, stamp) {
        match value {
            Some(value) => state.insert(key, value),
            None => state.remove(&key),
        };
    }
}

/// Does operation `stamp` of `writer`; its seqno.
pub(crate) async fn write(
    db: &DB,
    writer: usize,
    stamp: u64,
    durability: Durability,
) -> Result<u64, Error> {
    let operation = operation(writer, stamp);
    if let [(key, value)] = operation.as_slice() {
        return match value {
            Some(value) => db.put(key, value.clone()).durability(durability).await,
            None => db.delete(key).durability(durability).await,
        };
    }
    let mut batch = db.batch();
    for (key, value) in operation {
        match value {
            Some(value) => batch.put(key, value),
            None => batch.delete(key),
        };
    }
    batch.commit().durability(durability).await
}

/// A write that was acknowledged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ack {
    pub(crate) writer: usize,
    pub(crate) stamp: u64,
    pub(crate) seqno: u64,
    pub(crate) is_synced: bool,
}

impl Ack {
    /// The acknowledgement as a line for a pipe; the newline before it ends whatever stood there.
    pub(crate) fn line(&self) -> String {
        format!("\nA {} {} {} {}\n", self.writer, self.stamp, self.seqno, u8::from(self.is_synced))
    }

    pub(crate) fn parse(line: &str) -> Option<Ack> {
        let mut words = line.strip_prefix("A ")?.split(' ').map(str::parse::<u64>);
        let mut next = || words.next()?.ok();
        let writer = usize::try_from(next()?).ok()?;
        Some(Ack { writer, stamp: next()?, seqno: next()?, is_synced: next()? == 1 })
    }
}
