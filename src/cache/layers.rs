//! The layers of the cache, kept by tests that read the imports.
//!
//! A layer imports only from those above it in [`LAYERS`], files import each other in no
//! circle, and only `io` accesses files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Each layer: the modules of `crate::cache` in it.
const LAYERS: [&[&str]; 9] = [
    &["config"],
    &["io"],
    &["store"],
    &["state"],
    &["read"],
    &["write"],
    &["jobs"],
    &["sendfile", "serve", "lifecycle"],
    &["disk"],
];

/// Files that are compiled for tests alone.
const TEST_ONLY: [&str; 4] = ["layers", "tests", "io/backend_suite", "io/faulty"];

/// A module, by its path below `crate::cache`: `io::backend`; the facade is empty.
type Module = Vec<String>;

/// The source files of a tree, without comments, strings and tests.
struct Sources(BTreeMap<Module, String>);

/// The imports of all files: importing, imported.
type Imports = BTreeSet<(Module, Module)>;

// === Reading ===

impl Sources {
    fn of_the_cache() -> Sources {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cache");
        let mut files = Vec::new();
        find_files(&root, &root, &mut files);
        Sources::new(files)
    }

    /// Sources by their path without extension: `io/backend`.
    fn new(files: impl IntoIterator<Item = (String, String)>) -> Sources {
        let mut sources = BTreeMap::new();
        for (path, text) in files {
            let is_test = |only: &&str| path == **only || path.starts_with(&format!("{only}/"));
            if TEST_ONLY.iter().any(is_test) {
                continue;
            }
            let path = path.strip_suffix("mod").unwrap_or(&path);
            let module = path.split('/').filter(|part| !part.is_empty());
            sources.insert(module.map(str::to_owned).collect(), plain(&text));
        }
        Sources(sources)
    }

    /// The module that a path names, and the rest of the path.
    fn module_of<'p>(&self, path: &'p [String]) -> (Module, &'p [String]) {
        let len = (0..=path.len())
            .rev()
            .find(|len| self.0.contains_key(&path[..*len]))
            .unwrap_or(0);
        (path[..len].to_vec(), &path[len..])
    }

    fn imports(&self) -> Imports {
        let mut imports = Imports::new();
        for (module, source) in &self.0 {
            for path in paths(module, source) {
                let (imported, _) = self.module_of(&path);
                if imported != *module {
                    imports.insert((module.clone(), imported));
                }
            }
        }
        imports
    }
}

fn find_files(root: &Path, folder: &Path, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find_files(root, &path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).unwrap().with_extension("");
            let text = fs::read_to_string(&path).unwrap();
            files.push((name.to_str().unwrap().to_owned(), text));
        }
    }
}

/// A source without comments, strings and the tests at its end.
fn plain(text: &str) -> String {
    let text = match text.find("\n#[cfg(test)]\nmod tests {") {
        Some(tests) => &text[..tests],
        None => match text.find("\n#[cfg(all(test, ") {
            Some(tests) if text[tests..].contains("\nmod tests {") => &text[..tests],
            _ => text,
        },
    };
    let mut plain = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else if next == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            rest = &rest[1 + end.unwrap() + 1..];
        } else if let Some(literal) = rest.strip_prefix("'\"'").or(rest.strip_prefix("b'\"'")) {
            rest = literal;
        } else {
            plain.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    plain
}

/// All paths below `crate::cache` that a source names.
fn paths(module: &Module, source: &str) -> Vec<Module> {
    let children: Vec<_> = source
        .lines()
        .filter_map(|line| {
            let line = line.trim().strip_suffix(';')?;
            let (_, name) = line.rsplit_once(' ')?;
            (line.starts_with("mod ") || line.contains(" mod ")).then_some(name)
        })
        .collect();
    let tokens = tokens(source);
    let mut paths = Vec::new();
    // Depths of the braces around inline modules.
    let (mut depth, mut inline) = (0, Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at] {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if inline.last() == Some(&depth) {
                    inline.pop();
                }
            }
            "mod" if tokens.get(at + 2) == Some(&"{") => inline.push(depth),
            // A visibility is no import.
            "crate" | "super" | "self" if tokens.get(at + 1) != Some(&"::") => {}
            "crate" | "super" | "self" if at == 0 || tokens[at - 1] != "::" => {
                let here = inline.len();
                at = path(module, here, &tokens, at, None, &mut paths);
                continue;
            }
            name if children.contains(&name)
                && tokens.get(at + 1) == Some(&"::")
                && (at == 0 || !["::", "mod"].contains(&tokens[at - 1])) =>
            {
                at = path(module, 0, &tokens, at, Some(module), &mut paths);
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    paths
}

/// Add the paths that begin at a token to `paths`, behind `prefix`. Returns the token after
/// them. `inline` is the number of inline modules around them.
fn path(
    module: &Module,
    mut inline: usize,
    tokens: &[&str],
    mut at: usize,
    prefix: Option<&Module>,
    paths: &mut Vec<Module>,
) -> usize {
    let mut path = prefix.cloned().unwrap_or_default();
    let mut is_inside = prefix.is_some();
    loop {
        match tokens.get(at).copied().unwrap_or("") {
            "crate" => {}
            // The only module of the crate that is looked into.
            "cache" if tokens[at.saturating_sub(2)] == "crate" => is_inside = true,
            "self" => {
                if !is_inside {
                    path = module.clone();
                    is_inside = true;
                }
            }
            "super" => {
                if !is_inside {
                    path = module.clone();
                    is_inside = true;
                }
                match inline {
                    0 => drop(path.pop()),
                    _ => inline -= 1,
                }
            }
            "{" => {
                at += 1;
                let inside = is_inside.then(|| path.clone());
                while tokens[at] != "}" {
                    at = self::path(module, 0, tokens, at, inside.as_ref(), paths);
                    at += usize::from(tokens[at] == ",");
                }
                return at + 1;
            }
            name => path.push(name.to_owned()),
        }
        at += 1;
        if tokens.get(at) != Some(&"::") {
            break;
        }
        at += 1;
    }
    // `use a as b`
    if tokens.get(at) == Some(&"as") {
        at += 2;
    }
    if is_inside {
        paths.push(path);
    }
    at
}

/// Names, `::`, braces and commas.
fn tokens(source: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(next) = rest.chars().next() {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let len = if rest.starts_with("::") {
            2
        } else if is_name(next) {
            rest.find(|c| !is_name(c)).unwrap_or(rest.len())
        } else {
            next.len_utf8()
        };
        let (token, after) = rest.split_at(len);
        if !next.is_whitespace() {
            tokens.push(token);
        }
        rest = after;
    }
    tokens
}

// === Checks ===

/// The place of a module among the layers; the facade is below all of them.
fn rank(module: &Module) -> usize {
    let Some(first) = module.first() else {
        return LAYERS.len();
    };
    let layer = LAYERS.iter().position(|layer| layer.contains(&&**first));
    layer.unwrap_or_else(|| panic!("{first} is in no layer"))
}

/// Imports from a lower layer.
fn wrong_imports(imports: &Imports) -> Vec<&(Module, Module)> {
    imports
        .iter()
        .filter(|(from, to)| rank(to) > rank(from))
        .collect()
}

/// The files that import each other in circles.
fn circles(imports: &Imports) -> BTreeSet<Module> {
    let reaches = |from: &Module, to: &Module| {
        let mut seen = BTreeSet::new();
        let mut next = vec![from];
        while let Some(module) = next.pop() {
            for (_, imported) in imports.iter().filter(|(from, _)| from == module) {
                if imported == to {
                    return true;
                }
                if seen.insert(imported) {
                    next.push(imported);
                }
            }
        }
        false
    };
    let files: BTreeSet<_> = imports.iter().map(|(from, _)| from.clone()).collect();
    files
        .into_iter()
        .filter(|file| reaches(file, file))
        .collect()
}

/// The modules outside `io` that access files: by anything of a module `fs` but the type
/// `File`, or by a function of that type.
fn file_access(sources: &Sources) -> Vec<&Module> {
    let accesses = |source: &str| {
        let tokens = tokens(source);
        tokens.iter().enumerate().any(|(at, token)| {
            let next = |ahead: usize| tokens.get(at + ahead).copied().unwrap_or("");
            match *token {
                "fs" => next(1) != "::" || next(2) != "File" || next(3) == "::",
                "File" => next(1) == "::",
                "OpenOptions" => true,
                _ => false,
            }
        })
    };
    let outside = |module: &Module| module.first().is_none_or(|layer| layer != "io");
    let found = sources
        .0
        .iter()
        .filter(|(module, source)| outside(module) && accesses(source));
    found.map(|(module, _)| module).collect()
}

/// The number of imports from each layer to each other.
fn table(imports: &Imports) -> String {
    let names: Vec<_> = LAYERS.iter().map(|layer| layer.join("/")).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    let mut table = String::new();
    for (from, name) in names.iter().enumerate() {
        write!(table, "{name:width$} ->").unwrap();
        for (to, other) in names.iter().enumerate() {
            let count = imports
                .iter()
                .filter(|(a, b)| rank(a) == from && rank(b) == to)
                .count();
            if count > 0 {
                write!(table, "  {other} {count}").unwrap();
            }
        }
        table.push('\n');
    }
    table
}

fn named(module: &Module) -> String {
    match module.is_empty() {
        true => "the facade".to_owned(),
        false => module.join("::"),
    }
}

#[test]
fn layers_import_only_from_those_above_and_files_in_no_circle() {
    let sources = Sources::of_the_cache();
    let imports = sources.imports();
    println!("{} files, {} imports", sources.0.len(), imports.len());
    print!("{}", table(&imports));
    let wrong: Vec<_> = wrong_imports(&imports)
        .into_iter()
        .map(|(from, to)| format!("{} imports from {}", named(from), named(to)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let circles: Vec<_> = circles(&imports).iter().map(named).collect();
    println!("{} files in circles", circles.len());
    assert!(circles.is_empty(), "files import each other: {circles:#?}");
}

#[test]
fn only_io_accesses_files() {
    let sources = Sources::of_the_cache();
    let found = file_access(&sources);
    assert!(found.is_empty(), "{found:#?}");
}

/// A tree with one more file, whose imports are seen.
fn with(path: &str, source: &str) -> Sources {
    let files = [
        ("mod", "mod io; mod state;"),
        ("disk", "use crate::cache::state::Core;"),
        ("io/mod", "mod backend;"),
        ("io/backend", ""),
        ("state", "mod fill;\nuse fill::Fill;"),
        ("state/fill", "use crate::cache::io::backend::DiskBackend;"),
        (path, source),
    ];
    Sources::new(files.map(|(path, source)| (path.to_owned(), source.to_owned())))
}

#[test]
fn wrong_imports_are_found() {
    assert!(wrong_imports(&with("store", "").imports()).is_empty());
    for source in [
        "use crate::cache::state::fill::Fill;",
        "use super::super::state::fill::Fill;",
        "use crate::cache::{io::backend, state::fill};",
        "use crate::cache::DiskCache;",
        "fn f(fill: &crate::cache::state::fill::Fill) {}",
        "mod inner { use super::super::super::disk::DiskCache; }",
    ] {
        let imports = with("io/page_cache", source).imports();
        assert_eq!(wrong_imports(&imports).len(), 1, "{source}: {imports:?}");
    }
    for source in [
        "use super::backend::DiskBackend;",
        "// use crate::cache::state::fill::Fill;",
        "const TEXT: &str = \"crate::cache::state::fill::Fill\";",
        "mod inner { use super::BLOCK; }",
        "pub(super) fn f(&self) {}",
        "\n#[cfg(test)]\nmod tests {\nuse crate::cache::DiskCache;\n}\n",
        "use crate::http::Caching;",
    ] {
        let imports = with("io/page_cache", source).imports();
        assert!(wrong_imports(&imports).is_empty(), "{source}: {imports:?}");
    }
}

#[test]
fn circles_are_found() {
    assert!(circles(&with("store", "").imports()).is_empty());
    for source in ["use crate::cache::state::Core;", "use super::Core;"] {
        let imports = with("state/fill", source).imports();
        assert_eq!(circles(&imports).len(), 2, "{source}: {imports:?}");
    }
}

#[test]
fn file_access_outside_io_is_found() {
    for source in [
        "use std::fs;",
        "use std::fs::{self, File};",
        "fn f() { std::fs::read(path); }",
        "fn f() { File::open(path); }",
        "fn f() { rustix::fs::statvfs(path); }",
    ] {
        assert_eq!(file_access(&with("store", source)).len(), 1, "{source}");
        assert!(file_access(&with("io/x", source)).is_empty(), "{source}");
    }
    for source in ["use std::fs::File;", "fn f(file: &File) {}"] {
        assert!(file_access(&with("store", source)).is_empty(), "{source}");
    }
}
