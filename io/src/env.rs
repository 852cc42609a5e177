//! The environment: everything an engine uses that is not deterministic, injected once at open.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::channel::oneshot;
use parking_lot::Mutex;

use crate::error::Result;
use crate::fs::Fs;
use crate::system::{Handle, System};
use crate::timer::Time;

pub use crate::timer::Sleep;

/// Which backend an [`Env`] shall use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// io_uring where the kernel grants it, else the portable backend, with the reason kept.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// A bounded pool of threads with positioned reads and writes.
    Portable,
}

/// The backend in use, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum IoBackend {
    /// io_uring, with what the kernel granted.
    Uring {
        /// Names of the ring features and flags in use, for a person to read.
        features: Vec<&'static str>,
    },
    /// The thread pool.
    Portable {
        /// Why not io_uring: asked for, not compiled in, or what the kernel said.
        reason: String,
    },
    /// A simulated machine.
    #[cfg(feature = "sim")]
    Sim {
        /// The seed from which all its chance comes.
        seed: u64,
    },
}

impl std::fmt::Display for IoBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            IoBackend::Uring { features } => write!(f, "io_uring ({})", features.join(", ")),
            IoBackend::Portable { reason } => write!(f, "portable ({reason})"),
            #[cfg(feature = "sim")]
            IoBackend::Sim { seed } => write!(f, "simulated (seed {seed})"),
        }
    }
}

/// How to build an [`Env`].
#[derive(Debug, Clone, Default)]
pub struct EnvOptions {
    /// The backend; the environment variable `SEERDB_IO` (`auto`, `uring`, `portable`) overrides
    /// [`Backend::Auto`].
    pub backend: Backend,
}

/// Files, clock, randomness and tasks. A clone is another handle to the same environment; when the
/// last handle and the last file are dropped, its threads end by themselves.
#[derive(Clone)]
pub struct Env {
    inner: Arc<Inner>,
}

struct Inner {
    keeper: Keeper,
    fs: Fs,
    clock: Clock,
    rng: Rng,
    spawner: Spawner,
    backend: IoBackend,
}

/// Keeps the backend of an environment alive.
enum Keeper {
    System(Arc<Handle>),
    #[cfg(feature = "sim")]
    Sim(Arc<dyn SimEnv>),
}

/// The environment of a process on a simulated machine.
#[cfg(feature = "sim")]
pub(crate) trait SimEnv: Send + Sync {
    fn in_flight(&self) -> usize;
    fn shutdown(&self) -> oneshot::Receiver<()>;
}

/// The lanes of a process on a simulated machine.
#[cfg(feature = "sim")]
pub(crate) trait SimLanes: Send + Sync {
    fn spawn(&self, name: &'static str, task: futures::future::BoxFuture<'static, ()>);
}

/// What a simulated machine gives a process.
#[cfg(feature = "sim")]
pub(crate) struct Parts {
    pub(crate) keeper: Arc<dyn SimEnv>,
    pub(crate) fs: Fs,
    pub(crate) clock: Arc<dyn crate::timer::SimClock>,
    pub(crate) lanes: Arc<dyn SimLanes>,
    /// The seed of the machine, and that of this process's numbers.
    pub(crate) seeds: (u64, u64),
}

impl Env {
    #[cfg(feature = "sim")]
    pub(crate) fn simulated(parts: Parts) -> Env {
        let inner = Inner {
            keeper: Keeper::Sim(parts.keeper),
            fs: parts.fs,
            clock: Clock { time: Time::Sim(parts.clock) },
            rng: Rng { state: Arc::new(Mutex::new(parts.seeds.1)) },
            spawner: Spawner { lanes: Lanes::Sim(parts.lanes) },
            backend: IoBackend::Sim { seed: parts.seeds.0 },
        };
        Env { inner: Arc::new(inner) }
    }

    /// Starts the backend that `options` asks for.
    ///
    /// # Errors
    ///
    /// When [`Backend::Uring`] is asked for and refused, or when a thread cannot be started.
    pub fn new(options: &EnvOptions) -> Result<Env> {
        let (handle, backend) = System::start(options)?;
        let system = handle.system();
        let inner = Inner {
            fs: Fs::new(Arc::clone(&handle)),
            clock: Clock { time: Time::System(Arc::clone(&system.shared.timers)) },
            rng: Rng { state: Arc::new(Mutex::new(seed())) },
            spawner: Spawner { lanes: Lanes::System(Arc::clone(system)) },
            backend,
            keeper: Keeper::System(handle),
        };
        Ok(Env { inner: Arc::new(inner) })
    }

    /// The file system.
    pub fn fs(&self) -> &Fs {
        &self.inner.fs
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// The source of random numbers.
    pub fn rng(&self) -> &Rng {
        &self.inner.rng
    }

    /// Starts background tasks.
    pub fn spawner(&self) -> &Spawner {
        &self.inner.spawner
    }

    /// Which backend serves, and why.
    pub fn io_backend(&self) -> &IoBackend {
        &self.inner.backend
    }

    /// The number of reads, writes and syncs that were started and have not ended, whether or not
    /// somebody still waits for them.
    pub fn in_flight(&self) -> usize {
        match &self.inner.keeper {
            Keeper::System(handle) => handle.system().shared.in_flight(),
            #[cfg(feature = "sim")]
            Keeper::Sim(sim) => sim.in_flight(),
        }
    }

    /// Whether this process was forked from the one that made the environment: then nothing can be
    /// read or written with it, and nothing is waited for by anybody.
    pub fn is_forked(&self) -> bool {
        match &self.inner.keeper {
            Keeper::System(handle) => handle.system().shared.is_forked(),
            #[cfg(feature = "sim")]
            Keeper::Sim(_) => false,
        }
    }

    /// Ends the threads of the environment, whatever other handles there are, and resolves when
    /// they have ended: the operations in flight are waited for, tasks that still run on a lane are
    /// dropped at their next pause, and what is polled first from now on fails unless
    /// the page cache can answer it.
    ///
    /// It takes effect at once; the future only waits. A task on a lane of this environment that
    /// awaits it is among those dropped. Sleeps that are pending elsewhere are served to their end
    /// and not waited for.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing but that nobody waits.
    pub fn shutdown(self) -> Shutdown {
        match &self.inner.keeper {
            Keeper::System(handle) => {
                let system = handle.system();
                let ended = system.shared.threads.all_ended();
                system.close(true);
                Shutdown { ended }
            }
            #[cfg(feature = "sim")]
            Keeper::Sim(sim) => Shutdown { ended: sim.shutdown() },
        }
    }
}

/// The future of [`Env::shutdown`].
#[must_use = "the shutdown goes on by itself, but nobody waits for it"]
pub struct Shutdown {
    ended: oneshot::Receiver<()>,
}

impl Future for Shutdown {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // A sender that was dropped says the same as one that sent.
        Pin::new(&mut self.ended).poll(cx).map(|_| ())
    }
}

/// The standard library's hasher is keyed by the system's random numbers.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// A thread of the engine's own on which background tasks run, one task at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// The log writer; owns the ring of the log files.
    Log,
    /// Memtable flushes and file deletion.
    Flush,
    /// Compaction.
    Compaction,
}

/// Starts tasks on the lanes.
#[derive(Clone)]
pub struct Spawner {
    lanes: Lanes,
}

/// Who runs the tasks.
#[derive(Clone)]
enum Lanes {
    System(Arc<System>),
    #[cfg(feature = "sim")]
    Sim(Arc<dyn SimLanes>),
}

impl Spawner {
    /// Runs `future` on `lane`. Dropping the returned [`Task`] detaches it.
    pub fn spawn<F>(&self, lane: Lane, name: &'static str, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match &self.lanes {
            Lanes::System(system) => Task { done: system.lane(lane).spawn(name, future) },
            #[cfg(feature = "sim")]
            Lanes::Sim(lanes) => {
                let (task, done) = contained(name, future);
                lanes.spawn(name, Box::pin(task));
                Task { done }
            }
        }
    }
}

/// The background task panicked; the message is the panic's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked(pub String);

impl std::fmt::Display for Panicked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a background task panicked: {}", self.0)
    }
}

impl std::error::Error for Panicked {}

/// The text of a panic.
pub(crate) fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// The task whose panic ends with it; the receiver gets its output, or the message of its panic.
pub(crate) fn contained<F: Future>(
    name: &'static str,
    future: F,
) -> (impl Future<Output = ()>, oneshot::Receiver<std::result::Result<F::Output, Panicked>>) {
    let (reply, done) = oneshot::channel();
    let task = async move {
        let result = AssertUnwindSafe(future).catch_unwind().await.map_err(|panic| {
            let text = message(&*panic).to_owned();
            tracing::error!(task = name, panic = text, "a background task panicked");
            Panicked(text)
        });
        reply.send(result).ok();
    };
    (task, done)
}

/// A running task; resolves to its output, or to [`Panicked`].
pub struct Task<T> {
    pub(crate) done: oneshot::Receiver<std::result::Result<T, Panicked>>,
}

impl<T> Future for Task<T> {
    type Output = std::result::Result<T, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.done)
            .poll(cx)
            .map(|r| r.unwrap_or_else(|_| Err(Panicked("its lane has ended".into()))))
    }
}

/// Monotonic and wall time, and timers.
#[derive(Clone)]
pub struct Clock {
    time: Time,
}

impl Clock {
    /// Time since an arbitrary fixed point; never goes back.
    pub fn now(&self) -> Duration {
        self.time.now()
    }

    /// Time since 1970, by the system's wall clock; may jump both ways.
    pub fn unix_time(&self) -> Duration {
        self.time.unix_time()
    }

    /// Resolves after `duration`; any executor may poll it.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.time.sleep(duration)
    }
}

/// Random numbers for salts and jitter; not for cryptography.
#[derive(Clone)]
pub struct Rng {
    pub(crate) state: Arc<Mutex<u64>>,
}

impl Rng {
    /// The next number.
    pub fn next_u64(&self) -> u64 {
        let mut state = self.state.lock();
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
