//! Every kind of search against counting, on keys that defeat models.

use std::cell::Cell;

use proptest::prelude::*;

use super::*;

impl Keys for Vec<Vec<u8>> {
    fn len(&self) -> usize {
        self.len()
    }

    fn key(&self, index: usize) -> &[u8] {
        self.get(index).map(Vec::as_slice).unwrap_or_default()
    }
}

/// What is below `key`, and what is not above it.
fn expected(keys: &[Vec<u8>], key: &[u8]) -> (usize, usize) {
    (keys.partition_point(|k| k.as_slice() < key), keys.partition_point(|k| k.as_slice() <= key))
}

/// Asks all kinds for every key and for what is beside it.
fn check(mut keys: Vec<Vec<u8>>, more: &[Vec<u8>]) {
    keys.sort();
    let mut asked: Vec<Vec<u8>> = more.to_vec();
    for key in keys.iter().step_by((keys.len() / 3000).max(1)) {
        let mut next = key.clone();
        next.push(0);
        asked.push(next);
        let mut before = key.clone();
        match before.last_mut() {
            Some(byte) if *byte > 0 => *byte -= 1,
            _ => drop(before.pop()),
        }
        asked.extend([key.clone(), before]);
    }
    asked.extend([vec![], vec![0], vec![0xFF; 9], vec![0xFF; 100]]);
    let kinds = KINDS.map(|kind| Locator::new(&keys, Some(kind)));
    for (kind, locator) in KINDS.iter().zip(&kinds) {
        assert_eq!(locator.report().kind, *kind);
    }
    for locator in kinds.iter().chain([&Locator::new(&keys, None)]) {
        for key in &asked {
            let range = locator.narrow(&keys, key);
            let (low, high) = expected(&keys, key);
            let kind = locator.report().kind;
            assert_eq!(locator.count_below(&keys, key), low, "{kind:?}: {key:x?}");
            assert!(range.start <= low, "{kind:?}: {key:x?} is in {range:?}, not from {low}");
            assert!(range.end >= high && range.end <= keys.len(), "{kind:?}: {range:?} {high}");
            // Nothing but what has the code of the key is left.
            let close = |index: &usize| {
                kind == Kind::Plain || shared(keys.key(*index), key) >= locator.prefix.len
            };
            assert!(range.clone().all(|index| close(&index)), "{kind:?}: {key:x?} in {range:?}");
        }
    }
}

fn numbers(codes: impl IntoIterator<Item = u64>) -> Vec<Vec<u8>> {
    codes.into_iter().map(|code| code.to_be_bytes().to_vec()).collect()
}

/// Keys that defeat models, by what is bad about them; sorted.
fn hostile() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let runs = |byte: u8| (0..700).map(move |len| vec![byte; len]);
    let mut mixed = vec![vec![]];
    for len in 0..11 {
        let longest: Vec<Vec<u8>> = mixed.iter().filter(|key| key.len() == len).cloned().collect();
        for byte in [0, 0xFF] {
            mixed.extend(longest.iter().map(|key| [key.as_slice(), &[byte]].concat()));
        }
    }
    let chains = (b'a'..=b'z').flat_map(|byte| (1..60).map(move |len| vec![byte; len]));
    let path = |depth: usize| b"/usr/share/lib".iter().copied().cycle().take(depth).collect();
    let late = |count| (0..count).map(|i: u32| [&[b'x'; 40][..], &i.to_be_bytes()].concat());
    let hosts = (0..40).flat_map(|host| {
        (0..60).map(move |page| format!("https://host{host:03}.example/page/{page}").into_bytes())
    });
    let huge = |count: u32, at: usize| {
        (0..count).map(move |i| {
            let mut key = vec![b'k'; 1 << 16];
            key[at..at + 4].copy_from_slice(&i.to_be_bytes());
            key
        })
    };
    let lengths = (0..60).map(|missing| vec![b'k'; (1 << 16) - missing]);
    // A run of equal keys over several groups, between others.
    let some_equal = numbers((0..300).chain([150; 500]));
    // Long flat parts between jumps that grow; one far outlier after another.
    let stairs = numbers((0..64).flat_map(|step| (0..100).map(move |i| (1 << step) + i)));
    let outliers = numbers((0..4000).map(|i| if i % 50 == 0 { u64::MAX / 4000 * i } else { i }));
    // A step at every scale: each part of a part is again a step.
    let nested =
        numbers((0..4096u64).map(|i| {
            (0..12).fold(0, |code, bit| code | (i >> bit & 1) << (5 * bit)) * (1 << 4) + 7
        }));
    let mut sets = vec![
        ("nothing", vec![]),
        ("one empty key", vec![vec![]]),
        ("one key", vec![b"one".to_vec()]),
        ("one huge key", huge(1, 0).collect()),
        ("two huge keys", huge(2, 0xFFF0).collect()),
        ("huge keys that differ early", huge(40, 0).collect()),
        ("huge keys that differ late", huge(40, 0xFFF0).collect()),
        ("huge keys that are prefixes", lengths.collect()),
        ("zero bytes", runs(0).collect()),
        ("0xFF bytes", runs(0xFF).collect()),
        ("zero and 0xFF bytes", mixed),
        ("prefixes of one another", (0..700).map(path).collect()),
        ("chains of prefixes", chains.collect()),
        ("zero-padded prefixes", vec![b"a".to_vec(), b"a\0".to_vec(), b"a\0\0".to_vec()]),
        ("equal in 40 bytes", late(2000).collect()),
        ("few, equal in 40 bytes", late(5).collect()),
        ("hosts", hosts.collect()),
        ("all equal", vec![b"same".to_vec(); 1000]),
        ("some equal", some_equal),
        ("ends of the range", numbers([0, 1, 2, u64::MAX - 1, u64::MAX])),
        ("both ends", numbers((0..5000).chain(u64::MAX - 5000..=u64::MAX))),
        ("up to the largest", numbers(u64::MAX - 3000..=u64::MAX)),
        ("the largest alone", numbers([u64::MAX; 100])),
        ("stairs", stairs),
        ("outliers", outliers),
        ("nested steps", nested),
        ("powers", numbers((0..3000u64).map(|i| i * i * i * i))),
        ("powers from the end", numbers((0..3000u64).map(|i| u64::MAX - i * i * i * i))),
    ];
    sets.iter_mut().for_each(|(_, keys)| keys.sort());
    sets
}

#[test]
fn hostile_keys_are_found() {
    let beside: [&[u8]; 10] = [
        b"a",
        b"on",
        b"onf",
        b"sam",
        b"samf",
        &[b'x'; 39],
        &[b'x'; 41],
        b"y",
        b"https://host",
        b"https://host020.example",
    ];
    for (_, keys) in hostile() {
        let cut = keys.iter().map(|key| &key[..key.len() * 2 / 3]);
        let cut = cut.step_by((keys.len() / 100).max(1));
        check(keys.clone(), &beside.into_iter().chain(cut).map(<[u8]>::to_vec).collect::<Vec<_>>());
    }
}

/// Keys that count how often one of them is fetched.
struct Fetches<'a>(&'a Vec<Vec<u8>>, Cell<u64>);

impl Keys for Fetches<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn key(&self, index: usize) -> &[u8] {
        self.1.set(self.1.get() + 1);
        self.0.key(index)
    }
}

/// The number of keys below `key` by binary search over them, as an index without codes has it.
fn binary_search(keys: &impl Keys, key: &[u8]) -> usize {
    let (mut low, mut high) = (0, keys.len());
    while low < high {
        let middle = low + (high - low) / 2;
        if keys.key(middle) < key { low = middle + 1 } else { high = middle }
    }
    low
}

/// As many keys in an order that no predictor foresees.
fn shuffled(keys: &[Vec<u8>], count: usize) -> Vec<&[u8]> {
    let mut seed = 1u64;
    let draw = |_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        keys[(seed >> 33) as usize % keys.len()].as_slice()
    };
    (0..count).map(draw).collect()
}

#[test]
fn hostile_keys_are_compared_no_more_than_by_binary_search() {
    for (name, keys) in hostile() {
        let locator = Locator::new(&keys, None);
        let report = locator.report();
        assert!(report.bytes <= 12 * keys.len(), "{name}: {report:?}");
        let fetches = |search: &dyn Fn(&Fetches, &[u8]) -> usize| {
            let counted = Fetches(&keys, Cell::new(0));
            keys.iter().for_each(|key| assert!(search(&counted, key) <= keys.len()));
            counted.1.get()
        };
        let chosen = fetches(&|counted, key| locator.count_below(counted, key));
        let binary = fetches(&|counted, key| binary_search(counted, key));
        assert!(
            chosen <= binary,
            "{name}: {chosen} fetches, {binary} by binary search: {report:?}"
        );
    }
}

/// Times are the shortest of rounds in turns: what else the machine does only adds to some of them.
#[test]
#[expect(clippy::disallowed_types, reason = "what is measured is the time of this processor")]
fn hostile_keys_are_found_as_fast_as_by_binary_search() {
    use std::hint::black_box;
    use std::time::{Duration, Instant};

    const ROUNDS: usize = 300;
    /// More than a branch predictor learns by heart.
    const ASKED: usize = 4_000;
    for (name, keys) in hostile().into_iter().filter(|(_, keys)| !keys.is_empty()) {
        let locator = Locator::new(&keys, None);
        if locator.report().kind == Kind::Plain {
            // That very search; how well its branches are foreseen differs from run to run.
            continue;
        }
        let asked = shuffled(&keys, ASKED);
        let time = |search: &dyn Fn(&[u8]) -> usize| {
            let start = Instant::now();
            for key in &asked {
                black_box(search(key));
            }
            start.elapsed()
        };
        let (mut chosen, mut binary) = (Duration::MAX, Duration::MAX);
        // A tenth, and what a call and a branch take.
        let allowed =
            |binary: Duration| binary.mul_f64(1.1) + Duration::from_nanos(3 * ASKED as u64);
        for _ in 0..ROUNDS {
            binary = binary.min(time(&|key| binary_search(&keys, key)));
            chosen = chosen.min(time(&|key| locator.count_below(&keys, key)));
            if chosen <= allowed(binary) {
                break;
            }
        }
        let kind = locator.report().kind;
        assert!(chosen <= allowed(binary), "{name}: {kind:?} {chosen:?}, binary {binary:?}");
    }
}

#[test]
fn smooth_keys_are_predicted() {
    let smooth = numbers((0..20_000).map(|i| 1_700_000_000_000 + i * 1000));
    let report = Locator::new(&smooth, None).report();
    // Integers round down.
    assert!(report.kind == Kind::Model && report.max_error <= 1, "{report:?}");
    assert!(report.bytes <= 12 * smooth.len(), "{report:?}");
    check(smooth, &[]);
}

#[test]
fn memory_is_bounded() {
    let mut seed = 1u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed
    };
    let mut sets: Vec<Vec<u64>> = vec![
        (0..20_000).map(|_| random()).collect(),
        (0..20_000).map(|_| random() >> (random() % 64)).collect(),
        (0..20_000).map(|i| (i % 100) << 48 | random() >> 40).collect(),
    ];
    for codes in &mut sets {
        codes.sort_unstable();
        let keys = numbers(codes.iter().copied());
        for kind in KINDS {
            let report = Locator::new(&keys, Some(kind)).report();
            assert!(report.bytes <= 12 * keys.len(), "{report:?}");
        }
    }
}

/// Keys that share prefixes, codes and zero padding as awkwardly as possible.
fn any_key() -> impl Strategy<Value = Vec<u8>> {
    let tail = prop::collection::vec(prop::sample::select(vec![0u8, 1, b'a', 0xFF]), 0..12);
    let head = prop::sample::select(vec![&b""[..], b"a", b"aaaaaaaa", &[0xFF; 8], &[0; 8]]);
    (head, tail).prop_map(|(head, tail)| [head, &tail].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn all_kinds_agree_with_counting(
        keys in prop::collection::vec(any_key(), 0..300),
        asked in prop::collection::vec(any_key(), 1..20),
    ) {
        check(keys, &asked);
    }

    #[test]
    fn numbers_of_all_sizes(
        codes in prop::collection::vec((any::<u64>(), 0u32..64), 1..2000),
        asked in prop::collection::vec(any::<u64>(), 1..20),
    ) {
        check(numbers(codes.iter().map(|(code, shift)| code >> shift)), &numbers(asked));
    }
}
