//! Imports `key<TAB>value` lines, in batches, with a progress bar.
//!
//! ```text
//! cargo run --release --example import -- PATH [FILE] [--batch ROWS] [--verify]
//! ```
//!
//! Without FILE, or with `-`, the lines come from standard input. A value may contain tabs, a key
//! cannot; if a key comes twice the later line holds. A batch is committed whole or not at all, and
//! a finished import is on the device. `--verify` then streams the whole database back, checks that
//! keys come in order, and that each imported row is there with its last value.

use std::collections::HashMap;
use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;

use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use seerdb::DB;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio::time::Instant;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: seerdb::Jemalloc = seerdb::Jemalloc;

const USAGE: &str = "usage: import PATH [FILE] [--batch ROWS] [--verify]";
const BATCH_ROWS: usize = 1_000;
/// A batch is committed at this size even if it has fewer rows: it is held in memory.
const BATCH_BYTES_MAX: usize = 4 << 20;
const INPUT_BUFFER_BYTES: usize = 1 << 20;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse()?;
    let db = DB::open(&args.path).await?;
    let mut rows = args.is_verify.then(Rows::default);
    if args.input == "-" {
        let input = BufReader::with_capacity(INPUT_BUFFER_BYTES, tokio::io::stdin());
        import(&db, input, None, args.batch_rows, rows.as_mut()).await?;
    } else {
        let file = tokio::fs::File::open(&args.input).await?;
        let size = file.metadata().await?.len();
        let input = BufReader::with_capacity(INPUT_BUFFER_BYTES, file);
        import(&db, input, Some(size), args.batch_rows, rows.as_mut()).await?;
    }
    if let Some(rows) = rows {
        verify(&db, rows).await?;
    }
    db.close().await?;
    Ok(())
}

struct Args {
    path: String,
    input: String,
    batch_rows: usize,
    is_verify: bool,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut names = Vec::new();
        let (mut batch_rows, mut is_verify) = (BATCH_ROWS, false);
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--batch" => batch_rows = args.next().ok_or(USAGE)?.parse()?,
                "--verify" => is_verify = true,
                "-" => names.push(arg),
                _ if arg.starts_with('-') => return Err(USAGE.into()),
                _ => names.push(arg),
            }
        }
        let mut names = names.into_iter();
        let path = names.next().ok_or(USAGE)?;
        let input = names.next().unwrap_or_else(|| "-".into());
        Ok(Self { path, input, batch_rows, is_verify })
    }
}

/// What the database must hold, as hashes: a row costs 16 bytes however long it is.
#[derive(Default)]
struct Rows {
    hasher: RandomState,
    values: HashMap<u64, u64>,
}

async fn import(
    db: &DB,
    mut input: impl AsyncBufRead + Unpin,
    size: Option<u64>,
    batch_rows: usize,
    mut rows: Option<&mut Rows>,
) -> Result<()> {
    let bar = progress_bar(size)?;
    let start = Instant::now();
    let (mut count, mut total_bytes) = (0_u64, 0_u64);
    let mut batch = db.batch();
    let (mut pending, mut pending_bytes) = (0, 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        let line_bytes = input.read_until(b'\n', &mut line).await?;
        if line_bytes > 0 {
            let (key, value) =
                split(&line).ok_or_else(|| format!("no tab in row {}", count + 1))?;
            batch.put(key, value);
            if let Some(rows) = rows.as_mut() {
                rows.values.insert(rows.hasher.hash_one(key), rows.hasher.hash_one(value));
            }
            count += 1;
            pending += 1;
            pending_bytes += line_bytes;
        }
        let is_full = pending >= batch_rows || pending_bytes >= BATCH_BYTES_MAX;
        if pending > 0 && (is_full || line_bytes == 0) {
            std::mem::replace(&mut batch, db.batch()).commit().await?;
            total_bytes += u64::try_from(pending_bytes)?;
            (pending, pending_bytes) = (0, 0);
            bar.set_position(total_bytes);
            bar.set_message(format!("{} rows", HumanCount(count)));
        }
        if line_bytes == 0 {
            break;
        }
    }
    db.flush().await?;
    bar.finish_and_clear();
    let elapsed = start.elapsed();
    let rate = count as f64 / elapsed.as_secs_f64();
    writeln!(
        std::io::stdout(),
        "imported {} rows, {} in {}: {rate:.0} rows/s",
        HumanCount(count),
        HumanBytes(total_bytes),
        HumanDuration(elapsed),
    )?;
    Ok(())
}

/// Key and value of a line, without its end.
fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let tab = line.iter().position(|&byte| byte == b'\t')?;
    let (key, rest) = line.split_at_checked(tab)?;
    Some((key, rest.strip_prefix(b"\t")?))
}

fn progress_bar(size: Option<u64>) -> Result<ProgressBar> {
    let Some(size) = size else {
        let style = "{spinner} {bytes} ({bytes_per_sec}) {msg}";
        return Ok(ProgressBar::new_spinner().with_style(ProgressStyle::with_template(style)?));
    };
    let style = "{bar:40} {bytes}/{total_bytes} ({bytes_per_sec}, {eta} left) {msg}";
    Ok(ProgressBar::new(size).with_style(ProgressStyle::with_template(style)?))
}

async fn verify(db: &DB, mut rows: Rows) -> Result<()> {
    let bar = ProgressBar::new(u64::try_from(rows.values.len())?)
        .with_style(ProgressStyle::with_template("{bar:40} verified {pos}/{len} rows")?);
    let start = Instant::now();
    let (mut count, mut others) = (0_u64, 0_u64);
    let mut last: Option<bytes::Bytes> = None;
    let mut stream = db.range(..);
    while let Some(row) = stream.next().await {
        let (key, value) = row?;
        if last.as_ref().is_some_and(|last| *last >= key) {
            return Err(format!("key {:?} is out of order", key.escape_ascii().to_string()).into());
        }
        match rows.values.remove(&rows.hasher.hash_one(&*key)) {
            Some(expected) if expected != rows.hasher.hash_one(&*value) => {
                let key = key.escape_ascii();
                return Err(format!("key \"{key}\" has another value than its last line").into());
            }
            Some(_) => bar.inc(1),
            None => others += 1,
        }
        count += 1;
        last = Some(key);
    }
    bar.finish_and_clear();
    if !rows.values.is_empty() {
        return Err(format!("{} imported rows are missing", rows.values.len()).into());
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    writeln!(
        std::io::stdout(),
        "verified {} rows in order ({} were there before): {rate:.0} rows/s",
        HumanCount(count),
        HumanCount(others),
    )?;
    Ok(())
}
