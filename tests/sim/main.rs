//! The engine on a simulated machine: power cuts, kills, faults and reopening, by the thousand.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_types,
    reason = "tests look at the engine from outside, and a panic is how they fail"
)]

mod actions;
mod adaptive;
mod book;
mod client;
mod context;
mod controls;
mod damage;
mod disk;
mod errors;
mod exhaustive;
mod histories;
mod history;
mod life;
mod look;
mod merging;

mod model;
mod plan;
mod planted;
mod referred;
mod regressions;
mod script;
mod scripts;
mod world;
