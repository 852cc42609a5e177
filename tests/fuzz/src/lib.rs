//! What the fuzz targets share: `.ci/fuzz` runs them.
//!
//! The decoders are functions of `seerdb::fuzz`, one target each. The target `directory` damages
//! whole databases, which [`golden`] makes, as [`damage`] reads from its input; [`seal`] mends the
//! checksums, as somebody would who damages a database on purpose.

pub mod damage;
pub mod golden;
pub mod seal;

use seerdb::{Backend, Env, EnvOptions};
use tempfile::TempDir;

/// An environment of few threads: a ring for each of millions of databases would be slow.
pub fn env() -> Env {
    Env::new(&EnvOptions { backend: Backend::Portable }).expect("the portable backend starts")
}

/// A scratch directory; `.ci/fuzz` sees to it that it is in memory, and that it goes.
pub fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("seerdb-fuzz-").tempdir().expect("a scratch directory")
}
