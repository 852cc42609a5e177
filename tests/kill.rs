//! Kills a process that writes, at random, and looks at what is left: nothing that was acknowledged
//! as written is missing, no batch is half there, and buffered writes form a prefix.
//!
//! The test runs itself as the child (`SEERDB_KILL_DIR`). Every writer owns its keys and does the
//! same operations in every life, numbered by stamps, so that the state after stamp `n` is known.
//! A child acknowledges on its standard output. `SEERDB_KILL_SEED` repeats the random choices of a
//! run (not its timing), `SEERDB_KILLS` (default 200) is their number.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that works outside of the engine"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::executor::block_on;
use seerdb::{Backend, DB, DBOptions, Durability, Env, EnvOptions, ErrorKind};

const WRITERS: usize = 5;
const DURABILITIES: [Durability; 3] =
    [Durability::Synced, Durability::Written, Durability::Buffered];

/// What the keys of one writer hold.
type State = BTreeMap<String, String>;

/// The operation `stamp` of `writer`: the keys that it sets and those that it deletes.
fn operation(writer: usize, stamp: u64) -> (Vec<String>, Vec<String>) {
    let (round, step) = (stamp / 8, stamp % 8);
    let key = |step: u64| format!("w{writer}-p{}", (round * 4 + step) % 12);
    let batch = || (0..4).map(|n| format!("w{writer}-b{n}")).collect();
    match step {
        0..4 => (vec![key(step)], vec![]),
        4 => (vec![], vec![key(1)]),
        5 => (batch(), vec![]),
        6 => (batch(), vec![key(2)]),
        _ => (vec![key(0)], vec![]),
    }
}

/// The value of every key that the operation `stamp` sets.
fn value(writer: usize, stamp: u64) -> String {
    let len = mix(stamp * 31 + writer as u64) % 400;
    format!("{stamp:010}{}", "v".repeat(usize::try_from(len).unwrap()))
}

fn apply(state: &mut State, writer: usize, stamp: u64) {
    let (puts, deletes) = operation(writer, stamp);
    for key in puts {
        state.insert(key, value(writer, stamp));
    }
    for key in deletes {
        state.remove(&key);
    }
}

fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn options(default: Durability) -> DBOptions {
    DBOptions::default()
        .durability(default)
        .memory_budget(8 << 20)
        .memtable_bytes(32 << 10)
        .wal_segment_bytes(64 << 10)
        .block_bytes(512)
        .table_bytes(16 << 10)
        .size_ratio(2)
        .runs_per_level(1)
}

/// Not a test: the process that is killed.
#[test]
fn child() {
    let Ok(dir) = std::env::var("SEERDB_KILL_DIR") else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let default = DURABILITIES[usize::try_from(number("SEERDB_KILL_DURABILITY")).unwrap()];
    let seed = number("SEERDB_KILL_SEED");
    let starts = std::env::var("SEERDB_KILL_STARTS").unwrap();
    let starts: Vec<u64> = starts.split(',').filter_map(|start| start.parse().ok()).collect();
    let db = block_on(options(default).open(&dir)).unwrap();
    while starts.is_empty() {
        std::thread::sleep(Duration::from_secs(1));
    }
    std::thread::scope(|scope| {
        for (writer, &start) in starts.iter().enumerate() {
            let db = db.clone();
            scope.spawn(move || {
                for stamp in start + 1.. {
                    let which = mix(seed ^ (stamp * 7 + writer as u64)) % 5;
                    let which = usize::try_from(which).unwrap();
                    let durability = DURABILITIES.get(which).copied().unwrap_or(default);
                    let seqno = block_on(write(&db, writer, stamp, durability));
                    let line = format!("\nA {writer} {stamp} {seqno} {}\n", durability as u8);
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            });
        }
    });
}

async fn write(db: &DB, writer: usize, stamp: u64, durability: Durability) -> u64 {
    let (puts, deletes) = operation(writer, stamp);
    let value = value(writer, stamp);
    match (puts.as_slice(), deletes.as_slice()) {
        ([key], []) => db.put(key, value).durability(durability).await.unwrap(),
        ([], [key]) => db.delete(key).durability(durability).await.unwrap(),
        _ => {
            let mut batch = db.batch();
            for key in &puts {
                batch.put(key, value.clone());
            }
            for key in &deletes {
                batch.delete(key);
            }
            batch.commit().durability(durability).await.unwrap()
        }
    }
}

/// An acknowledged write.
#[derive(Debug, Clone, Copy)]
struct Ack {
    writer: usize,
    stamp: u64,
    seqno: u64,
    buffered: bool,
}

fn parse(line: &str) -> Option<Ack> {
    let mut words = line.strip_prefix("A ")?.split(' ').map(str::parse::<u64>);
    let mut next = || words.next()?.ok();
    let writer = usize::try_from(next()?).ok()?;
    let (stamp, seqno, durability) = (next()?, next()?, next()?);
    Some(Ack { writer, stamp, seqno, buffered: durability == Durability::Buffered as u64 })
}

/// One database that is killed again and again.
struct Victim {
    _scratch: tempfile::TempDir,
    dir: PathBuf,
    backend: &'static str,
    default: usize,
    /// The stamp of every writer that the database is known to hold, and the state then.
    stamps: Vec<u64>,
    states: Vec<State>,
    acks: usize,
    lost_buffered: usize,
}

impl Victim {
    fn new(backend: &'static str, default: usize, in_memory: bool) -> Victim {
        let scratch = match tempfile::tempdir_in("/dev/shm") {
            Ok(scratch) if in_memory => scratch,
            _ => tempfile::tempdir().unwrap(),
        };
        let dir = scratch.path().join("db");
        let (stamps, states) = (vec![0; WRITERS], vec![State::new(); WRITERS]);
        let (acks, lost_buffered) = (0, 0);
        Victim { _scratch: scratch, dir, backend, default, stamps, states, acks, lost_buffered }
    }

    /// Runs a child for a while; what it acknowledged.
    /// With `writes` false it opens the database and does nothing.
    fn kill(&self, seed: u64, after: Duration, writes: bool) -> Vec<Ack> {
        let starts: Vec<String> =
            self.stamps.iter().filter(|_| writes).map(u64::to_string).collect();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env("SEERDB_KILL_DIR", &self.dir)
            .env("SEERDB_KILL_DURABILITY", self.default.to_string())
            .env("SEERDB_KILL_SEED", seed.to_string())
            .env("SEERDB_KILL_STARTS", starts.join(","))
            .env("SEERDB_IO", self.backend)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            // A line that the kill cut off has no end and is not counted.
            let mut acks = Vec::new();
            let mut lines = out;
            let mut line = String::new();
            while lines.read_line(&mut line).unwrap() > 0 {
                acks.extend(line.strip_suffix('\n').and_then(parse));
                line.clear();
            }
            acks
        });
        std::thread::sleep(after);
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "the child ended by itself: {ended:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        reader.join().unwrap()
    }

    /// Opens `dir` in this process and finds out what each writer's keys hold.
    async fn look(&self, env: &Env, dir: &Path) -> Vec<State> {
        let options = options(DURABILITIES[self.default]).env(env.clone());
        let mut tries = 0;
        let db = loop {
            match options.open(dir).await {
                // The kernel may still be closing the files of a killed process.
                Err(error) if error.kind() == ErrorKind::Locked && tries < 100 => {
                    tries += 1;
                    std::thread::sleep(Duration::from_millis(20));
                }
                opened => break opened.unwrap_or_else(|error| panic!("{dir:?}: {error:?}")),
            }
        };
        let mut states = vec![State::new(); WRITERS];
        let mut stream = db.iter();
        while let Some((key, value)) = stream.try_next().await.unwrap() {
            assert_eq!(db.get(&key).await.unwrap().as_ref(), Some(&value), "get and scan differ");
            let key = String::from_utf8(key.to_vec()).unwrap();
            let writer: usize = key[1..2].parse().unwrap();
            states[writer].insert(key, String::from_utf8(value.to_vec()).unwrap());
        }
        drop(stream);
        db.close().await.unwrap();
        states
    }

    /// Judges what was found; the stamps that the database holds.
    fn check(&mut self, acks: &[Ack], found: &[State]) -> Result<(), String> {
        let mut stamps = Vec::new();
        for (writer, found) in found.iter().enumerate() {
            let acked = acks.iter().filter(|ack| ack.writer == writer).map(|ack| ack.stamp).max();
            let mut state = self.states[writer].clone();
            let mut stamp = self.stamps[writer];
            // The write after the last acknowledged one may be there as well.
            let last = acked.unwrap_or(stamp) + 1;
            while state != *found {
                if stamp == last {
                    let what = format!("writer {writer} has none of the states up to {last}");
                    return Err(format!("{what} from {}: {found:?}", self.stamps[writer]));
                }
                stamp += 1;
                apply(&mut state, writer, stamp);
            }
            self.states[writer] = state;
            stamps.push(stamp);
        }
        let is_there = |ack: &Ack| stamps[ack.writer] >= ack.stamp;
        let strict = acks.iter().filter(|ack| !ack.buffered).map(|ack| ack.seqno).max();
        let there = acks.iter().filter(|ack| is_there(ack)).map(|ack| ack.seqno).max();
        let floor = strict.max(there).unwrap_or(0);
        if let Some(lost) = acks.iter().find(|ack| ack.seqno <= floor && !is_there(ack)) {
            return Err(format!("LOST: {lost:?}, though {floor} is there or was promised"));
        }
        self.acks += acks.len();
        self.lost_buffered += acks.iter().filter(|ack| !is_there(ack)).count();
        self.stamps = stamps;
        Ok(())
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_acknowledged() {
    let env = Env::new(&EnvOptions::default()).unwrap();
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap())
    };
    let seed = number("SEERDB_KILL_SEED", env.rng().next_u64());
    let kills = number("SEERDB_KILLS", 200);
    eprintln!("SEERDB_KILL_SEED={seed}");
    // Where the kernel refuses the ring both halves run on the same backend.
    let uring = Env::new(&EnvOptions { backend: Backend::Uring });
    let ring = uring.map_or("auto", |_| "uring");
    let mut victims: Vec<Victim> = (0..6)
        .map(|n| Victim::new(["portable", ring][n % 2], n / 2, (n / 2 + n) % 2 == 0))
        .collect();
    let mut early = 0;
    for kill in 0..kills {
        let mut dice = mix(seed ^ kill);
        let mut roll = |below: u64| {
            dice = mix(dice);
            dice % below
        };
        let victim = &mut victims[usize::try_from(kill % 6).unwrap()];
        let acks = victim.kill(seed ^ kill, Duration::from_millis(5 + roll(96)), true);
        // Kills during the recovery.
        for _ in 0..roll(3) {
            early += 1;
            victim.kill(0, Duration::from_millis(1 + roll(25)), false);
        }
        let copy = victim.dir.with_extension("copy");
        let looked_at =
            if roll(2) == 0 { copy_dir(&victim.dir, &copy) } else { victim.dir.clone() };
        let found = block_on(victim.look(&env, &looked_at));
        if let Err(why) = victim.check(&acks, &found) {
            let (backend, default) = (victim.backend, DURABILITIES[victim.default]);
            panic!("kill {kill} ({backend}, {default:?}, {:?}): {why}", victim.dir);
        }
        if looked_at == copy {
            std::fs::remove_dir_all(&copy).unwrap();
        }
    }
    eprintln!("{kills} kills, {early} more during recovery");
    for victim in &victims {
        let (backend, default) = (victim.backend, DURABILITIES[victim.default]);
        let (acks, lost) = (victim.acks, victim.lost_buffered);
        eprintln!("{backend:9} {default:?}: {acks} writes acknowledged, {lost} buffered ones lost");
        assert!(acks > 0 || kills < 60, "a victim never wrote");
    }
}

fn copy_dir(from: &Path, to: &Path) -> PathBuf {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    to.to_path_buf()
}
