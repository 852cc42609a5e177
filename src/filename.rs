//! Every file name of a database directory: made and parsed here only.
//!
//! Invariants:
//! 1. A file number is used once in the life of a directory, whatever the kind of file.
//! 2. A name that does not parse belongs to somebody else and is left alone.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The number in a file's name.
pub(crate) type FileNumber = u64;

/// The files of a database directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum FileName {
    /// Names the manifest in force.
    Current,
    /// The next [`FileName::Current`] before its rename.
    CurrentTemp,
    /// Locked while the database is open.
    Lock,
    /// The log of version edits.
    Manifest(FileNumber),
    /// A WAL segment.
    Wal(FileNumber),
    /// A file of the value log.
    Values(FileNumber),
    /// A sorted table.
    Table(FileNumber),
}

impl FileName {
    /// The path in `dir`.
    pub(crate) fn in_dir(self, dir: &Path) -> PathBuf {
        dir.join(self.to_string())
    }

    /// The file that a name of a directory entry stands for, if it is one of ours.
    pub(crate) fn parse(name: &OsStr) -> Option<FileName> {
        let name = name.to_str()?;
        let parsed = match name {
            "CURRENT" => FileName::Current,
            "CURRENT.tmp" => FileName::CurrentTemp,
            "LOCK" => FileName::Lock,
            _ => {
                if let Some(number) = name.strip_prefix("MANIFEST-") {
                    FileName::Manifest(number.parse().ok()?)
                } else if let Some(number) = name.strip_suffix(".wal") {
                    FileName::Wal(number.parse().ok()?)
                } else if let Some(number) = name.strip_suffix(".vlog") {
                    FileName::Values(number.parse().ok()?)
                } else {
                    FileName::Table(name.strip_suffix(".sst")?.parse().ok()?)
                }
            }
        };
        // Only the spelling we write is ours: "1.wal" or "+000001.wal" is a foreign file.
        (parsed.to_string() == name).then_some(parsed)
    }

    /// The number, for the kinds that have one.
    pub(crate) fn number(self) -> Option<FileNumber> {
        match self {
            FileName::Manifest(n) | FileName::Wal(n) | FileName::Values(n) | FileName::Table(n) => {
                Some(n)
            }
            FileName::Current | FileName::CurrentTemp | FileName::Lock => None,
        }
    }
}

impl std::fmt::Display for FileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FileName::Current => f.write_str("CURRENT"),
            FileName::CurrentTemp => f.write_str("CURRENT.tmp"),
            FileName::Lock => f.write_str("LOCK"),
            FileName::Manifest(n) => write!(f, "MANIFEST-{n:06}"),
            FileName::Wal(n) => write!(f, "{n:06}.wal"),
            FileName::Values(n) => write!(f, "{n:06}.vlog"),
            FileName::Table(n) => write!(f, "{n:06}.sst"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_foreign_names_do_not_parse() {
        for name in [
            FileName::Current,
            FileName::CurrentTemp,
            FileName::Lock,
            FileName::Manifest(1),
            FileName::Wal(123),
            FileName::Table(1_234_567),
        ] {
            assert_eq!(FileName::parse(OsStr::new(&name.to_string())), Some(name));
        }
        for foreign in ["1.wal", "+00001.sst", "000001.wal.bak", "MANIFEST", ".nfs0001", "x.sst"] {
            assert_eq!(FileName::parse(OsStr::new(foreign)), None, "{foreign}");
        }
    }
}
