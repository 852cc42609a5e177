//! What reads tell about themselves.

use futures::FutureExt;
use seerdb::{DB, ErrorKind, MergeReason, ReadStats, Sources};

use crate::common::{kind, moment, noise, open, place, plain, reopen, run, tiny};

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
            run(db.put(format!("{i:03}"), noise(i, 200))).unwrap();
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
        // A scan reads each block once, wherever it comes from, and each value.
        let mut scan = db.iter().fill_cache(false).counted();
        let mut count = 0;
        while let Some(item) = run(scan.next()) {
            item.unwrap();
            count += 1;
        }
        let stats = scan.stats();
        let (memory, page_cache, disk) = sources(stats.blocks);
        assert_eq!((count, sources(stats.values)), (101, (1, 0, 0)));
        assert_eq!((memory, page_cache > 0, disk > 0), (1, !direct, direct), "{stats:?}");
        let uncounted = db.iter();
        assert_eq!(uncounted.stats(), ReadStats::default());
        // Beyond the keys of every table.
        assert_eq!(get(&db, "zzz", None).filters, 0);
        run(db.close()).unwrap();
    }
}

#[test]
fn an_explanation_agrees_with_the_statistics() {
    let (_dir, db) = open(&tiny().size_ratio(4).runs_per_level(3));
    for round in 0..6 {
        for i in 0..200 {
            run(db.put(format!("{i:03}"), noise(round, 40))).unwrap();
        }
    }
    run(db.flush()).unwrap();
    run(db.wait_for_compaction()).unwrap();
    let report = db.explain_compaction();
    let stats = db.stats();
    assert_eq!((report.size_ratio, report.runs_per_level, report.runs_last_level), (4, 3, 1));
    assert_eq!(report.measured.levels, report.levels.len());
    for (level, known) in report.levels.iter().zip(&stats.levels) {
        assert_eq!(level.runs.len(), known.runs);
        assert_eq!(level.runs.iter().map(|run| run.bytes).sum::<u64>(), known.bytes);
        assert_eq!(level.runs.iter().map(|run| run.entries).sum::<u64>(), known.entries);
        assert!(level.runs.len() <= level.runs_max, "{report}");
    }
    let runs: usize = stats.levels.iter().map(|level| level.runs).sum();
    assert_eq!(report.measured.runs, runs as f64);
    let merged = stats.compacted_bytes as f64 / stats.flushed_bytes as f64;
    assert!((report.measured.merge_amplification - merged).abs() < 1e-9 && merged > 0.0);
    assert!(report.expected.merge_amplification > 0.5, "{report}");
    let text = report.to_string();
    assert!(
        text.starts_with("T = 4, K = 3, Z = 1; K is fixed\n") && text.ends_with("no merge is due"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1 + 1 + report.levels.len() + 1 + 4 + 1, "{text}");
    run(db.close()).unwrap();
}

#[test]
fn an_explanation_says_which_merge_is_due_and_why_and_a_pause_holds_it_up() {
    let (_dir, db) = open(&tiny().memtable_bytes(64 << 10).size_ratio(8).runs_per_level(3));
    let paused = db.pause_compaction();
    let also_paused = db.pause_compaction();
    for round in 0..5 {
        for i in 0..100 {
            run(db.put(format!("{i:03}"), noise(round, 200))).unwrap();
        }
        run(db.flush()).unwrap();
    }
    let report = db.explain_compaction();
    let next = report.next.as_ref().expect("five runs are too many");
    assert_eq!(next.reason, MergeReason::Runs { level: 0, runs: 5, runs_max: 3 });
    assert!(next.rewrite_bytes > 0 && !next.levels.is_empty());
    assert!(report.to_string().contains("level 0 has 5 runs, 3 at most"), "{report}");
    // Beyond what flushes wait for when merges are only slow.
    for i in 0..40 {
        run(db.put(format!("{i:03}"), noise(i, 200))).unwrap();
        run(db.flush()).unwrap();
    }
    assert_eq!(db.stats().levels[0].runs, 45);
    drop(paused);
    let mut waiting = std::pin::pin!(db.wait_for_compaction());
    for _ in 0..50 {
        run(moment());
        assert!(waiting.as_mut().now_or_never().is_none(), "somebody still pauses");
    }
    assert_eq!((db.stats().compactions, db.compaction_progress()), (0, None));
    drop(also_paused);
    run(waiting).unwrap();
    assert!(db.stats().compactions > 0);
    let report = db.explain_compaction();
    assert_eq!((report.next, db.compaction_progress()), (None, None));
    // A request waits for the end of a pause, and a close does not.
    let paused = db.pause_compaction();
    let mut asked = std::pin::pin!(db.compact_range(..));
    for _ in 0..50 {
        run(moment());
        assert!(asked.as_mut().now_or_never().is_none(), "merging is paused");
    }
    run(db.close()).unwrap();
    assert_eq!(kind(run(asked)), ErrorKind::Closed);
    drop(paused);
}
