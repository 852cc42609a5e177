//! Processes that are refused something: the ring, system calls, memory, descriptors, space.
//!
//! Each test starts the test binary again, for itself alone, and looks how that ends.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use futures::executor::block_on;
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use seerdb_io::{AlignedBuf, Backend, Class, Env, EnvOptions, IoBackend, Lane, Operation};

use crate::{Bed, CLASSES, buf, creator, direct, pattern, read};

fn is_child() -> bool {
    std::env::var_os("SEERDB_IO_CHILD").is_some()
}

/// The command that runs one test in a process of its own.
fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("refusal::{test}"), "--nocapture"]);
    command.env("SEERDB_IO_CHILD", "1").env_remove("SEERDB_IO");
    command
}

fn succeeds(mut command: Command) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stdout));
    for line in text.lines().filter(|line| line.starts_with("skipped")) {
        eprintln!("{line}");
    }
}

/// From now on these system calls fail with `errno` in this thread and those it starts.
fn refuse(calls: &[libc::c_long], errno: i32) {
    let filter = SeccompFilter::new(
        calls.iter().map(|call| (*call, Vec::new())).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// What has to work everywhere.
fn works(bed: &Bed) {
    let bytes = pattern(100 << 12, 1);
    for class in CLASSES {
        for options in [creator(class), direct(creator(class))] {
            let name = format!("{class:?}{}", options.direct);
            let file = bed.open(&name, options).unwrap();
            assert_eq!(block_on(file.write_at(buf(&bytes), 0)).0.unwrap(), bytes.len());
            assert_eq!(block_on(file.write_at_durable(buf(&bytes), 4096)).0.unwrap(), bytes.len());
            block_on(file.sync_data()).unwrap();
            bed.evict(&name);
            assert!(read(&file, bytes.len(), 4096) == bytes);
            assert!(read(&file, bytes.len(), 4096) == bytes);
        }
    }
    let task = bed.env.spawner().spawn(Lane::Compaction, "test", async { 3 });
    assert_eq!(block_on(task).unwrap(), 3);
    block_on(bed.env.clock().sleep(Duration::from_millis(1)));
}

fn falls_back(reason: &str) {
    let bed = Bed::new(Backend::Auto).unwrap();
    let IoBackend::Portable { reason: found } = bed.env.io_backend() else {
        panic!("the ring was not refused: {}", bed.env.io_backend());
    };
    assert!(found.contains(reason), "{found}");
    works(&bed);
    let e = Env::new(&EnvOptions { backend: Backend::Uring }).err().expect("it is refused");
    assert!(e.to_string().contains(reason), "{e}");
    assert_eq!(e.kind(), std::io::ErrorKind::Unsupported);
    assert_eq!(e.operation(), Operation::Start);
}

#[test]
fn refused_by_seccomp() {
    if !is_child() {
        return succeeds(child("refused_by_seccomp"));
    }
    refuse(&[libc::SYS_io_uring_setup], libc::EPERM);
    falls_back("io_uring");
}

#[test]
fn refused_as_missing() {
    if !is_child() {
        return succeeds(child("refused_as_missing"));
    }
    refuse(&[libc::SYS_io_uring_setup], libc::ENOSYS);
    falls_back("io_uring");
}

/// A sandbox that grants a ring and no way to use it.
#[test]
fn refused_half_way() {
    if !is_child() {
        for call in ["enter", "register"] {
            let mut command = child("refused_half_way");
            command.env("SEERDB_IO_CALL", call);
            succeeds(command);
        }
        return;
    }
    let enter = std::env::var("SEERDB_IO_CALL").unwrap() == "enter";
    let call = if enter { libc::SYS_io_uring_enter } else { libc::SYS_io_uring_register };
    refuse(&[call], libc::EACCES);
    falls_back("io_uring");
}

/// Kernels and sandboxes without the calls with flags: reads and durable writes take other ways.
#[test]
fn without_calls_that_have_flags() {
    if !is_child() {
        return succeeds(child("without_calls_that_have_flags"));
    }
    refuse(&[libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_fallocate], libc::ENOSYS);
    for backend in [Backend::Portable, Backend::Auto] {
        let bed = Bed::new(backend).unwrap();
        works(&bed);
        let file = bed.open("f", creator(Class::Foreground)).unwrap();
        assert!(file.try_read_at(&mut [0; 10], 0).is_none());
        block_on(file.allocate(10_000)).unwrap();
        assert_eq!(block_on(file.len()).unwrap(), 10_000);
    }
}

/// Nobody's limit of lockable memory is zero: with a ring or without, files work.
#[test]
fn without_lockable_memory() {
    if !is_child() {
        let mut command = child("without_lockable_memory");
        if rustix::process::geteuid().is_root() {
            // The limit does not bind root. Whether nobody may run the binary is not our affair.
            command.uid(65534).gid(65534);
            if command.output().is_err() {
                eprintln!("skipped: nobody may not run {:?}", command.get_program());
                return;
            }
        }
        return succeeds(command);
    }
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Memlock, none).unwrap();
    let bed = Bed::new(Backend::Auto).unwrap();
    eprintln!("without lockable memory: {}", bed.env.io_backend());
    works(&bed);
}

/// Rings need descriptors; where there are few, a pool that needs none is the answer.
#[test]
fn with_few_descriptors() {
    if !is_child() {
        return succeeds(child("with_few_descriptors"));
    }
    let bed = Bed::new(Backend::Portable).unwrap();
    for few in 8..20 {
        let limit = Rlimit { current: Some(few), maximum: Some(1024) };
        setrlimit(Resource::Nofile, limit).unwrap();
        let env = Env::new(&EnvOptions::default()).unwrap();
        let task = env.spawner().spawn(Lane::Flush, "test", async { 3 });
        assert_eq!(block_on(task).unwrap(), 3);
        block_on(env.shutdown());
    }
    works(&bed);
}

/// A write that runs into the limit is short first and refused then.
#[test]
fn a_file_at_its_largest() {
    if !is_child() {
        let program = child("a_file_at_its_largest");
        let mut command = Command::new("sh");
        // The signal that comes with the refusal must not end the process.
        command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]);
        command.arg(program.get_program()).args(program.get_args()).env("SEERDB_IO_CHILD", "1");
        return succeeds(command);
    }
    let most = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
    setrlimit(Resource::Fsize, most).unwrap();
    for backend in [Backend::Portable, Backend::Uring] {
        let Some(bed) = Bed::new(backend) else { continue };
        for class in CLASSES {
            for options in [creator(class), direct(creator(class))] {
                let file = bed.open(&format!("{class:?}{}", options.direct), options).unwrap();
                let bytes = pattern(3 << 20, 2);
                let (result, back) = block_on(file.write_at(buf(&bytes), 0));
                let e = result.unwrap_err();
                assert!(e.is_no_space(), "{e}");
                assert!(back[..] == bytes[..]);
                let part = read(&file, 3 << 20, 0);
                assert!(part.len() <= 1 << 20 && part[..] == bytes[..part.len()]);
                let write = file.write_at_durable(buf(&bytes[..4096]), 0);
                assert_eq!(block_on(write).0.unwrap(), 4096);
            }
        }
    }
}

#[test]
fn the_environment_variable_decides() {
    if !is_child() {
        for value in ["auto", "uring", "portable", "", "fast"] {
            let mut command = child("the_environment_variable_decides");
            command.env("SEERDB_IO", value);
            succeeds(command);
        }
        return;
    }
    let value = std::env::var("SEERDB_IO").unwrap();
    let auto = Env::new(&EnvOptions::default());
    match (value.as_str(), auto) {
        ("portable", auto) => {
            let reason = "asked for".to_owned();
            assert_eq!(*auto.unwrap().io_backend(), IoBackend::Portable { reason });
        }
        ("fast", auto) => {
            let e = auto.err().expect("it is unknown");
            assert!(e.to_string().contains("SEERDB_IO is 'fast'"), "{e}");
            assert_eq!(e.kind(), std::io::ErrorKind::InvalidInput);
        }
        ("uring", Err(e)) => eprintln!("skipped: {e}"),
        ("uring", Ok(env)) => assert!(env.io_backend().to_string().starts_with("io_uring")),
        (_, auto) => drop(auto.unwrap()),
    }
    // What the program asks for is not overruled.
    let env = Env::new(&EnvOptions { backend: Backend::Portable }).unwrap();
    assert!(matches!(env.io_backend(), IoBackend::Portable { .. }));
}

/// CPU time of all threads of this process, by the scheduler's account.
fn cpu_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let times = tasks.map(|task| {
        let text = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
        text.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(times.sum())
}

/// Contract 5, and the reason to have no spinning thread anywhere.
#[test]
fn idle_costs_nothing() {
    if !is_child() {
        return succeeds(child("idle_costs_nothing"));
    }
    if !std::path::Path::new("/proc/self/schedstat").exists() {
        eprintln!("skipped: the kernel keeps no account of CPU time");
        return;
    }
    for backend in [Backend::Portable, Backend::Uring] {
        let Some(bed) = Bed::new(backend) else { continue };
        works(&bed);
        // Something waits everywhere, and nothing happens.
        let mut tasks = Vec::new();
        for lane in crate::lanes::LANES {
            let clock = bed.env.clock().clone();
            tasks.push(bed.env.spawner().spawn(lane, "test", async move {
                clock.sleep(Duration::from_secs(3600)).await;
            }));
        }
        std::thread::sleep(Duration::from_millis(100));
        let before = cpu_time();
        std::thread::sleep(Duration::from_secs(1));
        let spent = cpu_time() - before;
        eprintln!("idle for 1 s: {} us of CPU, {}", spent.as_micros(), bed.env.io_backend());
        assert!(spent < Duration::from_millis(1), "{spent:?}");
        drop(tasks);
        block_on(bed.env.shutdown());
    }
}

/// A buffer of a refused operation comes back, and the operations after it work.
#[test]
fn refused_operations_return_their_buffers() {
    for backend in [Backend::Portable, Backend::Uring] {
        let Some(bed) = Bed::new(backend) else { continue };
        let dir = block_on(bed.env.fs().open(bed.dir.path(), crate::reader(Class::Log))).unwrap();
        for _ in 0..100 {
            let (result, back) = block_on(dir.read_at(AlignedBuf::zeroed(4096), 0));
            assert!(result.is_err());
            assert_eq!(back.len(), 4096);
        }
        works(&bed);
    }
}
