//! The engine against a model: random operations, every answer compared at once.
//!
//! The model is a map from each key to all its versions. A case draws tiny options, so that
//! flushes and merges happen within a hundred operations, and runs a list of operations on a
//! database in memory. Every read is compared with the model, at the present and at each held
//! snapshot and stream; so is the seqno of every write, since the model knows the next one.
//!
//! | environment | meaning |
//! |---|---|
//! | `SEERDB_MODEL_CASES` | cases per backend (else `PROPTEST_CASES`, else about half a minute) |
//! | `SEERDB_MODEL_SEED` | seed of the first case, decimal; case `i` has this seed plus `i` |
//! | `SEERDB_MODEL_OPS` | most operations in a case (default 120) |
//! | `SEERDB_MODEL_THREADS` | threads that run cases (default: one per core) |
//! | `SEERDB_MODEL_VARIED` | cases that `variants` plays in several ways (default 60) |
//!
//! A failing case prints its seed and its shrunk form; `SEERDB_MODEL_SEED=<seed>
//! SEERDB_MODEL_CASES=1` runs it again. What the background tasks do meanwhile is up to the
//! scheduler, so a rare failure may take several runs.

#[cfg(test)]
mod exec;
#[cfg(test)]
mod held;
#[cfg(test)]
mod ops;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod transcript;
#[cfg(test)]
mod variants;

#[cfg(test)]
mod cases {
    use std::cell::RefCell;
    use std::hash::{BuildHasher, RandomState};
    use std::path::{Path, PathBuf};
    use std::str::FromStr;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng};
    use proptest::test_runner::{TestRunner, TestRunner as Runner};
    use seerdb::{Backend, Env, EnvOptions};

    use super::{exec, ops};

    /// Cases per backend when nothing is asked for: both backends take about a minute together.
    const CASES: u64 = 600;

    pub(crate) fn from_env<T: FromStr>(name: &str) -> Option<T> {
        let text = std::env::var(name).ok()?;
        let parsed = text.parse();
        Some(parsed.unwrap_or_else(|_| panic!("{name} is '{text}', which is no number")))
    }

    /// Where databases live in memory, if the system has such a place.
    pub(crate) fn base() -> PathBuf {
        let shm = Path::new("/dev/shm");
        if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() }
    }

    pub(crate) fn runner(seed: u64) -> Runner {
        let config = Config {
            cases: 1,
            failure_persistence: None,
            max_shrink_iters: 1500,
            max_shrink_time: 300_000,
            ..Config::default()
        };
        let bytes: Vec<u8> = seed.to_le_bytes().repeat(4);
        TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }

    /// Runs the case of `seed`; what went wrong and the shrunk case.
    fn run_seed(env: &Env, seed: u64, ops_max: usize, totals: &exec::Totals) -> Result<(), String> {
        // The text of the last failure: shrinking may end with another one than it began with.
        let said = RefCell::new(String::new());
        let outcome = runner(seed).run(&ops::case(ops_max), |case| {
            let dir = tempfile::TempDir::with_prefix_in("seerdb-model-", base())
                .map_err(|error| TestCaseError::fail(format!("no directory: {error}")))?;
            exec::run(env, dir.path(), &case, totals).map_err(|what| {
                if said.borrow().is_empty() {
                    println!("seed {seed} fails: {what}; shrinking it");
                }
                said.replace(what.clone());
                TestCaseError::fail(what)
            })
        });
        match outcome {
            Ok(()) => Ok(()),
            Err(TestError::Abort(why)) => Err(format!("seed {seed} was aborted: {why}")),
            Err(TestError::Fail(why, case)) => Err(format!(
                "seed {seed} fails: {why}\nat first or on the way: {}\nshrunk: {case:#?}",
                said.borrow()
            )),
        }
    }

    fn run_all(backend: Backend) {
        let options = EnvOptions { backend };
        if let Err(refusal) = Env::new(&options) {
            println!("skipped: {backend:?} is not granted here: {refusal}");
            return;
        }
        let cases =
            from_env("SEERDB_MODEL_CASES").or_else(|| from_env("PROPTEST_CASES")).unwrap_or(CASES);
        let first = from_env("SEERDB_MODEL_SEED")
            .unwrap_or_else(|| RandomState::new().hash_one(cases) >> 16);
        let ops_max = from_env("SEERDB_MODEL_OPS").unwrap_or(120);
        let threads = from_env("SEERDB_MODEL_THREADS")
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        println!("{backend:?}: {cases} cases from SEERDB_MODEL_SEED={first}");
        let (next, totals) = (AtomicU64::new(0), exec::Totals::default());
        let failure: Mutex<Option<String>> = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let env = Env::new(&options).expect("it was granted a moment ago");
                    loop {
                        let case = next.fetch_add(1, Ordering::Relaxed);
                        if case >= cases || failure.lock().unwrap().is_some() {
                            return;
                        }
                        let seed = first.wrapping_add(case);
                        if let Err(what) = run_seed(&env, seed, ops_max, &totals) {
                            failure.lock().unwrap().get_or_insert(what);
                        }
                    }
                });
            }
        });
        if let Some(what) = failure.into_inner().unwrap() {
            panic!("{backend:?}, SEERDB_MODEL_SEED={first}: {what}");
        }
        println!("{backend:?}: {totals:?}");
        // The test must not rot: a change that keeps cases from flushing and merging shows here.
        if cases >= 50 && ops_max >= 100 {
            totals.check_floors(cases);
        }
    }

    #[test]
    fn the_portable_backend_agrees_with_the_model() {
        run_all(Backend::Portable);
    }

    #[test]
    fn io_uring_agrees_with_the_model() {
        run_all(Backend::Uring);
    }
}
