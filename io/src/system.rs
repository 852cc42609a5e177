//! The backend of one environment: its threads, who serves which file, and how it ends.
//!
//! Invariants:
//! 1. Every [`crate::Env`], [`crate::Fs`] and open file has a [`Handle`]; the threads of the
//!    backend, its tasks' wakers and its timers have none. So the last handle's drop is the end.
//! 2. Closing never waits: it sets flags and wakes; each thread ends by itself when nothing of it
//!    is in flight.
//! 3. A forked child starts nothing and writes nothing: it has no thread of the backend, and shares
//!    its rings and files with the parent.
//! 4. After a ring has failed (`failed` is set) every operation fails with that reason.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use futures::channel::oneshot;

use crate::env::{Backend, EnvOptions, IoBackend, Lane};
use crate::error::{Error, Operation, Result};
use crate::forked::ForkMark;
use crate::fs::{BufResult, Class};
use crate::lane::{self, Bell, Local, Mailbox, Offer};
use crate::op::Call;
use crate::pool::{Job, Pool};
use crate::threads::Threads;
use crate::timer::Timers;
use crate::transfer::{Request, Transfer};

/// What all threads of a backend share.
pub(crate) struct Shared {
    pub(crate) pool: Arc<Pool>,
    pub(crate) threads: Arc<Threads>,
    pub(crate) timers: Arc<Timers>,
    #[cfg(all(target_os = "linux", not(seerdb_no_uring), feature = "tokio"))]
    pub(crate) pumps: crate::uring::Pumps,
    in_flight: AtomicUsize,
    failed: OnceLock<String>,
    /// A forked child has the memory of the threads and none of them.
    process: ForkMark,
}

impl Shared {
    fn new() -> Arc<Shared> {
        let threads = Arc::<Threads>::default();
        Arc::new(Shared {
            pool: Pool::new(Arc::clone(&threads)),
            threads,
            timers: Timers::new(),
            #[cfg(all(target_os = "linux", not(seerdb_no_uring), feature = "tokio"))]
            pumps: crate::uring::Pumps::new(),
            in_flight: AtomicUsize::new(0),
            failed: OnceLock::new(),
            process: ForkMark::new(),
        })
    }

    pub(crate) fn started(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn finished(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// A ring broke its contract: nothing is believed any more.
    #[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
    pub(crate) fn fail(&self, reason: &str) {
        tracing::error!(reason, "the ring has failed; every file operation fails from now on");
        self.failed.get_or_init(|| reason.to_owned());
    }

    /// Whether this is another process than the one that has the threads.
    pub(crate) fn is_forked(&self) -> bool {
        self.process.is_forked()
    }

    /// Refuses what would write behind the back of the process that this one was forked from.
    pub(crate) fn check_process(&self) -> io::Result<()> {
        if self.is_forked() {
            return Err(io::Error::other("the file layer belongs to the process before the fork"));
        }
        Ok(())
    }

    fn failure(&self) -> Option<io::Error> {
        if let Err(e) = self.check_process() {
            return Some(e);
        }
        let reason = self.failed.get()?;
        Some(io::Error::other(format!("the ring has failed: {reason}")))
    }

    /// Finishes a request with blocking calls, on the pool if that still takes work.
    #[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
    pub(crate) fn detour(&self, request: Request) {
        match self.pool.push(Job::Transfer(request)) {
            Ok(()) => {}
            Err(Job::Transfer(request)) => request.run_blocking(),
            Err(Job::Call(call)) => call(),
        }
    }
}

/// The running backend.
pub(crate) struct System {
    pub(crate) shared: Arc<Shared>,
    lanes: [Arc<Mailbox>; 3],
    /// The thread of the foreground ring; without it the pool serves.
    foreground: Option<Arc<Mailbox>>,
}

/// Keeps a backend alive.
pub(crate) struct Handle {
    system: Arc<System>,
}

impl Handle {
    pub(crate) fn system(&self) -> &Arc<System> {
        &self.system
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.system.close(false);
    }
}

/// A transfer after its first poll.
pub(crate) enum Started {
    Ready(BufResult),
    Waiting(oneshot::Receiver<BufResult>),
}

/// Starts a transfer, on the calling thread if it need not wait there.
pub(crate) fn start(mut transfer: Transfer) -> Started {
    if let Some(result) = transfer.without_waiting() {
        return Started::Ready((result, transfer.buf));
    }
    let system = Arc::clone(transfer.file.handle.system());
    if let Some(e) = system.shared.failure() {
        return Started::Ready(transfer.finish(Err(e)));
    }
    match lane::offer(&system.lanes, transfer) {
        #[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
        Offer::Taken(answer) => Started::Waiting(answer),
        Offer::Block(mut transfer) => {
            let result = transfer.run_blocking();
            Started::Ready(transfer.finish(result))
        }
        Offer::Declined(transfer) => {
            let class = transfer.file.class;
            let (request, answer) = Request::new(transfer);
            system.send(class, request);
            Started::Waiting(answer)
        }
    }
}

impl System {
    #[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
    fn send(&self, class: Class, request: Request) {
        match (&self.foreground, class) {
            (None, _) => self.send_pool(request),
            (Some(_), Class::Log) => self.lane(Lane::Log).push(request),
            #[cfg(feature = "tokio")]
            (Some(ring), Class::Foreground) => {
                if let Err(request) = self.shared.pumps.push(&self.shared, ring, request) {
                    ring.push(request);
                }
            }
            (Some(ring), _) => ring.push(request),
        }
    }

    #[cfg(any(not(target_os = "linux"), seerdb_no_uring))]
    fn send(&self, _class: Class, request: Request) {
        self.send_pool(request);
    }

    fn send_pool(&self, request: Request) {
        if let Err(Job::Transfer(request)) = self.shared.pool.push(Job::Transfer(request)) {
            let text = "the file layer has been shut down, or can start no thread";
            request.finish(Err(io::Error::other(text)));
        }
    }

    /// Runs a blocking call on a thread of ours; drops it when there is none.
    pub(crate) fn start_call(&self, call: Call) {
        if self.shared.is_forked() {
            return drop(call);
        }
        if let Some(call) = lane::run_here(&self.lanes, call) {
            drop(self.shared.pool.push(Job::Call(call)));
        }
    }

    pub(crate) fn lane(&self, lane: Lane) -> &Arc<Mailbox> {
        let [log, flush, compaction] = &self.lanes;
        match lane {
            Lane::Log => log,
            Lane::Flush => flush,
            Lane::Compaction => compaction,
        }
    }

    /// Lets the threads end; `stop` does not wait until the tasks of the lanes rest.
    pub(crate) fn close(&self, stop: bool) {
        // First, so that nothing starts there behind the back of the thread that watches them. In
        // a forked child their locks may be held by threads that it does not have.
        #[cfg(all(target_os = "linux", not(seerdb_no_uring), feature = "tokio"))]
        if !self.shared.is_forked() {
            self.shared.pumps.close();
        }
        for mailbox in self.lanes.iter().chain(&self.foreground) {
            mailbox.close(stop);
        }
        self.shared.pool.close();
        self.shared.timers.end();
    }

    /// Starts a backend.
    pub(crate) fn start(options: &EnvOptions) -> Result<(Arc<Handle>, IoBackend)> {
        let refused = |e| Error::new(Operation::Start, "the file layer", None, e);
        let shared = Shared::new();
        let reason = match choose(options.backend).map_err(refused)? {
            Backend::Portable => "asked for".to_owned(),
            wanted => match uring(&shared) {
                Ok((system, features)) => {
                    return Ok((Handle::new(system), IoBackend::Uring { features }));
                }
                Err(reason) if wanted == Backend::Uring => {
                    return Err(refused(io::Error::new(io::ErrorKind::Unsupported, reason)));
                }
                Err(reason) => {
                    tracing::warn!(reason, "io_uring is not available: using a thread pool");
                    reason
                }
            },
        };
        let system = portable(shared).map_err(refused)?;
        Ok((Handle::new(system), IoBackend::Portable { reason }))
    }
}

impl Handle {
    fn new(system: System) -> Arc<Handle> {
        Arc::new(Handle { system: Arc::new(system) })
    }
}

/// The backend asked for, by the program or by the environment variable.
fn choose(asked: Backend) -> io::Result<Backend> {
    if asked != Backend::Auto {
        return Ok(asked);
    }
    match std::env::var_os("SEERDB_IO") {
        None => Ok(Backend::Auto),
        Some(value) if value == "auto" || value.is_empty() => Ok(Backend::Auto),
        Some(value) if value == "uring" => Ok(Backend::Uring),
        Some(value) if value == "portable" => Ok(Backend::Portable),
        Some(value) => {
            let value = value.to_string_lossy();
            let text = format!("SEERDB_IO is '{value}', not one of auto, uring, portable");
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        }
    }
}

/// The names of the lanes' threads.
pub(crate) const LANES: [(Lane, &str); 3] = [
    (Lane::Log, "seerdb-log"),
    (Lane::Flush, "seerdb-flush"),
    (Lane::Compaction, "seerdb-compact"),
];

fn portable(shared: Arc<Shared>) -> io::Result<System> {
    let lanes = [(); 3].map(|()| Mailbox::new(Bell::Park(OnceLock::new()), true));
    let system = System { lanes, foreground: None, shared };
    for (lane, name) in LANES {
        let mailbox = Arc::clone(system.lane(lane));
        let shared = Arc::clone(&system.shared);
        let started = system.shared.threads.start(name, move || {
            lane::enter(&mailbox, lane, Local::Blocking);
            mailbox.serve(&shared.timers);
            mailbox.end();
            lane::leave();
        });
        if let Err(e) = started {
            system.close(true);
            return Err(e);
        }
    }
    Ok(system)
}

#[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
fn uring(shared: &Arc<Shared>) -> std::result::Result<(System, Vec<&'static str>), String> {
    let (threads, features) = crate::uring::start(shared)?;
    let shared = Arc::clone(shared);
    let system = System { lanes: threads.lanes, foreground: Some(threads.foreground), shared };
    Ok((system, features))
}

#[cfg(any(not(target_os = "linux"), seerdb_no_uring))]
fn uring(_: &Arc<Shared>) -> std::result::Result<(System, Vec<&'static str>), String> {
    Err("io_uring is not compiled in".to_owned())
}
