//! The rules, each from a tree of source files to what is wrong with it.

#![expect(clippy::disallowed_methods, reason = "the top level is listed where there is no git")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use crate::source::{Source, Token, Tree, named_paths};

/// The layers of `src/`: a module may import every module of the layers before its own, and of its
/// own layer the friends that stand beside it.
const LAYERS: &[&[(&str, &[&str])]] = &[
    &[
        ("codec", &[]),
        ("error", &[]),
        ("filename", &[]),
        ("key", &["codec", "error"]),
        ("lz4", &[]),
        ("limits", &["error"]),
        ("options", &["error", "key", "limits"]),
        ("planted", &[]),
        ("probe", &[]),
        ("range", &["error", "key"]),
        ("sync", &[]),
    ],
    &[
        ("alex", &[]),
        ("allowance", &[]),
        ("batch", &["memtable", "pointer"]),
        ("cache", &[]),
        ("filter", &[]),
        ("iter", &[]),
        ("memtable", &["iter", "pointer"]),
        ("pointer", &[]),
        ("record", &[]),
        ("snapshot", &[]),
    ],
    &[("appender", &[]), ("log", &[]), ("sstable", &["appender"]), ("vlog", &["appender", "log"])],
    &[("version", &[])],
    &[("compaction", &[])],
    &[("db", &[])],
    &[("blocking", &["lib"]), ("fuzz", &[]), ("lib", &["blocking"])],
];

/// The modules of the first two layers that may name types of the file layer.
const IO_TYPES: &[&str] = &["error", "options"];
/// What the file layer offers that is memory, not files.
const MEMORY_TYPES: &[&str] = &["seerdb_io::AlignedBuf", "seerdb_io::BUF_ALIGN"];
/// Files that decide and do nothing else: no async, no file layer.
const PURE: &[&str] = &[
    "src/compaction/cost.rs",
    "src/compaction/pace.rs",
    "src/compaction/policy.rs",
    "src/compaction/picker.rs",
    "src/compaction/retain.rs",
    "src/compaction/tombstones.rs",
    "src/compaction/workload.rs",
];
/// The files that may contain `unsafe`; the last for what a process can do to itself.
const UNSAFE: &[&str] = &[
    "io/src/buf.rs",
    "io/src/forked.rs",
    "io/src/uring/ring.rs",
    "io/src/uring/shared.rs",
    "tests/it/fork.rs",
];
/// The files that may compile a file once more: a model, with other locks and atomics; benches of
/// what is not public.
const INCLUDING: &[&str] = &["benches/index.rs", "benches/tags.rs", "tests/models/main.rs"];
/// Words that name nothing.
const BANNED_NAMES: &[&str] =
    &["util", "utils", "common", "helper", "helpers", "misc", "manager", "managers"];
/// What enters the engine through `seerdb_io::Env` alone.
///
/// Tests (files named `tests.rs`) are exempt: they damage files behind the engine's back.
const BANNED_PATHS: &[&str] = &[
    "std::fs",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::thread::spawn",
    "std::thread::sleep",
    "std::thread::scope",
    "std::thread::Builder",
    "rand",
    "tokio",
    "tokio_uring",
];
/// The top level of the repository, dot-files aside.
const TOP_LEVEL: &[&str] = &[
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "examples",
    "io",
    "rust-toolchain.toml",
    "src",
    "tests",
];
/// Enums of errors: the file, the name, and where the tests are that must assert each variant.
const ERROR_KINDS: &[(&str, &str, &[&str])] = &[
    ("src/error.rs", "ErrorKind", &["src/", "tests/"]),
    ("io/src/error.rs", "Operation", &["io/tests/"]),
];
/// What asserts: a statement that names one of these and one variant claims that very variant.
const ASSERTING: &[&str] = &["assert", "assert_eq", "ensure", "must_be"];
const LINES_MAX: usize = 600;
const COLUMNS_MAX: usize = 100;

pub(crate) struct Finding {
    pub(crate) path: String,
    pub(crate) line: usize,
    pub(crate) what: String,
}

fn finding(path: &str, line: usize, what: impl Into<String>) -> Finding {
    Finding { path: path.into(), line, what: what.into() }
}

fn layer_of(module: &str) -> Option<(usize, &'static [&'static str])> {
    LAYERS.iter().enumerate().find_map(|(layer, modules)| {
        modules.iter().find(|(name, _)| *name == module).map(|(_, friends)| (layer, *friends))
    })
}

/// Imports of `src/` against [`LAYERS`], and modules that are not in it.
pub(crate) fn layering(tree: &Tree) -> Vec<Finding> {
    let mut out = Vec::new();
    for file in tree.below(&["src/"]) {
        let (Some(module), Some((_, path))) = (file.top_module(), file.module()) else { continue };
        let Some((layer, friends)) = layer_of(&module) else {
            out.push(finding(&file.path, 1, format!("`{module}` is in no layer")));
            continue;
        };
        for named in named_paths(&file.tokens, &path) {
            let [root, target, ..] = named.path.as_slice() else { continue };
            // What is not a module is something that the crate root defines or re-exports.
            let target = if layer_of(target).is_some() { target } else { "lib" };
            let is_below = layer_of(target).is_some_and(|(theirs, _)| theirs < layer);
            let is_free = module == "lib" || target == module || module == "db" && target == "lib";
            if root == "crate" && !is_free && !is_below && !friends.contains(&target) {
                out.push(finding(&file.path, named.line, format!("imports `{target}`")));
            }
        }
    }
    out
}

fn is_test(file: &Source) -> bool {
    file.path.ends_with("/tests.rs")
}

/// What a layer may not do, apart from imports.
pub(crate) fn layer_duties(tree: &Tree) -> Vec<Finding> {
    let mut out = Vec::new();
    for file in tree.below(&["src/"]) {
        let (Some(module), Some((_, path))) = (file.top_module(), file.module()) else { continue };
        let layer = layer_of(&module).map_or(0, |(layer, _)| layer);
        let is_pure = PURE.contains(&file.path.as_str());
        for named in named_paths(&file.tokens, &path) {
            let is_memory = MEMORY_TYPES.iter().any(|name| named.begins_with(name));
            let is_io = named.begins_with("seerdb_io") && !is_memory;
            if is_io && (is_pure || layer < 2 && !IO_TYPES.contains(&module.as_str())) {
                out.push(finding(&file.path, named.line, "names the file layer"));
            }
            let is_table = ["crate::sstable", "crate::log"].iter().any(|t| named.begins_with(t));
            let is_writer = named.path.iter().any(|s| s == "writer" || s.ends_with("Writer"));
            if module == "version" && is_table && is_writer && !is_test(file) {
                out.push(finding(&file.path, named.line, "`version` names a writer"));
            }
        }
        for token in &file.tokens {
            if (layer == 0 || is_pure) && ["async", "await"].contains(&token.text.as_str()) {
                out.push(finding(&file.path, token.line, "is async"));
            }
            if layer <= 4 && ["spawner", "Spawner"].contains(&token.text.as_str()) {
                out.push(finding(&file.path, token.line, "spawns tasks"));
            }
        }
    }
    out
}

/// Two files that import each other; parents and the files of `db` are free to.
pub(crate) fn mutual_pairs(tree: &Tree) -> Vec<Finding> {
    let mut modules: BTreeMap<(String, String), &str> = BTreeMap::new();
    for file in tree.below(&["src/", "io/src/"]) {
        if let Some((root, path)) = file.module() {
            modules.insert((root.into(), path.join("::")), &file.path);
        }
    }
    let mut edges: BTreeSet<(String, String, String)> = BTreeSet::new();
    for file in tree.below(&["src/", "io/src/"]) {
        let Some((root, path)) = file.module() else { continue };
        for named in named_paths(&file.tokens, &path) {
            let Some((first, target)) = named.path.split_first() else { continue };
            let known = (0..=target.len()).rev().find_map(|count| {
                let target = target.get(..count)?.join("::");
                modules.contains_key(&(root.to_string(), target.clone())).then_some(target)
            });
            if let Some(target) = known.filter(|_| first == "crate") {
                edges.insert((root.into(), path.join("::"), target));
            }
        }
    }
    let is_parent = |a: &str, b: &str| b.is_empty() || a.starts_with(&format!("{b}::"));
    edges
        .iter()
        .filter(|(root, a, b)| a < b && edges.contains(&(root.clone(), b.clone(), a.clone())))
        .filter(|(_, a, b)| !is_parent(a, b) && !is_parent(b, a))
        .filter(|(root, a, b)| !(root == "src" && a.starts_with("db::") && b.starts_with("db::")))
        .map(|(root, a, b)| {
            let path = modules.get(&(root.clone(), a.clone())).copied().unwrap_or_default();
            finding(path, 1, format!("`{a}` and `{b}` import each other"))
        })
        .collect()
}

/// Files too long: a finding for every line beyond the limit.
pub(crate) fn lengths(tree: &Tree) -> Vec<Finding> {
    let is_code = |file: &&Source| file.path.ends_with(".rs") || file.path.starts_with(".ci/");
    let code = tree.0.iter().filter(is_code);
    code.flat_map(|file| {
        let lines = file.text.lines().count();
        let beyond = LINES_MAX + 1..=lines;
        beyond.map(move |line| finding(&file.path, line, format!("one of {lines} lines")))
    })
    .collect()
}

/// Lines too long, characters beyond ASCII.
pub(crate) fn sizes(tree: &Tree) -> Vec<Finding> {
    let mut out = Vec::new();
    for file in &tree.0 {
        for (line, text) in (1..).zip(file.text.lines()) {
            // A row of a table in prose cannot be wrapped, and a manifest has no second form.
            let prose = text.trim_start().trim_start_matches("//!").trim_start_matches("///");
            let is_row = prose.trim_start().starts_with('|') || file.path.ends_with(".toml");
            if text.chars().count() > COLUMNS_MAX && !is_row {
                out.push(finding(&file.path, line, format!("more than {COLUMNS_MAX} columns")));
            }
            if !text.is_ascii() {
                out.push(finding(&file.path, line, "not ASCII"));
            }
        }
    }
    out
}

/// `mod` declarations that are commented out, and files that no `mod` declaration reaches.
pub(crate) fn dead_files(tree: &Tree) -> Vec<Finding> {
    let mut out = Vec::new();
    let mut reached: BTreeSet<String> = BTreeSet::new();
    let mut roots: Vec<String> = vec!["src/lib.rs".into(), "io/src/lib.rs".into()];
    for file in tree.below(&["tests/", "io/tests/", "examples/", "benches/"]) {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        let depth = file.path.trim_start_matches("io/").split('/').count();
        if depth == 2 || name == "main.rs" {
            roots.push(file.path.clone());
        }
    }
    let paths: BTreeMap<&str, &Source> = tree.0.iter().map(|f| (f.path.as_str(), f)).collect();
    while let Some(path) = roots.pop() {
        let Some(file) = paths.get(path.as_str()) else { continue };
        if !reached.insert(path.clone()) {
            continue;
        }
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let is_root = ["mod.rs", "lib.rs", "main.rs"].contains(&name);
        let is_test_root = path.trim_start_matches("io/").split('/').count() == 2;
        let base = match name.strip_suffix(".rs") {
            Some(stem) if !is_root && (!is_test_root || path.contains("src/")) => {
                format!("{directory}/{stem}")
            }
            _ => directory.to_string(),
        };
        for words in file.tokens.windows(3) {
            if let [keyword, name, end] = words
                && (keyword.text.as_str(), end.text.as_str()) == ("mod", ";")
            {
                roots.push(format!("{base}/{}.rs", name.text));
                roots.push(format!("{base}/{}/mod.rs", name.text));
            }
        }
    }
    for file in tree.below(&["src/", "io/", "tests/", "examples/", "benches/"]) {
        // Workspaces of their own say in their manifests what their roots are.
        let is_other = ["benches/peers/", "tests/fuzz/"].iter().any(|p| file.path.starts_with(p));
        let is_rust = file.path.ends_with(".rs") && !is_other;
        if is_rust && !reached.contains(&file.path) {
            out.push(finding(&file.path, 1, "no `mod` declaration reaches this file"));
        }
        for (line, text) in (1..).zip(file.text.lines()) {
            let comment = text.trim_start().strip_prefix("//").map(str::trim_start);
            let Some(comment) = comment.filter(|_| is_rust) else { continue };
            let comment = comment.trim_start_matches("pub ").trim_start_matches("pub(crate) ");
            if comment.starts_with("mod ") && comment.ends_with(';') {
                out.push(finding(&file.path, line, "a `mod` that is commented out"));
            }
        }
    }
    out
}

/// Notes to oneself that name no issue, and names that say nothing.
pub(crate) fn words(tree: &Tree) -> Vec<Finding> {
    let mut out = Vec::new();
    for file in &tree.0 {
        for (line, text) in (1..).zip(file.text.lines()) {
            for note in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")] {
                let tail = text.split_once(note).map(|(_, tail)| tail);
                let numbered = |tail: &str| {
                    let number = tail.strip_prefix("(#").and_then(|tail| tail.split_once(')'));
                    number.is_some_and(|(number, _)| number.parse::<u64>().is_ok())
                };
                if tail.is_some_and(|tail| !numbered(tail)) {
                    out.push(finding(&file.path, line, format!("{note} without an issue")));
                }
            }
        }
        for part in file.path.split('/') {
            if BANNED_NAMES.contains(&part.split('.').next().unwrap_or_default()) {
                out.push(finding(&file.path, 1, format!("`{part}` names nothing")));
            }
        }
        for words in file.tokens.windows(2) {
            if let [keyword, name] = words
                && keyword.text == "mod"
                && BANNED_NAMES.contains(&name.text.as_str())
            {
                out.push(finding(&file.path, name.line, format!("`{}` names nothing", name.text)));
            }
        }
    }
    out
}

/// Source files that prose names and that do not exist.
pub(crate) fn links(tree: &Tree) -> Vec<Finding> {
    let paths: BTreeSet<&str> = tree.0.iter().map(|file| file.path.as_str()).collect();
    let mut out = Vec::new();
    for file in tree.0.iter().filter(|file| file.path.ends_with(".md")) {
        for (line, text) in (1..).zip(file.text.lines()) {
            let named = text.split('`').skip(1).step_by(2);
            for path in named.filter(|name| name.contains('/') && name.ends_with(".rs")) {
                if !paths.contains(path) {
                    out.push(finding(&file.path, line, format!("`{path}` does not exist")));
                }
            }
        }
    }
    out
}

/// A `format.rs` without a table of offsets or sizes at its head.
pub(crate) fn formats(tree: &Tree) -> Vec<Finding> {
    tree.below(&["src/", "io/src/"])
        .filter(|file| file.path.ends_with("/format.rs"))
        .filter(|file| !file.text.lines().any(|line| line.starts_with("//! | offset | size |")))
        .map(|file| finding(&file.path, 1, "has no table of offsets"))
        .collect()
}

/// `unsafe` outside its files, silenced lints, hidden public items, sources of chance.
pub(crate) fn bans(tree: &Tree) -> Vec<Finding> {
    let mut out = Vec::new();
    for file in tree.below(&["src/", "io/src/", "tests/", "examples/", "benches/"]) {
        for words in file.tokens.windows(3) {
            let [a, b, c] = words else { continue };
            match (a.text.as_str(), b.text.as_str(), c.text.as_str()) {
                ("unsafe", _, _) if !UNSAFE.contains(&file.path.as_str()) => {
                    out.push(finding(&file.path, a.line, "`unsafe`"));
                }
                ("[" | ",", "allow", "(") => {
                    out.push(finding(&file.path, b.line, "`allow`: use `expect` with a reason"));
                }
                ("doc", "(", "hidden") => {
                    out.push(finding(&file.path, a.line, "`doc(hidden)`: test it from inside"));
                }
                ("#", "[", "path") if !INCLUDING.contains(&file.path.as_str()) => {
                    out.push(finding(&file.path, c.line, "`path`: put the file where it belongs"));
                }
                _ => {}
            }
        }
        let Some(("src", module)) = file.module() else { continue };
        for named in named_paths(&file.tokens, &module) {
            let banned = BANNED_PATHS.iter().find(|banned| named.begins_with(banned));
            if let Some(banned) = banned.filter(|_| !is_test(file)) {
                out.push(finding(&file.path, named.line, format!("`{banned}`: use the Env")));
            }
        }
    }
    out
}

/// Kinds of errors that no test asserts, so that nobody knows whether anything returns them.
pub(crate) fn unasserted_kinds(tree: &Tree) -> Vec<Finding> {
    let mut out = Vec::new();
    for (path, name, tests) in ERROR_KINDS {
        let Some(file) = tree.0.iter().find(|file| file.path == *path) else { continue };
        let mut asserted = BTreeSet::new();
        for test in tree.below(tests) {
            for statement in tested(test).split(|t| [";", "{", "}"].contains(&t.text.as_str())) {
                let is_claim = statement.iter().any(|t| ASSERTING.contains(&t.text.as_str()));
                let mut named = variants_named(statement, name);
                if let (true, Some(only), None) = (is_claim, named.next(), named.next()) {
                    asserted.insert(only);
                }
            }
        }
        for (variant, line) in variants(&file.tokens, name) {
            if !asserted.contains(variant) {
                let what = format!("no test asserts `{name}::{variant}`");
                out.push(finding(path, line, what));
            }
        }
    }
    out
}

/// The tokens of a file that are tests; of a file of `src/`, those in its module of tests.
fn tested(file: &Source) -> &[Token] {
    if !file.path.starts_with("src/") || is_test(file) {
        return &file.tokens;
    }
    let begins =
        |words: &[Token]| words.iter().map(|word| word.text.as_str()).eq(["mod", "tests", "{"]);
    let from = file.tokens.windows(3).position(begins).unwrap_or(file.tokens.len());
    file.tokens.get(from..).unwrap_or_default()
}

/// The variants `X` of `name::X` in these tokens; `io::ErrorKind` is another enum.
fn variants_named<'a>(tokens: &'a [Token], name: &str) -> impl Iterator<Item = &'a str> {
    tokens.windows(3).enumerate().filter_map(move |(at, words)| {
        let [first, colons, variant] = words else { return None };
        let is_other = at > 0 && tokens.get(at - 1).is_some_and(|before| before.text == "::");
        let is_named = first.text == name && colons.text == "::" && !is_other;
        is_named.then_some(variant.text.as_str())
    })
}

/// The variants of a plain `enum`, with their lines.
fn variants<'a>(tokens: &'a [Token], name: &str) -> Vec<(&'a str, usize)> {
    let declared =
        |words: &[Token]| words.iter().map(|word| word.text.as_str()).eq(["enum", name, "{"]);
    let body = tokens.windows(3).position(declared).and_then(|at| tokens.get(at + 3..));
    let body = body.unwrap_or_default().split(|token| token.text == "}").next();
    let commas = |token: &&Token| token.text != ",";
    body.unwrap_or_default().iter().filter(commas).map(|t| (t.text.as_str(), t.line)).collect()
}

/// The top level as `git` sees it, or the directory where there is no `git`.
pub(crate) fn top_level() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let tracked = Command::new("git").arg("-C").arg(root).args(arguments).output();
    if let Ok(output) = tracked
        && output.status.success()
    {
        let names = String::from_utf8_lossy(&output.stdout);
        let first = |line: &str| line.split('/').next().unwrap_or_default().to_string();
        return names.lines().map(first).filter(|name| root.join(name).exists()).collect();
    }
    std::fs::read_dir(root)
        .expect("the root can be listed")
        .map(|entry| entry.expect("an entry can be read").file_name().to_string_lossy().into())
        .filter(|name: &String| name != "target")
        .collect()
}

pub(crate) fn misplaced(present: &BTreeSet<String>) -> Vec<Finding> {
    let expected: BTreeSet<String> = TOP_LEVEL.iter().map(|name| name.to_string()).collect();
    let extra = present.difference(&expected).filter(|name| !name.starts_with('.'));
    let extra = extra.map(|name| finding(name, 1, "does not belong at the top level"));
    extra.chain(expected.difference(present).map(|name| finding(name, 1, "is missing"))).collect()
}
