//! The rules of the simulated machine, one test each: that the fault happens, and that it does not.
//!
//! A rule says what may happen, so most tests try many seeds and ask that every outcome was seen
//! and no other.
#![cfg(feature = "sim")]
#![expect(
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests look at the machine from outside, and a panic is how they fail"
)]

mod crash;
mod errors;
mod lives;
mod machine;

use std::collections::BTreeSet;

use seerdb_io::sim::{Faults, Options, Sim};
use seerdb_io::{AlignedBuf, Class, Env, File, OpenOptions};

/// What the first half of a test leaves: a machine on which a process has done something.
pub(crate) fn machine(seed: u64, options: Options) -> (Sim, Env) {
    let sim = Sim::new(seed, options);
    let env = sim.boot();
    (sim, env)
}

/// A machine on which only this goes wrong.
pub(crate) fn faulty(seed: u64, faults: Faults) -> (Sim, Env) {
    machine(seed, Options { faults, cached_reads: Some(0), ..Options::default() })
}

pub(crate) fn buf(bytes: &[u8]) -> AlignedBuf {
    let mut buf = AlignedBuf::with_capacity(bytes.len());
    buf.extend_from_slice(bytes);
    buf
}

pub(crate) const NEW: OpenOptions =
    OpenOptions { write: true, create_new: true, direct: false, class: Class::Foreground };
pub(crate) const OLD: OpenOptions = OpenOptions { create_new: false, ..NEW };

/// A new file whose name and first bytes are durable.
pub(crate) async fn durable_file(env: &Env, path: &str, bytes: &[u8]) -> File {
    let file = env.fs().open(path, NEW).await.unwrap();
    file.write_at(buf(bytes), 0).await.0.unwrap();
    file.sync_data().await.unwrap();
    env.fs().sync_dir("/").await.unwrap();
    file
}

pub(crate) async fn read(file: &File, len: usize, offset: u64) -> seerdb_io::Result<Vec<u8>> {
    let (result, buf) = file.read_at(AlignedBuf::zeroed(len), offset).await;
    result.map(|count| buf[..count].to_vec())
}

/// The outcomes over many seeds.
pub(crate) fn outcomes<T: Ord>(seeds: u64, one: impl Fn(u64) -> T) -> BTreeSet<T> {
    (0..seeds).map(one).collect()
}
