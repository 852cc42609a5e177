//! Damages copies of golden databases, one fault at a time: what was durable must read right, or
//! fail as corruption that names file and offset; nothing may be lost, changed or resurrected in
//! silence, and a torn tail of what was never durable must not be taken for damage.
//!
//! `SEERDB_DAMAGE_SEED` repeats a run, `SEERDB_DAMAGE_TRIALS` (default 2,000) makes it longer or
//! shorter: so many files are damaged, a fifth of them of each type where the fault is inside a
//! file. As many logs are torn at their end, and as many records damaged that were durable, unless
//! `SEERDB_DAMAGE_TAILS` says otherwise. Every violation names its trial; all of them are listed
//! before the test fails.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that goes behind the engine's back"
)]

mod check;
mod golden;
mod replaced;
mod runner;
mod single;
mod support;
mod torn;
