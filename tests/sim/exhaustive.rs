//! Every script, cut at every operation: what the next life must find (tier T2).
//!
//! A script is played once. At each operation, when it is submitted and when it completes, crash
//! images are kept: nothing pending kept, everything, eight mixtures, and the disk that a killed
//! process leaves. Every image is booted by a machine of its own; equal images count once, with
//! the bounds of all their moments. Of some images the recovery is cut as well, in the same way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use seerdb_io::sim::{Cut, Disk, OpEvent, OpKind, Options, Phase, Sim};

use crate::book::{Book, Bounds, State, locate};
use crate::look;
use crate::script::{Player, Script, Watch};
use crate::scripts;

const MIXTURES: u64 = 8;
/// Of this many images one has its recovery cut, and one is verified.
const CUT_AGAIN: usize = 40;
const VERIFIED: usize = 16;

/// A disk to boot, and what must be on it.
struct Image {
    disk: Disk,
    epoch: usize,
    bounds: Bounds,
}

/// Images by content: equal ones count once.
#[derive(Default)]
struct Album {
    images: Vec<Image>,
    places: HashMap<(u64, usize), usize>,
    seen: usize,
}

impl Album {
    fn add(&mut self, disk: Disk, epoch: usize, bounds: Bounds) {
        self.seen += 1;
        let place = *self.places.entry((disk.fingerprint(), epoch)).or_insert(self.images.len());
        match self.images.get_mut(place) {
            Some(image) => {
                image.bounds.low = image.bounds.low.max(bounds.low);
                image.bounds.high = image.bounds.high.min(bounds.high);
            }
            None => self.images.push(Image { disk, epoch, bounds }),
        }
    }

    /// All that this moment may leave.
    fn add_moment(&mut self, event: &OpEvent<'_>, mixtures: u64, epoch: usize, ends: [Bounds; 2]) {
        let [cut, killed] = ends;
        self.add(event.crash_clone(Cut::NoneKept, 0), epoch, cut);
        self.add(event.crash_clone(Cut::AllKept, 0), epoch, cut);
        for mixture in 0..mixtures {
            let seed =
                event.number * 1000 + mixture * 2 + u64::from(event.phase == Phase::Completed);
            self.add(event.crash_clone(Cut::Mixed, seed), epoch, cut);
        }
        self.add(event.disk().clone(), epoch, killed);
    }
}

/// Decides which operations are worth a crash.
struct Watcher {
    watch: Watch,
    manifests: usize,
    left: usize,
}

impl Watcher {
    fn looks(&mut self, event: &OpEvent<'_>) -> bool {
        if self.watch == Watch::All {
            return true;
        }
        let is_manifest = event.path.to_string_lossy().contains("/MANIFEST-");
        if event.kind == OpKind::Open && event.phase == Phase::Submitted && is_manifest {
            self.manifests += 1;
            self.left = if self.manifests > 1 { 80 } else { 0 };
        }
        if event.kind == OpKind::Resize && is_manifest && self.left == 0 {
            self.left = 40;
        }
        self.left = self.left.saturating_sub(1);
        self.left > 0
    }
}

/// Plays `script` and keeps what every moment of it may leave.
fn photograph(script: &Script, seed: u64) -> (Album, Book) {
    let sim = Sim::new(seed, Options::default());
    let book = Arc::new(Mutex::new(Book::new()));
    let album = Arc::new(Mutex::new(Album::default()));
    let mut watcher = Watcher { watch: script.watch, manifests: 0, left: 0 };
    let (shared, kept) = (Arc::clone(&book), Arc::clone(&album));
    sim.on_op(move |event| {
        if watcher.looks(event) {
            let book = shared.lock().unwrap();
            let ends = [book.bounds(false), book.bounds(true)];
            let epoch = book.epochs.len();
            kept.lock().unwrap().add_moment(event, MIXTURES, epoch, ends);
        }
    });
    Player {
        script,
        sim: &sim,
        book: Arc::clone(&book),
        tolerant: false,
        once: false,
        closes: true,
    }
    .play();
    sim.on_op(|_| ());
    let album = std::mem::take(&mut *album.lock().unwrap());
    let book = std::mem::replace(&mut *book.lock().unwrap(), Book::new());
    (album, book)
}

/// The machine that boots an image: a fresh one, without a trace of the old.
fn machine(disk: &Disk, seed: u64) -> Sim {
    Sim::with_disk(seed, Options { latency_us: (1, 40), ..Options::default() }, disk.clone())
}

/// Opens what a crash left and checks all that is promised of it; panics when something is wrong.
fn inspect(script: &Script, states: &[Arc<State>], image: &Image, number: usize, what: &str) {
    let seed = number as u64;
    let sim = machine(&image.disk, seed);
    let what = format!("{}, {what} {number}", script.name);
    let env = sim.boot();
    let options = script.options.clone().env(env.clone());
    let outcome = sim.run(async {
        let db = options.open("/db").await.unwrap_or_else(|e| panic!("{what}: open: {e:?}"));
        let found = look::scan(db.iter()).await.unwrap_or_else(|e| panic!("{what}: {e:?}"));
        let found: State = found.into_iter().collect();
        let _ = locate(states, image.bounds, &found, &what);
        look::plainly(&db, &found, &what).await.unwrap_or_else(|e| panic!("{what}: {e:?}"));
        if number.is_multiple_of(VERIFIED) {
            db.verify().await.unwrap_or_else(|e| panic!("{what}: verify: {e:?}"));
        }
        look::goes_on(&options, db, found, &what).await;
    });
    outcome.unwrap();
}

/// Cuts the recovery of an image at every operation.
fn photograph_recovery(
    script: &Script,
    states: &[Arc<State>],
    image: &Image,
    number: usize,
) -> Album {
    let sim = machine(&image.disk, number as u64);
    let album = Arc::new(Mutex::new(Album::default()));
    let bounds = Arc::new(Mutex::new(image.bounds));
    let (kept, shared, epoch) = (Arc::clone(&album), Arc::clone(&bounds), image.epoch);
    sim.on_op(move |event| {
        let bounds = *shared.lock().unwrap();
        kept.lock().unwrap().add_moment(event, 2, epoch, [bounds, bounds]);
    });
    let options = script.options.clone().env(sim.boot());
    let outcome = sim.run(async {
        let what = script.name;
        let db = options.open("/db").await.unwrap_or_else(|e| panic!("{what}: open: {e:?}"));
        let found = look::scan(db.iter()).await.unwrap_or_else(|e| panic!("{what}: {e:?}"));
        let found: State = found.into_iter().collect();
        let k = locate(states, image.bounds, &found, what);
        // What was read once after a recovery stays.
        if states.iter().filter(|state| ***state == found).count() == 1 {
            *bounds.lock().unwrap() = Bounds { low: k, high: k };
        }
        db.close().await.unwrap_or_else(|e| panic!("{what}: close: {e:?}"));
    });
    outcome.unwrap();
    sim.on_op(|_| ());
    std::mem::take(&mut *album.lock().unwrap())
}

/// Moments and machines.
#[derive(Default)]
struct Counts {
    moments: AtomicUsize,
    runs: AtomicUsize,
    again: AtomicUsize,
}

fn exhaust(script: &Script, seed: u64, counts: &Counts, stop: &AtomicBool) {
    let (album, book) = photograph(script, seed);
    counts.moments.fetch_add(album.seen, Ordering::Relaxed);
    for (number, image) in album.images.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let states = book.epoch(image.epoch);
        inspect(script, states, image, number, "image");
        counts.runs.fetch_add(1, Ordering::Relaxed);
        if script.twice && number % CUT_AGAIN == CUT_AGAIN / 2 {
            let second = photograph_recovery(script, states, image, number);
            for (number, image) in second.images.iter().enumerate() {
                inspect(script, states, image, number, "image of a recovery");
                counts.again.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Does the work for all scripts on two threads; the first failure stops both.
pub(crate) fn on_two_threads(scripts: &[Script], work: impl Fn(&Script, &AtomicBool) + Sync) {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let filter = std::env::var("SEERDB_SIM_SCRIPT").unwrap_or_default();
    let (work, next, stop, filter) = (&work, &next, &stop, &filter);
    std::thread::scope(|scope| {
        let threads = std::env::var("SEERDB_SIM_THREADS").map_or(2, |n| n.parse().unwrap());
        for _ in 0..threads {
            scope.spawn(move || {
                while let Some(script) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !script.name.contains(filter.as_str()) || stop.load(Ordering::Relaxed) {
                        continue;
                    }
                    let run = std::panic::AssertUnwindSafe(|| work(script, stop));
                    if let Err(panic) = std::panic::catch_unwind(run) {
                        stop.store(true, Ordering::Relaxed);
                        std::panic::resume_unwind(panic);
                    }
                }
            });
        }
    });
}

#[test]
fn every_crash_point_of_every_script() {
    let (start, counts) = (Instant::now(), Counts::default());
    let scripts = scripts::all();
    on_two_threads(&scripts, |script, stop| {
        let start = Instant::now();
        let before = counts.runs.load(Ordering::Relaxed);
        exhaust(script, 1, &counts, stop);
        if std::env::var_os("SEERDB_SIM_TIMES").is_some() {
            let runs = counts.runs.load(Ordering::Relaxed) - before;
            eprintln!("{}: about {runs} runs, {:?}", script.name, start.elapsed());
        }
    });
    eprintln!(
        "{} scripts, {} crash images of which {} differ, {} of recoveries: {:.1} s",
        scripts.len(),
        counts.moments.load(Ordering::Relaxed),
        counts.runs.load(Ordering::Relaxed),
        counts.again.load(Ordering::Relaxed),
        start.elapsed().as_secs_f64()
    );
}
