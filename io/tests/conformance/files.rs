//! Reads, writes, syncs and lengths.

use futures::future::join_all;
use seerdb_io::{AlignedBuf, Class, Operation};

use crate::{Bed, CLASSES, block_on, buf, creator, direct, pattern, read, reader, writer};

crate::for_each_backend!(
    every_size_comes_back,
    durable_writes_come_back,
    reads_end_at_the_end_of_the_file,
    a_read_that_is_partly_cached_is_complete,
    offsets_beyond_the_largest_file_are_refused,
    empty_transfers_do_nothing,
    direct_files_need_alignment,
    direct_reads_find_the_end,
    a_read_covers_what_is_wanted,
    cached_writes_are_seen,
    lengths_and_allocation,
    errors_name_the_file,
    thousands_in_flight,
    writes_in_flight_together,
    plugged_reads_all_arrive,
    clones_and_paths;
    not_simulated:
    cached_reads_answer_at_once => "what the page cache holds is chance; tests/sim has its own",
    a_full_device_is_no_space => "it needs /dev/full; tests/sim has its own",
    a_full_file_system_is_no_space => "it needs a mount; tests/sim has its own",
);

/// 1 byte to 64 MiB, in every class, from the device and from the page cache.
fn every_size_comes_back(bed: &Bed) {
    for class in CLASSES {
        for (i, len) in [1, 511, 4095, 4096, 4097, (1 << 20) + 1].into_iter().enumerate() {
            let name = format!("{class:?}{i}");
            let bytes = pattern(len, i as u64);
            let file = bed.open(&name, creator(class)).unwrap();
            let (result, _) = block_on(file.write_at(buf(&bytes), 3));
            assert_eq!(result.unwrap(), len);
            block_on(file.sync_data()).unwrap();
            assert!(read(&file, len, 3) == bytes, "{name}, cached");
            bed.evict(&name);
            assert!(read(&file, len, 3) == bytes, "{name}, evicted");
            assert_eq!(read(&file, 3, 0), [0; 3]);
        }
    }
    let bytes = pattern(64 << 20, 9);
    let file = bed.open("huge", creator(Class::Background)).unwrap();
    let (result, mut back) = block_on(file.write_at(buf(&bytes), 0));
    assert_eq!(result.unwrap(), bytes.len());
    assert!(back[..] == bytes[..], "the buffer comes back as it was");
    block_on(file.sync_data()).unwrap();
    bed.evict("huge");
    back.fill(0);
    let (result, back) = block_on(file.read_at(back, 0));
    assert_eq!(result.unwrap(), bytes.len());
    assert!(back[..] == bytes[..]);
}

fn durable_writes_come_back(bed: &Bed) {
    for class in CLASSES {
        for options in [creator(class), direct(creator(class))] {
            let name = format!("{class:?}{}", options.direct);
            let bytes = pattern(3 * 4096, 5);
            let file = bed.open(&name, options).unwrap();
            let (result, _) = block_on(file.write_at_durable(buf(&bytes), 8192));
            assert_eq!(result.unwrap(), bytes.len());
            let file = bed.open(&name, reader(class)).unwrap();
            assert!(read(&file, bytes.len(), 8192) == bytes);
        }
    }
}

fn reads_end_at_the_end_of_the_file(bed: &Bed) {
    for class in CLASSES {
        for len in [0, 1, 4095, 4096, 10_000] {
            let name = format!("{class:?}{len}");
            let bytes = pattern(len, 1);
            let file = bed.file(&name, &bytes, reader(class));
            // Evicted the first time, cached the second.
            for _ in 0..2 {
                assert!(read(&file, 20_000, 0) == bytes);
                assert!(read(&file, 20_000, len as u64 / 2) == bytes[len / 2..]);
                assert!(read(&file, 10, len as u64).is_empty());
                assert!(read(&file, 10, len as u64 + 1_000_000).is_empty());
            }
        }
    }
}

fn cached_reads_answer_at_once(bed: &Bed) {
    let bytes = pattern(10_000, 2);
    let file = bed.file("f", &bytes, writer(Class::Foreground));
    let mut out = vec![0; 4096];
    // Evicted or not: the answer is right or there is none.
    if let Some(result) = file.try_read_at(&mut out, 0) {
        assert_eq!(result.unwrap(), 4096);
        assert_eq!(out, bytes[..4096]);
    }
    assert_eq!(read(&file, 10_000, 0), bytes);
    if !cfg!(target_os = "linux") {
        assert!(file.try_read_at(&mut out, 0).is_none());
        return;
    }
    let Some(result) = file.try_read_at(&mut out, 4096) else {
        eprintln!("skipped: this file system cannot read without waiting");
        return;
    };
    assert_eq!(result.unwrap(), 4096);
    assert_eq!(out, bytes[4096..8192]);
    assert_eq!(file.try_read_at(&mut out, 8192).unwrap().unwrap(), 10_000 - 8192);
    assert_eq!(file.try_read_at(&mut out, 20_000).unwrap().unwrap(), 0);
    assert_eq!(bed.env.in_flight(), 0);
    let before = futures::FutureExt::now_or_never(file.read_at(AlignedBuf::zeroed(100), 50));
    let (result, back) = before.expect("the page cache answers on the first poll");
    assert_eq!((result.unwrap(), &back[..]), (100, &bytes[50..150]));
}

/// A NOWAIT read stops at the first page that is not there: that is not the end of the file.
fn a_read_that_is_partly_cached_is_complete(bed: &Bed) {
    let bytes = pattern(1 << 20, 3);
    let file = bed.file("f", &bytes, reader(Class::Foreground));
    for first in [0, 4096, 64 << 10] {
        bed.evict("f");
        read(&file, 4096, first);
        assert!(read(&file, 1 << 20, 0) == bytes);
    }
}

fn offsets_beyond_the_largest_file_are_refused(bed: &Bed) {
    let file = bed.file("f", b"content", writer(Class::Foreground));
    for offset in [u64::MAX, u64::MAX - 1, i64::MAX.cast_unsigned()] {
        let (result, back) = block_on(file.read_at(AlignedBuf::zeroed(10), offset));
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
        let (result, back) = block_on(file.write_at(back, offset));
        assert_eq!(result.unwrap_err().offset(), Some(offset));
        let (result, back) = block_on(file.write_at_durable(back, offset));
        assert!(result.is_err());
        assert_eq!(back.len(), 10);
    }
    assert_eq!(read(&file, 10, 0), b"content");
}

fn empty_transfers_do_nothing(bed: &Bed) {
    let file = bed.open("f", creator(Class::Log)).unwrap();
    assert_eq!(block_on(file.read_at(AlignedBuf::new(), 100)).0.unwrap(), 0);
    assert_eq!(block_on(file.write_at(AlignedBuf::new(), 100)).0.unwrap(), 0);
    assert_eq!(block_on(file.write_at_durable(AlignedBuf::new(), 100)).0.unwrap(), 0);
    assert_eq!(block_on(file.len()).unwrap(), 0);
}

fn direct_files_need_alignment(bed: &Bed) {
    let file = bed.open("f", direct(creator(Class::Log))).unwrap();
    if !file.is_direct() {
        eprintln!("skipped: this file system has no direct I/O");
        return;
    }
    for (len, offset) in [(4095, 0), (4096, 1), (512, 512), (1, 0)] {
        let (result, _) = block_on(file.read_at(AlignedBuf::zeroed(len), offset));
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
        let (result, _) = block_on(file.write_at(AlignedBuf::zeroed(len), offset));
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
    assert!(file.try_read_at(&mut [0; 4096], 0).is_none());
    assert!(file.write_cached(b"x", 0).is_err());
    let bytes = pattern(1 << 20, 4);
    assert_eq!(block_on(file.write_at(buf(&bytes), 4096)).0.unwrap(), 1 << 20);
    assert!(read(&file, 1 << 20, 4096) == bytes);
    assert_eq!(block_on(file.len()).unwrap(), (1 << 20) + 4096);
}

/// The tail of a direct file ends anywhere; the resumed read must stay aligned.
fn direct_reads_find_the_end(bed: &Bed) {
    for len in [0, 1, 511, 512, 4096, 4097, 5120, 9000] {
        let bytes = pattern(len, len as u64);
        let file = bed.file(&format!("f{len}"), &bytes, direct(reader(Class::Foreground)));
        assert!(read(&file, 16 << 10, 0) == bytes, "{len}");
        assert!(read(&file, 4096, 4096) == bytes[len.min(4096)..len.min(8192)], "{len}");
        assert!(read(&file, 4096, 1 << 20).is_empty());
    }
}

fn a_read_covers_what_is_wanted(bed: &Bed) {
    let bytes = pattern(20_000, 3);
    for options in [reader(Class::Foreground), direct(reader(Class::Foreground))] {
        let file = bed.file(if options.direct { "direct" } else { "cached" }, &bytes, options);
        for (offset, len) in [(0, 1), (1, 4095), (4095, 2), (4096, 4096), (10_000, 5_000)] {
            let (from, wanted) = file.cover(offset, len);
            assert!(file.is_direct() || (from, wanted) == (offset, len));
            let skip = usize::try_from(offset - from).unwrap();
            let found = read(&file, wanted, from);
            let at = usize::try_from(offset).unwrap();
            assert_eq!(found[skip..skip + len], bytes[at..at + len]);
        }
    }
}

fn cached_writes_are_seen(bed: &Bed) {
    let file = bed.open("f", creator(Class::Log)).unwrap();
    file.write_cached(b"world", 6).unwrap();
    file.write_cached(b"hello ", 0).unwrap();
    assert_eq!(read(&file, 100, 0), b"hello world");
    block_on(file.sync_data()).unwrap();
    let file = bed.open("f", reader(Class::Log)).unwrap();
    let e = file.write_cached(b"x", 7).unwrap_err();
    assert_eq!((e.operation(), e.offset()), (Operation::Write, Some(7)));
}

fn lengths_and_allocation(bed: &Bed) {
    let file = bed.open("f", creator(Class::Background)).unwrap();
    assert_eq!(block_on(file.len()).unwrap(), 0);
    block_on(file.allocate(0)).unwrap();
    block_on(file.allocate(100_000)).unwrap();
    assert_eq!(block_on(file.len()).unwrap(), 100_000);
    assert!(read(&file, 200_000, 0) == [0; 100_000]);
    block_on(file.allocate(10)).unwrap();
    assert_eq!(block_on(file.len()).unwrap(), 100_000);
    block_on(file.set_len(5)).unwrap();
    assert_eq!(block_on(file.len()).unwrap(), 5);
    block_on(file.set_len(8)).unwrap();
    assert_eq!(read(&file, 20, 0), [0; 8]);
    let e = block_on(bed.open("f", reader(Class::Background)).unwrap().set_len(1)).unwrap_err();
    assert_eq!(e.operation(), Operation::Resize);
}

fn errors_name_the_file(bed: &Bed) {
    let e = bed.open("missing", reader(Class::Foreground)).err().unwrap();
    assert!(e.is_not_found() && e.operation() == Operation::Open);
    assert!(e.to_string().contains("missing"), "{e}");
    bed.open("f", creator(Class::Foreground)).unwrap();
    let e = bed.open("f", creator(Class::Foreground)).err().unwrap();
    assert_eq!(e.kind(), std::io::ErrorKind::AlreadyExists);
    for class in CLASSES {
        let file = bed.open("f", reader(class)).unwrap();
        for write in [file.write_at(buf(b"x"), 3), file.write_at_durable(buf(b"x"), 3)] {
            let (result, back) = block_on(write);
            let e = result.unwrap_err();
            assert_eq!((e.operation(), e.offset()), (Operation::Write, Some(3)));
            assert!(e.errno().is_some() && e.path().ends_with("f"), "{e}");
            assert_eq!(&back[..], b"x");
        }
        let dir = block_on(bed.env.fs().open(bed.dir.path(), reader(class))).unwrap();
        let (result, _) = block_on(dir.read_at(AlignedBuf::zeroed(10), 0));
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::IsADirectory);
    }
}

fn a_full_device_is_no_space(bed: &Bed) {
    if !std::path::Path::new("/dev/full").exists() {
        eprintln!("skipped: there is no /dev/full");
        return;
    }
    for class in CLASSES {
        let file = block_on(bed.env.fs().open("/dev/full", writer(class))).unwrap();
        for write in [file.write_at(buf(b"x"), 0), file.write_at_durable(buf(b"x"), 0)] {
            let e = block_on(write).0.unwrap_err();
            assert!(e.is_no_space(), "{e}");
        }
    }
}

/// A file system of 1 MiB takes a part of a write and then refuses.
fn a_full_file_system_is_no_space(bed: &Bed) {
    let dir = bed.path("small");
    std::fs::create_dir(&dir).unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&dir)
        .output();
    if !mount.is_ok_and(|m| m.status.success()) {
        eprintln!("skipped: no file system can be mounted here");
        return;
    }
    let full = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for class in CLASSES {
            let path = dir.join(format!("{class:?}"));
            let file = block_on(bed.env.fs().open(&path, direct(creator(class)))).unwrap();
            let bytes = pattern(3 << 20, 6);
            let (result, back) = block_on(file.write_at(buf(&bytes), 0));
            let e = result.unwrap_err();
            assert!(e.is_no_space(), "{e}");
            assert!(back[..] == bytes[..]);
            assert!(block_on(file.allocate(3 << 20)).unwrap_err().is_no_space());
            // What fits can still be written and read: the refusal broke nothing.
            block_on(file.set_len(0)).unwrap();
            assert_eq!(block_on(file.write_at(buf(&bytes[..8192]), 0)).0.unwrap(), 8192);
            assert!(read(&file, 8192, 0) == bytes[..8192]);
            block_on(bed.env.fs().remove_file(&path)).unwrap();
        }
    }));
    bed.settle();
    let unmount = std::process::Command::new("umount").arg("-l").arg(&dir).status();
    assert!(unmount.unwrap().success());
    if let Err(panic) = full {
        std::panic::resume_unwind(panic);
    }
}

/// Far more than the ring takes at a time; the rest waits in its queue.
fn thousands_in_flight(bed: &Bed) {
    let bytes = pattern(4 << 20, 7);
    for class in CLASSES {
        let name = format!("{class:?}");
        let file = bed.file(&name, &bytes, direct(reader(class)));
        let reads = (0..4000).map(|i| {
            let offset = (i * 37 % 1024) * 4096;
            let read = file.read_at(AlignedBuf::zeroed(4096), offset as u64);
            let expected = &bytes[offset..offset + 4096];
            async move {
                let (result, back) = read.await;
                assert_eq!(result.unwrap(), 4096);
                assert!(back[..] == *expected);
            }
        });
        block_on(join_all(reads));
        bed.settle();
    }
}

fn writes_in_flight_together(bed: &Bed) {
    for class in CLASSES {
        let file = bed.open(&format!("{class:?}"), direct(creator(class))).unwrap();
        block_on(file.allocate(64 << 12)).unwrap();
        let bytes = pattern(64 << 12, 8);
        let writes = bytes.chunks(4096).enumerate().map(|(i, block)| {
            let offset = i as u64 * 4096;
            if i % 2 == 0 {
                file.write_at(buf(block), offset)
            } else {
                file.write_at_durable(buf(block), offset)
            }
        });
        for (result, _) in block_on(join_all(writes)) {
            assert_eq!(result.unwrap(), 4096);
        }
        block_on(file.sync_data()).unwrap();
        assert!(read(&file, 64 << 12, 0) == bytes);
    }
}

fn plugged_reads_all_arrive(bed: &Bed) {
    let bytes = pattern(1 << 20, 10);
    let file = bed.file("f", &bytes, direct(reader(Class::Foreground)));
    for _ in 0..20 {
        let mut reads: Vec<_> =
            (0..256).map(|i| file.read_at(AlignedBuf::zeroed(4096), i * 4096)).collect();
        block_on(async {
            let plug = bed.env.fs().plug();
            let inner = bed.env.fs().plug();
            let mut answers = Vec::new();
            for read in &mut reads {
                answers.push(futures::poll!(read));
            }
            drop(inner);
            drop(plug);
            for (i, (read, answer)) in reads.into_iter().zip(answers).enumerate() {
                let (result, back) = match answer {
                    std::task::Poll::Ready(answer) => answer,
                    std::task::Poll::Pending => read.await,
                };
                assert_eq!(result.unwrap(), 4096);
                assert!(back[..] == bytes[i * 4096..(i + 1) * 4096]);
            }
        });
    }
}

fn clones_and_paths(bed: &Bed) {
    let file = bed.open("f", creator(Class::Foreground)).unwrap();
    let clone = file.clone();
    drop(file);
    assert_eq!(clone.path(), bed.path("f"));
    assert_eq!(block_on(clone.write_at(buf(b"abc"), 0)).0.unwrap(), 3);
    let env = bed.env.clone();
    assert_eq!(env.io_backend(), bed.env.io_backend());
    assert_eq!(bed.is_uring(), env.io_backend().to_string().starts_with("io_uring"));
}
