//! Bytes that many may hold at once, within a limit that nobody waits for.
//!
//! Invariants:
//! 1. `used` is what all living charges hold together.
//! 2. Who asks for a share gets a part of what is free: the more is used, the less. A share is
//!    advice: it may be overdrawn by what cannot be done with less.

use std::cmp::Ordering as Order;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Of what is free, nobody gets more than this part.
const PART: usize = 4;

/// A limit for what is held by many.
pub(crate) struct Allowance {
    limit: usize,
    used: AtomicUsize,
}

impl Allowance {
    pub(crate) fn new(limit: usize) -> Arc<Allowance> {
        Arc::new(Allowance { limit, used: AtomicUsize::new(0) })
    }

    /// What is held at present, in bytes.
    pub(crate) fn used(&self) -> usize {
        // Order: a figure, it orders nothing; so below.
        self.used.load(Ordering::Relaxed)
    }

    /// How many bytes somebody may go on to hold.
    pub(crate) fn share(&self) -> usize {
        self.limit.saturating_sub(self.used()) / PART
    }

    /// Counts `bytes` as held until the charge is dropped.
    pub(crate) fn charge(self: &Arc<Self>, bytes: usize) -> Charge {
        let mut charge = Charge { allowance: Arc::clone(self), bytes: 0 };
        charge.set(bytes);
        charge
    }
}

/// Bytes that somebody holds.
pub(crate) struct Charge {
    allowance: Arc<Allowance>,
    bytes: usize,
}

impl Charge {
    /// What is held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Now it is so many bytes.
    pub(crate) fn set(&mut self, bytes: usize) {
        let used = &self.allowance.used;
        match bytes.cmp(&self.bytes) {
            Order::Greater => {
                used.fetch_add(bytes - self.bytes, Ordering::Relaxed);
            }
            Order::Less => {
                used.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            }
            // Most streams read nothing ahead: they leave the counter alone.
            Order::Equal => {}
        }
        self.bytes = bytes;
    }

    /// How many bytes may be held beyond these.
    pub(crate) fn share(&self) -> usize {
        self.allowance.share()
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_shrink_with_what_is_held_and_come_back() {
        let allowance = Allowance::new(1000);
        assert_eq!(allowance.share(), 250);
        let mut first = allowance.charge(200);
        assert_eq!((allowance.share(), first.share()), (200, 200));
        let second = allowance.charge(2000);
        assert_eq!((allowance.used(), allowance.share()), (2200, 0));
        drop(second);
        first.set(600);
        assert_eq!((first.bytes(), allowance.used(), allowance.share()), (600, 600, 100));
        first.set(100);
        assert_eq!(allowance.used(), 100);
        drop(first);
        assert_eq!(allowance.used(), 0);
    }
}
