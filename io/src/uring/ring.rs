//! One ring: set up, fed and reaped by the thread that made it.
//!
//! Invariants:
//! 1. Only the thread that made a ring enters it: the type is not `Send`.
//! 2. At most [`IN_FLIGHT_MAX`] operations are in flight. Each SQE in the queue belongs to one of
//!    them, or is the one poll of the bell; so neither queue can run full.
//! 3. An SQE that was pushed may have been consumed, whatever `enter` returned: only its CQE ends
//!    the life of its slot.
//! 4. Nothing is answered before the CQ is empty: what the answer wakes may push again.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, cqueue, opcode, squeue};
use rustix::io::Errno;

use super::op::{InFlight, Outcome};
use crate::buf::AlignedBuf;
use crate::transfer::Request;

/// Entries of the submission queue; the completion queue has twice as many.
const ENTRIES: u32 = 256;

/// Half of what a usual block queue takes: beyond its size, submitting blocks in the kernel.
pub(super) const IN_FLIGHT_MAX: usize = 128;

/// Operations submitted by one system call: submitting direct reads costs microseconds each, and
/// the results of earlier ones should not wait for all of that.
pub(super) const BATCH_MAX: usize = 32;

/// The number of the poll of the bell.
const BELL: u64 = u64::MAX;
/// The numbers of the self-test.
const TEST_NOP: u64 = u64::MAX - 1;
const TEST_READ: u64 = u64::MAX - 2;

/// A ring and what is in flight on it.
pub(super) struct Ring {
    ring: IoUring,
    ops: InFlight,
    bell: RawFd,
    no_iowait: bool,
    cqes: Vec<(u64, i32, u32)>,
    finished: Vec<(Request, io::Result<usize>)>,
    detours: Vec<Request>,
    /// Invariant 1.
    _not_send: PhantomData<*const ()>,
}

impl Ring {
    /// Sets up a ring that also wakes when `bell`, an eventfd that outlives it, is written to.
    pub(super) fn new(bell: BorrowedFd<'_>) -> Result<(Ring, Vec<&'static str>), String> {
        let (ring, mut features) = set_up()?;
        check_opcodes(&ring)?;
        let no_iowait = ring.params().is_feature_no_iowait();
        if no_iowait {
            features.push("NO_IOWAIT");
        }
        let mut ring = Ring {
            ring,
            ops: InFlight::default(),
            bell: bell.as_raw_fd(),
            no_iowait,
            cqes: Vec::new(),
            finished: Vec::new(),
            detours: Vec::new(),
            _not_send: PhantomData,
        };
        ring.poll_bell()?;
        Ok((ring, features))
    }

    pub(super) fn in_flight(&self) -> usize {
        self.ops.len()
    }

    pub(super) fn has_room(&self) -> bool {
        self.ops.len() < IN_FLIGHT_MAX
    }

    /// Queues a request for the next [`Ring::enter`].
    pub(super) fn submit(&mut self, request: Request) -> Result<(), String> {
        debug_assert!(self.has_room(), "the caller looked for room");
        #[cfg(test)]
        if request.transfer.file.path.ends_with("forged") {
            self.forge()?;
        }
        let key = self.ops.insert(request);
        self.push_slot(key)
    }

    fn push_slot(&mut self, key: usize) -> Result<(), String> {
        let entry = self.ops.entry(key);
        // SAFETY: the slot owns buffer and file until its CQE (op.rs, invariant 1), or leaks them.
        unsafe { self.push(&entry) }
    }

    /// Has the kernel complete an operation that nobody started.
    #[cfg(test)]
    fn forge(&mut self) -> Result<(), String> {
        // SAFETY: a no-op names no memory and no file.
        unsafe { self.push(&opcode::Nop::new().build().user_data(0x5EED << 32 | 3)) }
    }

    fn poll_bell(&mut self) -> Result<(), String> {
        let readable = u32::from(rustix::event::PollFlags::IN.bits());
        let poll = opcode::PollAdd::new(Fd(self.bell), readable).multi(true).build();
        // SAFETY: the entry names no memory, and a descriptor that outlives the ring.
        unsafe { self.push(&poll.user_data(BELL)) }
    }

    /// Puts an entry into the submission queue.
    ///
    /// # Safety
    ///
    /// The memory and the descriptor it names stay valid until its CQE was seen.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> Result<(), String> {
        let mut queue = self.ring.submission();
        // SAFETY: promised by the caller.
        let pushed = unsafe { queue.push(entry) };
        pushed.map_err(|_| "the submission queue is full beyond its limit".to_owned())
    }

    /// Submits what is queued and, if `wait`, sleeps until a completion, the bell or the timeout.
    pub(super) fn enter(&mut self, wait: bool, timeout: Option<Duration>) -> Result<(), String> {
        let queued = {
            let mut queue = self.ring.submission();
            queue.sync();
            queue.len()
        };
        if queued == 0 && !wait && self.ops.len() == 0 {
            return Ok(());
        }
        let queued = u32::try_from(queued).map_err(|e| e.to_string())?;
        let time = timeout.map(Timespec::from);
        let args = match &time {
            Some(time) if wait => SubmitArgs::new().timespec(time),
            _ => SubmitArgs::new(),
        };
        let mut flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if self.no_iowait {
            flags |= EnterFlags::NO_IOWAIT;
        }
        let submitter = self.ring.submitter();
        // SAFETY: `args` is the struct that EXT_ARG announces, and it and the time live on the
        // stack until the call returns.
        let entered =
            unsafe { submitter.enter(queued, u32::from(wait), flags.bits(), Some(&args)) };
        let Err(e) = entered else { return Ok(()) };
        match Errno::from_io_error(&e) {
            // What was queued stays queued, and the next call submits it.
            Some(Errno::TIME | Errno::INTR | Errno::BUSY) => Ok(()),
            Some(Errno::AGAIN) => {
                // The kernel is out of memory for requests: give it a moment.
                std::thread::park_timeout(Duration::from_millis(1));
                Ok(())
            }
            _ => Err(format!("io_uring_enter: {e}")),
        }
    }

    /// Takes in all completions, and answers. Operations to be done by blocking calls go to
    /// `detour`.
    pub(super) fn reap(&mut self, detour: impl Fn(Request)) -> Result<(), String> {
        loop {
            let mut cqes = std::mem::take(&mut self.cqes);
            let queue = self.ring.completion();
            cqes.extend(queue.map(|cqe| (cqe.user_data(), cqe.result(), cqe.flags())));
            let empty = cqes.is_empty();
            for (number, res, flags) in cqes.drain(..) {
                self.complete(number, res, flags)?;
            }
            self.cqes = cqes;
            if empty {
                break;
            }
        }
        for (request, result) in self.finished.drain(..) {
            request.finish(result);
        }
        for request in self.detours.drain(..) {
            detour(request);
        }
        Ok(())
    }

    fn complete(&mut self, number: u64, res: i32, flags: u32) -> Result<(), String> {
        if number == BELL {
            if res < 0 {
                let e = io::Error::from_raw_os_error(res.wrapping_neg());
                return Err(format!("the poll of the bell: {e}"));
            }
            return if cqueue::more(flags) { Ok(()) } else { self.poll_bell() };
        }
        match self.ops.complete(number, res)? {
            Outcome::Again(key) => self.push_slot(key)?,
            Outcome::Finished(request, result) => self.finished.push((request, result)),
            Outcome::Detour(request) => self.detours.push(request),
        }
        Ok(())
    }

    /// Gives up the ring: every operation fails, and what the kernel may still use is leaked.
    pub(super) fn abandon(mut self, reason: &str) {
        for (request, result) in self.finished.drain(..) {
            request.finish(result);
        }
        for request in self.detours.drain(..) {
            request.finish(Err(io::Error::other(format!("the ring has failed: {reason}"))));
        }
        self.ops.abandon(reason);
        // Its memory may still be written to as well.
        std::mem::forget(self);
    }

    /// Checks that operations complete, that bytes arrive, and that the bell wakes: a sandbox may
    /// offer a ring that does none of it.
    pub(super) fn self_test(&mut self, ring_bell: impl Fn()) -> Result<(), String> {
        // SAFETY: a no-op names no memory and no file.
        unsafe { self.push(&opcode::Nop::new().build().user_data(TEST_NOP)) }?;
        self.test_wait(TEST_NOP).map_err(|e| format!("self-test, no-op: {e}"))?;
        ring_bell();
        self.test_wait(BELL).map_err(|e| format!("self-test, bell: {e}"))?;
        self.test_read().map_err(|e| format!("self-test, read: {e}"))
    }

    /// Reads the first bytes of a file that every process has.
    fn test_read(&mut self) -> Result<(), String> {
        let path = std::path::Path::new("/proc/self/exe");
        let Ok((file, _)) = crate::sys::open(path, crate::OpenOptions::default()) else {
            // Without /proc there is nothing to compare with.
            return Ok(());
        };
        let mut expected = [0u8; 64];
        let n = crate::sys::read_once(&file, &mut expected, 0).map_err(|e| e.to_string())?;
        let mut buf = AlignedBuf::zeroed(expected.len());
        let read = opcode::Read::new(Fd(file.as_raw_fd()), buf.as_mut_ptr(), 64).build();
        // SAFETY: buffer and file live until the result was seen, and are leaked if it was not.
        unsafe { self.push(&read.user_data(TEST_READ)) }?;
        match self.test_wait(TEST_READ) {
            Ok(res) if usize::try_from(res) == Ok(n) && buf[..] == expected => Ok(()),
            Ok(res) => Err(format!("got {res} bytes, or wrong ones, instead of {n}")),
            Err(e) => {
                std::mem::forget((buf, file));
                Err(e)
            }
        }
    }

    fn test_wait(&mut self, wanted: u64) -> Result<i32, String> {
        for _ in 0..20 {
            self.enter(true, Some(Duration::from_millis(100)))?;
            let cqes: Vec<_> = self.ring.completion().collect();
            let mut found = None;
            for cqe in cqes {
                if cqe.user_data() == BELL {
                    self.complete(BELL, cqe.result(), cqe.flags())?;
                }
                if cqe.user_data() == wanted {
                    found = Some(cqe.result());
                }
            }
            match found {
                Some(res) if res < 0 => {
                    return Err(io::Error::from_raw_os_error(res.wrapping_neg()).to_string());
                }
                Some(res) => return Ok(res),
                None => {}
            }
        }
        Err("no completion within 2 s".to_owned())
    }
}

/// Sets up a ring with the best flags that the kernel knows.
fn set_up() -> Result<(IoUring, Vec<&'static str>), String> {
    let refused = |e: io::Error| match Errno::from_io_error(&e) {
        Some(Errno::PERM | Errno::ACCESS) => {
            format!("io_uring_setup: {e} (a seccomp profile, or kernel.io_uring_disabled)")
        }
        Some(Errno::NOMEM) => format!("io_uring_setup: {e} (see RLIMIT_MEMLOCK)"),
        _ => format!("io_uring_setup: {e}"),
    };
    let mut defer = IoUring::builder();
    defer.setup_single_issuer().setup_defer_taskrun().setup_submit_all().dontfork();
    let mut coop = IoUring::builder();
    coop.setup_coop_taskrun().setup_submit_all().dontfork();
    let mut plain = IoUring::builder();
    plain.dontfork();
    let ladder = [
        (defer, vec!["SINGLE_ISSUER", "DEFER_TASKRUN", "SUBMIT_ALL"]),
        (coop, vec!["COOP_TASKRUN", "SUBMIT_ALL"]),
        (plain, Vec::new()),
    ];
    for (builder, features) in ladder {
        match builder.build(ENTRIES) {
            Ok(ring) => {
                let params = ring.params();
                if !params.is_feature_nodrop() || !params.is_feature_ext_arg() {
                    return Err("the kernel is too old: it lacks NODROP or EXT_ARG".to_owned());
                }
                return Ok((ring, features));
            }
            Err(e) if Errno::from_io_error(&e) == Some(Errno::INVAL) => {}
            Err(e) => return Err(refused(e)),
        }
    }
    Err(refused(Errno::INVAL.into()))
}

fn check_opcodes(ring: &IoUring) -> Result<(), String> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|e| format!("io_uring probe: {e}"))?;
    let needed = [
        opcode::Nop::CODE,
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Fsync::CODE,
        opcode::PollAdd::CODE,
    ];
    if needed.into_iter().all(|code| probe.is_supported(code)) {
        return Ok(());
    }
    Err("the kernel lacks an operation of io_uring that is needed".to_owned())
}
