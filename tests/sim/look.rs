//! Reading a whole database in every way there is, and comparing it with a model.

use std::ops::Bound;

use seerdb::{DB, DBOptions, Error, RangeStream, Snapshot};

use crate::book::{State, differences};
use crate::script::{KEYS, key};

pub(crate) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// All that is left of a stream.
pub(crate) async fn scan(mut stream: RangeStream) -> Result<Pairs, Error> {
    let mut pairs = Pairs::new();
    while let Some((key, value)) = stream.try_next().await? {
        pairs.push((key.to_vec(), value.to_vec()));
    }
    Ok(pairs)
}

/// Panics unless both are the same.
#[track_caller]
pub(crate) fn same(what: &str, expected: &[(Vec<u8>, Vec<u8>)], found: &[(Vec<u8>, Vec<u8>)]) {
    if expected != found {
        let (a, b) = (expected.iter().cloned().collect(), found.iter().cloned().collect());
        let (expected, found) = (expected.len(), found.len());
        panic!("{what}: {found} pairs instead of {expected}: {}", differences(&a, &b));
    }
}

fn pairs<'a>(state: impl Iterator<Item = (&'a Vec<u8>, &'a Vec<u8>)>) -> Pairs {
    state.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Compares the whole database with `state`, in both directions and key by key.
pub(crate) async fn plainly(db: &DB, state: &State, what: &str) -> Result<(), Error> {
    let expected = pairs(state.iter());
    same(what, &expected, &scan(db.iter()).await?);
    let reverse: Pairs = expected.into_iter().rev().collect();
    same(&format!("{what}, in reverse"), &reverse, &scan(db.iter().rev()).await?);
    for number in 0..KEYS {
        let key = key(number);
        let found = db.get(&key).await?;
        assert!(
            found.as_deref() == state.get(&key).map(Vec::as_slice),
            "{what}: get of {}: {:?}",
            key.escape_ascii(),
            found.map(|value| value[..value.len().min(20)].escape_ascii().to_string())
        );
    }
    Ok(())
}

/// Writes once more, closes, opens again, and compares with what was `found` before.
pub(crate) async fn goes_on(options: &DBOptions, db: DB, mut found: State, what: &str) {
    db.put(b"probe", b"new").await.unwrap_or_else(|e| panic!("{what}: put: {e:?}"));
    db.close().await.unwrap_or_else(|e| panic!("{what}: close: {e:?}"));
    drop(db);
    let db = options.open("/db").await.unwrap_or_else(|e| panic!("{what}: again: {e:?}"));
    found.insert(b"probe".to_vec(), b"new".to_vec());
    let again = scan(db.iter()).await.unwrap_or_else(|e| panic!("{what}: {e:?}"));
    same(&format!("{what}, second open"), &pairs(found.iter()), &again);
    db.close().await.unwrap_or_else(|e| panic!("{what}: second close: {e:?}"));
}

/// Compares the database with `state` in every way there is.
pub(crate) async fn everything(db: &DB, state: &State, what: &str) -> Result<(), Error> {
    plainly(db, state, what).await?;
    let keys: Vec<Vec<u8>> = (0..KEYS).map(|i| key(i * 5 % KEYS)).collect();
    let expected: Vec<Option<&[u8]>> =
        keys.iter().map(|key| state.get(key).map(Vec::as_slice)).collect();
    let found = db.get_many(&keys).await?;
    assert!(found.iter().map(Option::as_deref).eq(expected.iter().copied()), "{what}: get_many");
    ranges(db, state, what).await?;
    let prefix: Pairs =
        pairs(state.iter()).into_iter().filter(|(key, _)| key.starts_with(b"ka")).collect();
    same(&format!("{what}: prefix"), &prefix, &scan(db.prefix(b"ka")).await?);
    let first = pairs(state.iter().take(3));
    same(&format!("{what}: limit"), &first, &scan(db.iter().limit(3)).await?);
    Ok(())
}

/// Ranges with all kinds of bounds at keys that are there and keys that are not.
async fn ranges(db: &DB, state: &State, what: &str) -> Result<(), Error> {
    let mut marks: Vec<Vec<u8>> = [1, 6, 11, 29].into_iter().map(key).collect();
    marks.extend(state.keys().nth(state.len() / 3).cloned());
    marks.sort();
    marks.dedup();
    for (low, high) in marks.iter().zip(marks.iter().skip(2)) {
        for (from, to) in [(true, true), (true, false), (false, true), (false, false)] {
            let bound = |key, included| match included {
                true => Bound::Included(key),
                false => Bound::Excluded(key),
            };
            let range = (bound(low, from), bound(high, to));
            let expected = pairs(state.range::<Vec<u8>, _>(range));
            same(&format!("{what}: {range:?}"), &expected, &scan(db.range(range)).await?);
            let reverse: Pairs = expected.into_iter().rev().collect();
            let found = scan(db.range(range).rev()).await?;
            same(&format!("{what}: {range:?} in reverse"), &reverse, &found);
        }
    }
    Ok(())
}

/// Compares what a snapshot shows with `state`.
pub(crate) async fn snapshot(view: &Snapshot, state: &State, what: &str) -> Result<(), Error> {
    let expected = pairs(state.iter());
    same(what, &expected, &scan(view.iter()).await?);
    let reverse: Pairs = expected.into_iter().rev().collect();
    same(&format!("{what}, in reverse"), &reverse, &scan(view.iter().rev()).await?);
    let keys: Vec<Vec<u8>> = (0..KEYS).map(key).collect();
    let found = view.get_many(&keys).await?;
    for (key, found) in keys.iter().zip(found) {
        let expected = state.get(key).map(Vec::as_slice);
        assert!(found.as_deref() == expected, "{what}: get_many of {}", key.escape_ascii());
        let found = view.get(key).await?;
        assert!(found.as_deref() == expected, "{what}: get of {}", key.escape_ascii());
    }
    Ok(())
}
