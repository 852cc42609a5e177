//! What this process has written and read, what a directory occupies, and when both are at rest.
//!
//! Written is `write_bytes` of `/proc/self/io`: every page that this process, with the threads that
//! the kernel runs for its rings, has made dirty, and every byte that it wrote around the page
//! cache. So a page that is written again before the kernel has stored it counts once, as for the
//! device; a page that is stored, and then touched again, counts twice. Logs, tables, values and
//! manifests are all in it; the journal of the file system is not.
//!
//! `cancelled_write_bytes` is not taken off. Those are pages of files that were removed before the
//! kernel came to store them, within half a minute: with more data, with less memory, or with a
//! sync on every write they would have been stored.
//!
//! What is occupied are the blocks that files have, preallocated ones too, holes not.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use std::os::unix::fs::MetadataExt;

use crate::Result;

const COUNTS: &str = "/proc/self/io";
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
const PROBE_BYTES: usize = 1 << 20;
/// The unit of `st_blocks`, whatever the file system.
const BLOCK_BYTES: u64 = 512;
/// How the logs end that seerdb, RocksDB and fjall write before they answer.
const LOG_SUFFIXES: [&str; 3] = [".wal", ".log", ".jnl"];
const POLL: Duration = Duration::from_millis(20);
const REST: Duration = Duration::from_secs(1);
const REST_WAIT_MAX: Duration = Duration::from_secs(600);

pub fn written() -> Result<u64> {
    count("write_bytes")
}

/// Bytes that had to come from the device.
pub fn read() -> Result<u64> {
    count("read_bytes")
}

fn count(name: &str) -> Result<u64> {
    let counts = std::fs::read_to_string(COUNTS).map_err(|e| format!("{COUNTS}: {e}"))?;
    let found = counts.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    Ok(found.ok_or_else(|| format!("{COUNTS} has no {name}"))?.parse()?)
}

/// Fails if the kernel does not count what is written in `dir`, as in memory or over a network.
pub fn check_counted(dir: &Path) -> Result<()> {
    let path = dir.join("probe");
    let before = written()?;
    std::fs::write(&path, vec![1; PROBE_BYTES])?;
    let grown = written()? - before;
    std::fs::remove_file(path)?;
    if grown < PROBE_BYTES as u64 {
        return Err(format!("{COUNTS} does not count what is written in {}", dir.display()).into());
    }
    Ok(())
}

#[derive(Clone, Copy, Default, PartialEq)]
pub struct Occupied {
    pub bytes: u64,
    /// Of these, in logs.
    pub log_bytes: u64,
}

/// The space that the files in and below `dir` occupy.
pub fn occupied(dir: &Path) -> Result<Occupied> {
    let mut sum = Occupied::default();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        let inside = if metadata.is_dir() { occupied(&entry.path())? } else { Occupied::default() };
        let bytes = metadata.blocks() * BLOCK_BYTES;
        let name = entry.file_name();
        let is_log = LOG_SUFFIXES.iter().any(|suffix| name.to_string_lossy().ends_with(suffix));
        sum.bytes += bytes + inside.bytes;
        sum.log_bytes += if is_log { bytes } else { inside.log_bytes };
    }
    Ok(sum)
}

/// Waits until nothing is written and `dir` does not change any more; since when.
pub fn rest(dir: &Path) -> Result<Instant> {
    let start = Instant::now();
    let mut since = start;
    let mut last = (written()?, occupied(dir)?);
    while since.elapsed() < REST {
        if start.elapsed() > REST_WAIT_MAX {
            return Err("the engine does not come to rest".into());
        }
        std::thread::sleep(POLL);
        let now = (written()?, occupied(dir)?);
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(since)
}

/// Writes back what was written so far, so that nobody pays for it later.
pub fn sync() -> Result<()> {
    let status = Command::new("sync").status()?;
    if status.success() { Ok(()) } else { Err(format!("sync: {status}").into()) }
}

/// Makes the kernel forget all clean pages, inodes and names. Only root may.
pub fn drop_caches() -> Result<()> {
    Ok(std::fs::write(DROP_CACHES, "3").map_err(|e| format!("{DROP_CACHES}: {e}"))?)
}
