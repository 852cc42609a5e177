//! A sorted run: tables one after the other in key order.
//!
//! Invariants:
//! 1. A run has at least one table; user-key ranges ascend and do not overlap.
//! 2. All versions of a user key that the run holds are in one of its tables.
//! 3. A run may be trimmed: its entries before a key went to an older run, though its first table
//!    still holds some of them. No reader of the run meets those.
//! 4. What finds a table is derived from the largest keys when the run is built, as what finds a
//!    block of a table is (see `alex`): few tables are searched plainly.

use std::sync::Arc;

use crate::alex::{Keys, Locator, Report};
use crate::key::KeyBuf;

use super::Table;

/// Where a run begins that a merge has taken the first entries of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trim {
    /// The entries before this user key are no longer the run's.
    pub(crate) from: KeyBuf,
    /// How many of them its first table still holds.
    pub(crate) entries: u64,
}

/// A sorted run of tables.
pub(crate) struct Run {
    /// Tells the runs of a version apart, and how old they are.
    pub(crate) id: u64,
    /// The tables, by key.
    pub(crate) tables: Box<[Arc<Table>]>,
    /// What of the first table is no longer the run's.
    pub(crate) trim: Option<Trim>,
    locator: Locator,
}

/// The largest keys of tables.
struct Largest<'a>(&'a [Arc<Table>]);

impl Keys for Largest<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn key(&self, index: usize) -> &[u8] {
        self.0.get(index).map_or(&[], |table| &table.meta().largest)
    }
}

impl Run {
    /// A run of `tables`, of which the first may be trimmed.
    ///
    /// # Panics
    ///
    /// When there are none, or they are out of order or overlap.
    pub(crate) fn new(id: u64, tables: Vec<Arc<Table>>, trim: Option<Trim>) -> Run {
        assert!(!tables.is_empty(), "run {id} has no tables");
        for (a, b) in tables.iter().zip(tables.iter().skip(1)) {
            assert!(
                a.meta().largest < b.meta().smallest,
                "tables {} and {} of run {id} overlap or are out of order",
                a.meta().number,
                b.meta().number
            );
        }
        let locator = Locator::new(&Largest(&tables), None);
        Run { id, tables: tables.into_boxed_slice(), trim, locator }
    }

    /// The table that holds `key`, if one does.
    pub(crate) fn find(&self, key: &[u8]) -> Option<&Arc<Table>> {
        if self.begins_behind(key) {
            return None;
        }
        let table = self.tables.get(self.first_not_before(key))?;
        (table.meta().smallest.as_slice() <= key).then_some(table)
    }

    /// Whether `key` is among the keys that the run was trimmed of.
    pub(crate) fn begins_behind(&self, key: &[u8]) -> bool {
        let is_trimmed = self.trim.as_ref().is_some_and(|trim| key < trim.from.as_slice());
        is_trimmed && !planted!(ReadTrimmed)
    }

    /// The number of tables that end before `key`.
    pub(crate) fn first_not_before(&self, key: &[u8]) -> usize {
        self.locator.count_below(&Largest(&self.tables), key)
    }

    /// How it finds a table.
    pub(crate) fn report(&self) -> Report {
        self.locator.report()
    }

    /// The size of the files, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.meta().file_bytes).sum()
    }

    /// The number of its entries.
    pub(crate) fn entries(&self) -> u64 {
        let held: u64 = self.tables.iter().map(|table| table.meta().entries).sum();
        held - self.trim.as_ref().map_or(0, |trim| trim.entries)
    }

    /// No user key of the run is smaller.
    pub(crate) fn smallest(&self) -> &[u8] {
        let first = self.tables.first().map_or(&[][..], |table| &table.meta().smallest);
        self.trim.as_ref().map_or(first, |trim| trim.from.as_slice())
    }

    /// The largest user key.
    pub(crate) fn largest(&self) -> &[u8] {
        self.tables.last().map_or(&[], |table| &table.meta().largest)
    }
}
