//! Source files, and as much of Rust's grammar as the rules need.

#![expect(clippy::disallowed_methods, reason = "the test reads the source tree itself")]

use std::collections::BTreeMap;
use std::path::Path;

/// A file of the repository, and for Rust its tokens.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let tokens = if path.ends_with(".rs") { tokens(text) } else { Vec::new() };
        Source { path: path.into(), text: text.into(), tokens }
    }

    /// The crate root that the file belongs to, and its module path below it.
    pub(crate) fn module(&self) -> Option<(&str, Vec<String>)> {
        let (root, rest) = match self.path.strip_prefix("io/src/") {
            Some(rest) => ("io/src", rest),
            None => ("src", self.path.strip_prefix("src/")?),
        };
        let mut path: Vec<String> = rest.strip_suffix(".rs")?.split('/').map(Into::into).collect();
        if path.last().is_some_and(|last| last == "mod" || last == "lib") {
            path.pop();
        }
        Some((root, path))
    }

    /// The layer-table name of a file in `src/`.
    pub(crate) fn top_module(&self) -> Option<String> {
        match self.module()? {
            ("src", path) => Some(path.first().cloned().unwrap_or_else(|| "lib".into())),
            _ => None,
        }
    }
}

pub(crate) struct Tree(pub(crate) Vec<Source>);

impl Tree {
    pub(crate) fn sample(files: &[(&str, &str)]) -> Self {
        Tree(files.iter().map(|(path, text)| Source::new(path, text)).collect())
    }

    /// All text files of the repository that people write.
    pub(crate) fn repository() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        let mut directories = vec![root.to_path_buf()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(&directory).expect("the source tree can be listed") {
                let path = entry.expect("an entry can be read").path();
                let relative = path.strip_prefix(root).expect("below the root").to_string_lossy();
                let hidden = relative.starts_with('.') && !relative.starts_with(".ci");
                if hidden || relative.ends_with("target") || relative.ends_with("/.cargo") {
                    continue;
                }
                let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
                if path.is_dir() {
                    directories.push(path);
                } else if ["rs", "md", "toml", "py"].contains(&extension)
                    || relative.starts_with(".ci/")
                {
                    let text = std::fs::read_to_string(&path).expect("source files are UTF-8");
                    files.push(Source::new(&relative, &text));
                }
            }
        }
        Tree(files)
    }

    /// The files below `prefixes`.
    pub(crate) fn below<'a>(&'a self, prefixes: &'a [&str]) -> impl Iterator<Item = &'a Source> {
        self.0.iter().filter(|file| prefixes.iter().any(|prefix| file.path.starts_with(prefix)))
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: usize,
}

impl Token {
    fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphanumeric() || c == '_')
    }
}

/// The length of the string, comment or character literal that `rest` begins with; 0 for none.
fn skipped(rest: &str) -> usize {
    let until = |from: usize, end: &str| {
        let tail = rest.get(from..).unwrap_or_default();
        tail.find(end).map_or(rest.len(), |at| from + at + end.len())
    };
    if rest.starts_with("//") {
        return until(0, "\n") - usize::from(rest.contains('\n'));
    }
    if rest.starts_with("/*") {
        return until(2, "*/");
    }
    let raw = rest.trim_start_matches(['b', 'c']).strip_prefix('r');
    if let Some(raw) = raw.filter(|raw| raw.trim_start_matches('#').starts_with('"')) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        return until(rest.len() - raw.len() + hashes + 1, &format!("\"{}", "#".repeat(hashes)));
    }
    let mut chars = rest.char_indices();
    match chars.next() {
        Some((_, '"')) => {}
        Some((_, '\'')) => {
            let (first, second) = (chars.next(), chars.next());
            return match (first, second) {
                (Some((_, '\\')), Some((at, escaped))) => until(at + escaped.len_utf8(), "'"),
                (Some(_), Some((at, '\''))) => at + 1,
                // A lifetime.
                _ => 1,
            };
        }
        _ => return 0,
    }
    let mut escaped = false;
    for (at, c) in chars {
        match c {
            '"' if !escaped => return at + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    rest.len()
}

/// Words and punctuation, without comments and literals; `::` is one token.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    let mut out = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let skip = skipped(rest);
        let length = match first {
            _ if skip > 0 => skip,
            _ if word > 0 => word,
            ':' if rest.starts_with("::") => 2,
            c => c.len_utf8(),
        };
        let (piece, tail) = rest.split_at(length);
        if skip == 0 && !first.is_whitespace() {
            out.push(Token { text: piece.into(), line });
        }
        line += piece.matches('\n').count();
        rest = tail;
    }
    out
}

/// A path that a file names, in full: `use` trees expanded, `self`, `super` and aliases resolved.
pub(crate) struct Named {
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
}

impl Named {
    pub(crate) fn begins_with(&self, banned: &str) -> bool {
        banned.split("::").zip(self.path.iter().map(String::as_str)).all(|(a, b)| a == b)
            && self.path.len() >= banned.split("::").count()
    }
}

/// Every path that `tokens` name; `module` is the path of the file's module in its crate.
pub(crate) fn named_paths(tokens: &[Token], module: &[String]) -> Vec<Named> {
    let mut out = Vec::new();
    let mut aliases: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut inline: Vec<(String, usize)> = Vec::new();
    let (mut rest, mut depth, mut before) = (tokens, 0_usize, "");
    while let Some((token, tail)) = rest.split_first() {
        let next = tail.first().map_or("", |token| token.text.as_str());
        let here: Vec<String> =
            module.iter().cloned().chain(inline.iter().map(|(name, _)| name.clone())).collect();
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                inline.retain(|(_, outer)| *outer < depth);
            }
            "mod" if tail.get(1).is_some_and(|token| token.text == "{") => {
                inline.push((next.into(), depth));
            }
            "use" if next != "<" => {
                let end = tail.iter().position(|token| token.text == ";").unwrap_or(tail.len());
                let (tree, behind) = tail.split_at(end);
                for (path, alias, line) in expand(tree) {
                    let path = absolute(path, &here);
                    aliases.insert(alias, path.clone());
                    out.push(Named { path, line });
                }
                (rest, before) = (behind, "");
                continue;
            }
            _ if token.is_word() && before != "::" && before != "." => {
                let mut path = vec![token.text.clone()];
                let mut ahead = tail;
                while let [colons, word, more @ ..] = ahead
                    && colons.text == "::"
                    && word.is_word()
                {
                    path.push(word.text.clone());
                    ahead = more;
                }
                if path.len() > 1 {
                    out.push(Named { path: absolute(path, &here), line: token.line });
                }
            }
            _ => {}
        }
        (rest, before) = (tail, token.text.as_str());
    }
    for named in &mut out {
        if let Some((first, tail)) = named.path.split_first()
            && let Some(full) = aliases.get(first)
            && full != &named.path
        {
            named.path = full.iter().chain(tail).cloned().collect();
        }
    }
    out
}

/// The leaves of a `use` tree: path, the name it gets, line.
fn expand(tree: &[Token]) -> Vec<(Vec<String>, String, usize)> {
    let mut out = Vec::new();
    let mut prefixes: Vec<Vec<String>> = Vec::new();
    let (mut path, mut alias, mut line): (Vec<String>, _, _) = (Vec::new(), None, 0);
    let end = Token { text: ";".into(), line: 0 };
    let mut tokens = tree.iter().chain(std::iter::once(&end));
    while let Some(token) = tokens.next() {
        match token.text.as_str() {
            "{" => prefixes.push(std::mem::take(&mut path)),
            "as" => alias = tokens.next().map(|token| token.text.clone()),
            "," | "}" | ";" => {
                if let Some(last) = path.last().cloned() {
                    let prefix = prefixes.iter().flatten().cloned();
                    let mut full: Vec<String> = prefix.chain(path.drain(..)).collect();
                    if last == "self" && full.len() > 1 {
                        full.pop();
                    }
                    let name = alias.take().or_else(|| full.last().cloned()).unwrap_or_default();
                    out.push((full, name, line));
                }
                if token.text == "}" {
                    prefixes.pop();
                }
            }
            "::" => {}
            word => {
                path.push(word.into());
                line = token.line;
            }
        }
    }
    out
}

/// `path` seen from the crate root: in-crate paths begin with `crate`.
fn absolute(path: Vec<String>, here: &[String]) -> Vec<String> {
    let mut base = here.to_vec();
    let mut rest = path.as_slice();
    while let Some((first, tail)) = rest.split_first() {
        match first.as_str() {
            "super" => drop(base.pop()),
            "self" => {}
            _ => break,
        }
        rest = tail;
    }
    if rest.len() == path.len() {
        return path;
    }
    std::iter::once("crate".to_string()).chain(base).chain(rest.iter().cloned()).collect()
}
