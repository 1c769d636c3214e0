//! The documents: a link leads somewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

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
