//! What all trials share: random numbers, scratch directories, copies of directories.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::{Once, OnceLock};
use std::time::Duration;

use seerdb::{Env, EnvOptions};
use tempfile::TempDir;

/// The engine's environment, one for all databases of the test.
pub(crate) fn env() -> &'static Env {
    static ENV: OnceLock<Env> = OnceLock::new();
    ENV.get_or_init(|| Env::new(&EnvOptions::default()).expect("a backend starts"))
}

/// A number from the environment.
pub(crate) fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")),
        Err(_) => default,
    }
}

/// A part of `SEERDB_DAMAGE_TRIALS`: what a test with this share of all trials does.
pub(crate) fn trials(share: usize) -> usize {
    usize::try_from(number("SEERDB_DAMAGE_TRIALS", 2_000)).expect("few trials") / share
}

/// The seed of this run, printed once: `SEERDB_DAMAGE_SEED` repeats it.
pub(crate) fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let fresh = env().rng().next_u64();
        let seed = number("SEERDB_DAMAGE_SEED", fresh);
        eprintln!("SEERDB_DAMAGE_SEED={seed}");
        seed
    })
}

/// A scratch directory in memory where the system has one.
///
/// Golden databases live as long as the process, which never drops them: the next run does.
pub(crate) fn scratch() -> TempDir {
    const PREFIX: &str = "seerdb-damage-";
    static CLEARED: Once = Once::new();
    let memory = Path::new("/dev/shm");
    CLEARED.call_once(|| {
        for entry in std::fs::read_dir(memory).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
            let pid = pid.and_then(|(pid, _)| pid.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                std::fs::remove_dir_all(entry.path()).ok();
            }
        }
    });
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix);
    builder.tempdir_in(memory).or_else(|_| builder.tempdir()).expect("a scratch directory")
}

/// Waits for `millis`.
pub(crate) async fn pause(millis: u64) {
    env().clock().sleep(Duration::from_millis(millis)).await;
}

/// The files of a directory, by name, without LOCK, which has no content.
pub(crate) fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("the directory is there")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("our names"))
        .filter(|name| name != "LOCK")
        .collect();
    names.sort();
    names
}

/// Copies every file of `from` to the fresh directory `to`.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a fresh directory");
    for name in files(from) {
        std::fs::copy(from.join(&name), to.join(&name)).expect("a copy");
    }
}

/// Makes the fresh directory `to` with the files of `from`, as links: nobody may write to them.
/// The engine does not, it only removes what an earlier life left.
pub(crate) fn link_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a fresh directory");
    for name in files(from) {
        std::fs::hard_link(from.join(&name), to.join(&name)).expect("a link");
    }
}

/// Replaces the link `name` in `dir` by a file of its own.
pub(crate) fn put(dir: &Path, name: &str, bytes: &[u8]) {
    let path = dir.join(name);
    std::fs::remove_file(&path).ok();
    std::fs::write(path, bytes).expect("there is room");
}

/// The names and contents of a directory, in brief.
pub(crate) fn digest(dir: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    for name in files(dir) {
        std::fs::read(dir.join(&name)).expect("a file").hash(&mut hasher);
        name.hash(&mut hasher);
    }
    hasher.finish()
}

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below a usize")
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| u8::try_from(self.below(256)).expect("a byte")).collect()
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}
