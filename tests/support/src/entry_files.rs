use std::fs;
use std::path::{Path, PathBuf};

/// The files of all entries of a cache folder with this extension, `body` or `meta`, in order; an empty
/// one stands for all.
pub fn entry_files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let list = |folder: &Path| -> Vec<PathBuf> {
        let files = fs::read_dir(folder).expect("list a folder of the cache");
        files.map(|file| file.expect("a file").path()).collect()
    };
    let shards = list(&folder.join("v2"));
    let files = shards.iter().flat_map(|shard| list(shard));
    let has_extension = |file: &PathBuf| match extension {
        "" => true,
        _ => file.extension().is_some_and(|other| other == extension),
    };
    let mut files: Vec<PathBuf> = files.filter(has_extension).collect();
    files.sort();
    files
}
