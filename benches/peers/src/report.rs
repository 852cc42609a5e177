//! The tables: median (lowest-highest) over the rounds of each engine, and seerdb's ratios.

use std::collections::BTreeMap;
use std::fmt;

use hdrhistogram::Histogram;

use crate::Result;
use crate::engine::Peer;

const ENGINES: [&str; 3] = ["seerdb", "rocksdb", "fjall"];
const QUANTILES: [(&str, f64); 3] = [("  p50", 0.5), ("  p99", 0.99), ("  p99.9", 0.999)];
/// With the far tail.
const TAIL: [(&str, f64); 5] =
    [("  p50", 0.5), ("  p99", 0.99), ("  p99.9", 0.999), ("  p99.99", 0.9999), ("  max", 1.0)];
const DAY_NS: u64 = 86_400_000_000_000;

#[derive(Clone, Copy)]
pub enum Unit {
    PerSecond,
    Microseconds,
    Kibibytes,
    Times,
}

pub struct Table {
    pub title: String,
    pub rows: Vec<Row>,
}

pub struct Row {
    label: String,
    unit: Unit,
    samples: BTreeMap<Peer, Vec<f64>>,
}

/// Latencies of each engine, one histogram over all rounds.
#[derive(Default)]
pub struct Latency(BTreeMap<Peer, Histogram<u64>>);

/// An empty histogram of nanoseconds.
pub fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, DAY_NS, 3)?)
}

impl Latency {
    pub fn add(&mut self, peer: Peer, times: &Histogram<u64>) -> Result<()> {
        let all = match self.0.remove(&peer) {
            Some(mut all) => {
                all.add(times)?;
                all
            }
            None => times.clone(),
        };
        self.0.insert(peer, all);
        Ok(())
    }

    pub fn rows(&self) -> Vec<Row> {
        self.rows_of(&QUANTILES)
    }

    /// As [`Latency::rows`], with the far tail and the longest.
    pub fn tail_rows(&self) -> Vec<Row> {
        self.rows_of(&TAIL)
    }

    fn rows_of(&self, quantiles: &[(&str, f64)]) -> Vec<Row> {
        let row = |&(label, quantile): &(&str, f64)| {
            let mut row = Row::new(label, Unit::Microseconds);
            for (&peer, times) in &self.0 {
                row.add(peer, times.value_at_quantile(quantile) as f64 / 1e3);
            }
            row
        };
        quantiles.iter().map(row).collect()
    }
}

impl Row {
    pub fn new(label: &str, unit: Unit) -> Self {
        Self { label: label.into(), unit, samples: BTreeMap::new() }
    }

    pub fn add(&mut self, peer: Peer, sample: f64) {
        self.samples.entry(peer).or_default().push(sample);
    }

    /// Lowest, median and highest sample of the engine called `name`.
    fn spread(&self, name: &str) -> Option<[f64; 3]> {
        let (_, samples) = self.samples.iter().find(|(peer, _)| peer.name() == name)?;
        spread(samples)
    }

    fn cell(&self, name: &str) -> String {
        let Some([min, median, max]) = self.spread(name) else {
            return "-".into();
        };
        match self.unit {
            Unit::Microseconds => format!("{median:.1} us"),
            Unit::Kibibytes => format!("{median:.0} KiB"),
            Unit::Times if min == max => format!("{median:.2}"),
            Unit::Times => format!("{median:.2} ({min:.2}-{max:.2})"),
            Unit::PerSecond if min == max => format!("{}/s", short(median)),
            Unit::PerSecond => {
                format!("{}/s ({}-{})", short(median), short(min), short(max))
            }
        }
    }

    /// seerdb's median over that of the engine called `name`.
    fn ratio(&self, name: &str) -> String {
        match (self.spread("seerdb"), self.spread(name)) {
            (Some([_, ours, _]), Some([_, theirs, _])) => format!("{:.2}x", ours / theirs),
            _ => "-".into(),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}", self.title)?;
        write!(f, "{:<22}", "")?;
        for name in ENGINES {
            write!(f, "{name:>30}")?;
        }
        writeln!(f, "{:>12}{:>12}", "s / rocksdb", "s / fjall")?;
        for row in &self.rows {
            write!(f, "{:<22}", row.label)?;
            for name in ENGINES {
                write!(f, "{:>30}", row.cell(name))?;
            }
            writeln!(f, "{:>12}{:>12}", row.ratio("rocksdb"), row.ratio("fjall"))?;
        }
        Ok(())
    }
}

/// Lowest, median and highest of `samples`, if there are any.
pub fn spread(samples: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (lowest, highest) = (*sorted.first()?, *sorted.last()?);
    let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    Some([lowest, (low + high) / 2.0, highest])
}

/// Three digits or more, with k and M.
pub fn short(number: f64) -> String {
    match number {
        n if n >= 1e6 => format!("{:.2}M", n / 1e6),
        n if n >= 1e5 => format!("{:.0}k", n / 1e3),
        n if n >= 1e4 => format!("{:.1}k", n / 1e3),
        n if n >= 1e3 => format!("{:.2}k", n / 1e3),
        n if n >= 1e2 => format!("{n:.0}"),
        n => format!("{n:.1}"),
    }
}
