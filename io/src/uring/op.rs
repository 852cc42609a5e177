//! The operations that are in the kernel's hands.
//!
//! Invariants:
//! 1. A slot owns the buffer and a handle to the file from before its SQE is pushed until its CQE
//!    was seen; futures own neither.
//! 2. Every SQE has a number of its own: the slot and a generation. A CQE with any other number is
//!    the kernel's or our own corruption, and is never taken for a result.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::{opcode, squeue, types};
use slab::Slab;

use crate::transfer::{Kind, Next, Request};

/// The operations in flight on one ring.
#[derive(Default)]
pub(super) struct InFlight {
    slots: Slab<Slot>,
    generation: u32,
}

struct Slot {
    request: Request,
    /// The generation of the SQE in flight.
    generation: u32,
}

/// What a CQE means.
pub(super) enum Outcome {
    /// Submit the slot again.
    Again(usize),
    Finished(Request, io::Result<usize>),
    /// Let a blocking call do it.
    Detour(Request),
}

impl InFlight {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn insert(&mut self, request: Request) -> usize {
        self.slots.insert(Slot { request, generation: 0 })
    }

    /// The SQE for the next chunk of a slot. The memory it names stays valid as long as the slot.
    pub(super) fn entry(&mut self, key: usize) -> squeue::Entry {
        self.generation = self.generation.wrapping_add(1);
        let slot = self.slots.get_mut(key).expect("the slot was inserted and has no result yet");
        slot.generation = self.generation;
        let number = number(key, self.generation);
        let transfer = &mut slot.request.transfer;
        let fd = types::Fd(transfer.file.file.as_raw_fd());
        let position = transfer.position();
        let chunk = transfer.progress.chunk();
        let bytes = transfer.buf.get_mut(chunk).expect("a chunk lies inside the buffer");
        let len = u32::try_from(bytes.len()).expect("a chunk is at most 1 GiB");
        let entry = match transfer.kind {
            Kind::Read => opcode::Read::new(fd, bytes.as_mut_ptr(), len).offset(position).build(),
            Kind::Write => opcode::Write::new(fd, bytes.as_ptr(), len).offset(position).build(),
            Kind::WriteDurable => {
                let dsync = rustix::io::ReadWriteFlags::DSYNC.bits().cast_signed();
                let write = opcode::Write::new(fd, bytes.as_ptr(), len).offset(position);
                write.rw_flags(dsync).build()
            }
            Kind::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        };
        entry.user_data(number)
    }

    /// Takes in a CQE.
    pub(super) fn complete(&mut self, user_data: u64, res: i32) -> Result<Outcome, String> {
        let unknown = || format!("a completion for an unknown operation ({user_data:#x})");
        let key = usize::try_from(user_data & u64::from(u32::MAX)).map_err(|_| unknown())?;
        let slot = self.slots.get_mut(key).ok_or_else(unknown)?;
        if number(key, slot.generation) != user_data {
            return Err(unknown());
        }
        let result = usize::try_from(res).map_err(|_| res.wrapping_neg());
        let outcome = match slot.request.transfer.progress.advance(result) {
            Next::Again => return Ok(Outcome::Again(key)),
            Next::Impossible => return Err(format!("a completion moved {res} bytes, too many")),
            Next::Detour => None,
            Next::Done(result) => Some(result),
        };
        let request = self.slots.remove(key).request;
        Ok(match outcome {
            None => Outcome::Detour(request),
            Some(result) => Outcome::Finished(request, result),
        })
    }

    /// Gives up all operations; the kernel may write into their buffers for ever.
    pub(super) fn abandon(&mut self, reason: &str) {
        for slot in self.slots.drain() {
            slot.request.abandon(io::Error::other(format!("the ring has failed: {reason}")));
        }
    }
}

fn number(key: usize, generation: u32) -> u64 {
    u64::from(generation) << 32 | key as u64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::channel::oneshot::Receiver;
    use futures::executor::block_on;

    use super::*;
    use crate::transfer::Transfer;
    use crate::{AlignedBuf, Backend, BufResult, Env, EnvOptions, OpenOptions};

    fn request(env: &Env) -> (Request, Receiver<BufResult>) {
        let options = OpenOptions::default();
        let file = block_on(env.fs().open("/proc/self/exe", options)).unwrap();
        let buf = AlignedBuf::zeroed(100);
        Request::new(Transfer::new(Kind::Read, Arc::clone(file.system().unwrap()), buf, 0))
    }

    fn env() -> Env {
        Env::new(&EnvOptions { backend: Backend::Portable }).unwrap()
    }

    #[test]
    fn a_short_result_is_submitted_again_under_another_number() {
        let (env, mut ops) = (env(), InFlight::default());
        let (request, answer) = request(&env);
        let key = ops.insert(request);
        let first = ops.entry(key).get_user_data();
        assert!(matches!(ops.complete(first, 60), Ok(Outcome::Again(k)) if k == key));
        let second = ops.entry(key).get_user_data();
        assert_ne!(first, second);
        let Ok(Outcome::Finished(request, result)) = ops.complete(second, 40) else {
            panic!("not finished");
        };
        request.finish(result);
        assert_eq!(block_on(answer).unwrap().0.unwrap(), 100);
        assert_eq!(ops.len(), 0);
    }

    #[test]
    fn a_completion_that_comes_twice_is_the_end() {
        let (env, mut ops) = (env(), InFlight::default());
        let key = ops.insert(request(&env).0);
        let first = ops.entry(key).get_user_data();
        assert!(matches!(ops.complete(first, 60), Ok(Outcome::Again(_))));
        ops.entry(key);
        assert!(ops.complete(first, 60).is_err(), "its number has passed");
        let second = ops.entry(key).get_user_data();
        assert!(matches!(ops.complete(second, 40), Ok(Outcome::Finished(..))));
        assert!(ops.complete(second, 40).is_err(), "its slot is empty");
        let again = ops.insert(request(&env).0);
        assert_eq!(again, key);
        ops.entry(again);
        assert!(ops.complete(second, 40).is_err(), "its slot is another's");
    }

    #[test]
    fn unknown_and_impossible_completions_are_the_end() {
        let (env, mut ops) = (env(), InFlight::default());
        assert!(ops.complete(0, 1).is_err());
        let key = ops.insert(request(&env).0);
        let number = ops.entry(key).get_user_data();
        assert!(ops.complete(number + 1, 1).is_err());
        assert!(ops.complete(number, 101).is_err(), "more than was asked for");
        ops.abandon("test");
        assert_eq!(ops.len(), 0);
    }

    #[test]
    fn errors_of_the_kernel_arrive_as_such() {
        let (env, mut ops) = (env(), InFlight::default());
        for (res, detour) in [(-5, false), (-14, true), (-125, true), (i32::MIN, false)] {
            let key = ops.insert(request(&env).0);
            let number = ops.entry(key).get_user_data();
            match ops.complete(number, res).unwrap() {
                Outcome::Finished(_, result) => assert!(!detour && result.is_err()),
                Outcome::Detour(_) => assert!(detour),
                Outcome::Again(_) => panic!("{res} is final"),
            }
        }
    }
}
