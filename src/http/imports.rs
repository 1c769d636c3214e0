//! The imports of this layer and of the proxy: the rules know no session, and no modules import
//! each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The imports of each module, both as paths from the root of the crate.
type Graph = BTreeMap<Vec<String>, BTreeSet<Vec<String>>>;

/// Read the imports of all modules below a folder, those of tests excepted.
fn read(folder: &Path, module: &[String], graph: &mut Graph) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name == "imports" || name.ends_with("tests") {
            continue;
        }
        let mut child = module.to_vec();
        if name != "mod" {
            child.push(name);
        }
        if path.is_dir() {
            read(&path, &child, graph);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let mut imports = BTreeSet::new();
        for statement in uses(text) {
            expand(&statement, &child, &mut imports);
        }
        graph.insert(child, imports);
    }
}

/// The `use` statements of a file, without white space and without `use` itself.
fn uses(text: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        let Some((visibility, first)) = line.split_once("use ") else {
            continue;
        };
        let visibility = visibility.trim();
        if !visibility.is_empty() && !visibility.starts_with("pub") {
            continue;
        }
        let mut statement = first.to_owned();
        while !statement.ends_with(';') {
            statement.push_str(lines.next().expect("the end of a use").trim());
        }
        statement.pop();
        statement.retain(|c| !c.is_whitespace());
        statements.push(statement);
    }
    statements
}

/// Add the paths of a `use` statement in `module`, from the root of the crate or that of another.
fn expand(statement: &str, module: &[String], paths: &mut BTreeSet<Vec<String>>) {
    let (prefix, group) = match statement.split_once('{') {
        Some((prefix, group)) => (prefix, group.strip_suffix('}').expect("a group")),
        None => (statement, ""),
    };
    if group.is_empty() {
        paths.insert(resolve(prefix, module));
        return;
    }
    let mut depth = 0;
    let members = group.split(|c| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    for member in members.filter(|member| !member.is_empty()) {
        expand(&format!("{prefix}{member}"), module, paths);
    }
}

fn resolve(path: &str, module: &[String]) -> Vec<String> {
    let mut resolved = Vec::new();
    for (at, part) in path.split("::").enumerate() {
        match part {
            "self" if at == 0 => resolved = module.to_vec(),
            "super" => {
                if at == 0 {
                    resolved = module.to_vec();
                }
                resolved.pop();
            }
            part => resolved.push(part.to_owned()),
        }
    }
    resolved
}

fn graph() -> Graph {
    let mut graph = Graph::new();
    for name in ["http", "proxy"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(name);
        read(&folder, &["crate", name].map(str::to_owned), &mut graph);
    }
    assert!(graph.len() > 70, "{}", graph.len());
    graph
}

/// The module that a path leads to, if it is one of the graph.
fn target<'g>(graph: &'g Graph, path: &[String], from: &[String]) -> Option<&'g Vec<String>> {
    // A path without `crate` begins with another crate, or with a module that is declared here.
    let (path, least) = match path[0].as_str() {
        "crate" => (path.to_vec(), 2),
        _ => ([from, path].concat(), from.len() + 1),
    };
    let ends = (least..=path.len()).rev();
    let found = ends
        .filter_map(|end| graph.get_key_value(&path[..end]))
        .next();
    found
        .map(|(module, _)| module)
        .filter(|module| module.as_slice() != from)
}

#[test]
fn rules_know_no_session() {
    let graph = graph();
    let rules = ["crate", "http", "rules"].map(str::to_owned);
    assert!(graph.keys().filter(|m| m.starts_with(&rules)).count() > 10);
    for (module, imports) in graph.iter().filter(|(m, _)| m.starts_with(&rules)) {
        for import in imports {
            let path = import.join("::");
            assert_ne!(import[0], "pingora_proxy", "{module:?} imports {path}");
            assert!(
                !import.iter().any(|part| part == "Session"),
                "{module:?} imports {path}"
            );
            assert!(
                import[0] != "crate" || import.starts_with(&rules),
                "{module:?} imports {path}"
            );
        }
    }
}

#[test]
fn no_module_imports_itself_through_others() {
    let graph = graph();
    let edges: BTreeMap<_, BTreeSet<_>> = graph
        .iter()
        .map(|(module, imports)| {
            let targets = imports.iter().filter_map(|i| target(&graph, i, module));
            (module, targets.collect())
        })
        .collect();
    assert!(edges.values().map(BTreeSet::len).sum::<usize>() > 150);
    // Remove modules that import none of those that are left, until none is left.
    let mut left = edges;
    loop {
        let is_free =
            |targets: &BTreeSet<&Vec<String>>| targets.iter().all(|t| !left.contains_key(t));
        let free: Vec<_> = left
            .iter()
            .filter(|(_, targets)| is_free(targets))
            .map(|(module, _)| *module)
            .collect();
        if free.is_empty() {
            break;
        }
        for module in free {
            left.remove(module);
        }
    }
    let circle: Vec<_> = left.keys().map(|module| module.join("::")).collect();
    assert!(circle.is_empty(), "these import each other: {circle:?}");
}
