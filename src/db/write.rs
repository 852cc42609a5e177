//! Writes: the builders that `put`, `delete` and `batch` return, and the future they become.
//!
//! Invariants:
//! 1. A write that resolves with an error other than `Indeterminate` changed nothing.
//! 2. Between the append to the log and the insert into the memtable there is no await.
//! 3. A write, a batch and a write's future are handles: the database stays open while they live.

use std::cell::RefCell;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use event_listener::EventListener;
use smallvec::SmallVec;

use super::DB;
use super::commit::{Refused, Ticket};
use super::stats;
use super::throttle::Acquire;
use crate::batch::{OpHead, WriteOp, check_size};
use crate::codec::crc32c_append;
use crate::error::{Error, Result};
use crate::filename::FileNumber;
use crate::key::{SeqNo, Trailer, ValueKind, check_key, check_value};
use crate::log::format::Stream;
use crate::log::writer::Payload;
use crate::lz4::Packer;
use crate::options::{Compression, Durability, Settings};
use crate::pointer::Pointer;

/// What can be a value: owned bytes are taken without a copy, borrowed ones are copied once.
pub trait IntoValue {
    /// The value as shared bytes.
    fn into_value(self) -> Bytes;
}

impl IntoValue for Bytes {
    fn into_value(self) -> Bytes {
        self
    }
}

impl IntoValue for Vec<u8> {
    fn into_value(self) -> Bytes {
        Bytes::from(self)
    }
}

impl IntoValue for String {
    fn into_value(self) -> Bytes {
        Bytes::from(self)
    }
}

impl IntoValue for Box<[u8]> {
    fn into_value(self) -> Bytes {
        Bytes::from(self)
    }
}

macro_rules! copied_value {
    ($([$($generics:tt)*] $borrowed:ty),* $(,)?) => {$(
        impl<$($generics)*> IntoValue for $borrowed {
            fn into_value(self) -> Bytes {
                let bytes: &[u8] = self.as_ref();
                Bytes::copy_from_slice(bytes)
            }
        }
    )*};
}

copied_value!([] &[u8], [] &str, [] &Vec<u8>, [] &String, [const N: usize] &[u8; N]);
copied_value!([const N: usize] [u8; N], [] &Bytes);

type Ops = SmallVec<[WriteOp; 1]>;

fn put_op(key: &[u8], value: Bytes) -> Result<WriteOp> {
    check_key(key)?;
    check_value(&value)?;
    Ok(WriteOp::put(key, value))
}

fn delete_op(key: &[u8]) -> Result<WriteOp> {
    check_key(key)?;
    Ok(WriteOp::delete(key))
}

/// A single write, ready to be awaited; made by [`DB::put`], [`DB::delete`] and [`DB::try_put`].
///
/// Awaiting it resolves to the seqno of the write.
#[must_use = "a write does nothing until it is awaited"]
pub struct Write {
    db: DB,
    op: Result<WriteOp>,
    durability: Durability,
    may_wait: bool,
}

impl Write {
    pub(super) fn put(db: &DB, key: &[u8], value: Bytes) -> Self {
        Write::new(db, put_op(key, value))
    }

    pub(super) fn delete(db: &DB, key: &[u8]) -> Self {
        Write::new(db, delete_op(key))
    }

    fn new(db: &DB, op: Result<WriteOp>) -> Self {
        let durability = db.core().settings.durability;
        Write { db: db.clone(), op, durability, may_wait: true }
    }

    pub(super) fn without_waiting(mut self) -> Self {
        self.may_wait = false;
        self
    }

    /// Overrides the durability of the database for this write.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }
}

impl IntoFuture for Write {
    type Output = Result<SeqNo>;
    type IntoFuture = WriteFuture;

    fn into_future(self) -> WriteFuture {
        WriteFuture::new(self.db, self.op.map(|op| Ops::from_buf([op])), self.durability)
            .may_wait(self.may_wait)
    }
}

/// Several writes that become visible and durable together, or not at all.
///
/// Later operations on a key win over earlier ones.
///
/// ```
/// # futures::executor::block_on(async {
/// # let dir = tempfile::tempdir().unwrap();
/// # let db = seerdb::DB::open(dir.path().join("db")).await?;
/// let mut batch = db.batch();
/// batch.put(b"user:1", b"alice");
/// batch.delete(b"user:0");
/// batch.commit().await?;
/// assert_eq!(db.get(b"user:1").await?.as_deref(), Some(b"alice".as_slice()));
/// # db.close().await }).unwrap();
/// ```
#[must_use = "a batch does nothing until it is committed"]
pub struct Batch {
    db: DB,
    ops: Ops,
    /// The first operation beyond a limit; told by the commit.
    refused: Option<Error>,
}

impl Batch {
    pub(super) fn new(db: &DB) -> Self {
        Batch { db: db.clone(), ops: Ops::new(), refused: None }
    }

    /// Adds a put.
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl IntoValue) -> &mut Self {
        self.add(put_op(key.as_ref(), value.into_value()))
    }

    /// Adds a delete.
    pub fn delete(&mut self, key: impl AsRef<[u8]>) -> &mut Self {
        self.add(delete_op(key.as_ref()))
    }

    fn add(&mut self, op: Result<WriteOp>) -> &mut Self {
        match op {
            Ok(op) => self.ops.push(op),
            Err(error) => self.refused = self.refused.take().or(Some(error)),
        }
        self
    }

    /// The number of operations.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Commits all operations atomically. Awaiting the result resolves to the seqno of the last
    /// operation; for an empty batch, to the newest visible seqno.
    ///
    /// # Errors
    ///
    /// As for [`DB::put`]; also `InvalidArgument` when a key, a value or the whole batch is above
    /// its limit. Nothing of the batch is applied then.
    ///
    /// # Cancel safety
    ///
    /// As for [`DB::put`]: all of the batch or nothing.
    pub fn commit(self) -> BatchCommit {
        let durability = self.db.core().settings.durability;
        BatchCommit { batch: self, durability }
    }
}

/// The commit of a [`Batch`], ready to be awaited.
#[must_use = "a batch is committed when this is awaited"]
pub struct BatchCommit {
    batch: Batch,
    durability: Durability,
}

impl BatchCommit {
    /// Overrides the durability of the database for this commit.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }
}

impl IntoFuture for BatchCommit {
    type Output = Result<SeqNo>;
    type IntoFuture = WriteFuture;

    fn into_future(self) -> WriteFuture {
        let Batch { db, ops, refused } = self.batch;
        let ops = match refused {
            Some(error) => Err(error),
            None => check_size(&ops).map(|()| ops),
        };
        WriteFuture::new(db, ops, self.durability)
    }
}

/// The future of every write.
pub struct WriteFuture {
    db: DB,
    ops: Ops,
    durability: Durability,
    may_wait: bool,
    /// The credits that it needs: for the memtable, and for values until they are written.
    memory_bytes: usize,
    state: State,
}

enum State {
    Refused(Error),
    Start,
    Credits(Acquire),
    Segment(EventListener),
    Append,
    Published(Ticket),
    Done,
}

impl WriteFuture {
    fn new(db: DB, ops: Result<Ops>, durability: Durability) -> Self {
        let (mut ops, state) = match ops {
            Ok(ops) => (ops, State::Start),
            Err(error) => (Ops::new(), State::Refused(error)),
        };
        separate(&mut ops, &db.core().settings);
        let memory_bytes = ops.iter().map(|op| op.memory_bytes() + op.unwritten_bytes()).sum();
        WriteFuture { db, ops, durability, may_wait: true, memory_bytes, state }
    }

    fn may_wait(mut self, yes: bool) -> Self {
        self.may_wait = yes;
        self
    }

    /// Takes the credits, at once or by waiting in the queue.
    fn start(&mut self) -> State {
        let core = self.db.core();
        if let Err(error) = core.check_open() {
            return State::Refused(error);
        }
        // A write that waits for the log task asks; the others do not pay for the question, and
        // the file layer refuses the log to a forked process.
        let waits = self.durability == Durability::Synced
            || self.durability == Durability::Written && core.pipeline.grouped;
        if waits && let Err(error) = core.check_process() {
            return State::Refused(error);
        }
        if core.throttle.try_acquire(self.memory_bytes) {
            return State::Append;
        }
        if let Err(error) = core.check_process() {
            return State::Refused(error);
        }
        if self.may_wait {
            let acquire = self.db.core().throttle.acquire(self.memory_bytes);
            self.db.core().pipeline.want_flush();
            return State::Credits(acquire);
        }
        State::Refused(self.db.core().would_stall(self.memory_bytes))
    }

    /// Appends to the log and inserts into the memtable: the part without an await.
    fn append(&mut self) -> State {
        match self.append_record() {
            Ok(ticket) => {
                self.insert(&ticket);
                if self.db.core().throttle.is_waited_for() {
                    self.db.core().pipeline.want_flush();
                }
                State::Published(ticket)
            }
            Err(Refused::NoSegment(listener)) if self.may_wait => {
                match self.db.core().check_process() {
                    Ok(()) => State::Segment(listener),
                    Err(error) => self.give_up(error),
                }
            }
            Err(Refused::NoSegment(_)) => {
                let error = self.db.core().would_stall(0);
                self.give_up(error)
            }
            Err(Refused::Error(error)) => self.give_up(error),
        }
    }

    fn append_record(&self) -> std::result::Result<Ticket, Refused> {
        let heads: SmallVec<[OpHead; 1]> = self.ops.iter().map(WriteOp::head).collect();
        let mut parts: SmallVec<[&[u8]; 3]> = SmallVec::with_capacity(self.ops.len() * 3);
        for (op, head) in self.ops.iter().zip(&heads) {
            parts.extend([head.as_slice(), op.key.as_slice(), op.value.as_ref()]);
        }
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let payload = Payload {
            parts: &parts,
            bytes: u32::try_from(bytes).expect("check_size keeps a batch near 1 GiB"),
            crc: parts.iter().fold(0, |crc, part| crc32c_append(crc, part)),
        };
        let count = u32::try_from(self.ops.len()).expect("check_size limits the operations");
        let core = self.db.core();
        let stream = match self.ops.iter().any(|op| op.kind == ValueKind::Pointer) {
            true => Stream::Values,
            false => Stream::Wal,
        };
        core.pipeline.append(stream, &payload, count, self.durability)
    }

    fn give_up(&mut self, error: Error) -> State {
        self.db.core().throttle.release(self.memory_bytes);
        State::Refused(error)
    }

    fn published(&mut self, done: Poll<Result<()>>) -> Poll<Result<SeqNo>> {
        if done.is_pending() {
            return Poll::Pending;
        }
        let State::Published(ticket) = std::mem::replace(&mut self.state, State::Done) else {
            unreachable!("only a published commit is done");
        };
        done.map_ok(|()| ticket.last_seqno)
    }

    fn insert(&mut self, ticket: &Ticket) {
        let pipeline = &self.db.core().pipeline;
        let mut position = ticket.position;
        let mut user_bytes = 0;
        for (seqno, op) in (ticket.first_seqno..).zip(self.ops.drain(..)) {
            user_bytes += op.key.len() as u64 + u64::from(op.raw);
            if ticket.segment.stream == Stream::Wal {
                ticket.memtable.insert(op.key, Trailer::new(seqno, op.kind), op.value);
                continue;
            }
            let key_at = position + op.head().len() as u64;
            position = key_at + (op.key.len() + op.value.len()) as u64;
            if op.kind != ValueKind::Pointer {
                ticket.memtable.insert(op.key, Trailer::new(seqno, op.kind), op.value);
                continue;
            }
            let pointer = point_to(&op, ticket.segment.id.number, key_at, seqno);
            if !planted!(ForgetFreshValue) {
                pipeline.keep_value(ticket.last_seqno, pointer, &op.value);
            }
            ticket.memtable.insert_pointer(op.key, seqno, &pointer);
        }
        stats::add(&self.db.core().metrics.commits, 1);
        stats::add(&self.db.core().metrics.user_bytes, user_bytes);
    }
}

/// Leaves large values in the log, packed if that pays.
fn separate(ops: &mut Ops, settings: &Settings) {
    let Some(threshold) = settings.value_threshold else { return };
    let is_large = |op: &WriteOp| op.kind == ValueKind::Put && op.value.len() >= threshold;
    if !ops.iter().any(is_large) {
        return;
    }
    thread_local! {
        static PACKER: RefCell<Packer> = RefCell::default();
    }
    PACKER.with_borrow_mut(|packer| {
        for op in ops.iter_mut().filter(|op| is_large(op)) {
            let packs = settings.compression == Compression::Lz4;
            op.separate(packs.then_some(&mut *packer));
        }
    });
}

fn point_to(op: &WriteOp, segment: FileNumber, position: u64, seqno: SeqNo) -> Pointer {
    let position = u32::try_from(position).expect("a segment is below 4 GiB");
    Pointer::new(segment, position, &op.key, &op.value, op.raw, seqno)
}

impl Future for WriteFuture {
    type Output = Result<SeqNo>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                State::Refused(error) => {
                    let error = error.clone();
                    this.state = State::Done;
                    return Poll::Ready(Err(error));
                }
                State::Start if this.ops.is_empty() => {
                    this.state = State::Done;
                    let open = this.db.core().check_open();
                    return Poll::Ready(open.map(|()| this.db.core().pipeline.visible()));
                }
                State::Start => this.state = this.start(),
                State::Credits(acquire) => match Pin::new(acquire).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) => this.state = State::Append,
                    Poll::Ready(Err(error)) => this.state = State::Refused(error),
                },
                State::Segment(listener) => match Pin::new(listener).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) => this.state = State::Append,
                },
                State::Append => {
                    this.state = this.append();
                    if let State::Published(ticket) = &this.state {
                        let done = this.db.core().pipeline.finish(ticket, cx);
                        return this.published(done);
                    }
                }
                State::Published(ticket) => {
                    let done = this.db.core().pipeline.poll_done(ticket, cx);
                    return this.published(done);
                }
                State::Done => panic!("a write was polled after it resolved"),
            }
        }
    }
}

impl Drop for WriteFuture {
    fn drop(&mut self) {
        // Credits that were taken for an append that never came.
        if matches!(self.state, State::Append | State::Segment(_)) {
            self.db.core().throttle.release(self.memory_bytes);
        }
    }
}
