//! Scans over a run, in both directions.
//!
//! Invariants:
//! 1. Between calls the iterator is at an entry of `block`, at the end, or blocked on the block
//!    that (`table`, `number`) names; `target` is what it still has to find there.
//! 2. It holds at most one block, one window of bytes read ahead and, when streaming, one read of
//!    the window behind it, whatever the run's size.
//! 3. A window is only a hint: what cannot be taken from it is read again on its own, and only
//!    that read reports errors.
//! 4. What a run was trimmed of is not met, in neither direction.
//! 5. A stream that wants so many entries reads no further ahead than they reach, about; what it
//!    wants beyond that (it met tombstones, say) shows that nobody knows how far it goes.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use seerdb_io::File;

use crate::allowance::{Allowance, Charge};
use crate::error::Result;
use crate::iter::{Direction, Entry, Position, Source};
use crate::key::{KeyBuf, SEQNO_MAX, Trailer};
use crate::probe::{Origin, Probe};

use super::block::EntryAt;
use super::reader::Read;
use super::{Block, BlockCache, CacheId, Cached, Run, Table, Trim};

/// How many loads in a row, one block after the other, make a scan that deserves reading ahead.
const STREAK: u32 = 2;
/// The first and the largest amount that a scan through the cache reads ahead.
const AHEAD_BYTES: Range<usize> = 16 << 10..256 << 10;
/// The entries wanted may be this many times as large as others of their table, in quarters.
const SLACK_QUARTERS: u64 = 6;

/// Where the blocks of a scan come from.
#[derive(Clone)]
pub(crate) enum BlockSource {
    /// From the cache, and what is not there through the foreground class; kept there with `fill`.
    /// A scan that goes on reads ahead, the further the longer it goes.
    Cached {
        /// The cache.
        cache: Arc<BlockCache>,
        /// Whether blocks that were read enter the cache.
        fill: bool,
    },
    /// Past the cache, through the background class, this many bytes at a time.
    ReadAhead {
        /// The bytes of one read.
        bytes: usize,
    },
}

/// A scan over a run.
pub(crate) struct RunIter {
    run: Arc<Run>,
    direction: Direction,
    source: BlockSource,
    position: Position,
    /// The table and the block in it that the iterator is in, or blocked on.
    table: usize,
    number: usize,
    block: Option<Block>,
    /// The index in the block, and where the parts of that entry stand.
    index: usize,
    entry: Option<EntryAt>,
    target: Option<(KeyBuf, Trailer)>,
    window: Option<Window>,
    /// Locked by nobody: the mutex makes the iterator `Sync`, which a pending read is not.
    ahead: Option<Mutex<Ahead>>,
    /// The streaming handle of the table that it belongs to.
    background: Option<(usize, File)>,
    streak: u32,
    /// The entries that the consumer wants of a scan, and the bytes of blocks that are expected
    /// to hold what is left of them. Neither is known of a scan without a limit.
    wanted: Option<usize>,
    reach: Option<u64>,
    /// What holds the windows of all streams in bounds.
    allowance: Option<Arc<Allowance>>,
    probe: Probe,
}

/// Adjoining blocks of one table.
#[derive(Clone)]
struct Span {
    table: usize,
    blocks: Range<usize>,
}

impl Span {
    fn contains(&self, table: usize, block: usize) -> bool {
        self.table == table && self.blocks.contains(&block)
    }
}

/// Blocks that were read at once.
struct Window {
    span: Span,
    /// The offset of its first block.
    offset: u64,
    bytes: Bytes,
    _charge: Option<Charge>,
}

/// Blocks that are being read.
struct Ahead {
    span: Span,
    read: Read,
    charge: Option<Charge>,
}

impl RunIter {
    /// A scan over `run`, standing nowhere.
    pub(crate) fn new(run: Arc<Run>, direction: Direction, source: BlockSource) -> RunIter {
        RunIter {
            run,
            direction,
            source,
            position: Position::End,
            table: 0,
            number: 0,
            block: None,
            index: 0,
            entry: None,
            target: None,
            window: None,
            ahead: None,
            background: None,
            streak: 0,
            wanted: None,
            reach: None,
            allowance: None,
            probe: Probe::default(),
        }
    }

    /// For a consumer that wants no more than `entries`; its windows share `allowance` with those
    /// of others, and `probe` counts its blocks.
    pub(crate) fn for_stream(
        mut self,
        entries: usize,
        allowance: Arc<Allowance>,
        probe: Probe,
    ) -> RunIter {
        self.wanted = Some(entries).filter(|&entries| entries != usize::MAX);
        self.allowance = Some(allowance);
        self.probe = probe;
        self
    }

    fn table(&self) -> &Arc<Table> {
        self.run.tables.get(self.table).expect("`table` is below the number of tables")
    }

    /// Goes to a block, blocked if it is not at hand.
    fn enter(&mut self, table: usize, number: usize) {
        self.table = table;
        self.number = number;
        self.block = None;
        self.entry = None;
        match self.block_at_hand() {
            Some(block) => self.settle(block),
            None => self.position = Position::Blocked,
        }
    }

    /// Finds the entry in a block that has just come; moves on when it is not in there.
    fn settle(&mut self, block: Block) {
        let index = match (&self.target, self.direction) {
            (None, Direction::Forward) => Some(0),
            (None, Direction::Reverse) => block.len().checked_sub(1),
            (Some((key, trailer)), Direction::Forward) => {
                Some(block.seek(key, *trailer)).filter(|&index| index < block.len())
            }
            (Some((key, trailer)), Direction::Reverse) => {
                let index = block.seek(key, *trailer);
                let exact = index < block.len() && {
                    let entry = block.at(index);
                    entry.trailer == *trailer && block.key(entry) == key.as_slice()
                };
                if exact { Some(index) } else { index.checked_sub(1) }
            }
        };
        self.target = None;
        match index {
            Some(index) => {
                self.index = index;
                self.entry = Some(block.at(index));
                self.block = Some(block);
                self.position = Position::At;
                self.end_where_trimmed();
            }
            None => self.next_block(),
        }
    }

    /// Ends a reverse scan that comes to what the run was trimmed of.
    fn end_where_trimmed(&mut self) {
        if self.direction == Direction::Reverse
            && self.run.trim.is_some()
            && self.run.begins_behind(self.entry().key)
        {
            self.end();
        }
    }

    fn next_block(&mut self) {
        if let Some(reach) = self.reach {
            let passed = self.table().index().handle(self.number).file_bytes() as u64;
            self.reach = reach.checked_sub(passed);
        }
        let next = match self.direction {
            Direction::Forward if self.number + 1 < self.table().blocks() => {
                Some((self.table, self.number + 1))
            }
            Direction::Forward => {
                Some((self.table + 1, 0)).filter(|(table, _)| *table < self.run.tables.len())
            }
            Direction::Reverse => match self.number.checked_sub(1) {
                Some(number) => Some((self.table, number)),
                None => self.last_block_before(self.table),
            },
        };
        match next {
            Some((table, number)) => self.enter(table, number),
            None => self.end(),
        }
    }

    /// The last block of the table before `table`.
    fn last_block_before(&self, table: usize) -> Option<(usize, usize)> {
        let table = table.checked_sub(1)?;
        Some((table, self.run.tables.get(table)?.blocks() - 1))
    }

    fn end(&mut self) {
        self.position = Position::End;
        self.block = None;
        self.entry = None;
        self.target = None;
    }

    /// The block that the iterator is to enter, if it can be had without waiting.
    fn block_at_hand(&mut self) -> Option<Block> {
        if let BlockSource::Cached { cache, .. } = &self.source
            && let Some(block) = self.table().cached_block(cache, self.number)
        {
            self.streak = 0;
            self.probe.block(Origin::Memory);
            block.touch_heads();
            return Some(block);
        }
        if let Some(block) = self.block_in_window() {
            return Some(block);
        }
        match &self.source {
            BlockSource::Cached { cache, fill } => {
                let block = self.table().block_now(cache, *fill, self.number)?;
                self.probe.block(Origin::PageCache);
                Some(block)
            }
            BlockSource::ReadAhead { .. } => None,
        }
    }

    fn block_in_window(&mut self) -> Option<Block> {
        let window = self.window.as_ref()?;
        if !window.span.contains(self.table, self.number) {
            return None;
        }
        let table = self.table();
        let handle = table.index().handle(self.number);
        let from = usize::try_from(handle.offset.checked_sub(window.offset)?).ok()?;
        let bytes = window.bytes.slice(from..from + handle.file_bytes());
        let mut block = table.reader().decode_block(handle, &bytes).ok();
        if let (Some(found), BlockSource::Cached { cache, fill: true }) = (&mut block, &self.source)
        {
            if handle.stored == handle.raw {
                // In the cache a block must not keep its whole window in memory.
                *found = found.to_owned_bytes();
            }
            let id = CacheId::block(table.meta().number, self.number);
            cache.insert(id, Cached::Block(found.clone()));
        }
        match block {
            Some(_) => self.probe.block(Origin::Disk),
            None => self.window = None,
        }
        block
    }

    /// Reads the block that the iterator is blocked on, and perhaps more.
    async fn read(&mut self) -> Result<Block> {
        let ahead = match &self.source {
            BlockSource::ReadAhead { bytes } => Some(*bytes),
            BlockSource::Cached { .. } => self.ahead_bytes(),
        };
        self.streak = self.streak.saturating_add(1).min(16);
        if let Some(bytes) = ahead {
            self.read_window(bytes).await?;
            if let Some(block) = self.block_in_window() {
                return Ok(block);
            }
        }
        self.probe.block(Origin::Disk);
        let table = self.table().clone();
        match &self.source {
            BlockSource::Cached { cache, fill } => {
                table.load_block(Some(cache), *fill, self.number).await
            }
            BlockSource::ReadAhead { .. } => table.load_block(None, false, self.number).await,
        }
    }

    /// How much a scan through the cache shall read at once, if it is more than a block.
    fn ahead_bytes(&mut self) -> Option<usize> {
        let more = self.streak.checked_sub(STREAK)?;
        // The old window goes first: it would add to what the streams hold.
        self.window = None;
        let bytes = AHEAD_BYTES.end.min(AHEAD_BYTES.start.checked_shl(more).unwrap_or(usize::MAX));
        let reach =
            self.reach.map_or(usize::MAX, |reach| usize::try_from(reach).unwrap_or(usize::MAX));
        let share = self.allowance.as_ref().map_or(usize::MAX, |allowance| allowance.share());
        let block = self.table().index().handle(self.number).file_bytes();
        Some(bytes.min(reach).min(share)).filter(|&bytes| bytes > block)
    }

    /// The bytes of blocks in which the entries wanted stand, about, in the table that a scan
    /// begins in.
    fn first_reach(&self) -> Option<u64> {
        let meta = self.run.tables.get(self.table)?.meta();
        let bytes = (self.wanted? as u64).saturating_mul(meta.file_bytes) / meta.entries.max(1);
        // It may begin at the end of a block, and end at the beginning of one.
        let blocks = 2 * meta.file_bytes / self.table().blocks() as u64;
        Some((bytes.saturating_mul(SLACK_QUARTERS) / 4).saturating_add(blocks))
    }

    /// Makes the window hold the wanted block and what follows in the direction of the scan. A
    /// read that fails leaves no window.
    async fn read_window(&mut self, budget: usize) -> Result<()> {
        // The old window goes first: it would add to the memory of a merge.
        self.window = None;
        let streams = matches!(self.source, BlockSource::ReadAhead { .. });
        if streams && self.background.as_ref().is_none_or(|(table, _)| *table != self.table) {
            self.background = Some((self.table, self.table().open_background().await?));
        }
        let (table, number) = (self.table, self.number);
        let wanted = |ahead: &mut Mutex<Ahead>| ahead.get_mut().span.contains(table, number);
        if !self.ahead.as_mut().is_some_and(wanted) {
            self.ahead = Some(Mutex::new(self.start(self.span(self.number, budget))));
        }
        if let Some(ahead) = &mut self.ahead {
            ahead.get_mut().read.wait().await;
        }
        if let Some(Ahead { span, read, charge }) = self.ahead.take().map(Mutex::into_inner) {
            let offset = self.table().index().handle(span.blocks.start).offset;
            let bytes = read.finish(self.table().reader().file_ref()).ok();
            self.window = bytes.map(|bytes| {
                let span = span.clone();
                Window { span, offset, bytes, _charge: charge }
            });
            if streams {
                self.start_ahead(&span, budget);
            }
        }
        Ok(())
    }

    /// Starts to read what follows a window, so that the disk works while the window is used.
    fn start_ahead(&mut self, window: &Span, budget: usize) {
        let next = match self.direction {
            Direction::Forward => Some(window.blocks.end),
            Direction::Reverse => window.blocks.start.checked_sub(1),
        };
        if let Some(next) = next.filter(|&next| next < self.table().blocks()) {
            let mut ahead = self.start(self.span(next, budget));
            // The first poll starts it; whether it is done already does not matter.
            let _: Option<()> = ahead.read.wait().now_or_never();
            self.ahead = Some(Mutex::new(ahead));
        }
    }

    /// As many blocks from `block` on, in the direction of the scan, as fit `bytes`.
    fn span(&self, block: usize, bytes: usize) -> Span {
        let index = self.table().index();
        let blocks = match self.direction {
            Direction::Forward => index.span_up(block, bytes),
            Direction::Reverse => index.span_down(block, bytes),
        };
        Span { table: self.table, blocks }
    }

    /// A read of the blocks of `span`, in the table that the iterator is in.
    fn start(&self, span: Span) -> Ahead {
        let table = self.table();
        let first = table.index().handle(span.blocks.start);
        let last = table.index().handle(span.blocks.end - 1);
        let len = usize::try_from(last.offset - first.offset).unwrap_or(usize::MAX);
        let len = len.saturating_add(last.file_bytes());
        let charge = self.allowance.as_ref().map(|allowance| allowance.charge(len));
        let mut reader = table.reader();
        if let (BlockSource::ReadAhead { .. }, Some((_, file))) = (&self.source, &self.background) {
            reader.file = file;
        }
        Ahead { span, read: reader.start(first.offset, len), charge }
    }

    /// The entry that the iterator is at, and its block.
    fn current(&self) -> (&Block, EntryAt) {
        match (&self.block, self.entry) {
            (Some(block), Some(entry)) => (block, entry),
            _ => panic!("the iterator is not at an entry"),
        }
    }
}

#[async_trait]
impl Source for RunIter {
    fn position(&self) -> Position {
        self.position
    }

    fn entry(&self) -> Entry<'_> {
        let (block, entry) = self.current();
        Entry { key: block.key(entry), trailer: entry.trailer, value: block.value(entry) }
    }

    fn value(&self) -> Bytes {
        let (block, entry) = self.current();
        block.value_bytes(entry)
    }

    fn advance(&mut self) {
        let (block, _) = self.current();
        let next = match self.direction {
            Direction::Forward => Some(self.index + 1).filter(|&index| index < block.len()),
            Direction::Reverse => self.index.checked_sub(1),
        };
        match next {
            Some(index) => {
                self.entry = Some(block.at(index));
                self.index = index;
                self.end_where_trimmed();
            }
            None => self.next_block(),
        }
    }

    fn seek(&mut self, target: Option<(&[u8], Trailer)>) {
        self.streak = 0;
        let is_early = |_: &&Trim| target.is_none_or(|(key, _)| self.run.begins_behind(key));
        let target = match (self.run.trim.as_ref().filter(is_early), self.direction) {
            (Some(trim), Direction::Forward) => {
                Some((trim.from.as_slice(), Trailer::seek(SEQNO_MAX)))
            }
            _ => target,
        };
        self.target = target.map(|(key, trailer)| (KeyBuf::from_slice(key), trailer));
        let tables = self.run.tables.len();
        let place = match (target, self.direction) {
            (None, Direction::Forward) => Some((0, 0)),
            (None, Direction::Reverse) => self.last_block_before(tables),
            (Some((key, trailer)), Direction::Forward) => {
                let table = self.run.first_not_before(key);
                let found = self.run.tables.get(table);
                found.map(|found| (table, found.index().find(key, trailer).unwrap_or(0)))
            }
            (Some((key, trailer)), Direction::Reverse) => {
                // The first table that does not end before the key may begin behind it.
                let table = self.run.first_not_before(key);
                let found = self.run.tables.get(table);
                match found.and_then(|found| found.index().find(key, trailer)) {
                    Some(block) => Some((table, block)),
                    None => {
                        self.target = None;
                        self.last_block_before(table)
                    }
                }
            }
        };
        match place {
            Some((table, number)) => {
                self.table = table;
                self.reach = self.first_reach();
                self.enter(table, number);
            }
            None => self.end(),
        }
    }

    async fn load(&mut self) -> Result<()> {
        while self.position == Position::Blocked {
            let block = self.read().await?;
            self.settle(block);
        }
        Ok(())
    }
}
