//! Reading the log back, and telling a torn tail from damage.
//!
//! Records are read in order of their seqnos through all segments of both streams. Where the next
//! seqno is not to be had, everything that follows is searched for a valid header whose durable
//! seqno covers it:
//!
//! - there is one: the missing commit was acknowledged as durable. That is [`Corruption`] with the
//!   segment and the offset of the gap.
//! - there is none: nobody was promised anything behind the gap. It is a torn tail, and what
//!   stands behind it is dropped with it.
//!
//! The manifest may know more: a log that ends before a seqno which it says was durable is damaged
//! too. And a gap in which nothing but marks can have stood is none: the chain tells how many marks
//! there were, and they say nothing that the records behind them do not.
//!
//! Invariants:
//! 1. Commits are given out in the order of their seqnos without a gap, whichever stream they are
//!    in.
//! 2. Reading changes nothing on disk: reading twice gives the same answer.
//!
//! [`Corruption`]: crate::error::ErrorKind::Corruption

use std::path::Path;

use seerdb_io::{AlignedBuf, Class, Env, OpenOptions};

use super::format::{self, Stream};
use super::reader::{Reader, SegmentRef};
use super::tape::{Gap, Tape};
use crate::error::{Error, Result};
use crate::filename::FileNumber;
use crate::key::SeqNo;
use crate::record::RecordType;

pub(crate) use super::tape::{Origin, Sink};

/// What a replay found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replayed {
    /// The last seqno of the unbroken sequence.
    pub(crate) last_seqno: SeqNo,
    /// Commits handed to the sink.
    pub(crate) commits: u64,
    /// Whether something behind the sequence was dropped as a torn tail.
    pub(crate) torn: bool,
}

/// What is known of the commits before the log is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// Up to here they are in tables.
    pub(crate) flushed: SeqNo,
    /// Up to here they were durable.
    pub(crate) durable: SeqNo,
}

/// Reads `segments`, those of each stream in order; commits that are not in tables yet go to
/// `sink`, in the order of their seqnos.
///
/// # Errors
///
/// Corruption as above, a segment that is missing or is not the one in the manifest, and whatever
/// the file system or the sink says.
pub(crate) async fn replay<S: Sink>(
    env: &Env,
    dir: &Path,
    segments: &[SegmentRef],
    known: Known,
    sink: &mut S,
) -> Result<Replayed> {
    let mut tapes = [Stream::Wal, Stream::Values].map(|stream| {
        let segments = segments.iter().filter(|segment| segment.stream == stream);
        Tape::new(env, dir, segments.copied())
    });
    let (mut expected, mut commits) = (known.flushed + 1, 0);
    loop {
        let before = expected;
        for tape in &mut tapes {
            while let Some(header) = tape.head(known.flushed).await? {
                if header.first_seqno != expected {
                    break;
                }
                tape.deliver(&header, sink)?;
                commits += 1;
                expected = header.last_seqno() + 1;
                sink.breathe().await?;
            }
        }
        if expected == before {
            break;
        }
    }
    let gap = find_gap(&tapes, expected);
    if let Some(gap) = &gap {
        for tape in &mut tapes {
            tape.prove_nothing(gap).await?;
        }
    }
    let last_seqno = expected - 1;
    if last_seqno < known.durable && !planted!(ForgetDurableMark) {
        let last = tapes.iter().find_map(|tape| tape.last.clone());
        let place = gap.map(|gap| gap.place).or(last);
        let (path, offset) = place.unwrap_or_else(|| (dir.to_path_buf(), 0));
        let durable = known.durable;
        let what =
            format!("the log ends with commit {last_seqno}, but commit {durable} was durable");
        return Err(Error::corruption(path, offset, what));
    }
    Ok(Replayed { last_seqno, commits, torn: gap.is_some() })
}

/// Where the log breaks off before `missing`, if there is more of it.
fn find_gap(tapes: &[Tape<'_>], missing: SeqNo) -> Option<Gap> {
    let broken = tapes.iter().find_map(|tape| tape.broken.clone());
    let place = broken.or_else(|| {
        let ahead = tapes.iter().find(|tape| tape.is_ahead(missing))?;
        // A whole record that comes too early accuses the stream that has ended, or its own
        // segment before.
        let other = tapes.iter().find(|tape| !tape.is_ahead(missing));
        let other = other.and_then(|tape| tape.last.clone());
        let own = || ahead.border.clone().or_else(|| ahead.place()).or_else(|| ahead.last.clone());
        other.or_else(own)
    })?;
    Some(Gap { place, missing })
}

/// Looks at the segment `number`, which the manifest does not name.
///
/// A segment is named before anything enters it, and leaves the manifest when all of it is in
/// tables or was dropped behind a gap: one that goes on where the log ends is proof that the
/// manifest is an older one than it was.
///
/// # Errors
///
/// Corruption when the segment has the commit behind `last_seqno`; those of the file system.
pub(crate) async fn prove_behind(
    env: &Env,
    dir: &Path,
    stream: Stream,
    number: FileNumber,
    last_seqno: SeqNo,
) -> Result<()> {
    let path = stream.file_name(number).in_dir(dir);
    let options = OpenOptions { class: Class::Background, ..OpenOptions::default() };
    let file = match env.fs().open(path, options).await {
        Err(error) if error.is_not_found() => return Ok(()),
        file => file?,
    };
    let (read, mut page) = file.read_at(AlignedBuf::zeroed(format::HEADER_BYTES), 0).await;
    page.truncate(read?);
    // A segment that was being made, or recycled, is nobody's.
    let Some(id) = format::identity(&page, stream).filter(|id| id.number == number) else {
        return Ok(());
    };
    let segment = SegmentRef { id, stream };
    let mut reader = match Reader::open(env, dir, segment).await {
        Err(error) if error.is_corruption() => return Ok(()),
        reader => reader?,
    };
    while let Some((header, _)) = reader.next_record().await? {
        if header.first_seqno != last_seqno + 1 {
            break;
        }
        if header.kind == RecordType::Data {
            let what = format!(
                "the log ends with commit {last_seqno} and goes on in this segment, which the \
                 manifest does not name: the manifest is an older one"
            );
            return Err(Error::corruption(&reader.path, reader.position(), what));
        }
        reader.skip(&header);
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
