//! A sorted run: tables one after the other in key order.
//!
//! Invariants:
//! 1. A run has at least one table; user-key ranges ascend and do not overlap.
//! 2. All versions of a user key that the run holds are in one of its tables.
//! 3. What finds a table is derived from the largest keys when the run is built, as what finds a
//!    block of a table is (see `alex`): few tables are searched plainly.

use std::sync::Arc;

use crate::alex::{Keys, Locator, Report};

use super::Table;

/// A sorted run of tables.
pub(crate) struct Run {
    /// Tells the runs of a version apart; larger is not newer.
    pub(crate) id: u64,
    /// The tables, by key.
    pub(crate) tables: Box<[Arc<Table>]>,
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
    /// A run of `tables`.
    ///
    /// # Panics
    ///
    /// When there are none, or they are out of order or overlap.
    pub(crate) fn new(id: u64, tables: Vec<Arc<Table>>) -> Run {
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
        Run { id, tables: tables.into_boxed_slice(), locator }
    }

    /// The table that holds `key`, if one does.
    pub(crate) fn find(&self, key: &[u8]) -> Option<&Arc<Table>> {
        let table = self.tables.get(self.first_not_before(key))?;
        (table.meta().smallest.as_slice() <= key).then_some(table)
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

    /// The number of entries.
    pub(crate) fn entries(&self) -> u64 {
        self.tables.iter().map(|table| table.meta().entries).sum()
    }

    /// The smallest user key.
    pub(crate) fn smallest(&self) -> &[u8] {
        self.tables.first().map_or(&[], |table| &table.meta().smallest)
    }

    /// The largest user key.
    pub(crate) fn largest(&self) -> &[u8] {
        self.tables.last().map_or(&[], |table| &table.meta().largest)
    }
}
