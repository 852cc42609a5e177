//! All orders in which threads can meet in the engine's handshakes, by loom.
//!
//! The sources of the engine are compiled here once more: every `#[path]` names a file of `src/`,
//! and `crate::sync`, from which they take what threads share, is loom's. What stands around a
//! handshake is a stub of the same name. Preemptions are bounded (by 2 unless
//! `SEERDB_LOOM_PREEMPTIONS` says otherwise).
//!
//! There is no test harness: in one, the unit tests of the included files would run too, outside
//! of any model. Arguments choose models by a part of their names.
#![expect(dead_code, reason = "a model uses what it needs of the files it includes")]
#![expect(unused_imports, reason = "not every name of `sync` is used by every file")]
#![expect(unreachable_pub, reason = "the included files are part of a library elsewhere")]
#![expect(clippy::unwrap_used, reason = "a panic is how a model fails")]
#![expect(clippy::disallowed_types, reason = "the time that a model takes is told")]

#[macro_use]
#[path = "../../src/planted.rs"]
mod planted;

mod cache_model;
mod pins;
mod publish_model;
mod signal_model;
mod stubs;
mod throttle_model;

#[path = "../../src/cache.rs"]
mod cache;
#[path = "../../src/codec.rs"]
mod codec;
#[path = "../../src/error.rs"]
mod error;
#[path = "../../src/key.rs"]
mod key;
#[path = "../../src/db/publish.rs"]
mod publish;
#[path = "../../src/compaction/retain.rs"]
mod retain;
#[path = "../../src/db/signal.rs"]
mod signal;
#[path = "../../src/snapshot.rs"]
mod snapshot;
#[path = "../../src/db/state.rs"]
mod state;
#[path = "../../src/db/throttle.rs"]
mod throttle;

use stubs::{memtable, options, sync, version};

/// A model, and the most preemptions that are worth their time.
type Model = (&'static str, usize, fn());

const MODELS: &[Model] = &[
    ("the_log_task_sleeps_through_no_work", 2, signal_model::no_work_is_slept_through),
    ("a_waiting_log_task_hears_a_completion_or_a_signal", 3, signal_model::either_wakes),
    ("what_is_visible_is_inserted", 2, publish_model::what_is_visible_is_inserted),
    ("every_waiter_is_told_of_its_publication", 2, publish_model::every_waiter_is_told),
    ("every_waiter_is_told_of_a_failure", 2, publish_model::every_waiter_is_told_of_a_failure),
    ("a_pinned_seqno_stays_readable", 2, pins::a_pinned_seqno_stays_readable),
    ("a_get_without_a_pin_finds_the_newest", 2, pins::a_get_finds_the_newest),
    ("of_two_loads_one_runs", 2, cache_model::of_two_loads_one_runs),
    ("a_dropped_load_hands_over", 2, cache_model::a_dropped_load_hands_over),
    ("a_failed_load_leaves_nothing", 2, cache_model::a_failed_load_leaves_nothing),
    ("credits_of_dropped_waiters_come_back", 2, throttle_model::credits_come_back),
    ("a_refusal_reaches_every_waiter", 2, throttle_model::a_refusal_reaches_every_waiter),
];

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let bound = std::env::var("SEERDB_LOOM_PREEMPTIONS").ok().map(|bound| bound.parse().unwrap());
    for (name, preemptions, model) in MODELS {
        if !asked.is_empty() && !asked.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let start = std::time::Instant::now();
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(bound.unwrap_or(*preemptions));
        let orders = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = std::sync::Arc::clone(&orders);
        builder.check(move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            model();
        });
        let orders = orders.load(std::sync::atomic::Ordering::Relaxed);
        eprintln!("model {name}: {orders} orders in {} ms", start.elapsed().as_millis());
    }
}
