//! What a user may ask of background work: rates, latencies, times of day.

use std::time::Duration;

use crate::error::{Error, Result};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A time of every day, in UTC, from one moment to another; it may go over midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DailyWindow {
    from: Duration,
    to: Duration,
}

impl DailyWindow {
    /// From so long after midnight to so long after midnight.
    pub fn new(from: Duration, to: Duration) -> Self {
        DailyWindow { from, to }
    }

    /// Whether this time since 1970 is in it.
    pub(crate) fn contains(self, unix_time: Duration) -> bool {
        let time = Duration::from_secs(unix_time.as_secs() % DAY.as_secs());
        match self.from <= self.to {
            true => (self.from..self.to).contains(&time),
            false => time >= self.from || time < self.to,
        }
    }
}

/// What merges and rewrites of values keep to while nothing is urgent; see
/// [`crate::DB::set_compaction_limits`]. The default has no limits.
///
/// ```
/// use std::time::Duration;
/// let hours = |hours: u64| Duration::from_secs(hours * 3600);
/// let limits = seerdb::CompactionLimits::default()
///     .latency_target(Duration::from_millis(2))
///     .off_peak(seerdb::DailyWindow::new(hours(23), hours(5)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompactionLimits {
    /// Bytes a second.
    pub(crate) rate: Option<u64>,
    pub(crate) latency: Option<Duration>,
    pub(crate) window: Option<DailyWindow>,
}

impl CompactionLimits {
    /// At most so many bytes a second are merged or rewritten; at least 1 MiB.
    pub fn bytes_per_second(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.rate = bytes.into();
        self
    }

    /// Reads that wait for the disk, and syncs of the log, shall take no longer, 99 of 100; at
    /// least 10 microseconds. Background work slows down until that is so.
    pub fn latency_target(mut self, target: impl Into<Option<Duration>>) -> Self {
        self.latency = target.into();
        self
    }

    /// When nothing is limited.
    pub fn off_peak(mut self, window: impl Into<Option<DailyWindow>>) -> Self {
        self.window = window.into();
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        let day = self.window.map_or(Duration::ZERO, |window| window.from.max(window.to));
        let checks = [
            (
                self.rate.is_none_or(|bytes| bytes >= 1 << 20),
                "bytes_per_second must be at least 1 MiB",
            ),
            (
                self.latency.is_none_or(|target| target >= Duration::from_micros(10)),
                "latency_target must be at least 10 microseconds",
            ),
            (day <= DAY, "off_peak must be within a day"),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            Some((_, sentence)) => Err(Error::invalid(*sentence)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_out_of_range_are_refused() {
        let limits = CompactionLimits::default();
        assert!(limits.check().is_ok());
        for bad in [
            limits.bytes_per_second(1000),
            limits.latency_target(Duration::from_nanos(1)),
            limits.off_peak(DailyWindow::new(Duration::ZERO, DAY + Duration::from_millis(1))),
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
