//! Why K is what it is, for people.

use std::fmt;
use std::time::Duration;

use super::{Chooser, GAIN_MIN, Mix, PIECE_BYTES, STREAK, Totals};

/// What is done with a database, as the choice of K sees it: shares of all operations of the last
/// windows, 10 s each, the newest counting three quarters.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Workload {
    /// Puts and deletes.
    pub puts: f64,
    /// The table bytes of one of them.
    pub put_bytes: f64,
    /// Gets that a memtable answered.
    pub gets_from_memory: f64,
    /// Gets that a run answered.
    pub gets_found: f64,
    /// Gets of absent keys.
    pub gets_absent: f64,
    /// Scans of at most 64 keys.
    pub short_scans: f64,
    /// Longer ones.
    pub long_scans: f64,
    /// The keys of a scan, on average since the open.
    pub keys_per_scan: f64,
    /// The runs that a get looked into in vain, on average since the open; memtables answer some
    /// without looking into any.
    pub false_positives: f64,
    /// The nanoseconds to ask the filter of a run.
    pub probe_ns: f64,
    /// The nanoseconds to get a block that is not in the cache.
    pub miss_ns: f64,
    /// The share of blocks that are not in the cache.
    pub miss_ratio: f64,
    /// The nanoseconds to begin a scan, for each run.
    pub seek_ns: f64,
    /// The bytes that a merge writes in a second.
    pub merge_rate: f64,
}

/// What an operation costs with one K, as far as K matters.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RunsCost {
    /// K.
    pub runs_per_level: usize,
    /// The nanoseconds of an average operation.
    pub nanos: f64,
    /// As a share of what the present K costs.
    pub ratio: f64,
}

/// The last change of K.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RunsSwitch {
    /// The K before.
    pub from: usize,
    /// What the new K was expected to cost, as a share of what the old one did.
    pub cost_ratio: f64,
    /// How long ago it was.
    pub ago: Duration,
}

/// Why K is what it is, when it follows the workload.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RunsChoice {
    /// What is done; none until a window has seen enough operations.
    pub workload: Option<Workload>,
    /// What each K is expected to cost for that.
    pub costs: Vec<RunsCost>,
    /// In how many windows in a row another K was worth a switch; in three it is made, unless K is
    /// held.
    pub better_for: u32,
    /// Whether K is held since the last switch, until its merges have paid.
    pub is_held: bool,
    /// The last change; none since the open.
    pub last_switch: Option<RunsSwitch>,
    /// All changes since the open.
    pub switches: u64,
}

impl Chooser {
    /// Why K is what it is.
    pub(crate) fn explain(&self, now: Duration, totals: &Totals) -> RunsChoice {
        let present = self.costs.get(self.runs - 1).copied().unwrap_or_default();
        let cost = |(runs_per_level, &nanos): (usize, &f64)| {
            let ratio = if present > 0.0 { nanos / present } else { 1.0 };
            RunsCost { runs_per_level, nanos, ratio }
        };
        RunsChoice {
            workload: self.mix.map(|mix| self.workload(&mix, totals)),
            costs: (1..).zip(&self.costs).map(cost).collect(),
            better_for: self.better.map_or(0, |(_, windows)| windows),
            is_held: self.hold.is_some(),
            last_switch: self.switched.map(|(at, from, cost_ratio)| RunsSwitch {
                from,
                cost_ratio,
                ago: now.saturating_sub(at),
            }),
            switches: self.switches,
        }
    }

    fn workload(&self, mix: &Mix, totals: &Totals) -> Workload {
        let ratio = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let gets = totals.gets_memory + totals.gets_found + totals.gets_absent;
        Workload {
            puts: mix.puts,
            put_bytes: self.bytes_per_put.unwrap_or(0.0),
            gets_from_memory: mix.memory,
            gets_found: mix.found,
            gets_absent: mix.absent,
            short_scans: mix.short,
            long_scans: mix.long,
            keys_per_scan: ratio(totals.scan_keys, totals.scans_short + totals.scans_long),
            false_positives: ratio(totals.false_positives, gets),
            probe_ns: self.terms.probe.nanos(),
            miss_ns: self.terms.miss.nanos(),
            miss_ratio: self.missed.unwrap_or(1.0),
            seek_ns: self.terms.seek.nanos(),
            merge_rate: PIECE_BYTES as f64 * 1e9 / self.terms.merge_nanos(),
        }
    }
}

impl fmt::Display for RunsChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.last_switch {
            None => write!(f, "K is what it was at the open")?,
            Some(RunsSwitch { from, cost_ratio, ago }) => write!(
                f,
                "K was {from} until {} s ago, and was to cost {cost_ratio:.2} of it",
                ago.as_secs()
            )?,
        }
        if self.is_held {
            write!(f, "; it is held until that has paid")?;
        }
        let Some(workload) = &self.workload else {
            return write!(f, "\ntoo little was done to tell what another K would cost");
        };
        write!(f, "\n{workload}")?;
        for RunsCost { runs_per_level, nanos, ratio } in &self.costs {
            write!(f, "\nK = {runs_per_level}: {nanos:.0} ns an operation, {ratio:.2} of now")?;
        }
        let least = 1.0 - GAIN_MIN;
        write!(f, "\n{least} of now or less in {} of {STREAK} windows", self.better_for)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| share * 100.0;
        write!(
            f,
            "{:.0} % puts, {:.0} % gets in memory, {:.0} % in runs, {:.0} % of nothing, \
             {:.0} % short scans, {:.0} % long",
            percent(self.puts),
            percent(self.gets_from_memory),
            percent(self.gets_found),
            percent(self.gets_absent),
            percent(self.short_scans),
            percent(self.long_scans),
        )
    }
}
