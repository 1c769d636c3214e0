//! The documents: a link leads somewhere, and a configuration is a good one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::S3_PROXY;

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents = Vec::new();
    for folder in [root.to_owned(), root.join("docs")] {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "md") {
                documents.push(path);
            }
        }
    }
    documents
}

/// The lines of a document that are not those of a block of code.
fn prose(document: &Path) -> Vec<String> {
    let text = fs::read_to_string(document).expect("a document");
    let mut in_code = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    });
    lines.map(str::to_owned).collect()
}

/// The anchors of a document, as GitHub makes them of its headings.
fn anchors(document: &Path) -> BTreeSet<String> {
    let headings = prose(document).into_iter().filter_map(|line| {
        let heading = line.trim_start_matches('#');
        (heading.len() < line.len()).then(|| heading.trim().to_lowercase())
    });
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    headings
        .map(|heading| heading.chars().filter(kept).collect::<String>())
        .map(|heading| heading.replace(' ', "-"))
        .collect()
}

#[test]
fn links_of_documents_lead_to_files_and_headings() {
    let mut links = 0;
    for document in documents() {
        let text = prose(&document).join("\n");
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().expect("a first part");
            if link.starts_with("http") {
                continue;
            }
            links += 1;
            let (path, anchor) = match link.split_once('#') {
                Some((path, anchor)) => (path, Some(anchor)),
                None => (link, None),
            };
            let target = match path {
                "" => document.clone(),
                path => document.parent().expect("a folder").join(path),
            };
            let at = document.display();
            assert!(target.exists(), "{at}: {link} leads to no file");
            if let Some(anchor) = anchor {
                let found = anchors(&target).contains(anchor);
                assert!(found, "{at}: {link} leads to no heading");
            }
        }
    }
    assert!(links > 30, "{links}");
}

#[test]
fn the_migration_guide_names_existing_keys() {
    let read = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("docs")
            .join(name);
        fs::read_to_string(path).expect("a document")
    };
    let text = read("migrating-from-nginx-s3-gateway.md");
    let reference = read("configuration.md");
    let mut keys = 0;
    // Every second part is in backticks.
    for quoted in text.split('`').skip(1).step_by(2) {
        let sections = ["server.", "buckets[].", "cache.", "metrics.", "admin."];
        if !sections.iter().any(|section| quoted.starts_with(section)) {
            continue;
        }
        keys += 1;
        let (section, key) = quoted.rsplit_once('.').expect("a section");
        let (_, rest) = reference
            .split_once(&format!("\n## `{section}`\n"))
            .unwrap_or_else(|| panic!("{quoted}: there is no section {section}"));
        let rest = rest.split("\n## ").next().expect("a section");
        // A section of its own is a key of the one around it.
        let is_section = reference.contains(&format!("\n## `{quoted}`\n"));
        let is_key = rest.contains(&format!("\n| `{key}` |"));
        assert!(is_key || is_section, "{quoted}: there is no such key");
    }
    assert!(keys > 15, "{keys}");

    let (_, example) = text.split_once("```yaml\n").expect("an example");
    let (example, _) = example.split_once("```").expect("its end");
    let folder = TempDir::new().expect("a folder");
    let cache = folder.path().to_str().expect("UTF-8");
    let file = folder.path().join("config.yaml");
    fs::write(&file, example.replace("/var/cache/s3-proxy", cache)).expect("write it");
    let mut check = Command::new(S3_PROXY);
    for name in ["ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"] {
        check.env(format!("AWS_{name}"), "value");
    }
    let output = check.args(["check", "--config"]).arg(&file).output();
    let output = output.expect("run s3-proxy");
    assert!(output.status.success(), "{output:?}");
}
