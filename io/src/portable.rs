//! First stand-in of the backends: positioned reads and writes on the lanes and on the caller.
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "this is the boundary")]

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::channel::oneshot;
use parking_lot::Mutex;

use crate::buf::AlignedBuf;
use crate::env::*;
use crate::error::{Error, Operation, Result};
use crate::fs::*;

pub(crate) type StdFile = std::fs::File;

pub(crate) struct Inner {
    pub(crate) fs: Fs,
    pub(crate) clock: Clock,
    pub(crate) rng: Rng,
    pub(crate) spawner: Spawner,
    pub(crate) backend: IoBackend,
}

impl Inner {
    pub(crate) fn start(_options: &EnvOptions) -> Result<Arc<Inner>> {
        let lanes = Arc::new(Lanes { senders: Mutex::new(HashMap::new()) });
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
        Ok(Arc::new(Inner {
            fs: Fs { pool: Arc::new(Pool) },
            clock: Clock { timers: Arc::new(Timers { start: Instant::now() }) },
            rng: Rng { state: Arc::new(Mutex::new(seed)) },
            spawner: Spawner { lanes },
            backend: IoBackend::Portable { reason: "stand-in".into() },
        }))
    }
}

pub(crate) struct Lanes {
    senders: Mutex<HashMap<Lane, mpsc::Sender<async_task::Runnable>>>,
}

impl Lanes {
    pub(crate) fn spawn<F>(&self, lane: Lane, _name: &'static str, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let sender = self
            .senders
            .lock()
            .entry(lane)
            .or_insert_with(|| {
                let (tx, rx) = mpsc::channel::<async_task::Runnable>();
                std::thread::spawn(move || {
                    for runnable in rx {
                        runnable.run();
                    }
                });
                tx
            })
            .clone();
        let (tx, done) = oneshot::channel();
        let wrapped = async move {
            let r = AssertUnwindSafe(future).catch_unwind().await;
            tx.send(r.map_err(|_| Panicked("panic".into()))).ok();
        };
        let (runnable, task) = async_task::spawn(wrapped, move |r| {
            sender.send(r).ok();
        });
        runnable.schedule();
        task.detach();
        Task { done }
    }
}

pub(crate) struct Timers {
    start: Instant,
}

impl Timers {
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }
    pub(crate) fn unix_time(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
    pub(crate) fn sleep(&self, duration: Duration) -> Sleep {
        let (tx, done) = oneshot::channel();
        std::thread::spawn(move || {
            std::thread::sleep(duration);
            tx.send(()).ok();
        });
        Sleep { done }
    }
}

pub(crate) struct Pool;

pub(crate) struct FileInner {
    pub(crate) file: StdFile,
    pub(crate) path: PathBuf,
    pub(crate) direct: bool,
}

fn op<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Op<T> {
    Op { inner: Box::pin(async move { f() }) }
}

fn err<'a>(
    o: Operation,
    path: &'a Path,
    offset: Option<u64>,
) -> impl Fn(io::Error) -> Error + use<'a> {
    move |e| Error::new(o, path, offset, e)
}

impl Pool {
    pub(crate) fn open(&self, path: PathBuf, o: OpenOptions) -> Op<Result<File>> {
        op(move || {
            let file = std::fs::OpenOptions::new()
                .read(true)
                .write(o.write)
                .create_new(o.create_new)
                .mode(0o600)
                .open(&path)
                .map_err(err(Operation::Open, &path, None))?;
            Ok(File { inner: Arc::new(FileInner { file, path, direct: false }) })
        })
    }
    pub(crate) fn create_dir(&self, path: PathBuf) -> Op<Result<()>> {
        op(move || match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            r => r.map_err(err(Operation::CreateDir, &path, None)),
        })
    }
    pub(crate) fn rename(&self, a: PathBuf, b: PathBuf) -> Op<Result<()>> {
        op(move || std::fs::rename(&a, &b).map_err(err(Operation::Rename, &a, None)))
    }
    pub(crate) fn remove_file(&self, a: PathBuf) -> Op<Result<()>> {
        op(move || std::fs::remove_file(&a).map_err(err(Operation::Remove, &a, None)))
    }
    pub(crate) fn list_dir(&self, a: PathBuf) -> Op<Result<Vec<DirEntry>>> {
        op(move || {
            let e = err(Operation::ListDir, &a, None);
            let mut out = Vec::new();
            for entry in std::fs::read_dir(&a).map_err(&e)? {
                let entry = entry.map_err(&e)?;
                let meta = entry.metadata().map_err(&e)?;
                out.push(DirEntry {
                    name: entry.file_name(),
                    is_file: meta.is_file(),
                    len: meta.len(),
                });
            }
            Ok(out)
        })
    }
    pub(crate) fn sync_dir(&self, a: PathBuf) -> Op<Result<()>> {
        op(move || {
            let e = err(Operation::SyncDir, &a, None);
            StdFile::open(&a).map_err(&e)?.sync_all().map_err(&e)
        })
    }
    pub(crate) fn lock(&self, a: PathBuf) -> Op<Result<Option<LockFile>>> {
        op(move || {
            let e = err(Operation::Lock, &a, None);
            let file = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&a)
                .map_err(&e)?;
            match file.try_lock() {
                Ok(()) => Ok(Some(LockFile { file })),
                Err(std::fs::TryLockError::WouldBlock) => Ok(None),
                Err(std::fs::TryLockError::Error(x)) => Err(e(x)),
            }
        })
    }
}

pub(crate) fn read_at(f: File, mut buf: AlignedBuf, offset: u64) -> Op<BufResult> {
    op(move || {
        let mut done = 0;
        while done < buf.len() {
            match f.inner.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return (Err(err(Operation::Read, f.path(), Some(offset))(e)), buf),
            }
        }
        (Ok(done), buf)
    })
}
pub(crate) fn try_read_at(_f: &File, _buf: &mut [u8], _offset: u64) -> Option<Result<usize>> {
    None
}
pub(crate) fn write_at(f: File, buf: AlignedBuf, offset: u64, sync: bool) -> Op<BufResult> {
    op(move || {
        let mut r = write_cached(&f, &buf, offset);
        if sync && r.is_ok() {
            r = f.inner.file.sync_data().map_err(err(Operation::Sync, f.path(), None));
        }
        (r.map(|()| buf.len()), buf)
    })
}
pub(crate) fn write_cached(f: &File, bytes: &[u8], offset: u64) -> Result<()> {
    f.inner.file.write_all_at(bytes, offset).map_err(err(Operation::Write, f.path(), Some(offset)))
}
pub(crate) fn sync_data(f: File) -> Op<Result<()>> {
    op(move || f.inner.file.sync_data().map_err(err(Operation::Sync, f.path(), None)))
}
pub(crate) fn allocate(f: File, len: u64) -> Op<Result<()>> {
    op(move || {
        let e = err(Operation::Resize, f.path(), None);
        if f.inner.file.metadata().map_err(&e)?.len() < len {
            f.inner.file.set_len(len).map_err(&e)?;
        }
        Ok(())
    })
}
pub(crate) fn set_len(f: File, len: u64) -> Op<Result<()>> {
    op(move || f.inner.file.set_len(len).map_err(err(Operation::Resize, f.path(), None)))
}
pub(crate) fn len(f: File) -> Op<Result<u64>> {
    op(move || {
        let m = f.inner.file.metadata().map_err(err(Operation::Open, f.path(), None))?;
        Ok(m.len())
    })
}
