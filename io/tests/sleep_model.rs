//! All interleavings of the sleep agreement (`src/armed.rs`) and of a thread's end
//! (`src/ended.rs`), by loom.
//!
//! The bell is a counter that remembers a ring, as an eventfd, a parking token and a task's waker
//! do. A lost wake shows as a thread that sleeps for ever, which loom reports as a deadlock.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use self::armed::Armed;
use self::atomic::{AtomicUsize, Ordering};

mod atomic {
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
}

#[path = "../src/armed.rs"]
mod armed;
#[path = "../src/ended.rs"]
mod ended;

struct Model {
    armed: Armed,
    /// Stands for the queue: relaxed on purpose, it must not order anything by itself.
    work: AtomicUsize,
    rings: Mutex<usize>,
    bell: Condvar,
}

impl Model {
    fn bring(&self) {
        self.work.fetch_add(1, Ordering::Relaxed);
        if self.armed.must_ring() {
            *self.rings.lock().unwrap() += 1;
            self.bell.notify_one();
        }
    }

    fn sleep(&self) {
        let mut rings = self.rings.lock().unwrap();
        while *rings == 0 {
            rings = self.bell.wait(rings).unwrap();
        }
        *rings = 0;
    }

    fn serve(&self, wanted: usize) {
        let mut done = 0;
        while done < wanted {
            done += self.work.swap(0, Ordering::Relaxed);
            if done < wanted && self.armed.arm(|| self.work.load(Ordering::Relaxed) == 0) {
                self.sleep();
                self.armed.disarm();
            }
        }
    }
}

fn check(producers: usize, each: usize) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let model = Arc::new(Model {
            armed: Armed::new(),
            work: AtomicUsize::new(0),
            rings: Mutex::new(0),
            bell: Condvar::new(),
        });
        let threads: Vec<_> = (0..producers)
            .map(|_| {
                let model = Arc::clone(&model);
                thread::spawn(move || (0..each).for_each(|_| model.bring()))
            })
            .collect();
        model.serve(producers * each);
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn one_producer_never_loses_a_wake() {
    check(1, 2);
}

#[test]
fn two_producers_never_lose_a_wake() {
    check(2, 1);
}

/// What is brought while the thread ends is found by one of the two.
#[test]
fn nothing_is_left_with_a_thread_that_has_ended() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let ended = Arc::new((ended::Ended::new(), AtomicUsize::new(0)));
        let bringers: Vec<_> = (0..2)
            .map(|_| {
                let ended = Arc::clone(&ended);
                thread::spawn(move || {
                    // Relaxed on purpose: the queue orders nothing by itself.
                    ended.1.fetch_add(1, Ordering::Relaxed);
                    if ended.0.is_over() { ended.1.swap(0, Ordering::Relaxed) } else { 0 }
                })
            })
            .collect();
        ended.0.end();
        let mut found = ended.1.swap(0, Ordering::Relaxed);
        for bringer in bringers {
            found += bringer.join().unwrap();
        }
        assert_eq!(found, 2, "something was left behind");
    });
}
