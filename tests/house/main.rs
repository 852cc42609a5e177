//! The tidy test: what reviewers should not have to look for.
//!
//! Every rule is a function from a [`source::Tree`] to findings. Each rule runs over the
//! repository, and over bad samples that it must catch. A finding is excused only by an entry of
//! [`EXCUSED`], a list that may shrink but not grow: an entry that excuses nothing is an error.

mod rules;
mod samples;
mod source;

use std::collections::BTreeMap;

use rules::Finding;
use source::Tree;

/// Known violations: rule, file, and how many of them. The list may only shrink.
const EXCUSED: &[(&str, &str, usize)] = &[
    ("words", "tests/it/main.rs", 1),
    ("mutual pairs", "io/src/env.rs", 1),
    ("mutual pairs", "io/src/fs.rs", 5),
    ("mutual pairs", "io/src/lane.rs", 3),
    ("mutual pairs", "io/src/op.rs", 1),
    ("mutual pairs", "io/src/system.rs", 2),
];

/// How many findings of a file are shown.
const SHOWN: usize = 8;

/// Fails on every finding that is not excused, and on every excuse that is not needed.
fn judge(rule: &str, findings: &[Finding]) {
    let mut report = String::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for found in findings {
        *counts.entry(&found.path).or_default() += 1;
    }
    for (path, count) in &counts {
        let excuse = EXCUSED.iter().find(|(r, p, _)| *r == rule && p == path);
        let excused = excuse.map_or(0, |(_, _, excused)| *excused);
        if *count <= excused {
            continue;
        }
        report.push_str(&format!("{path}: {count} findings, {excused} excused\n"));
        for Finding { line, what, .. } in findings.iter().filter(|f| f.path == *path).take(SHOWN) {
            report.push_str(&format!("    {path}:{line}: {what}\n"));
        }
    }
    for (_, path, count) in EXCUSED.iter().filter(|(r, _, _)| *r == rule) {
        if !counts.contains_key(path) {
            report.push_str(&format!("{path}: nothing to excuse any more, remove ({count})\n"));
        }
    }
    assert!(report.is_empty(), "{rule}:\n{report}");
}

#[test]
fn layers_hold() {
    judge("layering", &rules::layering(&Tree::repository()));
    judge("layer duties", &rules::layer_duties(&Tree::repository()));
}

#[test]
fn no_two_files_import_each_other() {
    judge("mutual pairs", &rules::mutual_pairs(&Tree::repository()));
}

#[test]
fn files_are_small_and_ascii() {
    judge("lengths", &rules::lengths(&Tree::repository()));
    judge("sizes", &rules::sizes(&Tree::repository()));
}

#[test]
fn no_file_is_dead() {
    judge("dead files", &rules::dead_files(&Tree::repository()));
}

#[test]
fn words_mean_something() {
    judge("words", &rules::words(&Tree::repository()));
}

#[test]
fn prose_names_what_exists() {
    judge("links", &rules::links(&Tree::repository()));
}

#[test]
fn formats_have_offset_tables() {
    judge("formats", &rules::formats(&Tree::repository()));
}

#[test]
fn nothing_banned_is_used() {
    judge("bans", &rules::bans(&Tree::repository()));
}

#[test]
fn every_kind_of_error_is_asserted() {
    judge("error kinds", &rules::unasserted_kinds(&Tree::repository()));
}

#[test]
fn the_top_level_is_as_asked() {
    judge("top level", &rules::misplaced(&rules::top_level()));
}

#[test]
fn every_excuse_names_a_rule() {
    let rules = [
        "layering",
        "layer duties",
        "mutual pairs",
        "lengths",
        "sizes",
        "dead files",
        "words",
        "links",
        "formats",
        "bans",
        "error kinds",
        "top level",
    ];
    assert!(EXCUSED.iter().all(|(rule, _, _)| rules.contains(rule)));
}
