//! Real power cuts and really full disks: an ext4 image behind a loop device, as root.
//!
//! A cut is `FS_IOC_SHUTDOWN` without a flush of the journal: from then on the file system does
//! nothing any more, and what was in the page cache alone is gone after unmounting. What reached
//! the image stays, so a device that loses its own cache is not modelled here. Where the test may
//! not mount it says "skipped" and why, and passes.
//!
//! `SEERDB_POWER_SEED` repeats the random choices of a run (not its timing), `SEERDB_POWER_CUTS`
//! (default 100) is the number of cuts while a database is written.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that works outside of the engine"
)]

mod cut;
mod disk;
mod full;
mod script;
