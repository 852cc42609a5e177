//! The tour of the README, on a fresh directory, checking what it prints.
//!
//! ```text
//! cargo run --release --example quickstart
//! ```
//!
//! `SEERDB_IO=portable` runs it without io_uring.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;

use bytes::Bytes;
use seerdb::{DB, DBOptions, Durability, ErrorKind};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let scratch = Scratch::new()?;
    let path = scratch.0.join("db");
    let db = DB::open(&path).await?;
    say(&format!("opened on {}", db.io_backend()))?;
    single_keys(&db).await?;
    batches_and_streams(&db).await?;
    snapshots(&db).await?;
    durabilities(&db).await?;
    many_tasks(&db).await?;
    reopening(db, &path).await?;
    say("done")
}

async fn single_keys(db: &DB) -> Result<(), Box<dyn Error>> {
    db.put(b"key1", b"value1").await?;
    let value = db.get(b"key1").await?;
    assert_eq!(value.as_deref(), Some(b"value1".as_slice()));
    say(&format!("key1 = {}", text(value.as_ref())))?;
    db.delete(b"key1").await?;
    let value = db.get(b"key1").await?;
    assert_eq!(value, None);
    say(&format!("key1 after delete = {}", text(value.as_ref())))
}

async fn batches_and_streams(db: &DB) -> Result<(), Box<dyn Error>> {
    let mut batch = db.batch();
    batch.put(b"user:1", b"alice");
    batch.put(b"user:2", b"bob");
    batch.put(b"user:3", b"carol");
    batch.commit().await?;

    let mut users = db.prefix(b"user:");
    let mut names = Vec::new();
    while let Some((_, name)) = users.try_next().await? {
        names.push(text(Some(&name)));
    }
    assert_eq!(names, ["alice", "bob", "carol"]);
    say(&format!("users in order: {}", names.join(", ")))?;

    let mut last = db.range(b"user:".as_slice()..b"user:~").rev().limit(1);
    let (key, name) = last.try_next().await?.ok_or("there are users")?;
    assert_eq!((key.as_ref(), name.as_ref()), (b"user:3".as_slice(), b"carol".as_slice()));
    say(&format!("the last user: {} is {}", text(Some(&key)), text(Some(&name))))
}

async fn snapshots(db: &DB) -> Result<(), Box<dyn Error>> {
    let snapshot = db.snapshot();
    db.put(b"user:1", b"alicia").await?;
    let (then, now) = (snapshot.get(b"user:1").await?, db.get(b"user:1").await?);
    assert_eq!(then.as_deref(), Some(b"alice".as_slice()));
    assert_eq!(now.as_deref(), Some(b"alicia".as_slice()));
    say(&format!("user:1 was {}, is {}", text(then.as_ref()), text(now.as_ref())))?;

    let found = db.get_many([b"user:1", b"user:9"]).await?;
    let found: Vec<String> = found.iter().map(|value| text(value.as_ref())).collect();
    assert_eq!(found, ["alicia", "nothing"]);
    say(&format!("two keys at once: {}", found.join(", ")))
}

async fn durabilities(db: &DB) -> Result<(), Box<dyn Error>> {
    let seqno = db.put(b"audit", b"later").durability(Durability::Buffered).await?;
    db.wait_durable(seqno).await?;
    assert!(db.durable_seqno() >= seqno);
    say(&format!("write {seqno} is durable"))?;
    match db.try_put(b"audit", b"at once").await {
        Err(error) if error.kind() == ErrorKind::WouldStall => say("try_put: busy, shed load"),
        other => say(&format!("try_put: write {} without waiting for memory", other?)),
    }
}

async fn many_tasks(db: &DB) -> Result<(), Box<dyn Error>> {
    let tasks: Vec<_> = (0..64_u32)
        .map(|task| {
            let db = db.clone();
            tokio::spawn(async move { db.put(task.to_be_bytes(), b"from a task").await })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let mut numbers = db.range(0_u32.to_be_bytes()..64_u32.to_be_bytes());
    let mut count = 0;
    while numbers.try_next().await?.is_some() {
        count += 1;
    }
    assert_eq!(count, 64);
    say(&format!("{count} tasks wrote a key each"))
}

async fn reopening(db: DB, path: &PathBuf) -> Result<(), Box<dyn Error>> {
    db.flush().await?;
    db.close().await?;
    let options = DBOptions::default().memory_budget(64 << 20).durability(Durability::Written);
    let db = options.open(path).await?;
    let value = db.get(b"user:1").await?;
    assert_eq!(value.as_deref(), Some(b"alicia".as_slice()));
    say(&format!("user:1 after reopening = {}", text(value.as_ref())))?;
    db.close().await?;
    let refused = db.get(b"user:1").await.err().ok_or("a closed database answers nothing")?;
    assert_eq!(refused.kind(), ErrorKind::Closed);
    say(&format!("after close: {refused}"))
}

/// A value for a person to read.
fn text(value: Option<&Bytes>) -> String {
    value.map_or("nothing".into(), |value| String::from_utf8_lossy(value).into_owned())
}

fn say(line: &str) -> Result<(), Box<dyn Error>> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// A directory of this run, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    #[expect(clippy::disallowed_methods, reason = "a program makes its own directories")]
    fn new() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("seerdb-quickstart-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    #[expect(clippy::disallowed_methods, reason = "a program removes what it made")]
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            say(&format!("{} stays: {error}", self.0.display())).ok();
        }
    }
}
