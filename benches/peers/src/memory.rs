//! A limit on the memory of this process, its page cache included: a control group of its own.
//!
//! What the process had before it joined does not count. Only root may make control groups.

use std::path::{Path, PathBuf};

use crate::Result;

const ROOT: &str = "/sys/fs/cgroup";
const PROCESSES: &str = "cgroup.procs";

/// Holds while it lives; then the process is where it was before.
pub struct Limit {
    group: PathBuf,
    parent: PathBuf,
}

impl Limit {
    /// Allows this process `bytes` from now on.
    pub fn join(bytes: u64) -> Result<Self> {
        let first = Path::new(ROOT).join("memory");
        // The first version of control groups has a hierarchy for memory alone.
        let (parent, file) = match first.is_dir() {
            true => (first, "memory.limit_in_bytes"),
            false => (PathBuf::from(ROOT), "memory.max"),
        };
        let group = parent.join(format!("peers-{}", std::process::id()));
        std::fs::create_dir(&group).map_err(|e| format!("{}: {e}", group.display()))?;
        let limit = Self { group, parent };
        write(&limit.group.join(file), bytes)?;
        write(&limit.group.join(PROCESSES), u64::from(std::process::id()))?;
        Ok(limit)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let back = write(&self.parent.join(PROCESSES), u64::from(std::process::id()));
        let gone = std::fs::remove_dir(&self.group);
        if back.is_err() || gone.is_err() {
            eprintln!("peers: {} stays behind", self.group.display());
        }
    }
}

fn write(path: &Path, number: u64) -> Result<()> {
    let text = number.to_string();
    Ok(std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))?)
}
