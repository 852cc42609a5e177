//! Picks as text tables, and whole lives of a tree against the cost formulas.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::version::LEVELS;

pub(in crate::compaction) fn shape() -> Shape {
    Shape {
        size_ratio: 4,
        runs_upper: 3,
        runs_last: 1,
        unit_bytes: 100,
        table_bytes: 80,
        filter_bits: 10.0,
    }
}

/// One line a level: `level: id number:smallest-largest=bytes ... | id ...`; `/n` behind the bytes
/// counts tombstones.
pub(in crate::compaction) fn tree(text: &str) -> Tree<'_> {
    let mut tree = Tree::default();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (level, runs) = line.split_once(':').unwrap();
        let level: usize = level.parse().unwrap();
        tree.levels[level] = runs.split('|').map(run).collect();
    }
    tree.check();
    tree
}

fn run(text: &str) -> RunView<'_> {
    let mut words = text.split_whitespace();
    let id = words.next().unwrap().parse().unwrap();
    let tables = words.map(|word| {
        let (number, rest) = word.split_once(':').unwrap();
        let (keys, bytes) = rest.split_once('=').unwrap();
        let (smallest, largest) = keys.split_once('-').unwrap();
        let (bytes, tombstones) = bytes.split_once('/').unwrap_or((bytes, "0"));
        TableView {
            number: number.parse().unwrap(),
            bytes: bytes.parse().unwrap(),
            referred: 0,
            entries: bytes.parse().unwrap(),
            tombstones: tombstones.parse().unwrap(),
            seqno_max: 1,
            is_trimmed: false,
            smallest: smallest.as_bytes(),
            largest: largest.as_bytes(),
        }
    });
    RunView { id, tables: tables.collect() }
}

pub(in crate::compaction) fn show(choice: Option<Choice>) -> String {
    let Some(choice) = choice else { return "nothing".into() };
    let inputs: Vec<String> =
        choice.inputs.iter().map(|(level, id)| format!("{level}/{id}")).collect();
    let mut out = format!("{} -> {}", inputs.join(" "), choice.output_run);
    match choice.output {
        OutputLevel::Fixed(level) => out += &format!(" at {level}"),
        OutputLevel::Sized { floor } => {
            let bytes = choice.rewrite_bytes;
            out += &format!(" from {floor}, {}", choice.output_level(bytes));
        }
    }
    if choice.bottommost {
        out += " bottommost";
    }
    if !choice.moved.is_empty() {
        out += &format!(" moves {:?}", choice.moved);
    }
    out
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn picks() {
    let k1 = Shape { runs_upper: 1, ..shape() };
    let z3 = Shape { runs_last: 3, ..shape() };
    let cases: &[(&str, Shape, &str, &str)] = &[
        ("empty", shape(), "", "nothing"),
        ("K runs are fine", shape(), "0: 3 3:a-z=99 | 2 2:a-z=99 | 1 1:a-z=99", "nothing"),
        (
            "more than K runs go to level 1",
            shape(),
            "0: 4 4:a-z=99 | 3 3:a-z=99 | 2 2:a-z=99 | 1 1:a-z=99",
            "0/4 0/3 0/2 0/1 -> 1 at 1 bottommost",
        ),
        (
            "the last level joins beyond Z runs",
            shape(),
            "0: 5 5:a-z=99 | 4 4:a-z=99 | 3 3:a-z=99 | 2 2:a-z=99
             1: 1 1:a-z=396",
            "0/5 0/4 0/3 0/2 1/1 -> 1 from 1, 1 bottommost",
        ),
        (
            "a result too large for the last level becomes a deeper one",
            shape(),
            "0: 5 5:a-z=100 | 4 4:a-z=100 | 3 3:a-z=100 | 2 2:a-z=100
             1: 1 1:a-z=1500",
            "0/5 0/4 0/3 0/2 1/1 -> 1 from 1, 2 bottommost",
        ),
        (
            "with room in an upper level nothing more is read",
            shape(),
            "0: 7 7:a-z=100 | 6 6:a-z=100 | 5 5:a-z=100 | 4 4:a-z=100
             1: 3 3:a-z=400 | 2 2:a-z=400
             2: 1 1:a-z=4000",
            "0/7 0/6 0/5 0/4 -> 4 at 1",
        ),
        (
            "a full upper level is carried through",
            shape(),
            "0: 9 9:a-z=100 | 8 8:a-z=100 | 7 7:a-z=100 | 6 6:a-z=100
             1: 5 5:a-z=400 | 4 4:a-z=400 | 3 3:a-z=400
             2: 2 2:a-z=1600
             3: 1 1:a-z=9000",
            "0/9 0/8 0/7 0/6 1/5 1/4 1/3 -> 3 at 2",
        ),
        (
            "carried through to the bottom, the tree may get shallower",
            shape(),
            "0: 9 9:a-z=100 | 8 8:a-z=100 | 7 7:a-z=100 | 6 6:a-z=100
             1: 5 5:a-z=400 | 4 4:a-z=400 | 3 3:a-z=400
             2: 2 2:a-z=10",
            "0/9 0/8 0/7 0/6 1/5 1/4 1/3 2/2 -> 2 from 1, 1 bottommost",
        ),
        (
            "tiny runs gather in level 0",
            shape(),
            "0: 5 5:a-z=1 | 4 4:a-z=1 | 3 3:a-z=1 | 2 2:a-z=7
             1: 1 1:a-z=900",
            "0/5 0/4 0/3 -> 3 at 0",
        ),
        (
            "K = 1 merges into the newest run until it is full",
            k1,
            "0: 2 2:a-z=100 | 1 1:a-z=200",
            "0/2 0/1 -> 1 at 0 bottommost",
        ),
        (
            "K = 1 carries a full run into the next",
            k1,
            "0: 4 4:a-z=100 | 3 3:a-z=300
             1: 2 2:a-z=800
             2: 1 1:a-z=4000",
            "0/4 0/3 1/2 -> 2 at 1",
        ),
        (
            "Z = 3 adds runs to the last level",
            z3,
            "0: 6 6:a-z=100 | 5 5:a-z=100 | 4 4:a-z=100 | 3 3:a-z=100
             1: 2 2:a-z=400 | 1 1:a-z=400",
            "0/6 0/5 0/4 0/3 -> 3 at 1",
        ),
        (
            "too many runs for the options, deepest level first",
            shape(),
            "0: 9 9:a-z=100
             1: 8 8:a-z=1 | 7 7:a-z=1 | 6 6:a-z=1 | 5 5:a-z=1
             2: 4 4:a-z=1000 | 3 3:a-z=1000 | 2 2:a-z=1000 | 1 1:a-z=1000
             3: 0 100:a-z=9000",
            "2/4 2/3 2/2 2/1 3/0 -> 0 from 2, 3 bottommost",
        ),
        (
            "an upper level beyond its capacity moves down",
            shape(),
            "1: 2 2:a-z=1700
             2: 1 1:a-z=6000",
            "1/2 2/1 -> 1 from 1, 3 bottommost",
        ),
        (
            "a last level beyond its capacity is left for the next merge",
            shape(),
            "1: 2 2:a-z=1700",
            "nothing",
        ),
        (
            "ascending runs move",
            shape(),
            "0: 5 8:m-n=80 9:o-p=20 | 4 7:k-l=100 | 3 6:i-j=100 | 2 5:g-h=100
             1: 1 1:a-b=100 2:c-d=100 3:e-f=100",
            "0/5 0/4 0/3 0/2 1/1 -> 1 from 1, 1 bottommost moves [1, 2, 3, 5, 6, 7, 8, 9]",
        ),
        (
            "what overlaps is rewritten, the rest moves; touching at one key overlaps",
            shape(),
            "0: 5 8:a-b=100 | 4 7:b-c=100 | 3 6:i-j=100 | 2 5:x-z=100
             1: 1 1:d-e=100 2:j-k=100 3:l-m=100",
            "0/5 0/4 0/3 0/2 1/1 -> 1 from 1, 1 bottommost moves [1, 3, 5]",
        ),
        (
            "a wide table hides what lies within it",
            shape(),
            "0: 4 8:a-z=100 | 3 7:b-c=100 | 2 6:d-e=100 | 1 5:z0-zz=100",
            "0/4 0/3 0/2 0/1 -> 1 at 1 bottommost moves [5]",
        ),
        (
            "at the bottom tombstones go, so their tables are rewritten",
            shape(),
            "0: 5 8:a-b=100/1 | 4 7:c-d=100 | 3 6:e-f=100 | 2 5:g-h=100",
            "0/5 0/4 0/3 0/2 -> 2 at 1 bottommost moves [5, 6, 7]",
        ),
        (
            "above the bottom tombstones stay and their tables may move",
            shape(),
            "0: 5 8:a-b=100/1 | 4 7:c-d=100 | 3 6:e-f=100 | 2 5:g-h=100
             1: 1 1:a-z=100
             2: 0 2:a-z=4000",
            "0/5 0/4 0/3 0/2 -> 2 at 1 moves [5, 6, 7, 8]",
        ),
        (
            "small tables are merged rather than moved",
            shape(),
            "0: 5 8:a-b=9 9:c-d=91 | 4 7:e-f=9 10:g-h=91 | 3 6:i-j=100 | 2 5:k-l=100",
            "0/5 0/4 0/3 0/2 -> 2 at 1 bottommost moves [5, 6, 9, 10]",
        ),
    ];
    for (name, shape, text, expected) in cases {
        let choice = pick(&tree(text), shape);
        if let Some(choice) = &choice {
            assert!(choice.filter_bits_per_key > 0.0, "{name}");
        }
        let shown = show(choice);
        if shown.contains(" from ") && shown.contains(" moves ") {
            // `show` sizes the output by what is rewritten only.
            let (shown, expected) = (cut_level(&shown), cut_level(expected));
            assert_eq!(shown, expected, "{name}");
        } else {
            assert_eq!(shown, *expected, "{name}");
        }
    }
}

fn cut_level(text: &str) -> String {
    let (head, tail) = text.split_once(", ").unwrap();
    format!("{head}{}", &tail[1..])
}

/// T = 8 and K = 3: the runs of a level take two, two and three of the arrivals that stay.
#[test]
fn picks_between_leveling_and_tiering() {
    let k3 = Shape { size_ratio: 8, ..shape() };
    let cases: &[(&str, &str, &str)] = &[
        ("one flush", "0: 9 9:a-z=100", "nothing"),
        ("the second grows it", "0: 9 9:a-z=100 | 8 8:a-z=100", "0/9 0/8 -> 8 at 0"),
        ("a run with its share stays", "0: 9 9:a-z=100 | 8 8:a-z=200", "nothing"),
        (
            "the newest grows, not an older one",
            "0: 9 9:a-z=100 | 8 8:a-z=100 | 7 7:a-z=200",
            "0/9 0/8 -> 8 at 0",
        ),
        (
            "the last run takes what is left",
            "0: 9 9:a-z=100 | 8 8:a-z=200 | 7 7:a-z=200 | 6 6:a-z=200",
            "0/9 0/8 -> 8 at 0",
        ),
        (
            "a small flush stands beside the others while there is room",
            "0: 9 9:a-z=49 | 8 8:a-z=100 | 7 7:a-z=200",
            "nothing",
        ),
        (
            "and enters a run when there is none",
            "0: 9 9:a-z=49 | 8 8:a-z=100 | 7 7:a-z=200 | 6 6:a-z=200",
            "0/9 0/8 -> 8 at 0",
        ),
        (
            "the eighth flush carries all",
            "0: 9 9:a-z=100 | 8 8:a-z=300 | 7 7:a-z=200 | 6 6:a-z=200",
            "0/9 0/8 0/7 0/6 -> 6 at 1",
        ),
        (
            "below, the newest run grows first as well",
            "0: 9 9:a-z=100 | 8 8:a-z=300 | 7 7:a-z=200 | 6 6:a-z=200
             1: 5 5:a-z=800",
            "0/9 0/8 0/7 0/6 1/5 -> 5 at 1",
        ),
        (
            "the next one begins when it has its share",
            "0: 9 9:a-z=100 | 8 8:a-z=300 | 7 7:a-z=200 | 6 6:a-z=200
             1: 5 5:a-z=1600",
            "0/9 0/8 0/7 0/6 -> 6 at 1",
        ),
        (
            "a small arrival stands beside it, too",
            "0: 9 9:a-z=10 | 8 8:a-z=320 | 7 7:a-z=10 | 6 6:a-z=10
             1: 5 5:a-z=800",
            "0/9 0/8 0/7 0/6 -> 6 at 1",
        ),
        (
            "the last run of a level takes what is left",
            "0: 9 9:a-z=100 | 8 8:a-z=300 | 7 7:a-z=200 | 6 6:a-z=200
             1: 5 5:a-z=1600 | 4 4:a-z=1600 | 3 3:a-z=1600",
            "0/9 0/8 0/7 0/6 1/5 -> 5 at 1",
        ),
        (
            "the eighth arrival carries that level, too",
            "0: 9 9:a-z=100 | 8 8:a-z=300 | 7 7:a-z=200 | 6 6:a-z=200
             1: 5 5:a-z=2400 | 4 4:a-z=1600 | 3 3:a-z=1600
             2: 2 2:a-z=6400",
            "0/9 0/8 0/7 0/6 1/5 1/4 1/3 2/2 -> 2 at 2",
        ),
    ];
    for (name, text, expected) in cases {
        let text = format!("{text}\n3: 1 1:a-z=90000");
        assert_eq!(show(pick(&tree(&text), &k3)), *expected, "{name}");
    }
}

#[test]
fn the_unit_decides_and_not_the_largest_run() {
    let text = "0: 9 9:a-z=100 | 8 8:a-z=100\n1: 1 1:a-z=9000";
    let shape = |unit_bytes| Shape { size_ratio: 8, unit_bytes, ..shape() };
    assert_eq!(show(pick(&tree(text), &shape(100))), "0/9 0/8 -> 8 at 0");
    let reason = pick(&tree(text), &shape(100)).unwrap().reason;
    assert_eq!(reason.to_string(), "the newest run of level 0 has less than its share");
    assert_eq!(show(pick(&tree(text), &shape(60))), "nothing");
    // The same level is full for one unit and not for another.
    let text = "1: 2 2:a-z=1700\n2: 1 1:a-z=3800";
    let k3 = |unit_bytes| Shape { size_ratio: 4, ..shape(unit_bytes) };
    assert_eq!(show(pick(&tree(text), &k3(100))), "1/2 2/1 -> 1 from 1, 2 bottommost");
    assert_eq!(show(pick(&tree(text), &k3(120))), "nothing");
}

#[test]
fn slivers_join_the_smaller_neighbour() {
    let wide = Shape { table_bytes: 640, unit_bytes: 1000, ..shape() };
    let text = "0: 4 4:a-b=640 | 3 3:c-d=5 | 2 2:e-f=400 | 1 1:g-h=640";
    assert_eq!(show(pick(&tree(text), &wide)), "0/4 0/3 0/2 0/1 -> 1 at 1 bottommost moves [1, 4]");
}

#[test]
fn everything_at_once() {
    let text = "0: 5 5:a-b=100 | 4 4:c-d=100
                2: 3 3:e-f=1000 | 2 2:a-z=9";
    let all = pick_all(&tree(text), &shape());
    assert_eq!(show(all), "0/5 0/4 2/3 2/2 -> 2 from 1, 1 bottommost");
    assert_eq!(pick_all(&Tree::default(), &shape()), None);
}

/// A tree whose runs are sets of keys, one byte a key: picks are carried out literally.
struct Model {
    shape: Shape,
    levels: [Vec<(RunId, BTreeMap<u32, u64>)>; LEVELS],
    next_run: RunId,
    written: u64,
    flushed: u64,
}

/// Smallest and largest key, bytes and number of a table.
type OwnedView = (String, String, u64, u64);

/// Keys of a table; keys are printed so that their order is that of the numbers.
const TABLE_KEYS: usize = 256;

impl Model {
    fn new(shape: Shape) -> Model {
        Model { shape, levels: Default::default(), next_run: 1, written: 0, flushed: 0 }
    }

    fn flush(&mut self, keys: BTreeMap<u32, u64>) {
        self.flushed += keys.len() as u64;
        self.levels[0].insert(0, (self.next_run, keys));
        self.next_run += 1;
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 100, "the picker never comes to rest");
        }
    }

    fn step(&mut self) -> bool {
        let mut number = 0;
        let mut tables: Vec<Vec<(RunId, Vec<OwnedView>)>> = Vec::new();
        for runs in &self.levels {
            let mut level = Vec::new();
            for (id, keys) in runs {
                let keys: Vec<u32> = keys.keys().copied().collect();
                let run = keys.chunks(TABLE_KEYS).map(|chunk| {
                    number += 1;
                    let name = |key: &u32| format!("{key:010}");
                    let (first, last) = (chunk.first().unwrap(), chunk.last().unwrap());
                    (name(first), name(last), chunk.len() as u64, number)
                });
                level.push((*id, run.collect()));
            }
            tables.push(level);
        }
        let mut tree = Tree::default();
        for (views, level) in tree.levels.iter_mut().zip(&tables) {
            for (id, run) in level {
                let tables = run.iter().map(|(smallest, largest, bytes, number)| TableView {
                    number: *number,
                    bytes: *bytes,
                    referred: 0,
                    entries: *bytes,
                    tombstones: 0,
                    seqno_max: 1,
                    is_trimmed: false,
                    smallest: smallest.as_bytes(),
                    largest: largest.as_bytes(),
                });
                views.push(RunView { id: *id, tables: tables.collect() });
            }
        }
        let Some(choice) = pick(&tree, &self.shape) else { return false };
        self.carry_out(&choice);
        true
    }

    fn carry_out(&mut self, choice: &Choice) {
        let mut output: BTreeMap<u32, u64> = BTreeMap::new();
        let inputs: BTreeSet<RunId> = choice.inputs.iter().map(|(_, id)| *id).collect();
        let mut read = 0;
        // Newest first: what is there is newer.
        for runs in &mut self.levels {
            for (_, keys) in runs.iter().filter(|(id, _)| inputs.contains(id)) {
                read += keys.len();
                for (key, seqno) in keys {
                    let kept = *output.entry(*key).or_insert(*seqno);
                    assert!(kept >= *seqno, "key {key}: a newer version lay deeper");
                }
            }
            runs.retain(|(id, _)| !inputs.contains(id));
        }
        self.written += output.len() as u64 * choice.rewrite_bytes / read as u64;
        let level = choice.output_level(output.len() as u64);
        let at = self.levels[level].partition_point(|(id, _)| *id > choice.output_run);
        self.levels[level].insert(at, (choice.output_run, output));
    }

    /// Bytes written by merges for each byte flushed.
    fn write_amplification(&self) -> f64 {
        self.written as f64 / self.flushed as f64
    }

    fn runs(&self) -> usize {
        self.levels.iter().map(Vec::len).sum()
    }

    fn keys(&self) -> usize {
        self.levels.iter().flatten().map(|(_, keys)| keys.len()).sum()
    }
}

/// Uniform overwrites of `keys` keys.
fn overwrite(model: &mut Model, keys: u32, flushes: usize, seed: u64) {
    let mut state = 0x9E37_79B9u64.wrapping_mul(seed);
    let mut seqno = seed << 32;
    let unit = usize::try_from(model.shape.unit_bytes).unwrap();
    for _ in 0..flushes {
        let mut memtable = BTreeMap::new();
        while memtable.len() < unit {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seqno += 1;
            memtable.insert((state >> 33) as u32 % keys, seqno);
        }
        model.flush(memtable);
    }
}

fn model_shape(size_ratio: u64, runs_upper: usize) -> Shape {
    Shape { size_ratio, runs_upper, unit_bytes: 64, table_bytes: 1 << 20, ..shape() }
}

/// Whole lives of trees whose last level is as full as merge_model makes it, on average over the
/// time from one moment at which all is one run to another.
#[test]
fn write_amplification_is_what_the_model_expects() {
    for (size_ratio, runs_upper, percent, runs_max) in
        [(2, 1, 180, 7), (4, 3, 150, 10), (4, 3, 350, 13), (4, 2, 150, 7), (4, 1, 150, 4)]
            .into_iter()
            .chain([(8, 7, 150, 15), (8, 3, 150, 7), (8, 1, 150, 3)])
    {
        let shape = model_shape(size_ratio, runs_upper);
        let depth = if size_ratio == 8 { 2 } else { 3 };
        let keys = u32::try_from(shape.arrival(depth) * percent / 100).unwrap();
        let mut model = Model::new(shape);
        overwrite(&mut model, keys, keys as usize / 20, 1);
        let mut runs = 0;
        let is_one_run = |model: &Model| model.runs() == 1;
        let mut seed = 2;
        let mut until_one_run = |model: &mut Model| {
            loop {
                overwrite(model, keys, 1, seed);
                seed += 1;
                runs = runs.max(model.runs());
                if is_one_run(model) {
                    return;
                }
            }
        };
        until_one_run(&mut model);
        let (written, flushed) = (model.written, model.flushed);
        until_one_run(&mut model);
        let measured = (model.written - written) as f64 / (model.flushed - flushed) as f64;
        let last = model.levels.iter().rposition(|runs| !runs.is_empty()).unwrap();
        let expected = shape.expected_costs(last, u64::from(keys));
        let ratio = measured / expected.merge_amplification;
        let name = format!("T {size_ratio}, K {runs_upper}, {percent} %");
        assert!((ratio - 1.0).abs() < 0.1, "{name}: {measured} instead of {expected:?}");
        assert!(runs <= runs_max, "{name}: {runs} runs");
    }
}

#[test]
fn ascending_keys_are_hardly_rewritten() {
    let shape = Shape { table_bytes: 256, ..model_shape(4, 3) };
    let mut model = Model::new(shape);
    for flush in 0..700u32 {
        model.flush((flush * 64..(flush + 1) * 64).map(|key| (key, 1)).collect());
    }
    let measured = model.write_amplification();
    assert!(measured < 0.3, "{measured} times");
    assert_eq!(model.keys(), 700 * 64);
    assert!(model.runs() <= 13, "{} runs", model.runs());
}

#[test]
fn many_tiny_flushes_do_not_rewrite_the_last_level_each_time() {
    let mut model = Model::new(model_shape(4, 3));
    overwrite(&mut model, 1 << 12, 300, 1);
    let before = model.written;
    for flush in 0..200u32 {
        model.flush(BTreeMap::from([(flush * 20, (2 << 32) + u64::from(flush))]));
    }
    let rewritten = model.written - before;
    assert!(rewritten < 3 << 12, "{rewritten} entries for 200");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The age order holds in every life, whatever the sizes of flushes and the shape are.
    #[test]
    fn newer_versions_never_sink_below_older_ones(
        flushes in proptest::collection::vec((0u32..300, 1u32..90), 1..60),
        (size_ratio, runs_upper, runs_last) in (2u64..6).prop_flat_map(|t| {
            let runs = 1..usize::try_from(t).unwrap();
            (Just(t), runs.clone(), runs)
        }),
        table_bytes in prop::sample::select(vec![16u64, 256, 1 << 20]),
    ) {
        let shape = Shape { size_ratio, runs_upper, runs_last, table_bytes, ..model_shape(2, 1) };
        let mut model = Model::new(shape);
        let mut newest = BTreeMap::new();
        for ((start, len), seqno) in flushes.into_iter().zip(1u64..) {
            let keys: BTreeMap<u32, u64> = (start..start + len).map(|key| (key, seqno)).collect();
            newest.extend(keys.clone());
            model.flush(keys);
            // The first version that a walk by age meets is the newest one.
            let mut met = BTreeMap::new();
            for (_, keys) in model.levels.iter().flatten() {
                for (key, seqno) in keys {
                    met.entry(*key).or_insert(*seqno);
                }
            }
            prop_assert_eq!(&met, &newest);
        }
    }
}
