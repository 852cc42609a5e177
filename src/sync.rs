//! What threads share, under one name each: the models in `tests/models` compile the files that
//! import from here once more, with loom's locks and atomics in the place of these.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

pub(crate) use arc_swap::{ArcSwap, Guard};
pub(crate) use futures::channel::oneshot;
pub(crate) use futures::task::AtomicWaker;
pub(crate) use parking_lot::Mutex;
