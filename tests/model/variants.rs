//! The same operations under other options and on other backends give the same answers.
//!
//! Each case draws one list of operations and, for every way to play it, options of its own, which
//! change with every reopen. A play notes all answers ([`crate::transcript`]); all the notes of a
//! case must be equal. This needs no model: it holds for whatever the model does not know.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use futures::future::{Either, select};
use proptest::collection::vec;
use proptest::test_runner::{TestCaseError, TestError};
use seerdb::{Backend, Env, EnvOptions};
use seerdb_io::sim::{Options, Sim};

use crate::cases::{base, from_env, runner};
use crate::ops::{self, Op, Opts};
use crate::transcript;

/// Cases when nothing is asked for: a few seconds.
const CASES: u64 = 60;
/// Options of one play; a reopen takes the next.
const OPTS: usize = 3;
/// A play that takes longer hangs; on a loaded machine it takes milliseconds.
const HANGS: Duration = Duration::from_secs(60);

/// What a play runs on.
enum Machine {
    Real(&'static str, Env),
    Simulated,
}

impl Machine {
    fn name(&self) -> &'static str {
        match self {
            Machine::Real(name, _) => name,
            Machine::Simulated => "simulated",
        }
    }

    fn play(&self, ops: &[Op], opts: &[Opts], seed: u64) -> Vec<String> {
        match self {
            Machine::Real(_, env) => {
                let dir = tempfile::TempDir::with_prefix_in("seerdb-variants-", base());
                let dir = dir.expect("a directory can be made");
                let playing = pin!(transcript::play(env, dir.path(), ops, opts));
                match futures::executor::block_on(select(playing, env.clock().sleep(HANGS))) {
                    Either::Left((notes, _)) => notes,
                    Either::Right(_) => vec!["the play hangs".into()],
                }
            }
            Machine::Simulated => {
                let sim = Sim::new(seed, Options::default());
                let env = sim.boot();
                sim.run(transcript::play(&env, Path::new("/"), ops, opts)).unwrap()
            }
        }
    }
}

/// All machines that this one grants, the simulated one twice: with other options each time.
fn machines() -> Vec<Machine> {
    let mut machines = vec![Machine::Simulated, Machine::Simulated];
    for (name, backend) in [("portable", Backend::Portable), ("io_uring", Backend::Uring)] {
        match Env::new(&EnvOptions { backend }) {
            Ok(env) => machines.push(Machine::Real(name, env)),
            Err(refusal) => println!("skipped: {name} is not granted here: {refusal}"),
        }
    }
    machines
}

/// The first answer in which two plays differ, and the operation that it belongs to.
fn difference(one: &[String], other: &[String]) -> Option<String> {
    let at = (0..one.len().max(other.len())).find(|at| one.get(*at) != other.get(*at))?;
    let (before, _) = one.split_at_checked(at + 1).unwrap_or((one, &[]));
    let op = before.iter().rev().find(|line| !line.starts_with(' '));
    Some(format!("{:?} and {:?} differ, in {op:?}", one.get(at), other.get(at)))
}

#[test]
fn other_options_and_backends_give_the_same_answers() {
    let cases = from_env("SEERDB_MODEL_VARIED").unwrap_or(CASES);
    let seed = from_env("SEERDB_MODEL_SEED");
    let first = seed.unwrap_or_else(|| RandomState::new().hash_one(cases) >> 16);
    let ops_max = from_env("SEERDB_MODEL_OPS").unwrap_or(120);
    let machines = machines();
    println!("{cases} cases, {} plays each, SEERDB_MODEL_SEED={first}", machines.len());
    let answers = std::cell::Cell::new(0);
    for seed in (0..cases).map(|case| first.wrapping_add(case)) {
        let drawn = (ops::case(ops_max), vec(vec(ops::opts(), OPTS), machines.len()));
        let outcome = runner(seed).run(&drawn, |(case, opts)| {
            let mut plays = machines
                .iter()
                .zip(&opts)
                .map(|(machine, opts)| (machine.name(), machine.play(&case.ops, opts, seed)));
            let (name, expected) = plays.next().expect("there are several machines");
            answers.set(answers.get() + expected.len());
            match plays.find_map(|(other, notes)| Some((other, difference(&expected, &notes)?))) {
                None => Ok(()),
                Some((other, what)) => {
                    Err(TestCaseError::fail(format!("{name} and {other}: {what}")))
                }
            }
        });
        match outcome {
            Ok(()) => {}
            Err(TestError::Abort(why)) => panic!("SEERDB_MODEL_SEED={seed} was aborted: {why}"),
            Err(TestError::Fail(why, case)) => {
                panic!("SEERDB_MODEL_SEED={seed}: {why}\nshrunk: {case:#?}")
            }
        }
    }
    let answers = answers.into_inner() as u64;
    assert!(cases < 20 || answers > 100 * cases, "only {answers} answers in {cases} cases");
}

#[test]
fn a_difference_is_found_and_told_with_its_operation() {
    let one = ["0: Get".to_string(), "  a".into(), "1: Flush".into(), "  0".into()];
    let mut other = one.clone();
    assert_eq!(difference(&one, &other), None);
    other[3] = "  1".into();
    assert!(difference(&one, &other).is_some_and(|what| what.contains("1: Flush")));
    let told = difference(&one, &one[..3]).expect("one is longer");
    assert!(told.contains("None") && told.contains("1: Flush"), "{told}");
}
