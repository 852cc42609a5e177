//! What the figures were measured on, and with.

use std::path::Path;

use crate::Result;

const LOCKED: &str = include_str!("../Cargo.lock");
const CRATES: [&str; 5] = ["rocksdb", "librocksdb-sys", "fjall", "lsm-tree", "tokio"];

/// One line on machine and versions; a second one warns if they make the figures worthless.
pub fn describe(dir: &Path) -> Result<String> {
    let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown CPU", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism()?;
    let file_system = file_system(&dir.canonicalize()?);
    let versions = CRATES.map(|name| format!("{name} {}", version(name))).join(", ");
    let mut line =
        format!("machine: {cpus} x {model}, Linux {}, {file_system}; {versions}", kernel.trim(),);
    if cfg!(feature = "seerdb-engine") {
        line += &format!(", seerdb {}", version("seerdb"));
    }
    if file_system == "tmpfs" {
        line += "\nWARNING: the data is on tmpfs: syncs are free, the figures say nothing";
    }
    if cfg!(all(target_arch = "x86_64", not(target_feature = "sse4.2"))) {
        line += "\nWARNING: RocksDB is built without SSE 4.2 and computes checksums slowly; \
                 build inside benches/peers, whose .cargo/config.toml sets the CPU";
    }
    if cfg!(debug_assertions) {
        line += "\nWARNING: not a release build";
    }
    Ok(line)
}

/// The type of the file system that holds `dir`: the longest mount point above it.
fn file_system(dir: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut found = (0, "unknown file system");
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        if let (Some(mount_point), Some(kind)) = (fields.next(), fields.next())
            && dir.starts_with(mount_point)
            && mount_point.len() >= found.0
        {
            found = (mount_point.len(), kind);
        }
    }
    found.1.into()
}

fn version(name: &str) -> &'static str {
    let entry = LOCKED.split_once(&format!("name = \"{name}\"\nversion = \""));
    entry.and_then(|(_, rest)| rest.split('"').next()).unwrap_or("unknown")
}
