//! Bad samples, each of which its rule must catch, and good ones that it must let pass.

use crate::rules::{self, Finding};
use crate::source::{Tree, named_paths, tokens};

/// Whether `rule` finds something in a tree of one file.
fn catches(rule: fn(&Tree) -> Vec<Finding>, path: &str, text: &str) -> bool {
    !rule(&Tree::sample(&[(path, text)])).is_empty()
}

#[test]
fn comments_and_literals_are_not_code() {
    let text = r####"
        // a /* b
        /* c "d" /* */ let s = "e \" // f"; let r = r#"g " h"#; let b = br"i"; let c = b'\'';
        fn j<'k>(l: &'k str) -> char { 'm' } let n = '\u{6f}'; let o = '"'; let p = "\\"; q
    "####;
    let found: Vec<String> = tokens(text).into_iter().map(|token| token.text).collect();
    for hidden in ["a", "d", "e", "f", "g", "h", "i", "m", "6f"] {
        assert!(!found.contains(&hidden.to_string()), "{hidden}");
    }
    for shown in ["s", "r", "j", "k", "l", "n", "o", "p", "q"] {
        assert!(found.contains(&shown.to_string()), "{shown} in {found:?}");
    }
}

#[test]
fn lines_are_counted_through_literals() {
    let found = tokens("a /* \n */ \"\n\n\" b // c\nd");
    let lines: Vec<usize> = found.iter().map(|token| token.line).collect();
    assert_eq!(lines, [1, 4, 5]);
}

#[test]
fn paths_are_resolved() {
    let text = "use std::{fs::{self as files, File}, thread};
        use super::b::C;
        mod tests { use super::*; fn f() { super::super::d::e(); } }
        fn g() { thread::spawn(h); files::read(i); crate::j::k(); x.l::<m::N>(); }";
    let paths: Vec<String> = named_paths(&tokens(text), &["a".to_string()])
        .into_iter()
        .map(|named| named.path.join("::"))
        .collect();
    for expected in [
        "std::fs",
        "std::fs::File",
        "std::thread::spawn",
        "std::fs::read",
        "crate::b::C",
        "crate::a::*",
        "crate::d::e",
        "crate::j::k",
        "m::N",
    ] {
        assert!(paths.contains(&expected.to_string()), "{expected} in {paths:?}");
    }
}

#[test]
fn layering_is_caught() {
    for (path, text) in [
        ("src/key.rs", "use crate::db::DB;"),
        ("src/key.rs", "use crate::{codec, options::DBOptions};"),
        ("src/key.rs", "fn f() -> crate::Error {}"),
        ("src/log/writer.rs", "use crate::sstable;"),
        ("src/log/writer.rs", "mod tests { fn f() { super::super::super::db::x() } }"),
        ("src/record.rs", "use super::memtable;"),
        ("src/helpful.rs", ""),
        ("src/memtable/mod.rs", "use crate::{batch::WriteOp};"),
    ] {
        assert!(catches(rules::layering, path, text), "{path}: {text}");
    }
    for (path, text) in [
        ("src/db/open.rs", "use super::commit; use crate::log::writer; use crate::DB;"),
        ("src/batch.rs", "use crate::memtable::Op; use crate::key; use std::fmt;"),
        ("src/batch.rs", "// use crate::db::DB;\nconst S: &str = \"crate::db::DB\";"),
        ("src/lib.rs", "pub use db::DB; mod db;"),
    ] {
        assert!(!catches(rules::layering, path, text), "{path}: {text}");
    }
}

#[test]
fn neglected_duties_are_caught() {
    for (path, text) in [
        ("src/key.rs", "async fn f() {}"),
        ("src/cache.rs", "use seerdb_io::File;"),
        ("src/compaction/policy.rs", "use seerdb_io::Fs;"),
        ("src/compaction/retain.rs", "fn f() { g().await }"),
        ("src/version/set.rs", "use crate::sstable::TableWriter;"),
        ("src/version/set.rs", "use crate::log::writer::LogBuffer;"),
        ("src/compaction/job.rs", "use seerdb_io::Spawner;"),
    ] {
        assert!(catches(rules::layer_duties, path, text), "{path}: {text}");
    }
    assert!(!catches(rules::layer_duties, "src/options.rs", "use seerdb_io::Env;"));
}

#[test]
fn mutual_pairs_are_caught() {
    let pair = |a: &str, b: &str, text: (&str, &str)| {
        rules::mutual_pairs(&Tree::sample(&[(a, text.0), (b, text.1)])).len()
    };
    let both = ("use super::b;", "use super::a::A;");
    assert_eq!(pair("src/log/a.rs", "src/log/b.rs", both), 1);
    assert_eq!(pair("io/src/a.rs", "io/src/b.rs", both), 1);
    assert_eq!(pair("src/db/a.rs", "src/db/b.rs", both), 0);
    assert_eq!(pair("src/log/a.rs", "src/log/b.rs", ("use super::b;", "")), 0);
    assert_eq!(pair("src/log/mod.rs", "src/log/b.rs", ("use self::b::B;", "use super::A;")), 0);
}

#[test]
fn sizes_are_caught() {
    for (path, text) in [
        ("src/a.rs", "x".repeat(101)),
        ("README.md", "y".repeat(101)),
        ("src/a.rs", "// caf\u{e9}".to_string()),
    ] {
        assert!(catches(rules::sizes, path, &text), "{path}");
    }
    assert!(!catches(rules::sizes, "src/a.rs", &format!("//! | {} |", "x".repeat(100))));
    assert!(catches(rules::lengths, "src/a.rs", &"\n".repeat(601)));
    assert!(!catches(rules::lengths, "src/a.rs", &"\n".repeat(600)));
}

#[test]
fn dead_files_are_caught() {
    let dead = |files: &[(&str, &str)]| rules::dead_files(&Tree::sample(files)).len();
    let root = ("src/lib.rs", "mod a; #[cfg(test)] mod tests;");
    let rest = [("src/a.rs", "mod b;"), ("src/a/b.rs", ""), ("src/tests.rs", "")];
    assert_eq!(dead(&[root, rest[0], rest[1], rest[2]]), 0);
    assert_eq!(dead(&[root, ("src/a/mod.rs", "mod b;"), rest[1], rest[2]]), 0);
    assert_eq!(dead(&[root, ("src/a.rs", "// b"), rest[1], rest[2]]), 1);
    assert_eq!(dead(&[("src/lib.rs", "// mod a;")]), 1);
    assert_eq!(dead(&[("src/lib.rs", "// pub(crate) mod a;")]), 1);
    assert_eq!(dead(&[("tests/it/main.rs", "mod a;"), ("tests/it/a.rs", "")]), 0);
    assert_eq!(dead(&[("tests/it/main.rs", ""), ("tests/it/a.rs", "")]), 1);
    assert_eq!(dead(&[("io/src/lib.rs", ""), ("io/src/a.rs", "")]), 1);
}

#[test]
fn empty_words_are_caught() {
    let note = concat!("TO", "DO");
    for (path, text) in [
        ("src/a.rs", format!("// {note}: later")),
        ("src/a.rs", format!("// {note}(me): later")),
        ("src/a.rs", format!("// {note}(#12: later")),
        ("src/util.rs", String::new()),
        ("tests/common/mod.rs", String::new()),
        ("src/a.rs", "mod helpers { }".to_string()),
    ] {
        assert!(catches(rules::words, path, &text), "{path}: {text}");
    }
    assert!(!catches(rules::words, "src/a.rs", &format!("// {note}(#12): later")));
}

#[test]
fn dead_links_are_caught() {
    assert!(catches(rules::links, "README.md", "see `src/gone.rs` and `cargo test`"));
    assert!(!catches(rules::links, "README.md", "`a.rs`, `cargo run`, src/gone.rs"));
}

#[test]
fn bare_formats_are_caught() {
    assert!(catches(rules::formats, "src/log/format.rs", "//! The bytes of a segment."));
    let table = "//! Bytes.\n//!\n//! | offset | size | field |\n";
    assert!(!catches(rules::formats, "src/log/format.rs", table));
}

#[test]
fn banned_things_are_caught() {
    for (path, text) in [
        ("src/key.rs", "fn f() { unsafe { g() } }"),
        ("io/src/fs.rs", "unsafe impl Send for F {}"),
        ("io/src/fs.rs", "#[allow(dead_code)] fn f() {}"),
        ("src/lib.rs", "#![allow(dead_code)] mod a;"),
        ("src/lib.rs", "#[cfg_attr(test, allow(dead_code))] mod a;"),
        ("src/lib.rs", "#[doc(hidden)] pub fn f() {}"),
        ("src/lib.rs", "#[path = \"b.rs\"] mod a;"),
        ("src/db/open.rs", "use std::fs;"),
        ("src/db/open.rs", "use std::{io, fs::File};"),
        ("src/db/open.rs", "fn f() { std::thread::spawn(g); }"),
        ("src/db/open.rs", "use std::thread; fn f() { thread::sleep(g); }"),
        ("src/db/open.rs", "use std::time::{Duration, Instant};"),
        ("src/db/open.rs", "async fn f() { tokio::spawn(g()); }"),
        ("src/db/open.rs", "fn f() { rand::random() }"),
    ] {
        assert!(catches(rules::bans, path, text), "{path}: {text}");
    }
    for (path, text) in [
        ("io/src/buf.rs", "unsafe impl Send for F {}"),
        ("io/src/portable.rs", "use std::fs; use std::time::Instant;"),
        ("examples/a.rs", "fn f() { tokio::spawn(g()); }"),
        ("src/blocking.rs", "fn f() { std::thread::park(); }"),
        ("src/db/open.rs", "use std::time::Duration; // std::fs"),
    ] {
        assert!(!catches(rules::bans, path, text), "{path}: {text}");
    }
}

#[test]
fn kinds_that_nobody_asserts_are_caught() {
    let kinds = "pub enum ErrorKind { /// One.\n A, /// Two.\n B }";
    let count = |path: &str, text: &str| {
        let files = [("src/error.rs", kinds), (path, text)];
        rules::unasserted_kinds(&Tree::sample(&files)).len()
    };
    let test = "tests/it/a.rs";
    let both = "fn f() { assert_eq!(a, ErrorKind::A); assert!(b == ErrorKind::B, \"{b}\"); }";
    assert_eq!(count(test, both), 0);
    assert_eq!(count("src/key.rs", &format!("mod tests {{ {both} }}")), 0);
    assert_eq!(count("src/key/tests.rs", both), 0);
    assert_eq!(count("src/key.rs", both), 2, "not in a test");
    assert_eq!(count(test, "assert_eq!(a, ErrorKind::A);"), 1);
    assert_eq!(count(test, "assert!(matches!(a, ErrorKind::A | ErrorKind::B));"), 2, "either");
    assert_eq!(count(test, "assert_eq!(a, io::ErrorKind::A); if b == ErrorKind::B {}"), 2);
}

#[test]
fn strangers_at_the_top_level_are_caught() {
    let mut names = rules::top_level();
    names.insert("notes.txt".into());
    names.remove("README.md");
    let paths: Vec<String> = rules::misplaced(&names).into_iter().map(|f| f.path).collect();
    assert!(paths.contains(&"notes.txt".into()) && paths.contains(&"README.md".into()));
}
