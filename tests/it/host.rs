//! The file system around a database, seen and changed without the engine, and processes.
#![expect(clippy::disallowed_methods, reason = "tests look at the directory from outside")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub(crate) fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// The length of a file; `None` when it is gone.
pub(crate) fn len(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|found| found.len())
}

pub(crate) fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

pub(crate) fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

pub(crate) fn create_dir(path: &Path) {
    std::fs::create_dir(path).unwrap();
}

/// Removes a directory; the engine may be removing files from it at the same time.
pub(crate) fn remove_dir(path: &Path) {
    while std::fs::remove_dir_all(path)
        .is_err_and(|e: std::io::Error| e.kind() != std::io::ErrorKind::NotFound)
    {}
}

/// The names in a directory, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The files of a directory whose names begin and end so, sorted.
pub(crate) fn files(dir: &Path, start: &str, end: &str) -> Vec<PathBuf> {
    let names = names(dir).into_iter();
    names.filter(|n| n.starts_with(start) && n.ends_with(end)).map(|n| dir.join(n)).collect()
}

/// A copy of a directory without directories in it.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    create_dir(to);
    for name in names(from) {
        std::fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

/// Whether the command succeeds.
pub(crate) fn command(program: &str, args: &[&str]) -> bool {
    let status =
        Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// A small file system in memory, unmounted when dropped.
pub(crate) struct Mount {
    dir: tempfile::TempDir,
}

impl Mount {
    /// `None` where this process may not mount.
    pub(crate) fn tmpfs(options: &str) -> Option<Mount> {
        Mount::of("tmpfs", options)
    }

    /// The same of a file system of this type.
    pub(crate) fn of(kind: &str, options: &str) -> Option<Mount> {
        let dir = tempfile::TempDir::with_prefix("seerdb-mount-").unwrap();
        let path = dir.path().to_str().unwrap().to_string();
        command("mount", &["-t", kind, "-o", options, "seerdb-it", &path]).then_some(Mount { dir })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Mounts it again with other options; whether that worked.
    pub(crate) fn remount(&self, options: &str) -> bool {
        let options = format!("remount,{options}");
        command("mount", &["-o", &options, self.path().to_str().unwrap()])
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: files of the database may be open for a moment still.
        command("umount", &["-l", self.path().to_str().unwrap()]);
    }
}

/// Starts this test binary again to run one ignored test, which finds `path` in `SEERDB_IT_PATH`.
pub(crate) fn child(test: &str, path: &Path, extra: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("SEERDB_IT_PATH", path)
        .env("SEERDB_IT_EXTRA", extra)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// In a child: the path and the extra word that it was started with.
pub(crate) fn parent_said() -> Option<(PathBuf, String)> {
    let path = std::env::var_os("SEERDB_IT_PATH")?;
    Some((PathBuf::from(path), std::env::var("SEERDB_IT_EXTRA").unwrap_or_default()))
}

/// Kills a child that says what was acknowledged, when it has got to `enough`; the last it said.
pub(crate) fn kill_when_acked(child: &mut Child, enough: u64) -> u64 {
    let out = BufReader::new(child.stdout.take().unwrap());
    let mut acked = 0u64;
    // What the child says after the kill is in the pipe or was never said.
    for line in out.lines() {
        let Ok(line) = line else { break };
        let Some(i) = line.rsplit_once("acked ").and_then(|(_, i)| i.parse().ok()) else {
            continue;
        };
        acked = acked.max(i);
        if acked == enough {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    acked
}
