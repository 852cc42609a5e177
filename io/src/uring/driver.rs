//! The loop of a thread that owns a ring; a lane's tasks run in the same loop.
//!
//! Invariants:
//! 1. The thread sleeps in exactly one place, in the kernel's wait for completions, and only after
//!    it has armed its mailbox and found nothing to do.
//! 2. It ends only when nothing is in flight, or after its ring has failed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, mpsc};

use rustix::event::{EventfdFlags, eventfd};

use super::ring::{BATCH_MAX, Ring};
use super::{Outcome, START_MAX};
use crate::env::Lane;
use crate::lane::{self, Bell, Local, Mailbox};
use crate::system::Shared;

/// Starts the thread of the foreground ring, or of a lane, and waits until its ring is tested.
pub(super) fn start(shared: &Arc<Shared>, name: &'static str, lane: Option<Lane>) -> Outcome {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|e| format!("eventfd: {e}"))?;
    let mailbox = Mailbox::new(Bell::Event(event), lane.is_some());
    let (report, started) = mpsc::channel();
    let (own, own_shared) = (Arc::clone(&mailbox), Arc::clone(shared));
    let thread = move || {
        let made = make(&own);
        let (ring, result) = match made {
            Ok((ring, features)) => (Some(ring), Ok(features)),
            Err(reason) => (None, Err(reason)),
        };
        // Nobody waits any more when the test took too long: then the ring is not used.
        let wanted = report.send(result).is_ok();
        if let Some(ring) = ring.filter(|_| wanted) {
            if let Some(lane) = lane {
                lane::enter(&own, lane, Local::Ring(VecDeque::new()));
            }
            run(ring, &own, &own_shared, lane.is_none());
        }
        own.end();
        lane::leave();
    };
    shared.threads.start(name, thread).map_err(|e| format!("cannot start a thread: {e}"))?;
    match started.recv_timeout(START_MAX) {
        Ok(result) => result.map(|features| (mailbox, features)),
        Err(_) => Err("the self-test of the ring does not end".to_owned()),
    }
}

fn make(mailbox: &Mailbox) -> Result<(Ring, Vec<&'static str>), String> {
    let Bell::Event(event) = mailbox.bell() else { unreachable!("`start` made it so") };
    let (mut ring, features) = Ring::new(event.as_fd())?;
    ring.self_test(|| {
        rustix::io::write(event, &1u64.to_ne_bytes()).ok();
    })?;
    Ok((ring, features))
}

fn run(mut ring: Ring, mailbox: &Mailbox, shared: &Shared, foreground: bool) {
    let mut others = Others::new(foreground);
    let served = AssertUnwindSafe(|| serve(&mut ring, mailbox, shared, &mut others));
    let reason = match std::panic::catch_unwind(served) {
        Ok(Ok(())) => return,
        Ok(Err(reason)) => reason,
        Err(panic) => format!("its thread panicked: {}", crate::env::message(&*panic)),
    };
    shared.fail(&reason);
    ring.abandon(&reason);
    while let Some(request) = lane::pop_local() {
        request.finish(Err(io::Error::other(format!("the ring has failed: {reason}"))));
    }
    // The tasks of a lane go on, so that they see their operations fail.
    mailbox.serve(&shared.timers);
}

fn serve(
    ring: &mut Ring,
    mailbox: &Mailbox,
    shared: &Shared,
    others: &mut Others,
) -> Result<(), String> {
    loop {
        let mut more = mailbox.run_tasks();
        let mut batch = 0;
        while ring.has_room() {
            if batch == BATCH_MAX {
                more = true;
                break;
            }
            let Some(request) = lane::pop_local().or_else(|| mailbox.pop()) else { break };
            ring.submit(request)?;
            batch += 1;
        }
        let timeout = mailbox.fire_timers(&shared.timers);
        let timeout = others.look(mailbox, shared).or(timeout);
        let idle = ring.in_flight() == 0 && others.are_idle(shared);
        if mailbox.shall_end(idle) {
            return Ok(());
        }
        let wait = !more && mailbox.arm(ring.has_room(), idle);
        ring.enter(wait, timeout)?;
        mailbox.disarm();
        ring.reap(|request| shared.detour(request))?;
    }
}

/// What else the thread of the foreground ring is there for: the rings of the callers' runtimes.
#[cfg(feature = "tokio")]
struct Others(Option<super::pump::Watch>);

#[cfg(feature = "tokio")]
impl Others {
    fn new(foreground: bool) -> Others {
        Others(foreground.then(super::pump::Watch::default))
    }

    /// Does what is due; how long the thread may sleep, if not for ever.
    fn look(&mut self, mailbox: &Mailbox, shared: &Shared) -> Option<std::time::Duration> {
        self.0.as_mut()?.look(shared, mailbox.take_nudge())
    }

    fn are_idle(&self, shared: &Shared) -> bool {
        self.0.is_none() || shared.pumps.are_idle()
    }
}

/// Without the feature `tokio` there are no other rings.
#[cfg(not(feature = "tokio"))]
struct Others;

#[cfg(not(feature = "tokio"))]
impl Others {
    fn new(_: bool) -> Others {
        Others
    }

    fn look(&self, _: &Mailbox, _: &Shared) -> Option<std::time::Duration> {
        None
    }

    fn are_idle(&self, _: &Shared) -> bool {
        true
    }
}
