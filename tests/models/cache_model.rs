//! Loads of one key from several threads: one runs, a dropped one hands over, a failed one leaves
//! nothing.
//!
//! The futures that the waiters share are those of the crate `futures`, which loom does not see
//! into: between two operations on the cache's own lock they run as one step. Nor does it see into
//! the map of values; the hash of a key touches something that it sees before each use of the map.

use std::hash::{Hash, Hasher};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use loom::future::block_on;
use loom::thread;

use crate::cache::{ByteCache, Weigh};
use crate::error::{Error, Result};
use crate::sync::{AtomicUsize, Ordering};

loom::lazy_static! {
    static ref MAP: AtomicUsize = AtomicUsize::new(0);
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key(u64);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        MAP.fetch_add(1, Ordering::Relaxed);
        self.0.hash(state);
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Block(u64);

impl Weigh for Block {
    fn weight(&self) -> usize {
        8
    }
}

struct Bed {
    cache: ByteCache<Key, Block>,
    running: AtomicUsize,
    begun: AtomicUsize,
}

/// Counts a load as running until it ends or is dropped.
struct Running(Arc<Bed>);

impl Running {
    fn begin(bed: &Arc<Bed>, is_dropped: bool) -> Running {
        bed.begun.fetch_add(1, Ordering::Relaxed);
        // A load that nobody polls any more may still be on its way out when the next begins.
        let others = bed.running.fetch_add(1, Ordering::Relaxed);
        assert!(others == 0 || is_dropped, "two loads of one key run at the same time");
        Running(Arc::clone(bed))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Bed {
    fn new() -> Arc<Bed> {
        let (running, begun) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Bed { cache: ByteCache::new(1 << 20), running, begun })
    }

    /// As a reader: a look, then a load, which takes two polls if it waits.
    async fn read(self: Arc<Bed>, waits: bool, outcome: Result<Block>) -> Result<Block> {
        if let Some(value) = self.cache.get(&Key(7)) {
            return Ok(value);
        }
        let bed = Arc::clone(&self);
        let load = async move {
            let _running = Running::begin(&bed, waits);
            let mut is_second = !waits;
            std::future::poll_fn(|cx| {
                if is_second {
                    return Poll::Ready(());
                }
                is_second = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
            outcome
        };
        self.cache.load(Key(7), true, load).await
    }
}

pub(crate) fn of_two_loads_one_runs() {
    let bed = Bed::new();
    let other = {
        let bed = Arc::clone(&bed);
        thread::spawn(move || {
            assert_eq!(block_on(bed.read(false, Ok(Block(1)))).unwrap(), Block(1))
        })
    };
    assert_eq!(block_on(Arc::clone(&bed).read(false, Ok(Block(1)))).unwrap(), Block(1));
    other.join().unwrap();
    assert_eq!(bed.begun.load(Ordering::Relaxed), 1, "the value was loaded twice");
    assert_eq!(bed.cache.get(&Key(7)), Some(Block(1)));
}

pub(crate) fn a_dropped_load_hands_over() {
    let bed = Bed::new();
    let other = {
        let bed = Arc::clone(&bed);
        thread::spawn(move || {
            let read = pin!(bed.read(true, Ok(Block(1))));
            // Polled once and dropped.
            block_on(futures::future::poll_immediate(read));
        })
    };
    assert_eq!(block_on(Arc::clone(&bed).read(true, Ok(Block(1)))).unwrap(), Block(1));
    other.join().unwrap();
    assert_eq!(bed.cache.get(&Key(7)), Some(Block(1)));
    assert_eq!(bed.running.load(Ordering::Relaxed), 0);
}

pub(crate) fn a_failed_load_leaves_nothing() {
    let bed = Bed::new();
    let other = {
        let bed = Arc::clone(&bed);
        thread::spawn(move || block_on(bed.read(false, Err(Error::closed()))).is_ok())
    };
    let found = block_on(Arc::clone(&bed).read(false, Ok(Block(1))));
    let others = other.join().unwrap();
    if bed.begun.load(Ordering::Relaxed) == 2 {
        assert!(found.is_ok(), "the second load has failed with the first one's error");
    } else {
        assert_eq!(found.is_ok(), others, "both had the same load");
    }
    assert_eq!(block_on(Arc::clone(&bed).read(false, Ok(Block(1)))).unwrap(), Block(1));
}
