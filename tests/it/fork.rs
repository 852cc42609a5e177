//! What children of the process inherit, and what they do not.
//!
//! A fork is the one thing here that the language calls unsafe: the child of a process with many
//! threads has one of them, and every lock as it was. The children here touch nothing but the
//! database, and leave without unwinding.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use std::future::IntoFuture;

use futures::FutureExt;
use seerdb::{Backend, DB, Durability, Env, EnvOptions, ErrorKind};

use crate::common::{collect, keys, moment, noise, open, place, run, tiny};
use crate::host;

/// Runs `child` in a fork of this process; what it returns, up to 250.
fn fork(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: no other thread of this process holds a lock that the child needs: the test runs
    // alone in its process, and the threads of the engine are idle.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: it ends a child that hangs.
            unsafe { libc::alarm(20) };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            // SAFETY: it ends the process at once and runs nothing of ours.
            unsafe { libc::_exit(done.unwrap_or(255)) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: the pointer is to a local integer.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            assert!(libc::WIFEXITED(status), "the forked child was killed: {status}");
            libc::WEXITSTATUS(status)
        }
    }
}

/// Runs `work` while a fork of this process lives that does nothing.
fn beside_a_fork(work: impl FnOnce()) {
    // SAFETY: the child calls nothing but what a signal handler may call.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: it ends a child that nobody kills.
            unsafe { libc::alarm(20) };
            loop {
                // SAFETY: it sleeps until a signal comes.
                unsafe { libc::pause() };
            }
        }
        pid => {
            work();
            // SAFETY: the child is ours and was not waited for.
            assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
            // SAFETY: no status is asked for.
            assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
        }
    }
}

/// Everything that a child may try; an odd answer is the number of the line that gave it.
fn try_everything(db: &DB, env: &Env, path: &Path) -> i32 {
    macro_rules! must_be {
        ($future:expr, $($kind:path)|+) => {
            match $future.now_or_never() {
                Some(Err(e)) if matches!(e.kind(), $($kind)|+) => {}
                other => {
                    eprintln!("line {}: {other:?}", line!());
                    return 1;
                }
            }
        };
    }
    if !matches!(db.get("000").into_future().now_or_never(), Some(Ok(Some(_)))) {
        return 2;
    }
    let synced = || db.put("child", "synced").durability(Durability::Synced).into_future();
    must_be!(synced(), ErrorKind::Forked);
    must_be!(db.flush(), ErrorKind::Forked);
    must_be!(db.compact_range(..), ErrorKind::Forked);
    must_be!(db.close(), ErrorKind::Forked);
    if !matches!(db.wait_durable(db.durable_seqno()).now_or_never(), Some(Ok(()))) {
        return 4;
    }
    must_be!(tiny().env(env.clone()).open(path), ErrorKind::Forked);
    // The file layer refuses the log: the write fails here, and never reaches the parent's file.
    must_be!(
        db.put("child", "written").durability(Durability::Written).into_future(),
        ErrorKind::Forked | ErrorKind::Indeterminate
    );
    for i in 0..500u64 {
        let write = db.put(format!("child/{i}"), noise(i, 90)).durability(Durability::Buffered);
        match write.into_future().now_or_never() {
            Some(Ok(_)) => {}
            Some(Err(e)) if matches!(e.kind(), ErrorKind::Forked | ErrorKind::FailStop) => break,
            other => {
                eprintln!("buffered write {i}: {other:?}");
                return 3;
            }
        }
    }
    0
}

/// Waits until the engine's threads rest: what one of them holds at a fork, nobody gives back.
fn rest(db: &DB) {
    let figures = || {
        let stats = db.stats();
        (stats.flushes, stats.compactions, stats.log_groups, stats.log_syncs, stats.memtables)
    };
    let (mut before, mut still) = (figures(), 0);
    while still < 60 {
        run(moment());
        let now = figures();
        still = if now == before { still + 1 } else { 0 };
        before = now;
    }
}

#[test]
#[ignore = "run as a child by a_forked_child_can_do_no_harm"]
fn child_forks() {
    let Some((path, extra)) = host::parent_said() else { return };
    let (backend, durability) = extra.split_once(' ').unwrap();
    let backend = if backend == "uring" { Backend::Auto } else { Backend::Portable };
    let durability = match durability {
        "synced" => Durability::Synced,
        _ => Durability::Buffered,
    };
    let env = Env::new(&EnvOptions { backend }).unwrap();
    let options = tiny().env(env.clone()).durability(durability).wal_segment_bytes(64 << 10);
    let db = run(options.open(&path)).unwrap();
    for i in 0..100u64 {
        run(db.put(format!("{i:03}"), noise(i, 90))).unwrap();
    }
    run(db.flush()).unwrap();
    run(db.put("late", "v").durability(Durability::Synced)).unwrap();
    run(db.put("000", "newer").durability(Durability::Buffered)).unwrap();
    run(db.wait_durable(db.stats().visible_seqno)).unwrap();
    for round in 0..5u64 {
        // So that there is something to wait for.
        let later = db.put("000", noise(round, 10)).durability(Durability::Buffered);
        run(later).unwrap();
        rest(&db);
        assert_eq!(fork(|| try_everything(&db, &env, &path)), 0);
        // The parent goes on as if nothing had been.
        for i in 0..20u64 {
            run(db.put(format!("parent/{round}/{i}"), noise(i, 90))).unwrap();
        }
    }
    let only = run(DB::open(&path)).unwrap_err();
    assert_eq!(only.kind(), ErrorKind::Locked, "a child that ended has taken the lock along");
    beside_a_fork(|| {
        run(db.close()).unwrap();
        let again = run(tiny().open(&path)).expect("a child that does nothing holds no lock");
        run(again.close()).unwrap();
    });
}

#[test]
fn a_forked_child_can_do_no_harm() {
    for extra in ["uring synced", "uring buffered", "portable synced", "portable buffered"] {
        let (_dir, path) = place();
        let mut child = host::child("fork::child_forks", &path, extra);
        drop(child.stdin.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{extra}: {}", String::from_utf8_lossy(&output.stdout));
        let db = run(tiny().open(&path)).unwrap();
        assert_eq!(collect(db.iter()).len(), 100 + 1 + 100, "{extra}");
        assert!(collect(db.prefix("child")).is_empty(), "{extra}: a child's write came through");
        run(db.verify()).unwrap();
    }
}

#[test]
fn a_child_that_executes_a_program_inherits_no_lock() {
    let (dir, db) = open(&tiny());
    run(db.put("k", "v")).unwrap();
    // It lives on with whatever it has inherited, while the database is closed and opened again.
    let mut child = Command::new("sh")
        .args(["-c", "ls -l /proc/self/fd/; echo ready; read end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut inherited = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    while !inherited.ends_with("ready\n") {
        assert!(out.read_line(&mut inherited).unwrap() > 0, "{inherited}");
    }
    assert!(!inherited.contains(dir.path().to_str().unwrap()), "{inherited}");
    run(db.close()).unwrap();
    let db = run(tiny().open(dir.path().join("db"))).unwrap();
    assert_eq!(keys(db.iter()), ["k"]);
    drop(child.stdin.take());
    child.wait().unwrap();
    out.read_to_string(&mut inherited).unwrap();
}
