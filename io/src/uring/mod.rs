//! The io_uring backend: three kinds of threads, each the only user of its ring.
//!
//! - *foreground*: reads that somebody waits for, from any thread, through a queue;
//! - *log*: a lane that is executor and ring owner at once, so that a log task's writes reach its
//!   ring without a hop;
//! - *flush* and *compaction*: lanes around a tokio-uring runtime, or, without the feature
//!   `tokio-uring`, of the same make as the log lane.
//!
//! Operations are submitted only by these threads: the kernel drops what a thread had submitted
//! when that thread exits, and a user's thread may exit at any time. The exception are reads that a
//! multi-threaded tokio runtime waits for (`pump.rs`): a read can be repeated.
//!
//! # The rules, and what tests them
//!
//! | Rule | Test |
//! |---|---|
//! | U1 the buffer belongs to the driver until the CQE | `dropped_futures_leave_nothing_behind` |
//! | U2 cancelling is best effort | nothing is ever cancelled: a dropped operation runs to its end |
//! | U3 the end drains every CQE | `everything_dropped_in_flight`, `shutdown_waits_for_the_kernel` |
//! | U4 short results are resubmitted, a write of 0 fails | `transfer::tests`, `short_results` |
//! | U5 a sync follows the CQEs it covers | no links are used; the caller awaits the writes |
//! | U6 EINTR and EAGAIN are repeated | `interruptions_are_repeated_and_then_leave_the_ring` |
//! | U7 the CQ cannot overflow | `thousands_in_flight`; setup without NODROP is refused |
//! | U8 at most 1 GiB for one SQE | `huge_transfers_are_split` |
//! | U9 only the owner enters the ring | `Ring` is not `Send`: `a_ring_stays_on_its_thread` |
//! | U10 a fork does not inherit the rings | `dontfork` on the ring's memory, see below |
//! | U11 a refused ring means the pool | `refused_by_seccomp`, `refused_as_missing` |
//! | U12 little lockable memory | `without_lockable_memory`; nothing is registered |
//! | U13 a file is closed after its last CQE | `everything_dropped_in_flight` |
//! | U14 an unknown or repeated CQE is the end | `op::tests`, `a_broken_ring_fails_every_operation` |
//! | U15 `unsafe` in one place, with reasons | `ring.rs` and `shared.rs` only; lints |
//!
//! A child of `fork` has none of the threads and must not use an environment of its parent. The
//! rings' memory is not mapped in it. Buffers are: marking them would cost a system call for each.

#[cfg(feature = "tokio-uring")]
pub(crate) mod background;
mod driver;
mod op;
#[cfg(feature = "tokio")]
mod pump;
mod ring;
#[cfg(feature = "tokio")]
mod shared;
#[cfg(test)]
mod tests;

use std::sync::Arc;

#[cfg(feature = "tokio")]
pub(crate) use self::pump::Pumps;

use crate::env::Lane;
use crate::lane::Mailbox;
use crate::system::{LANES, Shared};

/// The running threads of the backend.
pub(crate) struct Rings {
    pub(crate) foreground: Arc<Mailbox>,
    pub(crate) lanes: [Arc<Mailbox>; 3],
}

/// How long a thread may take to set up and test its ring.
const START_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// A started thread and what the kernel granted it, or why it could not be started.
type Outcome = Result<(Arc<Mailbox>, Vec<&'static str>), String>;

/// Starts all threads, or none and says why.
pub(crate) fn start(shared: &Arc<Shared>) -> Result<(Rings, Vec<&'static str>), String> {
    let (foreground, mut features) = driver::start(shared, "seerdb-read", None)?;
    let mut lanes = Vec::new();
    for (lane, name) in LANES {
        match start_lane(shared, lane, name) {
            Ok((mailbox, _)) => lanes.push(mailbox),
            Err(reason) => {
                for mailbox in lanes.iter().chain([&foreground]) {
                    mailbox.close(true);
                }
                return Err(reason);
            }
        }
    }
    if cfg!(feature = "tokio-uring") {
        features.push("tokio-uring");
    }
    if cfg!(feature = "tokio") {
        features.push("tokio");
    }
    let Ok(lanes) = lanes.try_into() else { unreachable!("one mailbox for each of three lanes") };
    Ok((Rings { foreground, lanes }, features))
}

#[cfg(feature = "tokio-uring")]
fn start_lane(shared: &Arc<Shared>, lane: Lane, name: &'static str) -> Outcome {
    match lane {
        Lane::Log => driver::start(shared, name, Some(lane)),
        Lane::Flush | Lane::Compaction => background::start(shared, name, lane),
    }
}

#[cfg(not(feature = "tokio-uring"))]
fn start_lane(shared: &Arc<Shared>, lane: Lane, name: &'static str) -> Outcome {
    driver::start(shared, name, Some(lane))
}
