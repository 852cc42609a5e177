//! Every operation of every script fails, one after the other (tier T3).
//!
//! The n-th operation fails, for all n, with every error number that makes sense for it, once and
//! for good. Nothing may panic or hang or answer wrongly, errors are of the kinds that the contract
//! names, and what is refused is never seen. Then the faults end, the process dies, the power fails
//! or the database is closed, and the next open must find everything that was acknowledged.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use seerdb_io::sim::errno::{EACCES, EDQUOT, EFBIG, EIO, EMFILE, ENOSPC, EROFS};
use seerdb_io::sim::{Cut, OpKind, Options, Phase, Sim};

use crate::book::{Book, State, locate};
use crate::exhaustive::on_two_threads;
use crate::look;
use crate::script::{Player, Script, Watch, pages_lost};
use crate::scripts;

/// What an operation of this kind may fail with.
fn errnos(kind: OpKind) -> &'static [i32] {
    match kind {
        OpKind::Read | OpKind::Inspect => &[EIO],
        OpKind::Write | OpKind::WriteDurable | OpKind::WriteCached => &[EIO, ENOSPC, EDQUOT, EFBIG],
        OpKind::Sync | OpKind::SyncDir => &[EIO, ENOSPC],
        OpKind::Open => &[EMFILE, EACCES, EIO, EROFS],
        OpKind::Resize => &[ENOSPC, EDQUOT, EFBIG],
        OpKind::CreateDir | OpKind::Rename | OpKind::Remove => &[EIO, EACCES, EROFS],
        OpKind::ListDir | OpKind::Lock => &[EMFILE, EIO],
    }
}

/// How a life with a fault ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Close,
    Kill,
    Cut(Cut),
}

const ENDS: [End; 4] = [End::Close, End::Kill, End::Cut(Cut::NoneKept), End::Cut(Cut::Mixed)];

/// One fault.
#[derive(Debug, Clone, Copy)]
struct Fault {
    op: u64,
    kind: OpKind,
    errno: i32,
    sticky: bool,
    end: End,
}

/// The kinds of all operations of a clean run.
fn operations(script: &Script, seed: u64) -> BTreeMap<u64, OpKind> {
    let sim = Sim::new(seed, Options::default());
    let kinds = Arc::new(Mutex::new(BTreeMap::new()));
    let shared = Arc::clone(&kinds);
    sim.on_op(move |event| {
        if event.phase == Phase::Submitted {
            shared.lock().unwrap().insert(event.number, event.kind);
        }
    });
    let book = Arc::new(Mutex::new(Book::new()));
    Player { script, sim: &sim, book, tolerant: false, once: false, closes: true }.play();
    std::mem::take(&mut *kinds.lock().unwrap())
}

fn faults(script: &Script, seed: u64) -> Vec<Fault> {
    let mut all = Vec::new();
    for (op, kind) in operations(script, seed) {
        for errno in errnos(kind) {
            for sticky in [false, true] {
                let end = ENDS[(all.len() * 5 / 2) % ENDS.len()];
                all.push(Fault { op, kind, errno: *errno, sticky, end });
            }
        }
    }
    all
}

/// Plays the script with the fault, and looks at what is left.
fn suffer(script: &Script, fault: Fault, seed: u64) {
    let sim = Sim::new(seed, Options { steps_max: 1_000_000, ..Options::default() });
    let book = Arc::new(Mutex::new(Book::new()));
    sim.fail_op(fault.op, fault.errno, fault.sticky);
    let (closes, once) = (fault.end == End::Close, !fault.sticky);
    let player =
        Player { script, sim: &sim, book: Arc::clone(&book), tolerant: true, once, closes };
    player.play();
    sim.stop_faults();
    match fault.end {
        End::Close | End::Kill => sim.kill(),
        End::Cut(cut) => sim.power_cut(cut),
    }
    let what = format!("{}, afterwards", script.name);
    let options = script.options.clone().env(sim.boot());
    let book = book.lock().unwrap();
    let outcome = sim.run(async {
        let db = options.open("/db").await.unwrap_or_else(|e| panic!("{what}: open: {e:?}"));
        let found = look::scan(db.iter()).await.unwrap_or_else(|e| panic!("{what}: {e:?}"));
        let found: State = found.into_iter().collect();
        let bounds = book.bounds(!matches!(fault.end, End::Cut(_)) && !pages_lost(&sim));
        let _ = locate(book.states(), bounds, &found, &what);
        look::plainly(&db, &found, &what).await.unwrap_or_else(|e| panic!("{what}: {e:?}"));
        db.verify().await.unwrap_or_else(|e| panic!("{what}: verify: {e:?}"));
        look::goes_on(&options, db, found, &what).await;
    });
    outcome.unwrap();
}

fn suffer_all(script: &Script, seed: u64, runs: &AtomicUsize, stop: &AtomicBool) {
    for fault in faults(script, seed) {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let run = AssertUnwindSafe(|| suffer(script, fault, seed));
        if let Err(panic) = std::panic::catch_unwind(run) {
            let Fault { op, kind, errno, sticky, end } = fault;
            let name = script.name;
            eprintln!("{name}: {kind:?} {op} fails with {errno}, sticky {sticky}, then {end:?}");
            std::panic::resume_unwind(panic);
        }
        runs.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn every_operation_of_every_script_fails() {
    let (start, runs) = (Instant::now(), AtomicUsize::new(0));
    let scripts: Vec<Script> =
        scripts::all().into_iter().filter(|script| script.watch == Watch::All).collect();
    on_two_threads(&scripts, |script, stop| {
        let (start, before) = (Instant::now(), runs.load(Ordering::Relaxed));
        suffer_all(script, 1, &runs, stop);
        if std::env::var_os("SEERDB_SIM_TIMES").is_some() {
            let runs = runs.load(Ordering::Relaxed) - before;
            eprintln!("{}: about {runs} runs, {:?}", script.name, start.elapsed());
        }
    });
    let (runs, seconds) = (runs.load(Ordering::Relaxed), start.elapsed().as_secs_f64());
    eprintln!("{} scripts, {runs} faults: {seconds:.1} s", scripts.len());
}
