//! Which runs to merge next: Fluid LSM with carry-through merges, over plain descriptions. Pure.
//!
//! 1. An arrival at a level whose newest run has not grown to its share ([`Shape::may_grow`])
//!    enters that run; otherwise it stands beside it, up to K runs. So with K below T - 1 a run
//!    is complete before the next one begins (leveling is K = 1). Level 0 is no exception; a flush
//!    of less than half a unit stands beside the others while there is room.
//! 2. Level 0 holding more than K runs sets a merge off. While the newest of them are small (many
//!    early flushes), these become one run of level 0.
//! 3. Otherwise all its runs are carried: a level that has no room for one more run joins the
//!    merge with all its runs, and the next level is asked. So nothing is written to a level only
//!    to be read again at once.
//! 4. At the last level, beyond Z runs, everything becomes one run; its size decides the level it
//!    is labelled with, so that the tree grows, and shrinks, by itself.
//! 5. Levels above their limits for other reasons (other options, K turned down) are merged down
//!    in the same way, deepest first.
//! 6. Input tables that overlap no other input move by reference, if they are large enough not to
//!    litter the tree and hold no tombstones that could go. Ascending insertion costs next to no
//!    rewriting.
//! 7. While older runs are being merged, newer ones may be, among themselves: into the level of the
//!    newest of the older ones at the deepest, which counts as empty.
//!
//! Invariant, asserted for each choice ([`check`]): the inputs are neighbours in the list of runs
//! by age, so the merge keeps "newer runs hold newer versions" (see [`super`]). By induction: a
//! flush enters at the front with everything newer than all runs; replacing neighbours by one run
//! in their place changes no order between any two versions of a key in different runs.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::filename::FileNumber;
use crate::key::KeyBuf;
use crate::version::{LEVEL_MAX, RunId};

use super::policy::Shape;
use super::{Choice, MergeReason, OutputLevel, PIECE_TABLES, RunView, TableView, Tree};

/// What is less than this share of an arrival is small.
const SMALL_SHARE: u64 = 2;
/// Tables of at least this share of the table size may move.
const MOVE_SHARE: u64 = 8;
/// A merge has about so many pieces at most.
const PIECES: u64 = 32;
/// Less than this share of the table size is not worth a table between two moved ones.
const SLIVER_SHARE: u64 = 64;

/// The merge that the tree needs most, if any.
pub(crate) fn pick(tree: &Tree<'_>, shape: &Shape) -> Option<Choice> {
    tree.check();
    shape.check();
    let last = tree.last_level();
    if tree.older.is_some_and(|older| older.level == 0) {
        return None;
    }
    if let Some(choice) = pick_level_0(tree, shape) {
        return Some(choice);
    }
    // What lies in the level of older runs, or deeper, waits for them.
    let free = tree.older.map_or(last + 1, |older| older.level);
    for level in (1..free).rev() {
        let runs_max = if level == last { shape.runs_last } else { shape.runs_upper };
        let over_runs = tree.level(level).len() > runs_max;
        let over_bytes = level < last && tree.level_bytes(level) > shape.capacity(level);
        if over_runs {
            let runs = tree.level(level).len();
            return Some(carry(tree, shape, level, MergeReason::Runs { level, runs, runs_max }));
        }
        if over_bytes {
            let (bytes, bytes_max) = (tree.level_bytes(level), shape.capacity(level));
            return Some(carry(tree, shape, level, MergeReason::Bytes { level, bytes, bytes_max }));
        }
    }
    None
}

/// Everything into one last run, every table rewritten; `None` for an empty tree.
pub(crate) fn pick_all(tree: &Tree<'_>, shape: &Shape) -> Option<Choice> {
    tree.check();
    assert!(tree.older.is_none(), "a part of a tree is not all");
    let oldest = tree.runs().next_back()?.1.id;
    let count = tree.runs().count();
    assert!(count > 0, "a tree with run {oldest} has no runs");
    let output = OutputLevel::Sized { floor: 1 };
    let mut choice = choose(tree, shape, MergeReason::Asked, 0..count, output);
    choice.moved.clear();
    choice.rewrite_bytes = tree.runs().flat_map(|(_, run)| &run.tables).map(|t| t.bytes).sum();
    choice.ends = ends(&tree.runs().map(|(_, run)| run).collect::<Vec<_>>(), &choice);
    Some(choice)
}

/// The newest runs, `needed` at least, and older ones as long as they are no larger than what is
/// gathered: their number and bytes.
fn gather(runs: &[&RunView<'_>], needed: usize) -> (usize, u64) {
    assert!(needed >= 2 && needed <= runs.len(), "{needed} of {} runs", runs.len());
    let (mut count, mut bytes) = (0, 0);
    for run in runs {
        if count >= needed && run.bytes() > bytes {
            break;
        }
        count += 1;
        bytes += run.bytes();
    }
    (count, bytes)
}

/// Level 0 has more than K runs, or its newest run belongs into the next one.
fn pick_level_0(tree: &Tree<'_>, shape: &Shape) -> Option<Choice> {
    let runs: Vec<&RunView<'_>> = tree.level(0).iter().collect();
    let newest = runs.first()?.bytes();
    let needed = runs.len().saturating_sub(shape.runs_upper).max(1) + 1;
    if needed > runs.len() {
        return None;
    }
    let is_over = runs.len() > shape.runs_upper;
    let reason = match is_over {
        true => MergeReason::Runs { level: 0, runs: runs.len(), runs_max: shape.runs_upper },
        false => MergeReason::Share { level: 0 },
    };
    let in_place = |count| Some(choose(tree, shape, reason, 0..count, OutputLevel::Fixed(0)));
    let is_small = |bytes| bytes < shape.arrival(0) / SMALL_SHARE;
    if is_over {
        let (count, bytes) = gather(&runs, needed);
        if is_small(bytes) {
            return in_place(count);
        }
    }
    let grown: u64 = runs.iter().take(needed).map(|run| run.bytes()).sum();
    let stay = runs.len() + 1 - needed;
    let is_arrival = is_over || !is_small(newest);
    if is_arrival && shape.may_grow(0, stay, tree.level_bytes(0), grown) {
        return in_place(needed);
    }
    is_over.then(|| carry(tree, shape, 0, reason))
}

/// Merges all runs of `start` down to the first level with room.
fn carry(tree: &Tree<'_>, shape: &Shape, start: usize, reason: MergeReason) -> Choice {
    assert!(!tree.level(start).is_empty(), "nothing to carry from level {start}");
    let last = tree.last_level();
    assert!(start <= last, "level {start} is below the last level {last}");
    let skipped: usize = (0..start).map(|level| tree.level(level).len()).sum();
    let mut count = tree.level(start).len();
    let mut bytes = tree.level_bytes(start);
    for level in start + 1..=last {
        let runs = tree.level(level);
        let level_bytes = tree.level_bytes(level);
        if tree.older.is_some_and(|older| older.level == level) {
            // What lies there is on its way out.
            let inputs = skipped..skipped + count;
            return choose(tree, shape, reason, inputs, OutputLevel::Fixed(level));
        }
        let runs_max = if level == last { shape.runs_last } else { shape.runs_upper };
        let filled = level_bytes.saturating_add(bytes);
        let has_room = runs.len() < runs_max;
        if let Some(newest) = runs.first() {
            let grown = bytes.saturating_add(newest.bytes());
            let is_small = bytes < shape.arrival(level) / SMALL_SHARE;
            let may_grow = level < last && runs.len() <= runs_max && !(has_room && is_small);
            if may_grow && shape.may_grow(level, runs.len(), filled, grown) {
                let inputs = skipped..skipped + count + 1;
                return choose(tree, shape, reason, inputs, OutputLevel::Fixed(level));
            }
        }
        if has_room && filled <= shape.capacity(level) {
            let inputs = skipped..skipped + count;
            return choose(tree, shape, reason, inputs, OutputLevel::Fixed(level));
        }
        count += runs.len();
        bytes = filled;
    }
    let output = OutputLevel::Sized { floor: start.max(1) };
    choose(tree, shape, reason, skipped..skipped + count, output)
}

/// The choice of these runs, counted from the newest.
pub(super) fn choose(
    tree: &Tree<'_>,
    shape: &Shape,
    reason: MergeReason,
    runs: Range<usize>,
    output: OutputLevel,
) -> Choice {
    let is_whole = tree.older.is_none() || planted!(BottomWhileMerging);
    let bottommost = is_whole && runs.end == tree.runs().count();
    let inputs: Vec<(usize, &RunView<'_>)> =
        tree.runs().skip(runs.start).take(runs.len()).collect();
    // Some of what is newer hides what is in the largest run, and some is new: nobody knows yet.
    let sizes = || inputs.iter().map(|(_, run)| run.bytes());
    let bytes = sizes().max().unwrap_or(0).midpoint(sizes().sum());
    let moved = movable(&inputs, shape.table_bytes, bottommost);
    let rewrite_bytes: u64 = inputs
        .iter()
        .flat_map(|(_, run)| &run.tables)
        .filter(|table| !moved.contains(&table.number))
        .map(|table| table.bytes)
        .sum();
    let mut choice = Choice {
        reason,
        inputs: inputs.iter().map(|(level, run)| (*level, run.id)).collect(),
        output_run: inputs.last().expect("a choice has inputs").1.id,
        output,
        stage: 0,
        bottommost,
        filter_bits_per_key: 0.0,
        moved: moved.into_iter().collect(),
        ends: Vec::new(),
        rewrite_bytes,
        shape: *shape,
    };
    choice.ends = ends(&inputs.iter().map(|(_, run)| *run).collect::<Vec<_>>(), &choice);
    let level = match output {
        OutputLevel::Fixed(level) => level,
        OutputLevel::Sized { floor } => shape.level_for(floor, bytes),
    };
    choice.stage = level;
    let last = if bottommost { level.max(1) } else { tree.last_level() };
    choice.filter_bits_per_key = shape.filter_bits_for(level, last);
    check(tree, &choice);
    choice
}

/// The tables that can enter the output run as they are.
fn movable(
    inputs: &[(usize, &RunView<'_>)],
    table_bytes: u64,
    bottommost: bool,
) -> BTreeSet<FileNumber> {
    assert!(table_bytes > 0);
    let mut tables: Vec<&TableView<'_>> = inputs.iter().flat_map(|(_, run)| &run.tables).collect();
    tables.sort_by(|a, b| a.smallest.cmp(b.smallest).then_with(|| a.largest.cmp(b.largest)));
    let mut moves: Vec<bool> = Vec::with_capacity(tables.len());
    let mut reach: Option<&[u8]> = None;
    for (i, table) in tables.iter().enumerate() {
        let clear_before = reach.is_none_or(|largest| largest < table.smallest);
        let clear_behind = tables.get(i + 1).is_none_or(|next| table.largest < next.smallest);
        let is_large = table.bytes >= table_bytes / MOVE_SHARE;
        let is_clean = !bottommost || table.tombstones == 0;
        let is_whole = !table.is_trimmed;
        moves.push(clear_before && clear_behind && is_large && is_clean && is_whole);
        reach = Some(reach.map_or(table.largest, |largest| largest.max(table.largest)));
    }
    absorb_slivers(&tables, &mut moves, table_bytes / SLIVER_SHARE);
    let kept = tables.iter().zip(&moves).filter(|(_, moves)| **moves);
    kept.map(|(table, _)| table.number).collect()
}

/// Where the pieces of the merge of `inputs` end: at ends of tables of the oldest of them, a few
/// tables or a share of all apart.
fn ends(inputs: &[&RunView<'_>], choice: &Choice) -> Vec<KeyBuf> {
    let is_rewritten = |t: &&TableView<'_>| choice.moved.binary_search(&t.number).is_err();
    let tables = inputs.iter().flat_map(|run| &run.tables).filter(is_rewritten);
    let mut tables: Vec<(&[u8], u64)> = tables.map(|t| (t.largest, t.bytes)).collect();
    tables.sort_unstable();
    let piece = (choice.shape.table_bytes * PIECE_TABLES).max(choice.rewrite_bytes / PIECES);
    let oldest = inputs.last().map_or(&[][..], |run| &run.tables);
    let (mut ends, mut merged, mut left) = (Vec::new(), 0, choice.rewrite_bytes);
    let mut tables = tables.into_iter().peekable();
    for table in oldest {
        while let Some((_, bytes)) = tables.next_if(|(largest, _)| *largest <= table.largest) {
            (merged, left) = (merged + bytes, left - bytes);
        }
        if merged >= piece && left >= piece {
            ends.push(KeyBuf::from_slice(table.largest));
            merged = 0;
        }
    }
    ends
}

/// Rewrites the smaller neighbour of a group of tables that is too small for a table of its own.
fn absorb_slivers(tables: &[&TableView<'_>], moves: &mut [bool], sliver_bytes: u64) {
    assert_eq!(tables.len(), moves.len());
    let bytes = |i: usize| tables.get(i).map_or(0, |table| table.bytes);
    let mut start = 0;
    while start < moves.len() {
        let group = moves.iter().skip(start).take_while(|moves| !**moves).count();
        let end = start + group;
        let size: u64 = (start..end).map(bytes).sum();
        if group > 0 && size < sliver_bytes {
            let before = start.checked_sub(1);
            let behind = (end < moves.len()).then_some(end);
            let smaller = before.into_iter().chain(behind).min_by_key(|&i| bytes(i));
            if let Some(slot) = smaller.and_then(|i| moves.get_mut(i)) {
                *slot = false;
            }
        }
        start = end + 1;
    }
}

/// Asserts what makes a choice correct.
fn check(tree: &Tree<'_>, choice: &Choice) {
    let all: Vec<(usize, RunId)> = tree.runs().map(|(level, run)| (level, run.id)).collect();
    let first = choice.inputs.first().expect("a choice has inputs");
    let start = all.iter().position(|run| run == first).expect("inputs are runs of the tree");
    let end = start + choice.inputs.len();
    assert_eq!(all.get(start..end), Some(&*choice.inputs), "inputs are not neighbours by age");
    let oldest = choice.inputs.last().map(|(_, id)| *id);
    assert_eq!(Some(choice.output_run), oldest, "the output has not the age of its oldest input");
    let is_whole = tree.older.is_none() || planted!(BottomWhileMerging);
    assert_eq!(choice.bottommost, is_whole && end == all.len(), "bottommost is wrong");
    let newer = all.iter().take(start).map(|(level, _)| *level).max().unwrap_or(0);
    let deepest = tree.older.map_or(LEVEL_MAX, |older| older.level);
    let older = all.get(end).map_or(deepest, |(level, _)| *level);
    for level in [choice.output_level(0), choice.output_level(u64::MAX), choice.stage] {
        assert!(newer <= level && level <= older, "level {level} not in {newer}..={older}");
    }
    assert!(choice.filter_bits_per_key >= 0.0, "negative filter bits");
}

#[cfg(test)]
pub(super) mod tests;
