//! A file system of our own: an image in memory, a loop device, ext4; and its power switch.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

const PREFIX: &str = "seerdb-power-";

/// `FS_IOC_SHUTDOWN` with `FS_SHUTDOWN_FLAGS_NOLOGFLUSH` for every path that it reads.
const SWITCH: &str = r#"
import fcntl, os, struct, sys
for line in sys.stdin:
    file = os.open(line.rstrip("\n"), os.O_RDONLY)
    fcntl.ioctl(file, 0x8004587D, struct.pack("I", 2))
    os.close(file)
    print("cut", flush=True)
"#;

/// Runs a command; what it printed on its standard error when it failed.
fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program} cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_string();
    Err(format!("{program} {}: {text}", arguments.join(" ")))
}

/// An ext4 file system; unmounted and forgotten when it is dropped.
pub(crate) struct Disk {
    scratch: TempDir,
    is_mounted: bool,
}

impl Disk {
    /// Makes one, or says why that cannot be done here.
    pub(crate) fn new(mib: u64) -> Result<Disk, String> {
        clear_left_overs();
        let mut builder = tempfile::Builder::new();
        let prefix = format!("{PREFIX}{}-", std::process::id());
        builder.prefix(&prefix);
        let scratch = builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir());
        let scratch = scratch.map_err(|error| format!("no scratch directory: {error}"))?;
        let disk = Disk { scratch, is_mounted: false };
        let image = disk.image();
        File::create(&image).and_then(|file| file.set_len(mib << 20)).unwrap();
        fs::create_dir(disk.path()).unwrap();
        let format = ["-q", "-F", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=0,nodiscard"];
        run("mkfs.ext4", &[&format[..], &[image.to_str().unwrap()]].concat())?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.scratch.path().join("image")
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.scratch.path().join("mounted")
    }

    /// Mounts it; the journal is replayed.
    pub(crate) fn mount(&mut self, options: &str) -> Result<(), String> {
        let (image, path) = (self.image(), self.path());
        let options = format!("loop,{options}");
        let what = [image.to_str().unwrap(), path.to_str().unwrap()];
        run("mount", &["-t", "ext4", "-o", &options, what[0], what[1]])?;
        self.is_mounted = true;
        Ok(())
    }

    /// Unmounts it. A killed process may keep its files open for a moment.
    pub(crate) fn unmount(&mut self) -> Result<(), String> {
        let path = self.path();
        let mut outcome = Ok(());
        for _ in 0..500 {
            outcome = run("umount", &[path.to_str().unwrap()]);
            if outcome.is_ok() {
                self.is_mounted = false;
                return outcome;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        outcome
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a panic must not leave a mount because a file is still open.
        if self.is_mounted
            && let Err(why) = run("umount", &["-l", self.path().to_str().unwrap()])
        {
            eprintln!("left behind: {why}");
        }
    }
}

/// Unmounts what runs that were killed left; the loop devices go with the mounts.
fn clear_left_overs() {
    for line in fs::read_to_string("/proc/mounts").unwrap_or_default().lines() {
        let Some(path) = line.split(' ').nth(1) else { continue };
        let Some((_, rest)) = path.split_once(PREFIX) else { continue };
        let pid = rest.split('-').next().unwrap_or_default();
        let is_over = pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists();
        if is_over
            && run("umount", &["-l", path]).is_ok()
            && let Some(scratch) = Path::new(path).parent()
        {
            fs::remove_dir_all(scratch).ok();
        }
    }
}

/// The power switch of any number of disks: a process that waits for the order, so that the cut
/// comes at once.
pub(crate) struct Switch {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Switch {
    pub(crate) fn new() -> Result<Switch, String> {
        let mut command = Command::new("python3");
        command.args(["-c", SWITCH]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::null());
        let mut process = command.spawn().map_err(|error| format!("no python3: {error}"))?;
        let orders = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Ok(Switch { process, orders, answers })
    }

    /// Cuts the power of a mounted disk.
    pub(crate) fn cut(&mut self, disk: &Disk) -> Result<(), String> {
        let order = format!("{}\n", disk.path().display());
        let mut answer = String::new();
        let asked = self.orders.write_all(order.as_bytes());
        match asked.and_then(|()| self.answers.read_line(&mut answer)) {
            Ok(_) if answer == "cut\n" => Ok(()),
            _ => Err("FS_IOC_SHUTDOWN is refused".into()),
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
