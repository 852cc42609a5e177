//! A sorted run: tables one after the other in key order.
//!
//! Invariants:
//! 1. A run has at least one table; user-key ranges ascend and do not overlap.
//! 2. All versions of a user key that the run holds are in one of its tables.

use std::sync::Arc;

use super::Table;

/// A sorted run of tables.
pub(crate) struct Run {
    /// Tells the runs of a version apart; larger is not newer.
    pub(crate) id: u64,
    /// The tables, by key.
    pub(crate) tables: Box<[Arc<Table>]>,
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
        Run { id, tables: tables.into_boxed_slice() }
    }

    /// The table that holds `key`, if one does.
    pub(crate) fn find(&self, key: &[u8]) -> Option<&Arc<Table>> {
        let table = self.tables.get(self.first_not_before(key))?;
        (table.meta().smallest.as_slice() <= key).then_some(table)
    }

    /// The number of tables that end before `key`.
    pub(crate) fn first_not_before(&self, key: &[u8]) -> usize {
        self.tables.partition_point(|table| table.meta().largest.as_slice() < key)
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
