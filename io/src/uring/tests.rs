//! Tests that reach into the backend: short results on demand, and a kernel that lies.

use std::sync::atomic::Ordering;

use futures::executor::block_on;
use futures::future::join_all;

use super::ring::Ring;
use crate::transfer::{CHUNK_CAP, CHUNK_MAX};
use crate::{AlignedBuf, Backend, Class, Env, EnvOptions, File, Lane, OpenOptions};

fn env(backend: Backend) -> Option<Env> {
    Env::new(&EnvOptions { backend }).ok()
}

fn create(env: &Env, dir: &tempfile::TempDir, name: &str, class: Class, direct: bool) -> File {
    let options = OpenOptions { write: true, create_new: true, direct, class };
    block_on(env.fs().open(dir.path().join(name), options)).unwrap()
}

async fn write_and_read(file: File, len: usize) {
    let mut bytes = AlignedBuf::zeroed(len);
    for (i, word) in bytes.chunks_mut(8).enumerate() {
        word.fill(u8::try_from(i * 31 % 251).unwrap());
    }
    let copy = bytes.to_vec();
    let (result, mut bytes) = file.write_at(bytes, 0).await;
    assert_eq!(result.unwrap(), len);
    bytes.fill(0);
    let (result, bytes) = file.read_at(bytes, 0).await;
    assert_eq!(result.unwrap(), len);
    assert!(bytes[..] == copy[..]);
    let (result, _) = file.write_at_durable(bytes, len as u64).await;
    assert_eq!(result.unwrap(), len);
    let (result, tail) = file.read_at(AlignedBuf::zeroed(2 * len), len as u64).await;
    assert_eq!(result.unwrap(), len);
    assert!(tail[..len] == copy[..]);
    file.sync_data().await.unwrap();
}

/// Every call moves at most 64 KiB here, so that every transfer is resumed, on every path.
#[test]
fn short_results() {
    CHUNK_CAP.store(64 << 10, Ordering::Relaxed);
    for backend in [Backend::Portable, Backend::Uring] {
        let dir = tempfile::tempdir().unwrap();
        let Some(env) = env(backend) else { continue };
        for class in [Class::Foreground, Class::Log, Class::Background] {
            for direct in [false, true] {
                let file = create(&env, &dir, &format!("{class:?}{direct}"), class, direct);
                block_on(write_and_read(file, 1 << 20));
            }
            for lane in [Lane::Log, Lane::Flush] {
                let file = create(&env, &dir, &format!("{class:?}{lane:?}"), class, true);
                let task = write_and_read(file, 1 << 20);
                block_on(env.spawner().spawn(lane, "test", task)).unwrap();
            }
        }
    }
    CHUNK_CAP.store(CHUNK_MAX, Ordering::Relaxed);
}

/// U14: an unknown completion means that nothing can be believed any more.
#[test]
fn a_broken_ring_fails_every_operation() {
    for class in [Class::Foreground, Class::Log] {
        let dir = tempfile::tempdir().unwrap();
        let Some(env) = env(Backend::Uring) else { return };
        let file = create(&env, &dir, "good", class, true);
        block_on(write_and_read(file.clone(), 8192));
        let bad = create(&env, &dir, "forged", class, true);
        let reads = (0..300).map(|i| bad.read_at(AlignedBuf::zeroed(4096), i * 4096));
        let failed = block_on(join_all(reads)).into_iter().filter_map(|(r, _)| r.err());
        assert!(failed.map(|e| assert!(e.to_string().contains("ring has failed"))).count() > 0);
        for file in [file, bad] {
            let (result, _) = block_on(file.write_at(AlignedBuf::zeroed(4096), 0));
            assert!(result.unwrap_err().to_string().contains("unknown operation"));
            assert!(block_on(file.sync_data()).is_err());
        }
        // Lanes still run, so that tasks see the failure, and the end still comes.
        for lane in [Lane::Log, Lane::Flush, Lane::Compaction] {
            let clock = env.clock().clone();
            let task = env.spawner().spawn(lane, "test", async move {
                clock.sleep(std::time::Duration::from_millis(2)).await;
                5
            });
            assert_eq!(block_on(task).unwrap(), 5);
        }
        block_on(env.shutdown());
    }
}

/// U9: this does not compile when the ring becomes `Send`, because `A` is then ambiguous.
#[test]
fn a_ring_stays_on_its_thread() {
    trait Ambiguous<A> {
        fn check() {}
    }
    impl<T: ?Sized> Ambiguous<()> for T {}
    impl<T: ?Sized + Send> Ambiguous<u8> for T {}
    <Ring as Ambiguous<_>>::check();
}
