//! Writing that has failed: what each call says then, and that reading goes on.

use seerdb::{Durability, ErrorKind};
use seerdb_io::sim::{Faults, Options, Sim};

use crate::common::{kind, noise, tiny};

/// The kinds `Indeterminate` and `FailStop`, from a disk that fails for real; see `tests/sim` for
/// all the ways there.
#[test]
fn a_failing_log_is_indeterminate_once_and_stops_writing_then() {
    for durability in [Durability::Synced, Durability::Written] {
        let sim = Sim::new(5, Options::default());
        let options = tiny().wal_segment_bytes(1 << 20).durability(durability);
        let options = options.env(sim.boot());
        let faulty = Faults { write_error: 1_000_000, sync_error: 1_000_000, ..Faults::none() };
        let ended = sim.run(async {
            let db = options.open("/db").await.unwrap();
            db.put("k", "before").await.unwrap();
            sim.set_faults(faulty.clone());
            let failed = db.put("k", "after").durability(Durability::Synced).await;
            assert_eq!(kind(failed), ErrorKind::Indeterminate, "{durability:?}");
            assert_eq!(db.get("k").await.unwrap().unwrap(), "before", "readers do not see it");
            sim.stop_faults();
            assert_eq!(kind(db.put("k", "later").await), ErrorKind::FailStop);
            assert_eq!(kind(db.flush().await), ErrorKind::FailStop);
            assert_eq!(kind(db.compact_range(..).await), ErrorKind::FailStop);
            let seqno = db.stats().visible_seqno + 1;
            assert_eq!(kind(db.wait_durable(seqno).await), ErrorKind::FailStop);
            assert_eq!(db.get("k").await.unwrap().unwrap(), "before");
            assert_eq!(kind(db.close().await), ErrorKind::FailStop);
        });
        ended.unwrap();
        let options = options.env(sim.boot());
        let reopened = sim.run(async {
            let db = options.open("/db").await.unwrap();
            let found = db.get("k").await.unwrap().unwrap();
            assert!(found == "before" || found == "after", "{found:?}");
            db.put("k", noise(1, 10)).await.unwrap();
            db.close().await.unwrap();
        });
        reopened.unwrap();
    }
}
