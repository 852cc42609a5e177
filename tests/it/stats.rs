//! What reads tell about themselves.

use seerdb::{DB, ReadStats, Sources};

use crate::common::{noise, open, place, plain, reopen, run};

/// What a get of `key` did; it must find `value`.
fn get(db: &DB, key: &str, value: Option<&[u8]>) -> ReadStats {
    let (found, stats) = run(db.get(key).stats()).unwrap();
    assert_eq!(found.as_deref(), value);
    stats
}

/// `(memory, page cache, disk)`.
fn sources(Sources { memory, page_cache, disk, .. }: Sources) -> (u32, u32, u32) {
    (memory, page_cache, disk)
}

#[test]
fn a_get_in_memory_asks_no_filter_and_no_block() {
    let (_dir, db) = open(&plain().value_threshold(1000));
    let large = noise(1, 2000);
    run(db.put("small", "value")).unwrap();
    run(db.put("large", large.clone())).unwrap();
    let stats = get(&db, "small", Some(b"value"));
    assert_eq!((stats.memtables, stats.filters), (1, 0));
    assert_eq!((sources(stats.blocks), sources(stats.values)), ((0, 0, 0), (0, 0, 0)));
    let stats = get(&db, "large", Some(&large));
    assert_eq!((stats.memtables, stats.filters), (1, 0));
    assert_eq!(sources(stats.blocks), (0, 0, 0));
    let (memory, page_cache, disk) = sources(stats.values);
    assert_eq!((memory + page_cache, disk), (1, 0), "what was just written is not waited for");
    assert_eq!(get(&db, "absent", None).memtables, 1);
    run(db.close()).unwrap();
}

#[test]
fn a_get_tells_where_its_blocks_and_values_came_from() {
    for direct in [false, true] {
        let (_dir, path) = place();
        // So many bits that no absent key passes.
        let options = plain().value_threshold(1000).direct_io(direct).filter_bits_per_key(30.0);
        let large = noise(2, 2000);
        let db = run(options.open(&path)).unwrap();
        for i in 0..100 {
            run(db.put(format!("{i:03}"), "value")).unwrap();
        }
        run(db.put("large", large.clone())).unwrap();
        run(db.flush()).unwrap();
        drop(db);
        let db = reopen(&options, &path);
        // What a page cache has comes without waiting; what goes around it never does.
        let once = if direct { (0, 0, 1) } else { (0, 1, 0) };
        let first = get(&db, "large", Some(&large));
        assert_eq!((first.filters, first.filtered), (1, 0));
        assert_eq!((sources(first.blocks), sources(first.values)), (once, once));
        assert!(!first.waited.is_zero());
        let again = get(&db, "large", Some(&large));
        assert_eq!((sources(again.blocks), sources(again.values)), ((1, 0, 0), (1, 0, 0)));
        let absent = get(&db, "050x", None);
        assert_eq!((absent.filters, absent.filtered), (1, 1));
        assert_eq!(sources(absent.blocks), (0, 0, 0));
        // Beyond the keys of every table.
        assert_eq!(get(&db, "zzz", None).filters, 0);
        run(db.close()).unwrap();
    }
}
