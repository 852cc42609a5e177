//! A concurrent cache that weighs its values in bytes, and loads every missing value once.
//!
//! Invariants:
//! 1. The values together weigh no more than the capacity; a value heavier than its share of the
//!    capacity is not kept.
//! 2. Of concurrent loads of one key one runs. Whoever waits for it drives it: a caller that stops
//!    polling its future halfway does not hold up the others, and a dropped one hands over.
//! 3. A load that failed leaves nothing behind: the next one tries again.
//! 4. The lock over the loads in flight is never held across a load, or while one is dropped.

use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

use crate::error::Result;
use crate::sync::Mutex;

/// What an entry takes beside its bytes, its key and its handle: the slot in the map, the links and
/// counters of the slab, the room that both keep to grow, and the reference count of its bytes.
const ENTRY_OVERHEAD: usize = 128;
/// Above this size allocators hand out pages of their own, and often one more than asked for.
const PAGES_FROM: usize = 14 << 10;
const PAGE_BYTES: usize = 4096;
/// The guess of an average value by which shards and the memory of evicted keys are sized.
const VALUE_BYTES_GUESS: usize = 4096;

/// A value that knows its size.
pub(crate) trait Weigh {
    /// The bytes that the value keeps in memory, without the size of the handle itself.
    fn weight(&self) -> usize;
}

#[derive(Clone)]
struct Weights;

impl<K, V: Weigh> quick_cache::Weighter<K, V> for Weights {
    fn weight(&self, _: &K, value: &V) -> u64 {
        let entry = size_of::<K>() + size_of::<V>() + ENTRY_OVERHEAD;
        (heap_bytes(value.weight()) + entry) as u64
    }
}

/// What the allocator spends on `bytes`: sizes come in classes, four for each power of two
/// (jemalloc; others are no better).
fn heap_bytes(bytes: usize) -> usize {
    if bytes > PAGES_FROM {
        return bytes.next_multiple_of(PAGE_BYTES) + PAGE_BYTES;
    }
    let class = bytes.max(64).next_power_of_two() / 8;
    bytes.next_multiple_of(class)
}

/// Hashes keys: a few numbers that nobody outside chooses. The same keys have the same hash in
/// every process, so that the same accesses evict the same values, in a simulation above all.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let word = part.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.write_u64(word);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(25) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        mixed ^ (mixed >> 32)
    }
}

type Hashes = BuildHasherDefault<KeyHasher>;

/// The cache; see the invariants of the module.
pub(crate) struct ByteCache<K, V: Clone> {
    state: Arc<State<K, V>>,
}

struct State<K, V: Clone> {
    cache: quick_cache::sync::Cache<K, V, Weights, Hashes>,
    loads: Mutex<Loads<K, V>>,
}

struct Loads<K, V: Clone> {
    /// Tells the loads of one key apart, so that one that ends late removes only itself.
    next: u64,
    running: HashMap<K, (u64, WeakShared<Load<V>>)>,
}

type Load<V> = BoxFuture<'static, Result<V>>;

impl<K, V> ByteCache<K, V>
where
    K: Copy + Hash + Eq + Send + Sync + 'static,
    V: Clone + Weigh + Send + Sync + 'static,
{
    /// An empty cache for `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> Self {
        let cache = quick_cache::sync::Cache::with(
            (capacity / VALUE_BYTES_GUESS).max(1),
            capacity as u64,
            Weights,
            Hashes::default(),
            quick_cache::sync::DefaultLifecycle::default(),
        );
        let loads = Mutex::new(Loads { next: 0, running: HashMap::new() });
        ByteCache { state: Arc::new(State { cache, loads }) }
    }

    /// The value of `key`, if it is here.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        self.state.cache.get(key)
    }

    /// Keeps `value`, unless it is too heavy.
    pub(crate) fn insert(&self, key: K, value: V) {
        self.state.cache.insert(key, value);
    }

    /// Changes the capacity, evicting what no longer fits.
    pub(crate) fn set_capacity(&self, capacity: usize) {
        self.state.cache.set_capacity(capacity as u64);
    }

    /// The value of `key`: from here, from a load that runs already, or by `load`, in this order.
    /// What was loaded is kept with `fill`.
    ///
    /// # Errors
    ///
    /// Those of the load; every caller that waited for it gets the same one.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up waiting; the load ends when nobody waits for it any more.
    pub(crate) fn load<F>(
        &self,
        key: K,
        fill: bool,
        load: F,
    ) -> impl Future<Output = Result<V>> + Send + use<K, V, F>
    where
        F: Future<Output = Result<V>> + Send + 'static,
    {
        let state = self.state.clone();
        async move {
            let running = match State::join(&state, key, fill, load) {
                Joined::Here(value) => return Ok(value),
                Joined::Running(load) => load,
            };
            running.await
        }
    }

    /// The weight of the values, in bytes.
    pub(crate) fn usage(&self) -> u64 {
        self.state.cache.weight()
    }

    /// The capacity, in bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.state.cache.capacity()
    }

    /// How many calls of [`ByteCache::get`] found their value.
    pub(crate) fn hits(&self) -> u64 {
        self.state.cache.hits()
    }

    /// How many calls of [`ByteCache::get`] did not.
    pub(crate) fn misses(&self) -> u64 {
        self.state.cache.misses()
    }
}

enum Joined<V: Clone> {
    Here(V),
    Running(Shared<Load<V>>),
}

impl<K, V> State<K, V>
where
    K: Copy + Hash + Eq + Send + Sync + 'static,
    V: Clone + Weigh + Send + Sync + 'static,
{
    fn join<F>(state: &Arc<Self>, key: K, fill: bool, load: F) -> Joined<V>
    where
        F: Future<Output = Result<V>> + Send + 'static,
    {
        let mut loads = state.loads.lock();
        if let Some((_, running)) = loads.running.get(&key)
            && let Some(running) = running.upgrade()
        {
            return Joined::Running(running);
        }
        // A load that ended since the caller looked has put its value here before it left the map.
        if let Some(value) = state.cache.peek(&key) {
            return Joined::Here(value);
        }
        loads.next += 1;
        let leave = Leave { state: state.clone(), key, id: loads.next };
        let load = async move {
            let value = load.await?;
            if fill {
                leave.state.cache.insert(leave.key, value.clone());
            }
            drop(leave);
            Ok(value)
        };
        let running = load.boxed().shared();
        if let Some(weak) = running.downgrade() {
            let id = loads.next;
            loads.running.insert(key, (id, weak));
        }
        Joined::Running(running)
    }
}

/// Takes a load out of the map when it is over or nobody waits for it any more.
struct Leave<K: Copy + Hash + Eq, V: Clone> {
    state: Arc<State<K, V>>,
    key: K,
    id: u64,
}

impl<K: Copy + Hash + Eq, V: Clone> Drop for Leave<K, V> {
    fn drop(&mut self) {
        let mut loads = self.state.loads.lock();
        if loads.running.get(&self.key).is_some_and(|(id, _)| *id == self.id) {
            loads.running.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::channel::oneshot;
    use futures::executor::block_on;
    use futures::{join, pin_mut, poll};

    use super::*;
    use crate::error::Error;

    impl Weigh for String {
        fn weight(&self) -> usize {
            self.len()
        }
    }

    type Strings = ByteCache<u64, String>;

    #[test]
    fn the_weight_stays_within_the_capacity() {
        let cache = Strings::new(100_000);
        for key in 0..1000 {
            cache.insert(key, "x".repeat(1000));
            assert!(cache.usage() <= cache.capacity());
        }
        assert!(cache.usage() > 50_000);
        cache.set_capacity(10_000);
        assert!(cache.usage() <= 10_000);
        cache.insert(5000, "x".repeat(200_000));
        assert_eq!(cache.get(&5000), None);
    }

    #[test]
    fn hits_and_misses_are_counted() {
        let cache = Strings::new(100_000);
        assert_eq!(cache.get(&1), None);
        cache.insert(1, "one".into());
        assert_eq!(cache.get(&1).as_deref(), Some("one"));
        assert_eq!((cache.hits(), cache.misses()), (1, 1));
    }

    #[test]
    fn a_scan_leaves_what_is_used_often() {
        const HOT: u64 = 400;
        let cache = Strings::new(1_000_000);
        let look = |key: u64| {
            let is_here = cache.get(&key).is_some();
            if !is_here {
                cache.insert(key, "x".repeat(1000));
            }
            is_here
        };
        for _ in 0..4 {
            for key in 0..HOT {
                look(key);
            }
        }
        assert!((0..HOT).all(look), "they fit");
        // Ten times the capacity, each once, while the others go on being used now and then.
        for key in 0..10_000 {
            look(HOT + key);
            look(key % HOT);
        }
        let kept = (0..HOT).filter(|&key| look(key)).count() as u64;
        assert!(kept > HOT * 9 / 10, "of {HOT} values {kept} are left");
        for key in 20_000..30_000 {
            look(key);
        }
        let kept = (0..HOT).filter(|&key| look(key)).count() as u64;
        assert!(kept > HOT * 3 / 4, "of {HOT} values {kept} are left by a scan alone");
    }

    #[test]
    fn concurrent_misses_load_once_and_failures_are_not_kept() {
        let cache = Strings::new(100_000);
        let loads = Arc::new(AtomicUsize::new(0));
        let (fire, gate) = oneshot::channel::<()>();
        let gate = gate.shared();
        let load = |answer: Result<String>| {
            let (loads, gate) = (loads.clone(), gate.clone());
            async move {
                loads.fetch_add(1, Ordering::Relaxed);
                gate.await.unwrap();
                if answer.is_ok() {
                    futures::pending!();
                }
                answer
            }
        };
        block_on(async {
            let a = cache.load(1, true, load(Err(Error::closed())));
            let b = cache.load(1, true, load(Ok("second".into())));
            pin_mut!(a, b);
            assert!(poll!(a.as_mut()).is_pending() && poll!(b.as_mut()).is_pending());
            fire.send(()).unwrap();
            let (a, b) = join!(a, b);
            assert!(a.is_err() && b.is_err(), "both waited for the first load");
            assert!(cache.load(1, true, load(Ok("x".into()))).now_or_never().is_none());
        });
        assert_eq!(loads.load(Ordering::Relaxed), 2);
        assert!(cache.state.loads.lock().running.is_empty(), "the dropped load left");
    }

    #[test]
    fn a_caller_that_stops_polling_does_not_hold_up_the_others() {
        let cache = Strings::new(100_000);
        let (send, receive) = oneshot::channel::<String>();
        block_on(async {
            let idle = cache.load(1, true, async move { Ok(receive.await.unwrap()) });
            pin_mut!(idle);
            assert!(poll!(idle.as_mut()).is_pending());
            send.send("value".into()).unwrap();
            let other = cache.load(1, true, async { panic!("one load runs already") }).await;
            assert_eq!(other.unwrap(), "value");
            assert_eq!(idle.await.unwrap(), "value");
            assert_eq!(cache.get(&1).as_deref(), Some("value"));
        });
    }

    #[test]
    fn without_fill_nothing_is_kept() {
        let cache = Strings::new(100_000);
        let loaded = block_on(cache.load(1, false, async { Ok("value".to_string()) }));
        assert_eq!(loaded.unwrap(), "value");
        assert_eq!(cache.get(&1), None);
    }
}
