//! How old what was written is, roughly: tombstones may not stay for ever.
//!
//! Invariants:
//! 1. The clock is the monotonic one: nothing ages by a wall clock that jumps. What an open finds
//!    is as old as the open.
//! 2. Nothing counts as old before it is; it may count [`STEPS`]th of the age later.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;

use crate::key::SeqNo;

/// An age is told in so many steps.
const STEPS: u32 = 32;

/// When seqnos were given out.
pub(super) struct Ages {
    /// The age that matters.
    limit: Option<Duration>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// At each time, the newest seqno that had been given out. Both grow.
    marks: VecDeque<(Duration, SeqNo)>,
    /// Whether more had been given out at the last look, too soon for another mark.
    is_behind: bool,
}

impl Ages {
    pub(super) fn new(limit: Option<Duration>) -> Ages {
        Ages { limit, seen: Mutex::default() }
    }

    /// Notes that `newest` had been given out at `now`; all up to the seqno that is returned are
    /// over age.
    pub(super) fn note(&self, now: Duration, newest: SeqNo) -> SeqNo {
        let Some(limit) = self.limit else { return 0 };
        let mut seen = self.seen.lock();
        let last = seen.marks.back().copied();
        let is_new = last.is_none_or(|(_, seqno)| seqno < newest);
        let is_time = last.is_none_or(|(at, _)| at + limit / STEPS <= now);
        if is_new && is_time {
            seen.marks.push_back((now, newest));
        }
        seen.is_behind = is_new && !is_time;
        // The last one that is over age stays: all before it are, too.
        while seen.marks.get(1).is_some_and(|(at, _)| *at + limit <= now) {
            seen.marks.pop_front();
        }
        seen.marks.front().filter(|(at, _)| *at + limit <= now).map_or(0, |(_, seqno)| *seqno)
    }

    /// When to look again: more will be over age than is at `now`, or can be marked.
    pub(super) fn next(&self, now: Duration) -> Option<Duration> {
        let limit = self.limit?;
        if planted!(AgeUnnoticed) {
            return None;
        }
        let (seen, step) = (self.seen.lock(), limit / STEPS);
        let aged = seen.marks.iter().map(|(at, _)| *at + limit).find(|due| *due > now);
        let marked = seen.marks.back().filter(|_| seen.is_behind && !planted!(MarkUnnoticed));
        // While nobody could look, it was not marked in time.
        let due = |at: Duration| if at + step > now { at + step } else { now + step };
        let marked = marked.map(|(at, _)| due(*at));
        aged.into_iter().chain(marked).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn seqnos_grow_old() {
        let ages = Ages::new(Some(seconds(64)));
        assert_eq!((ages.note(seconds(0), 5), ages.next(seconds(0))), (0, Some(seconds(64))));
        assert_eq!(ages.note(seconds(1), 9), 0, "too soon for another step");
        assert_eq!(ages.next(seconds(1)), Some(seconds(2)), "for that step");
        assert_eq!(ages.next(seconds(3)), Some(seconds(5)), "nobody has looked");
        assert_eq!(ages.note(seconds(10), 20), 0);
        assert_eq!(ages.note(seconds(63), 20), 0);
        assert_eq!((ages.note(seconds(64), 20), ages.next(seconds(64))), (5, Some(seconds(74))));
        assert_eq!(ages.note(seconds(200), 30), 20);
        assert_eq!(ages.note(seconds(300), 30), 30);
        assert_eq!(ages.next(seconds(300)), None, "nothing is left to grow old");
        assert!(ages.seen.lock().marks.len() <= 2);
    }

    #[test]
    fn without_a_limit_nothing_does() {
        let ages = Ages::new(None);
        assert_eq!((ages.note(seconds(1_000_000), 5), ages.next(seconds(0))), (0, None));
    }
}
