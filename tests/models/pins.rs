//! Readers against a flush and a merge that forget what no reader needs.
//!
//! One key is overwritten with every seqno, so that the answer of a read at a seqno is that seqno.

use loom::sync::Arc;
use loom::thread;

use crate::key::{SeqNo, Trailer, ValueKind};
use crate::memtable::Memtable;
use crate::options::Durability;
use crate::publish::{Progress, Queue, Wakers};
use crate::retain::Retain;
use crate::snapshot::Registry;
use crate::state::{ReadState, ReadStates};
use crate::sync::Mutex;
use crate::version::Version;

struct Engine {
    states: ReadStates,
    registry: std::sync::Arc<Registry>,
    progress: Progress,
    queue: Mutex<Queue>,
}

impl Engine {
    /// Seqno 1 is in a table.
    fn new() -> Arc<Engine> {
        let version = std::sync::Arc::new(Version { versions: vec![1] });
        Arc::new(Engine {
            states: ReadStates::new(std::sync::Arc::default(), version),
            registry: std::sync::Arc::default(),
            progress: Progress::new(1),
            queue: Mutex::default(),
        })
    }

    /// As a write: the memtable first, then visibility.
    fn put(&self, seqno: SeqNo) {
        let memtables = &self.states.load_full().memtables;
        memtables.first().unwrap().versions.lock().push(seqno);
        let mut queue = self.queue.lock();
        let number = queue.push(seqno, Durability::Buffered);
        assert!(queue.inserted(number));
        queue.publish(&self.progress, true, &mut Wakers::new());
    }

    fn seal(&self) {
        self.states.seal(std::sync::Arc::default());
    }

    /// What a merge, or a flush, keeps of these versions.
    fn retain(&self, mut versions: Vec<SeqNo>) -> Version {
        // After the inputs were fixed, as in the merge task.
        let strata = self.registry.strata(|| self.progress.visible());
        let mut retain = Retain::new(strata, true);
        versions.sort_unstable_by(|a, b| b.cmp(a));
        versions.retain(|seqno| retain.keep(b"k", Trailer::new(*seqno, ValueKind::Put)).unwrap());
        Version { versions }
    }

    /// As the flush task, if there is something to flush.
    fn flush(&self) {
        let state = self.states.load_full();
        let memtables: &[std::sync::Arc<Memtable>] = &state.memtables;
        let [_, .., oldest] = memtables else { return };
        let versions: Vec<SeqNo> = oldest.versions.lock().clone();
        if versions.iter().any(|seqno| *seqno > self.progress.visible()) {
            return;
        }
        let versions = state.version.versions.iter().copied().chain(versions).collect();
        let version = self.retain(versions);
        self.states.install(std::sync::Arc::new(version), Some(oldest));
    }

    /// As the merge task.
    fn merge(&self) {
        let version = self.states.load_full().version.clone();
        let merged = self.retain(version.versions.clone());
        self.states.install(std::sync::Arc::new(merged), None);
    }

    fn write_and_merge(&self) {
        self.put(2);
        self.seal();
        self.put(3);
        self.flush();
        self.merge();
    }
}

fn get(state: &ReadState, seqno: SeqNo) -> Option<SeqNo> {
    let mut all = state.version.versions.clone();
    for memtable in &state.memtables {
        all.extend(memtable.versions.lock().iter());
    }
    all.into_iter().filter(|found| *found <= seqno).max()
}

pub(crate) fn a_pinned_seqno_stays_readable() {
    let engine = Engine::new();
    let writer = {
        let engine = Arc::clone(&engine);
        thread::spawn(move || engine.write_and_merge())
    };
    let pin = engine.registry.pin(|| engine.progress.visible());
    let second = {
        let pin = pin.clone();
        let engine = Arc::clone(&engine);
        thread::spawn(move || {
            assert_eq!(get(&engine.states.load_full(), pin.seqno()), Some(pin.seqno()));
        })
    };
    assert_eq!(get(&engine.states.load_full(), pin.seqno()), Some(pin.seqno()));
    drop(pin);
    second.join().unwrap();
    writer.join().unwrap();
    assert_eq!(engine.registry.count(), 0);
    engine.merge();
    assert_eq!(get(&engine.states.load_full(), 3), Some(3));
}

pub(crate) fn a_get_finds_the_newest() {
    let engine = Engine::new();
    let writer = {
        let engine = Arc::clone(&engine);
        thread::spawn(move || engine.write_and_merge())
    };
    let before = engine.progress.visible();
    let (state, seqno) = engine.states.view(|| engine.progress.visible());
    let found = get(&state, seqno).expect("a version was forgotten that a get needs");
    assert!(found >= before, "a get at {seqno} found {found}, {before} was visible before it");
    writer.join().unwrap();
}
