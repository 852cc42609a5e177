//! A tree of linear models over codes, bulk-loaded as ALEX's (Ding et al., 2020): inner nodes
//! divide the range of codes evenly, leaves predict where a code stands and know how far they are
//! wrong.
//!
//! ALEX keeps gaps in its leaves for insertions; these codes never change, and lie without gaps.
//!
//! Invariants:
//! 1. Predictions never fall while codes rise: so the error at the codes of a leaf bounds the error
//!    between them.
//! 2. The leaves divide the codes in order. A leaf answers for codes of its own part of the range,
//!    and its answer is within its codes, or right behind them.

use super::code::count_in;
use super::cost;

/// Leaves are not divided into parts of fewer codes, on average.
const PART_MIN: usize = 16;
/// What a part takes: a leaf and a child.
const PART_BYTES: usize = size_of::<Leaf>() + size_of::<u32>();
/// What a model may take for each code, in bytes.
const BYTES_MAX: usize = 4;
/// Parts that are tried: this many codes in each.
const PARTS: [usize; 3] = [PART_MIN, 4 * PART_MIN, 16 * PART_MIN];
/// Inner nodes above a leaf.
const DEPTH_MAX: usize = 3;
/// Marks a child that is an inner node.
const INNER: u32 = 1 << 31;
/// Leaves with errors up to these are searched by counting in so many codes: as many in each as the
/// worst of them needs, for a processor that cannot foresee how many waits for the leaf.
const NEAR: u32 = 3;
const NEAR_CODES: usize = 8;
const MIDDLE: u32 = 7;
const MIDDLE_CODES: usize = 16;
const FAR: u32 = 15;
const FAR_CODES: usize = 32;

pub(super) struct Model {
    root: u32,
    inners: Vec<Inner>,
    children: Vec<u32>,
    leaves: Vec<Leaf>,
    /// Of all codes: the sum of errors, and what lookups cost.
    errors: u64,
    cost: u64,
    codes: usize,
    /// Parts of inner nodes, loaded or not.
    parts: usize,
    /// The largest error of the leaves that are searched by counting.
    counted: u32,
}

/// Divides codes from `base` on evenly.
struct Inner {
    base: u64,
    /// Children for each code, times 2^64.
    scale: u64,
    /// Where its children begin.
    children: u32,
    fanout: u32,
}

/// Predicts places in `first..end`.
#[derive(Clone, Copy)]
struct Leaf {
    base: u64,
    /// Places for each code, times 2^64.
    scale: u64,
    first: u32,
    end: u32,
    /// The place that is predicted for `base`, from `first`.
    start: i32,
    /// The largest error.
    error: u32,
}

/// A leaf, and what it is worth.
struct Fit {
    leaf: Leaf,
    errors: u64,
    cost: u64,
}

/// `distance * scale / 2^64`.
fn scaled(distance: u64, scale: u64) -> u64 {
    let product = u128::from(distance) * u128::from(scale);
    u64::try_from(product >> 64).unwrap_or(u64::MAX)
}

/// `count / span * 2^64`, as far as that fits.
fn scale_of(count: u64, span: u64) -> u64 {
    let scale = (u128::from(count) << 64) / u128::from(span.max(1));
    u64::try_from(scale).unwrap_or(u64::MAX)
}

impl Model {
    pub(super) fn new(codes: &[u64]) -> Self {
        let mut model = Model {
            root: 0,
            inners: Vec::new(),
            children: Vec::new(),
            leaves: Vec::new(),
            errors: 0,
            cost: 0,
            codes: codes.len(),
            parts: 0,
            counted: 0,
        };
        model.root = model.load(codes, 0, codes.len(), 0);
        model
    }

    /// Loads `codes[first..end]` below a node at this depth; the node.
    fn load(&mut self, codes: &[u64], first: usize, end: usize, depth: usize) -> u32 {
        let fit = Leaf::fit(codes, first, end);
        let has_room = |fanout: &usize| {
            depth < DEPTH_MAX && (self.parts + fanout) * PART_BYTES <= codes.len() * BYTES_MAX
        };
        match best_fanout(codes, first, end, depth, fit.cost).filter(has_room) {
            None => self.add_leaf(&fit),
            Some(fanout) => self.add_inner(codes, first, end, depth, fanout),
        }
    }

    fn add_leaf(&mut self, fit: &Fit) -> u32 {
        self.errors += fit.errors;
        self.cost += fit.cost;
        self.leaves.push(fit.leaf);
        if fit.leaf.error <= FAR {
            self.counted = self.counted.max(fit.leaf.error);
        }
        number(self.leaves.len() - 1)
    }

    fn add_inner(
        &mut self,
        codes: &[u64],
        first: usize,
        end: usize,
        depth: usize,
        fanout: usize,
    ) -> u32 {
        self.cost += hop(depth) * (end - first) as u64;
        self.parts += fanout;
        let division = Division::new(codes, first, end, fanout);
        let start = self.children.len();
        let id = number(self.inners.len());
        self.inners.push(Inner {
            base: division.base,
            scale: division.scale,
            children: number(start),
            fanout: number(fanout),
        });
        self.children.resize(start + fanout, 0);
        let mut empty = None;
        for (slot, (first, end)) in division.parts(codes).enumerate() {
            // Neighbours without codes share a leaf.
            let child = match (first == end, empty) {
                (true, Some(leaf)) => leaf,
                (true, None) => self.add_leaf(&Leaf::fit(codes, first, end)),
                (false, _) => self.load(codes, first, end, depth + 1),
            };
            empty = (first == end).then_some(child);
            if let Some(slot) = self.children.get_mut(start + slot) {
                *slot = child;
            }
        }
        id | INNER
    }

    /// The number of `codes` below `code`.
    pub(super) fn lower_bound(&self, codes: &[u64], code: u64) -> usize {
        let mut node = self.root;
        while node & INNER != 0 {
            let Some(inner) = self.inners.get((node ^ INNER) as usize) else { break };
            node = self.children.get(inner.child_of(code)).copied().unwrap_or(0);
        }
        match self.leaves.get(node as usize) {
            Some(leaf) => leaf.lower_bound(codes, code, self.counted),
            None => unreachable!("children are nodes of this tree"),
        }
    }

    /// What lookups of all codes cost, in the units of [`cost`].
    pub(super) fn cost(&self) -> u64 {
        self.cost
    }

    /// The mean distance of a prediction from the truth.
    pub(super) fn mean_error(&self) -> f64 {
        self.errors as f64 / self.codes.max(1) as f64
    }

    pub(super) fn max_error(&self) -> u64 {
        self.leaves.iter().map(|leaf| u64::from(leaf.error)).max().unwrap_or(0)
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.inners) + size_of_val(&*self.children) + size_of_val(&*self.leaves)
    }
}

/// A node number, or a count of nodes, as they are stored.
fn number(index: usize) -> u32 {
    let number = u32::try_from(index).expect("an index block has less than 4 GiB");
    assert!(number & INNER == 0, "more nodes than numbers");
    number
}

impl Inner {
    /// Where the child that answers for `code` is listed.
    fn child_of(&self, code: u64) -> usize {
        let slot = scaled(code.saturating_sub(self.base), self.scale);
        let slot = u32::try_from(slot).unwrap_or(u32::MAX).min(self.fanout - 1);
        (self.children + slot) as usize
    }
}

/// `codes[first..end]` in `fanout` parts of the range between the first and the last.
struct Division {
    first: usize,
    end: usize,
    base: u64,
    scale: u64,
    fanout: usize,
}

impl Division {
    fn new(codes: &[u64], first: usize, end: usize, fanout: usize) -> Self {
        let (base, span) = span_of(codes, first, end);
        Division { first, end, base, scale: scale_of(fanout as u64, span), fanout }
    }

    /// Where each part begins and ends.
    fn parts<'a>(&'a self, codes: &'a [u64]) -> impl Iterator<Item = (usize, usize)> + 'a {
        let mut from = self.first;
        (0..self.fanout).map(move |slot| {
            let rest = codes.get(from..self.end).unwrap_or_default();
            let is_last = slot + 1 == self.fanout;
            let belongs =
                |code: &u64| is_last || scaled(*code - self.base, self.scale) <= slot as u64;
            let part = (from, from + rest.iter().take_while(|code| belongs(code)).count());
            from = part.1;
            part
        })
    }
}

/// The first of `codes[first..end]`, and the distance of the last from it.
fn span_of(codes: &[u64], first: usize, end: usize) -> (u64, u64) {
    let of = |index: usize| codes.get(index).copied().unwrap_or(0);
    let base = of(first);
    (base, of(end.max(first + 1) - 1) - base)
}

/// What an inner node at this depth costs a lookup.
fn hop(depth: usize) -> u64 {
    if depth == 0 { cost::HOP } else { cost::HOP_BELOW }
}

/// Into how many parts to divide `codes[first..end]`, which cost `undivided` in one leaf: ALEX's
/// choice of the cheapest fan-out, among few.
fn best_fanout(
    codes: &[u64],
    first: usize,
    end: usize,
    depth: usize,
    undivided: u64,
) -> Option<usize> {
    let count = end - first;
    let mut best = (undivided, None);
    for fanout in PARTS.map(|part| count / part) {
        if fanout < 2 || span_of(codes, first, end).1 < fanout as u64 {
            continue;
        }
        let division = Division::new(codes, first, end, fanout);
        let parts = division.parts(codes);
        let leaves: u64 = parts.map(|(first, end)| Leaf::fit(codes, first, end).cost).sum();
        let cost = leaves + hop(depth) * count as u64 + cost::CHILD * fanout as u64;
        if cost < best.0 {
            best = (cost, Some(fanout));
        }
    }
    best.1
}

impl Leaf {
    /// The line that fits `codes[first..end]` best: least squares, moved to where its largest error
    /// is smallest.
    fn fit(codes: &[u64], first: usize, end: usize) -> Fit {
        let part = codes.get(first..end).unwrap_or_default();
        let (base, span) = span_of(codes, first, end);
        let scale = slope(part, base, span);
        let mut leaf =
            Leaf { base, scale, first: number(first), end: number(end), start: 0, error: 0 };
        let wrong = |leaf: &Leaf, (place, code): (usize, &u64)| place as i64 - leaf.line(*code);
        let (mut least, mut most) = (i64::MAX, i64::MIN);
        for pair in part.iter().enumerate() {
            let wrong = wrong(&leaf, pair);
            (least, most) = (least.min(wrong), most.max(wrong));
        }
        if part.is_empty() {
            return Fit { leaf, errors: 0, cost: 0 };
        }
        let middle = least + (most - least) / 2;
        leaf.start = i32::try_from(middle).unwrap_or(if middle < 0 { i32::MIN } else { i32::MAX });
        let (mut errors, mut steps, mut largest) = (0, 0, 0);
        for pair in part.iter().enumerate() {
            let error = wrong(&leaf, pair).unsigned_abs();
            errors += error;
            steps += u64::from((error + 1).ilog2());
            largest = largest.max(error);
        }
        leaf.error = u32::try_from(largest).unwrap_or(u32::MAX);
        let count = part.len() as u64;
        let cost = if leaf.error <= NEAR {
            cost::NEAR * count
        } else if leaf.error <= MIDDLE {
            cost::MIDDLE * count
        } else if leaf.error <= FAR {
            cost::FAR * count
        } else {
            cost::GALLOP * count + cost::GALLOP_STEP * steps
        };
        Fit { leaf, errors, cost }
    }

    /// The place that the line has for `code`, from `first`; it may be outside of the leaf.
    fn line(&self, code: u64) -> i64 {
        // At most the number of codes, and what a code behind the leaf adds: far below 2^63.
        let along = scaled(code.saturating_sub(self.base), self.scale).min(1 << 40);
        along as i64 + i64::from(self.start)
    }

    fn lower_bound(&self, codes: &[u64], code: u64, counted: u32) -> usize {
        let (first, end) = (self.first as usize, self.end as usize);
        let place = usize::try_from(self.line(code).max(0)).unwrap_or(usize::MAX);
        let guess = first + place.min(end - first);
        if self.error > FAR {
            return gallop(codes.get(..end).unwrap_or_default(), first, guess, code);
        }
        // The answer is at most so far from the guess, and one behind the last code that is below.
        let from = guess.saturating_sub(self.error as usize).max(first);
        let near = codes.get(from..).unwrap_or_default();
        let count = if counted <= NEAR {
            count_in::<NEAR_CODES>(near, code)
        } else if counted <= MIDDLE {
            count_in::<MIDDLE_CODES>(near, code)
        } else {
            count_in::<FAR_CODES>(near, code)
        };
        from + count
    }
}

/// Places for each code, times 2^64: the slope of the line with the least squares.
#[expect(clippy::cast_possible_truncation, reason = "a slope that does not fit is cut")]
#[expect(clippy::cast_sign_loss, reason = "places rise with codes")]
fn slope(part: &[u64], base: u64, span: u64) -> u64 {
    if span == 0 {
        return 0;
    }
    let count = part.len() as f64;
    let middle = (count - 1.0) / 2.0;
    let mean = part.iter().map(|code| (code - base) as f64).sum::<f64>() / count;
    let (mut together, mut square) = (0.0, 0.0);
    for (place, code) in part.iter().enumerate() {
        let along = (code - base) as f64 - mean;
        together += along * (place as f64 - middle);
        square += along * along;
    }
    (together / square * 2f64.powi(64)) as u64
}

/// Exponential search from `guess` among the codes from `first` on: the number of all that are
/// below `code`, those before `first` included.
fn gallop(codes: &[u64], first: usize, guess: usize, code: u64) -> usize {
    let is_below = |place: usize| codes.get(place).is_some_and(|c| *c < code);
    let mut step = 1;
    let (mut low, mut high) = (first, codes.len());
    if is_below(guess) {
        low = guess + 1;
        while low + step <= high && is_below(low + step - 1) {
            low += step;
            step *= 2;
        }
        high = high.min(low + step - 1);
    } else {
        high = guess;
        while high >= low + step && !is_below(high - step) {
            high -= step;
            step *= 2;
        }
        low = low.max((high + 1).saturating_sub(step));
    }
    let between = codes.get(low..high).unwrap_or_default();
    low + between.partition_point(|c| *c < code)
}
