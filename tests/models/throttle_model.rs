//! Writers that wait for memory, and give up at the moment it is granted.

use std::pin::pin;

use loom::future::block_on;
use loom::thread;

use crate::error::Error;
use crate::throttle::Throttle;

pub(crate) fn credits_come_back() {
    let throttle = Throttle::new(10);
    assert!(throttle.try_acquire(10));
    let dropped = {
        let throttle = throttle.clone();
        thread::spawn(move || {
            let acquire = pin!(throttle.acquire(10));
            let granted = block_on(futures::future::poll_immediate(acquire));
            if granted.is_some() {
                throttle.release(10);
            }
        })
    };
    let waiting = {
        let throttle = throttle.clone();
        thread::spawn(move || {
            block_on(throttle.acquire(5)).unwrap();
            throttle.release(5);
        })
    };
    throttle.release(10);
    dropped.join().unwrap();
    waiting.join().unwrap();
    assert_eq!(throttle.level(), 0.0);
    assert!(!throttle.is_waited_for() && throttle.try_acquire(10));
}

pub(crate) fn a_refusal_reaches_every_waiter() {
    let throttle = Throttle::new(10);
    assert!(throttle.try_acquire(10));
    let waiters: Vec<_> = (0..2)
        .map(|_| {
            let throttle = throttle.clone();
            thread::spawn(move || assert!(block_on(throttle.acquire(5)).is_err()))
        })
        .collect();
    throttle.refuse(&Error::closed());
    for waiter in waiters {
        waiter.join().unwrap();
    }
    assert!(!throttle.is_waited_for());
}
