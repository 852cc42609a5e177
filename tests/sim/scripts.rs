//! The scripts: typical lives, each short enough to be cut at every operation.

use seerdb::{Compression, DBOptions, Durability};
use seerdb_io::sim::{Cut, LifeEnd};

use crate::script::Step::{
    Batch, Burst, Check, Compact, Delete, Die, Drain, DropSnapshots, Flush, Idle, Peek, Put,
    Reopen, Snapshot, Streams, Verify, WaitDurable,
};
use crate::script::{BUFFERED, CUT, SYNCED, Script, Step, WRITTEN, Watch};

/// Small everything, so that a few writes rotate, flush and merge.
fn options(durability: Durability) -> DBOptions {
    DBOptions::new()
        .durability(durability)
        .memory_budget(1 << 20)
        .memtable_bytes(16 << 10)
        .wal_segment_bytes(32 << 10)
        .block_bytes(256)
        .table_bytes(4 << 10)
        .cache_bytes(64 << 10)
        .runs_per_level(2)
}

fn script(name: &'static str, options: DBOptions, steps: Vec<Step>) -> Script {
    Script { name, options, steps, watch: Watch::All, twice: false }
}

fn twice(name: &'static str, options: DBOptions, steps: Vec<Step>) -> Script {
    Script { twice: true, ..script(name, options, steps) }
}

/// Puts of these keys, one after the other.
fn puts(keys: std::ops::Range<u8>, len: usize, durability: Durability) -> Vec<Step> {
    keys.map(|key| Put(key, len, durability)).collect()
}

/// All scripts.
pub(crate) fn all() -> Vec<Script> {
    let mut all = writes();
    all.extend(segments());
    all.extend(tables());
    all.extend(lives());
    all.extend(values());
    all
}

fn writes() -> Vec<Script> {
    let mixed = vec![
        Put(1, 20, SYNCED),
        Put(2, 300, WRITTEN),
        Put(3, 40, BUFFERED),
        Put(1, 50, BUFFERED),
        Put(4, 10, SYNCED),
        Put(5, 10, WRITTEN),
        Delete(2, SYNCED),
        Put(0, 0, BUFFERED),
        Peek(5),
        Snapshot,
        Check,
        Put(5, 30, SYNCED),
        Check,
        Idle(30),
        Check,
    ];
    let batches = vec![
        Batch(vec![(1, Some(20)), (2, Some(30)), (3, Some(500))], SYNCED),
        Batch(vec![(2, None), (1, Some(10)), (1, Some(11)), (4, Some(5))], WRITTEN),
        Check,
        Batch((0..30).map(|k| (k, Some(150))).collect(), SYNCED),
        Batch((5..25).map(|k| (k, (k % 3 == 0).then_some(40))).collect(), BUFFERED),
        WaitDurable,
        Check,
    ];
    let bursts = vec![
        Burst((1..9).map(|k| (k, 100, SYNCED)).collect()),
        Burst((3..12).map(|k| (k, 60, if k % 2 == 0 { BUFFERED } else { SYNCED })).collect()),
        Burst((1..9).map(|k| (k, 700, WRITTEN)).collect()),
        Check,
        Burst((1..9).map(|k| (k, 10, BUFFERED)).collect()),
        Put(1, 5, SYNCED),
        Check,
    ];
    vec![
        script("create, synced", options(SYNCED), vec![]),
        script("create, buffered", options(BUFFERED), vec![]),
        twice("all durabilities, synced", options(SYNCED), mixed.clone()),
        twice("all durabilities, written", options(WRITTEN), mixed.clone()),
        script("all durabilities, buffered", options(BUFFERED), mixed),
        twice("batches, synced", options(SYNCED), batches.clone()),
        script("batches, written", options(WRITTEN), batches),
        script("bursts, synced", options(SYNCED), bursts.clone()),
        twice("bursts, written", options(WRITTEN), bursts),
        script(
            "idle marks",
            options(SYNCED),
            vec![Put(1, 10, SYNCED), Idle(20), Put(2, 10, SYNCED), Idle(20), Idle(20), Check],
        ),
        script(
            "idle marks, written",
            options(WRITTEN),
            vec![
                Put(1, 10, SYNCED),
                Idle(20),
                Put(2, 10, WRITTEN),
                Idle(20),
                WaitDurable,
                Idle(20),
                Put(3, 10, BUFFERED),
                Idle(20),
                Peek(2),
                Check,
            ],
        ),
    ]
}

fn segments() -> Vec<Script> {
    let small = |durability| options(durability).wal_segment_bytes(16 << 10);
    let rotation = |durability| {
        let mut steps = puts(1..6, 3000, durability);
        steps.extend([Delete(2, durability), Put(7, 6000, SYNCED), Check]);
        steps
    };
    let mut many = Vec::new();
    for round in 0..5 {
        many.push(Put(round + 1, 2500, BUFFERED));
        many.push(Put(round + 2, 2500, SYNCED));
        many.push(Put(round + 3, 400, WRITTEN));
    }
    let recycled = [
        puts(1..6, 2000, SYNCED),
        vec![Flush],
        puts(3..9, 2000, SYNCED),
        vec![Flush],
        puts(5..12, 2000, SYNCED),
        vec![Check],
    ];
    let big = vec![
        Put(1, 9000, SYNCED),
        Put(2, 30_000, SYNCED),
        Put(3, 5000, WRITTEN),
        Put(1, 12_000, BUFFERED),
        Flush,
        Check,
        Put(2, 100, SYNCED),
    ];
    vec![
        twice("rotation, synced", small(SYNCED), rotation(SYNCED)),
        twice("rotation, written", small(WRITTEN), rotation(WRITTEN)),
        script("rotation, buffered", small(BUFFERED), rotation(BUFFERED)),
        script("many small segments", small(SYNCED), many.clone()),
        script("many small segments, written", small(WRITTEN), many),
        script("segments used again", small(SYNCED).memtable_bytes(64 << 10), recycled.concat()),
        script(
            "segments used again, written",
            small(WRITTEN).memtable_bytes(64 << 10),
            recycled.concat(),
        ),
        script("big values", options(SYNCED).memtable_bytes(200 << 10), big.clone()),
        script("big values, written", options(WRITTEN).memtable_bytes(200 << 10), big),
    ]
}

fn tables() -> Vec<Script> {
    let flush =
        [puts(1..8, 100, SYNCED), vec![Flush], puts(4..6, 50, SYNCED), vec![Delete(1, SYNCED)]];
    let mut flushes = flush.concat();
    flushes.extend([Flush, Check, Put(9, 10, SYNCED)]);
    let mut merges = Vec::new();
    for round in 0..4 {
        merges.extend(puts(round * 3..round * 3 + 8, 120, BUFFERED));
        merges.extend([Delete(round * 2 + 3, BUFFERED), Flush]);
    }
    merges.extend([Idle(50), Check, Verify]);
    let compact = vec![
        Batch((0..30).map(|k| (k, Some(200))).collect(), SYNCED),
        Flush,
        Batch((5..20).map(|k| (k, None)).collect(), SYNCED),
        Snapshot,
        Streams,
        Flush,
        Batch((0..30).map(|k| (k, (k % 4 != 0).then_some(90))).collect(), SYNCED),
        Compact,
        Check,
        Drain,
        Put(3, 10, SYNCED),
        DropSnapshots,
        Compact,
        Check,
        Verify,
    ];
    let mut pressed = Vec::new();
    for round in 0..12 {
        pressed.push(Put(round * 2 + 1, 400, BUFFERED));
        pressed.push(Put(3, 100, WRITTEN));
    }
    pressed.extend([Check, Idle(50), Check]);
    vec![
        twice("flushes", options(SYNCED), flushes.clone()),
        script("flushes, written", options(WRITTEN), flushes),
        twice("merges", options(BUFFERED), merges.clone()),
        script("merges, not packed", options(SYNCED).compression(Compression::None), merges),
        script("compact with snapshot", options(SYNCED), compact),
        script("tiny memtables", options(SYNCED).memtable_bytes(2 << 10), pressed.clone()),
        script("tiny memtables, buffered", options(BUFFERED).memtable_bytes(2 << 10), pressed),
        overwrites(),
        roll(),
        roll_by_segments(),
    ]
}

/// Many versions of few keys, over several blocks, under snapshots.
fn overwrites() -> Script {
    let mut steps = Vec::new();
    for round in 0..4 {
        steps.extend([Put(5, 150, BUFFERED), Put(5, 160, BUFFERED), Put(6, 20, BUFFERED)]);
        steps.push(if round % 2 == 0 { Delete(9, BUFFERED) } else { Put(9, 150, BUFFERED) });
        steps.extend([Put(10, 30, BUFFERED), Snapshot, Streams, Put(5, 170, BUFFERED), Check]);
        if round % 2 == 1 {
            steps.extend([Flush, Check, Drain]);
        }
    }
    steps.extend([Compact, Check, DropSnapshots, Compact, Check]);
    script("versions under snapshots", options(BUFFERED).block_bytes(64), steps)
}

/// So many flushes that the manifest is replaced.
fn roll() -> Script {
    let mut steps = Vec::new();
    for round in 0..420u16 {
        let key = u8::try_from(round % 7 + 1).unwrap();
        steps.extend([Put(key, 20, BUFFERED), Flush]);
    }
    steps.push(Check);
    Script { watch: Watch::Roll, ..script("manifest roll", options(BUFFERED), steps) }
}

/// So many segments that the manifest is replaced.
fn roll_by_segments() -> Script {
    let mut steps = Vec::new();
    for round in 0..450u16 {
        steps.push(Put(u8::try_from(round % 7 + 1).unwrap(), 6000, SYNCED));
    }
    let options = options(SYNCED).wal_segment_bytes(16 << 10).memtable_bytes(64 << 10);
    Script { watch: Watch::Roll, ..script("manifest roll by segments", options, steps) }
}

/// Values that stay in the log, are overwritten, collected, and read across that.
fn values() -> Vec<Script> {
    let log = |durability| {
        options(durability)
            .compression(Compression::None)
            .value_threshold(100)
            .value_segment_bytes(16 << 10)
            .max_space_amplification(1.1)
            .cache_bytes(0)
    };
    let collected = |durability| {
        let mut steps = puts(1..6, 3500, durability);
        steps.extend([Put(12, 20, durability), Flush, Snapshot, Streams]);
        steps.extend(puts(1..3, 3600, durability));
        steps.extend([Delete(3, durability), Flush, Compact, Idle(100), Check, Drain]);
        steps.extend([DropSnapshots, Compact, Idle(100), Check, Verify]);
        steps
    };
    let mut reopened = collected(SYNCED);
    reopened.extend([Reopen, Check]);
    let mixed = vec![
        Batch(vec![(1, Some(300)), (2, Some(20)), (3, Some(500)), (4, None)], SYNCED),
        Put(2, 400, BUFFERED),
        Put(3, 30, BUFFERED),
        Put(4, 300, WRITTEN),
        Put(1, 30, BUFFERED),
        Put(5, 200, BUFFERED),
        Peek(6),
        Put(6, 200, WRITTEN),
        Check,
        Put(7, 10, SYNCED),
        Idle(30),
        Flush,
        Check,
    ];
    // Recovery meets values that nothing proves durable.
    let mut killed = puts(1..4, 2000, WRITTEN);
    killed.extend([Flush, Put(1, 2000, WRITTEN), Put(2, 300, BUFFERED), Put(3, 10, BUFFERED)]);
    killed.extend([Die(LifeEnd::Kill), Check, Put(4, 2000, BUFFERED), Flush, Check, Die(CUT)]);
    killed.extend([Check, Compact, Idle(100), Check]);
    vec![
        script("values collected", log(SYNCED), reopened),
        script("values collected, written", log(WRITTEN), collected(WRITTEN)),
        twice("values of both streams", log(SYNCED), mixed.clone()),
        script("values of both streams, buffered", log(BUFFERED), mixed),
        script("values after a kill", log(WRITTEN), killed),
    ]
}

fn lives() -> Vec<Script> {
    let kill = Die(LifeEnd::Kill);
    let mixed = Die(LifeEnd::PowerCut(Some(Cut::Mixed)));
    let two = |end: Step, durability| {
        let mut steps = puts(1..5, 200, durability);
        steps.extend([Put(2, 10, SYNCED), Delete(1, durability), end, Check]);
        steps.extend(puts(3..7, 100, durability));
        steps.extend([Delete(2, SYNCED), Check]);
        steps
    };
    let closed = vec![
        Put(1, 100, SYNCED),
        Put(2, 100, BUFFERED),
        Reopen,
        Check,
        Put(1, 50, BUFFERED),
        Delete(2, WRITTEN),
        Reopen,
        Reopen,
        Check,
        Put(3, 10, SYNCED),
    ];
    // The second life's recovery has more to read than one memtable holds.
    let mut large = puts(1..20, 700, BUFFERED);
    large.extend([Put(21, 10, SYNCED), Die(CUT), Check, Put(1, 10, SYNCED), Check]);
    let three = [two(Die(CUT), SYNCED), vec![Flush, mixed.clone()], two(kill.clone(), BUFFERED)];
    vec![
        twice("reopen after close", options(SYNCED), closed.clone()),
        script("reopen after close, written", options(WRITTEN), closed),
        script("reopen after a kill", options(BUFFERED), two(kill, BUFFERED)),
        twice("reopen after a cut", options(SYNCED), two(Die(CUT), SYNCED)),
        script("reopen after a mixed cut", options(WRITTEN), two(mixed, WRITTEN)),
        twice(
            "recovery that flushes",
            options(SYNCED).memtable_bytes(40 << 10).wal_segment_bytes(64 << 10),
            large,
        ),
        script("three lives", options(SYNCED), three.concat()),
    ]
}
