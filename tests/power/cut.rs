//! Cuts the power under a process that writes, at random, and looks at what is left: everything
//! that was acknowledged as synced, all of it that came before, and no hole and no half batch
//! behind it.
//!
//! The test runs itself as the child (`SEERDB_POWER_DIR`), which acknowledges on its standard
//! output.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use seerdb::{Backend, DB, Durability, Env, EnvOptions};

use crate::disk::{Disk, Switch};
use crate::script::{Ack, DURABILITIES, State, WRITERS, apply, mix, options, write};

const MOUNTS: [&str; 4] = ["data=ordered", "data=writeback", "data=journal", "nodelalloc"];
const MIB: u64 = 64;

/// Not a test: the process under which the power is cut.
#[test]
fn child() {
    let Ok(dir) = std::env::var("SEERDB_POWER_DIR") else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let default = DURABILITIES[usize::try_from(number("SEERDB_POWER_DURABILITY")).unwrap()];
    let seed = number("SEERDB_POWER_SEED");
    let starts = std::env::var("SEERDB_POWER_STARTS").unwrap();
    let starts: Vec<u64> = starts.split(',').filter_map(|start| start.parse().ok()).collect();
    // The cut may come before the database is open.
    if let Ok(db) = block_on(options(default).open(&dir)) {
        std::thread::scope(|scope| {
            for (writer, &start) in starts.iter().enumerate() {
                let db = db.clone();
                scope.spawn(move || write_on(&db, writer, start, seed, default));
            }
        });
    }
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Writes until something fails.
fn write_on(db: &DB, writer: usize, start: u64, seed: u64, default: Durability) {
    for stamp in start + 1.. {
        let dice = mix(seed ^ (stamp * 7 + writer as u64));
        let which = usize::try_from(dice % 5).unwrap();
        let durability = DURABILITIES.get(which).copied().unwrap_or(default);
        let Ok(seqno) = block_on(write(db, writer, stamp, durability)) else { return };
        let is_synced = durability == Durability::Synced;
        let line = Ack { writer, stamp, seqno, is_synced }.line();
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
        if writer == 0 && dice >> 8 & 31 == 0 {
            block_on(db.flush()).ok();
        }
    }
}

/// One database on a disk of its own, whose power is cut again and again.
struct Victim {
    disk: Disk,
    backend: Backend,
    default: usize,
    /// The stamp of every writer that the database holds, and the state then.
    stamps: Vec<u64>,
    states: Vec<State>,
    acks: usize,
    synced: usize,
    lost: usize,
}

impl Victim {
    fn new(disk: Disk, backend: Backend, default: usize) -> Victim {
        let (stamps, states) = (vec![0; WRITERS], vec![State::new(); WRITERS]);
        Victim { disk, backend, default, stamps, states, acks: 0, synced: 0, lost: 0 }
    }

    fn name(&self) -> String {
        format!("{:?}, {:?}", self.backend, DURABILITIES[self.default])
    }

    fn spawn(&self, seed: u64, writes: bool) -> Child {
        let starts: Vec<String> =
            self.stamps.iter().filter(|_| writes).map(u64::to_string).collect();
        let backend = if self.backend == Backend::Portable { "portable" } else { "uring" };
        Command::new(std::env::current_exe().unwrap())
            .args(["cut::child", "--exact", "--nocapture", "--test-threads=1"])
            .env("SEERDB_POWER_DIR", self.disk.path().join("db"))
            .env("SEERDB_POWER_DURABILITY", self.default.to_string())
            .env("SEERDB_POWER_SEED", seed.to_string())
            .env("SEERDB_POWER_STARTS", starts.join(","))
            .env("SEERDB_IO", backend)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Lets a child live for a while, then cuts the power and mounts the disk again; what the
    /// child acknowledged. With `writes` false it opens the database and does nothing.
    fn cut(
        &mut self,
        switch: &mut Switch,
        seed: u64,
        after: Duration,
        writes: bool,
        mount: &str,
    ) -> Vec<Ack> {
        let mut child = self.spawn(seed, writes);
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let is_cut = Arc::new(AtomicBool::new(false));
        let is_late = Arc::clone(&is_cut);
        let reader = std::thread::spawn(move || {
            // A line that the kill cut off has no end and is not counted.
            let (mut acks, mut line) = (Vec::new(), String::new());
            while lines.read_line(&mut line).unwrap() > 0 {
                if let Some(mut ack) = line.strip_suffix('\n').and_then(Ack::parse) {
                    // A sync that the cut finds under way may return Ok though ext4 dropped its
                    // extents: nobody is there to see that when the power really fails.
                    ack.is_synced &= !is_late.load(Ordering::SeqCst);
                    acks.push(ack);
                }
                line.clear();
            }
            acks
        });
        std::thread::sleep(after);
        let ended = child.try_wait().unwrap();
        is_cut.store(true, Ordering::SeqCst);
        let cut = switch.cut(&self.disk);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ended.is_none(), "the child ended by itself: {ended:?}");
        cut.unwrap();
        self.disk.unmount().unwrap();
        self.disk.mount(mount).unwrap();
        reader.join().unwrap()
    }

    /// Opens the database in this process, tries it, and finds out what each writer's keys hold.
    async fn look(&self, env: &Env) -> Result<Vec<State>, String> {
        let text = |what: &'static str| move |error| format!("{what}: {error:?}");
        let options = options(DURABILITIES[self.default]).env(env.clone());
        let db = options.open(self.disk.path().join("db")).await.map_err(text("open"))?;
        db.verify().await.map_err(text("verify"))?;
        let mut states = vec![State::new(); WRITERS];
        let mut stream = db.prefix("w");
        while let Some((key, value)) = stream.try_next().await.map_err(text("scan"))? {
            let found = db.get(&key).await.map_err(text("get"))?;
            if found.as_ref() != Some(&value) {
                return Err(format!("get and scan differ at {key:?}"));
            }
            let key = String::from_utf8(key.to_vec()).unwrap();
            let writer: usize = key[1..2].parse().unwrap();
            states[writer].insert(key, String::from_utf8(value.to_vec()).unwrap());
        }
        drop(stream);
        db.put("again", "it writes").await.map_err(text("put"))?;
        db.close().await.map_err(text("close"))?;
        Ok(states)
    }

    /// Judges what was found.
    fn check(&mut self, acks: &[Ack], found: &[State]) -> Result<(), String> {
        let mut firsts = Vec::new();
        for (writer, found) in found.iter().enumerate() {
            let acked = acks.iter().filter(|ack| ack.writer == writer).map(|ack| ack.stamp).max();
            let mut state = self.states[writer].clone();
            let start = self.stamps[writer];
            // The write after the last acknowledged one may be there as well. A delete of nothing
            // changes nothing, so that several stamps may have this state.
            let mut stamps = (state == *found).then_some(start..=start);
            for next in start + 1..=acked.unwrap_or(start) + 1 {
                apply(&mut state, writer, next);
                if state == *found {
                    let first = stamps.map_or(next, |stamps| *stamps.start());
                    stamps = Some(first..=next);
                }
            }
            let Some(stamps) = stamps else {
                let what = format!("writer {writer} has none of its states from {start} on");
                return Err(format!("{what}, {acked:?} was acknowledged: {found:?}"));
            };
            self.states[writer].clone_from(found);
            self.stamps[writer] = *stamps.end();
            firsts.push(*stamps.start());
        }
        let is_there = |ack: &Ack| self.stamps[ack.writer] >= ack.stamp;
        let is_surely = |ack: &Ack| firsts[ack.writer] >= ack.stamp;
        let promised = acks.iter().filter(|ack| ack.is_synced).map(|ack| ack.seqno).max();
        let there = acks.iter().filter(|ack| is_surely(ack)).map(|ack| ack.seqno).max();
        let floor = promised.max(there).unwrap_or(0);
        if let Some(lost) = acks.iter().find(|ack| ack.seqno <= floor && !is_there(ack)) {
            let last = acks.iter().map(|ack| ack.seqno).max();
            let what = format!("LOST: {lost:?}, though {floor} is there or was promised");
            return Err(format!("{what}; there is {there:?}, {last:?} was acknowledged"));
        }
        let lost = acks.iter().filter(|ack| !is_there(ack)).count();
        self.lost += lost;
        self.acks += acks.len();
        self.synced += acks.iter().filter(|ack| ack.is_synced).count();
        Ok(())
    }
}

/// The victims, each mounted, or why there are none.
fn victims(backends: &[Backend]) -> Result<Vec<Victim>, String> {
    let mut victims = Vec::new();
    for default in 0..DURABILITIES.len() {
        for &backend in backends {
            let mut disk = Disk::new(MIB)?;
            disk.mount(MOUNTS[0])?;
            victims.push(Victim::new(disk, backend, default));
        }
    }
    Ok(victims)
}

/// A switch that was tried.
fn switch() -> Result<Switch, String> {
    let (mut switch, mut disk) = (Switch::new()?, Disk::new(16)?);
    disk.mount(MOUNTS[0])?;
    switch.cut(&disk)?;
    disk.unmount()?;
    Ok(switch)
}

#[test]
fn a_power_cut_loses_nothing_that_was_synced() {
    let portable = Env::new(&EnvOptions { backend: Backend::Portable }).unwrap();
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap())
    };
    let seed = number("SEERDB_POWER_SEED", portable.rng().next_u64());
    let cuts = number("SEERDB_POWER_CUTS", 100);
    eprintln!("SEERDB_POWER_SEED={seed}");
    let mut envs = vec![(Backend::Portable, portable)];
    match Env::new(&EnvOptions { backend: Backend::Uring }) {
        Ok(env) => envs.push((Backend::Uring, env)),
        Err(why) => eprintln!("without the ring: {why}"),
    }
    let backends: Vec<Backend> = envs.iter().map(|(backend, _)| *backend).collect();
    let ready = switch().and_then(|switch| Ok((switch, victims(&backends)?)));
    let (mut switch, mut victims) = match ready {
        Ok(ready) => ready,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let (started, mut early, count) = (Instant::now(), 0, victims.len());
    for cut in 0..cuts {
        let mut dice = mix(seed ^ cut);
        let mut roll = |below: u64| {
            dice = mix(dice);
            dice % below
        };
        let victim = &mut victims[usize::try_from(cut).unwrap() % count];
        let after = Duration::from_millis(5 + roll(150));
        let mount = MOUNTS[usize::try_from(roll(4)).unwrap()];
        let acks = victim.cut(&mut switch, seed ^ cut, after, true, mount);
        // Cuts during the recovery.
        for _ in 0..roll(6).saturating_sub(3) {
            early += 1;
            let after = Duration::from_millis(1 + roll(30));
            victim.cut(&mut switch, 0, after, false, mount);
        }
        let (_, env) = envs.iter().find(|(backend, _)| *backend == victim.backend).unwrap();
        let judged = block_on(victim.look(env)).and_then(|found| victim.check(&acks, &found));
        if let Err(why) = judged {
            panic!("cut {cut} ({}, {mount} since): {why}", victim.name());
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{cuts} cuts, {early} more during recovery, {seconds:.1} s");
    for victim in &mut victims {
        let (name, acks) = (victim.name(), victim.acks);
        let (synced, lost) = (victim.synced, victim.lost);
        eprintln!("{name}: {acks} acks checked, {synced} of them synced; {lost} others lost");
        assert!(acks > 0 || cuts < 60, "{name}: a victim never wrote");
        victim.disk.unmount().unwrap();
    }
}
