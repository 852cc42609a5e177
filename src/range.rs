//! What can be a range of keys.

use std::ops::{
    Bound, Range, RangeBounds, RangeFrom, RangeFull, RangeInclusive, RangeTo, RangeToInclusive,
};

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::key::check_key;

/// A range of keys: any range expression over byte strings (`b"a"..b"c"`, `"a"..="c"`, `key..`,
/// `..`), or a pair of [`Bound`]s.
///
/// A trait of its own, because [`RangeBounds`] leaves open for a `Range<&[u8; 1]>` whether its keys
/// are arrays or references to them, and for `..` everything.
pub trait KeyRange {
    /// The lower and the upper bound.
    fn into_bounds(self) -> (Bound<Bytes>, Bound<Bytes>);
}

fn own<K: AsRef<[u8]>>(bound: Bound<&K>) -> Bound<Bytes> {
    bound.map(|key| Bytes::copy_from_slice(key.as_ref()))
}

macro_rules! key_range {
    ($($range:ident),*) => {$(
        impl<K: AsRef<[u8]>> KeyRange for $range<K> {
            fn into_bounds(self) -> (Bound<Bytes>, Bound<Bytes>) {
                (own(RangeBounds::<K>::start_bound(&self)), own(RangeBounds::<K>::end_bound(&self)))
            }
        }
    )*};
}

key_range!(Range, RangeFrom, RangeInclusive, RangeTo, RangeToInclusive);

impl KeyRange for RangeFull {
    fn into_bounds(self) -> (Bound<Bytes>, Bound<Bytes>) {
        (Bound::Unbounded, Bound::Unbounded)
    }
}

impl<A: AsRef<[u8]>, B: AsRef<[u8]>> KeyRange for (Bound<A>, Bound<B>) {
    fn into_bounds(self) -> (Bound<Bytes>, Bound<Bytes>) {
        (own(self.0.as_ref()), own(self.1.as_ref()))
    }
}

/// Refuses bounds that are inverted, or no keys.
pub(crate) fn check_range(lower: &Bound<Bytes>, upper: &Bound<Bytes>) -> Result<()> {
    let inverted = match (lower, upper) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Excluded(a), Bound::Excluded(b)) => a >= b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => a > b,
    };
    if inverted {
        return Err(Error::invalid("the range is inverted: its start lies behind its end"));
    }
    for bound in [lower, upper] {
        if let Bound::Included(key) | Bound::Excluded(key) = bound {
            check_key(key)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(range: impl KeyRange) -> (Bound<Bytes>, Bound<Bytes>) {
        range.into_bounds()
    }

    #[test]
    fn every_range_expression_is_a_range() {
        let key = |k: &'static str| Bytes::from_static(k.as_bytes());
        let half_open = (Bound::Included(key("a")), Bound::Excluded(key("c")));
        assert_eq!(bounds(b"a"..b"c"), half_open);
        assert_eq!(bounds("a".."c"), half_open);
        assert_eq!(bounds(b"a".as_slice()..b"c"), half_open);
        assert_eq!(bounds("a".to_owned().."c".to_owned()), half_open);
        assert_eq!(bounds(vec![b'a']..vec![b'c']), half_open);
        assert_eq!(bounds([b'a']..[b'c']), half_open);
        assert_eq!(bounds(b"a"..=b"c"), (half_open.0.clone(), Bound::Included(key("c"))));
        assert_eq!(bounds(b"a"..), (half_open.0.clone(), Bound::Unbounded));
        assert_eq!(bounds(..b"c"), (Bound::Unbounded, half_open.1.clone()));
        assert_eq!(bounds(..=b"c"), (Bound::Unbounded, Bound::Included(key("c"))));
        assert_eq!(bounds(..), (Bound::Unbounded, Bound::Unbounded));
        let pair = (Bound::Excluded("a"), Bound::<&[u8]>::Unbounded);
        assert_eq!(bounds(pair), (Bound::Excluded(key("a")), Bound::Unbounded));
    }
}
