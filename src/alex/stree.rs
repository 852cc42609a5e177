//! An S+tree: a static tree of nodes of 16 codes, over an array that stays as it is.
//!
//! Each level holds the last code of every node of the level below; a lookup counts, in one node of
//! each level, the codes that are below its own. Vector instructions gain nothing measurable there.
//!
//! Invariants:
//! 1. Node `i` of a level has the entries `16 i..16 i + 16` of it, the last node what is left.

use super::code::count_in;

/// Codes in a node.
const NODE: usize = 16;

/// The levels above the codes.
pub(super) struct STree {
    /// From the root down.
    levels: Vec<Box<[u64]>>,
}

impl STree {
    pub(super) fn new(codes: &[u64]) -> Self {
        let mut levels: Vec<Box<[u64]>> = Vec::new();
        loop {
            let below = levels.last().map_or(codes, |level| level);
            if below.len() <= NODE {
                break;
            }
            let lasts = below.chunks(NODE).filter_map(|node| node.last().copied()).collect();
            levels.push(lasts);
        }
        levels.reverse();
        STree { levels }
    }

    /// The nodes that a lookup visits among `len` codes.
    pub(super) fn depth(len: usize) -> usize {
        let mut nodes = len.div_ceil(NODE);
        let mut depth = 1;
        while nodes > 1 {
            nodes = nodes.div_ceil(NODE);
            depth += 1;
        }
        depth
    }

    /// The number of `codes` below `code`.
    pub(super) fn lower_bound(&self, codes: &[u64], code: u64) -> usize {
        let mut node = 0;
        for level in &self.levels {
            node = descend(level, node, code);
        }
        descend(codes, node, code).min(codes.len())
    }

    pub(super) fn bytes(&self) -> usize {
        self.levels.iter().map(|level| size_of_val(&**level)).sum()
    }
}

/// The node below, or the place, that the codes of `node` lead to.
fn descend(level: &[u64], node: usize, code: u64) -> usize {
    let start = node * NODE;
    let rest = level.get(start..).unwrap_or_default();
    start + count_in::<NODE>(rest, code)
}
