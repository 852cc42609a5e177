//! One suite for every backend: what the contract of the file layer says, backend by backend.
//!
//! Each body is a function of a [`Bed`]; the macro makes one test of it for each backend, and with
//! feature `sim` for the simulated machine: there with several seeds, and but for the bodies that
//! name a reason why they cannot run on it. The ring is skipped, with a message, where the kernel
//! refuses it. Tests that change the process run in a
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

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use seerdb_io::{
    AlignedBuf, Backend, Class, Env, EnvOptions, File, IoBackend, OpenOptions, Result,
};

/// Where a test keeps its files.
pub(crate) enum Place {
    Real(tempfile::TempDir),
    #[cfg(feature = "sim")]
    Simulated,
}

impl Place {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Place::Real(dir) => dir.path(),
            #[cfg(feature = "sim")]
            Place::Simulated => Path::new("/bed"),
        }
    }
}

/// A backend and a directory of its own.
pub(crate) struct Bed {
    pub(crate) env: Env,
    pub(crate) dir: Place,
}

/// The machine of the test that runs on this thread, if it is a simulated one.
#[cfg(feature = "sim")]
mod machine {
    use std::cell::RefCell;
    use std::rc::Rc;

    use seerdb_io::sim::{Options, Sim};
    use seerdb_io::{Env, IoBackend};

    thread_local! {
        static MACHINE: RefCell<Option<(Rc<Sim>, Env)>> = const { RefCell::new(None) };
    }

    pub(crate) fn current() -> Option<(Rc<Sim>, Env)> {
        MACHINE.with_borrow(Option::clone)
    }

    /// Runs `body` on machines of several seeds.
    pub(crate) fn each(body: impl Fn(&crate::Bed)) {
        for seed in 0..3 {
            let sim = Rc::new(Sim::new(seed, Options::default()));
            sim.edit_disk(|disk| disk.write_file("/bed/seed", b"")).unwrap();
            sim.edit_disk(|disk| disk.remove("/bed/seed")).unwrap();
            let env = sim.boot();
            assert_eq!(*env.io_backend(), IoBackend::Sim { seed });
            MACHINE.set(Some((Rc::clone(&sim), sim.another_env())));
            body(&crate::Bed { env, dir: crate::Place::Simulated });
            drop(MACHINE.take());
        }
    }
}

#[cfg(not(feature = "sim"))]
mod machine {
    pub(crate) fn current() -> Option<(std::rc::Rc<Never>, seerdb_io::Env)> {
        None
    }

    pub(crate) enum Never {}
}

/// Runs a future to its end, on the machine of this test.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    match machine::current() {
        #[cfg(feature = "sim")]
        Some((sim, _)) => sim.run(future).unwrap(),
        #[cfg(not(feature = "sim"))]
        Some((never, _)) => match *never {},
        None => futures::executor::block_on(future),
    }
}

impl Bed {
    pub(crate) fn new(backend: Backend) -> Option<Bed> {
        match Env::new(&EnvOptions { backend }) {
            Ok(env) => Some(Bed { env, dir: Place::Real(tempfile::tempdir().unwrap()) }),
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
        self.plant(name, bytes);
        let file = self.open(name, options).unwrap();
        self.evict(name);
        file
    }

    /// Makes a file behind the back of the environment.
    pub(crate) fn plant(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        match machine::current() {
            #[cfg(feature = "sim")]
            Some((sim, _)) => sim.edit_disk(|disk| disk.write_file(path, bytes)).unwrap(),
            #[cfg(not(feature = "sim"))]
            Some((never, _)) => match *never {},
            None => std::fs::write(path, bytes).unwrap(),
        }
    }

    /// The bytes of a file, read behind the back of the environment.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let path = self.path(name);
        match machine::current() {
            #[cfg(feature = "sim")]
            Some((sim, _)) => sim.disk().visible_bytes(path).unwrap(),
            #[cfg(not(feature = "sim"))]
            Some((never, _)) => match *never {},
            None => std::fs::read(path).unwrap(),
        }
    }

    /// One more environment with the same backend, and on the same machine.
    pub(crate) fn another(&self) -> Env {
        match machine::current() {
            #[cfg(feature = "sim")]
            Some((sim, _)) => sim.another_env(),
            #[cfg(not(feature = "sim"))]
            Some((never, _)) => match *never {},
            None => {
                let backend = if self.is_uring() { Backend::Uring } else { Backend::Portable };
                Env::new(&EnvOptions { backend }).unwrap()
            }
        }
    }

    /// The number of files below the directory that this process has open.
    pub(crate) fn open_files(&self) -> usize {
        match machine::current() {
            #[cfg(feature = "sim")]
            Some((sim, _)) => sim.open_files(),
            #[cfg(not(feature = "sim"))]
            Some((never, _)) => match *never {},
            None => {
                let Ok(fds) = std::fs::read_dir("/proc/self/fd") else { return 0 };
                fds.filter(|fd| {
                    let path = std::fs::read_link(fd.as_ref().unwrap().path());
                    path.is_ok_and(|path| path.starts_with(self.dir.path()))
                })
                .count()
            }
        }
    }

    pub(crate) fn evict(&self, name: &str) {
        if machine::current().is_some() {
            return;
        }
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

/// Lets a little time pass, virtual time on a simulated machine.
pub(crate) fn pause(ms: u64) {
    match machine::current() {
        Some((_, env)) => block_on(env.clock().sleep(Duration::from_millis(ms))),
        None => std::thread::sleep(Duration::from_millis(ms)),
    }
}

/// Waits until `reached`; a minute is for ever.
pub(crate) fn eventually(otherwise: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < Duration::from_secs(60), "{otherwise}");
        pause(1);
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

/// Makes a test of each function for each backend. Those that cannot run on a simulated machine
/// say why.
#[macro_export]
macro_rules! for_each_backend {
    (
        $($name:ident),* $(,)?
        $(; not_simulated: $($real:ident => $why:literal),* $(,)?)?
    ) => {
        mod portable {
            $($crate::for_each_backend!(@portable $name);)*
            $($($crate::for_each_backend!(@portable $real);)*)?
        }
        mod uring {
            $($crate::for_each_backend!(@uring $name);)*
            $($($crate::for_each_backend!(@uring $real);)*)?
        }
        #[cfg(feature = "sim")]
        mod sim {
            $(#[test]
            fn $name() {
                $crate::machine::each(super::$name);
            })*
        }
    };
    (@portable $name:ident) => {
        #[test]
        fn $name() {
            super::$name(&$crate::Bed::new(seerdb_io::Backend::Portable).unwrap());
        }
    };
    (@uring $name:ident) => {
        #[test]
        fn $name() {
            if let Some(bed) = $crate::Bed::new(seerdb_io::Backend::Uring) {
                super::$name(&bed);
            }
        }
    };
}
