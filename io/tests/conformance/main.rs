//! One suite for every backend: what the contract of the file layer says, backend by backend.
//!
//! Each body is a function of a [`Bed`]; the macro makes one test of it for each backend. The ring
//! is skipped, with a message, where the kernel refuses it. Tests that change the process run in a
//! child: the test binary itself, started with the name of the test and `SEERDB_IO_CHILD`.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests look at the layer from outside, and a panic is how they fail"
)]
#![cfg(unix)]

mod cancel;
mod executors;
mod files;
mod lanes;
mod names;
#[cfg(target_os = "linux")]
mod refusal;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use seerdb_io::{
    AlignedBuf, Backend, Class, Env, EnvOptions, File, IoBackend, OpenOptions, Result,
};

/// A backend and a directory of its own.
pub(crate) struct Bed {
    pub(crate) env: Env,
    pub(crate) dir: tempfile::TempDir,
}

impl Bed {
    pub(crate) fn new(backend: Backend) -> Option<Bed> {
        match Env::new(&EnvOptions { backend }) {
            Ok(env) => Some(Bed { env, dir: tempfile::tempdir().unwrap() }),
            Err(e) if backend == Backend::Uring => {
                eprintln!("skipped: {e}");
                None
            }
            Err(e) => panic!("{e}"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn open(&self, name: &str, options: OpenOptions) -> Result<File> {
        block_on(self.env.fs().open(self.path(name), options))
    }

    /// A new file with these bytes, none of them in the page cache if that can be had.
    pub(crate) fn file(&self, name: &str, bytes: &[u8], options: OpenOptions) -> File {
        std::fs::write(self.path(name), bytes).unwrap();
        let file = self.open(name, options).unwrap();
        self.evict(name);
        file
    }

    pub(crate) fn evict(&self, name: &str) {
        let file = std::fs::File::open(self.path(name)).unwrap();
        file.sync_all().unwrap();
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }

    pub(crate) fn is_uring(&self) -> bool {
        matches!(self.env.io_backend(), IoBackend::Uring { .. })
    }

    /// Waits until nothing is in flight.
    pub(crate) fn settle(&self) {
        eventually("operations are in flight for ever", || self.env.in_flight() == 0);
    }
}

/// Waits until `reached`; a minute is for ever.
pub(crate) fn eventually(otherwise: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < Duration::from_secs(60), "{otherwise}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes that differ from block to block and from seed to seed.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub(crate) fn buf(bytes: &[u8]) -> AlignedBuf {
    let mut buf = AlignedBuf::with_capacity(bytes.len());
    buf.extend_from_slice(bytes);
    buf
}

/// Reads and checks the count; the bytes read.
pub(crate) fn read(file: &File, len: usize, offset: u64) -> Vec<u8> {
    let (result, buf) = block_on(file.read_at(AlignedBuf::zeroed(len), offset));
    buf[..result.unwrap()].to_vec()
}

pub(crate) const CLASSES: [Class; 3] = [Class::Foreground, Class::Log, Class::Background];

pub(crate) fn reader(class: Class) -> OpenOptions {
    OpenOptions { class, ..OpenOptions::default() }
}

pub(crate) fn creator(class: Class) -> OpenOptions {
    OpenOptions { write: true, create_new: true, class, ..OpenOptions::default() }
}

pub(crate) fn writer(class: Class) -> OpenOptions {
    OpenOptions { write: true, class, ..OpenOptions::default() }
}

pub(crate) fn direct(options: OpenOptions) -> OpenOptions {
    OpenOptions { direct: true, ..options }
}

/// Makes a test of each function for each backend.
#[macro_export]
macro_rules! for_each_backend {
    ($($name:ident),* $(,)?) => {
        mod portable {
            $(#[test]
            fn $name() {
                super::$name(&$crate::Bed::new(seerdb_io::Backend::Portable).unwrap());
            })*
        }
        mod uring {
            $(#[test]
            fn $name() {
                if let Some(bed) = $crate::Bed::new(seerdb_io::Backend::Uring) {
                    super::$name(&bed);
                }
            })*
        }
    };
}
