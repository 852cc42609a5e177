//! Runs: where the table of a key stands, and what is no run.

use super::*;
use crate::alex::Kind;

#[test]
fn a_run_finds_its_tables_like_counting_does() {
    let fs = fs();
    let host = |i: u64| format!("https://host{:02}.example/{i:03}", i / 64).into_bytes();
    let keys: [(&dyn Fn(u64) -> Vec<u8>, _); 4] = [
        (&|i| (i * 1000).to_be_bytes().to_vec(), Kind::Model),
        (&host, Kind::Grouped),
        (&|i| vec![0; usize::try_from(i).unwrap()], Kind::Plain),
        (&|i| (u64::MAX - (200 - i).pow(7)).to_be_bytes().to_vec(), Kind::Tree),
    ];
    for (key, kind) in keys {
        let dir = tempfile::tempdir().unwrap();
        let entry = |i| (key(i), Trailer::new(i + 1, ValueKind::Put), vec![]);
        let entries: Entries = (0..200).map(entry).collect();
        let cuts: Vec<usize> = (0..200).filter(|at| at % 2 == 1).collect();
        let run = write_run(&fs, dir.path(), &entries, &cuts, Compression::None);
        assert_eq!((run.tables.len(), run.report().kind), (101, kind), "{:?}", run.report());
        for (key, ..) in &entries {
            for key in [key.clone(), [key, &b"\0"[..]].concat(), key[..key.len() / 2].to_vec()] {
                let before = run.tables.partition_point(|table| table.meta().largest < key);
                assert_eq!(run.first_not_before(&key), before, "{key:x?}");
                let holds = |t: &&Arc<Table>| t.meta().smallest <= key && key <= t.meta().largest;
                let expected = run.tables.iter().find(holds).map(|table| table.meta().number);
                assert_eq!(run.find(&key).map(|table| table.meta().number), expected);
            }
        }
    }
}

#[test]
#[should_panic(expected = "tables 2 and 1 of run 3 overlap or are out of order")]
fn the_tables_of_a_run_stand_in_order() {
    let fs = fs();
    let dir = tempfile::tempdir().unwrap();
    let open = |number| {
        let how = options(150, Compression::None);
        let meta = block_on(write(&fs, dir.path(), number, how, &small_table())).unwrap();
        opened(&fs, dir.path(), meta)
    };
    Run::new(3, vec![open(2), open(1)], None);
}
