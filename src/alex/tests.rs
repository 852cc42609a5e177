//! Every kind of search against counting, on keys that defeat models.

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
            assert!(range.start <= low, "{kind:?}: {key:x?} is in {range:?}, not from {low}");
            assert!(range.end >= high && range.end <= keys.len(), "{kind:?}: {range:?} {high}");
            // Nothing but what has the code of the key is left.
            let close = |index: &usize| shared(keys.key(*index), key) >= locator.prefix;
            assert!(range.clone().all(|index| close(&index)), "{kind:?}: {key:x?} in {range:?}");
        }
    }
}

fn numbers(codes: impl IntoIterator<Item = u64>) -> Vec<Vec<u8>> {
    codes.into_iter().map(|code| code.to_be_bytes().to_vec()).collect()
}

#[test]
fn few_keys() {
    check(vec![], &[b"a".to_vec()]);
    check(vec![b"".to_vec()], &[]);
    check(vec![b"one".to_vec()], &[b"on".to_vec(), b"onf".to_vec()]);
    check(vec![vec![0xFF; 70_000]], &[vec![0xFF; 69_999]]);
    check(vec![b"a".to_vec(), b"a\0".to_vec(), b"a\0\0".to_vec()], &[]);
}

#[test]
fn steps_runs_and_ends() {
    let ends = [0, 1, 2, u64::MAX - 1, u64::MAX];
    check(numbers(ends), &[]);
    check(numbers((0..5000).chain(u64::MAX - 5000..=u64::MAX)), &[]);
    // Stairs: long flat parts between jumps that grow.
    check(numbers((0..64).flat_map(|step| (0..100).map(move |i| (1 << step) + i))), &[]);
    // One far outlier after another.
    check(numbers((0..4000).map(|i| if i % 50 == 0 { u64::MAX / 4000 * i } else { i })), &[]);
    check(numbers((0..3000u64).map(|i| i * i * i * i)), &[]);
    check(numbers((0..3000u64).map(|i| u64::MAX - i * i * i * i)), &[]);
    check(vec![b"same".to_vec(); 1000], &[b"sam".to_vec(), b"samf".to_vec()]);
    // A run of equal keys over several groups, between others.
    let mut keys = numbers(0..300);
    keys.extend(vec![150u64.to_be_bytes().to_vec(); 500]);
    check(keys, &[]);
}

#[test]
fn keys_that_differ_late_or_by_length() {
    let runs = |byte: u8| (0..700).map(move |len| vec![byte; len]);
    check(runs(0).collect(), &[]);
    check(runs(0xFF).collect(), &[]);
    let late = (0..2000u32).map(|i| [&[b'x'; 40][..], &i.to_be_bytes()].concat());
    check(late.collect(), &[vec![b'x'; 39], vec![b'x'; 41], vec![b'y'; 1]]);
    let hosts = (0..40).flat_map(|host| {
        (0..60).map(move |page| format!("https://host{host:03}.example/page/{page}").into_bytes())
    });
    check(hosts.collect(), &[b"https://host".to_vec(), b"https://host020.example".to_vec()]);
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
