//! `s3-proxy cache rm`.

use std::collections::BTreeSet;

use pingora_cache::key::CacheHashKey;
use pingora_sendfile::cache::inspect::{CacheFolder, Found};
use pingora_sendfile::cache::EntryMeta;
use pingora_sendfile::s3::RouteError;

use super::Cache;
use crate::cli::admin::AdminClient;
use crate::cli::purge;
use crate::cli::{Failure, Outcome, Output};

pub fn run(mut cache: Cache, path: &str) -> Outcome {
    // Held to the end: no process starts on a folder that is being changed.
    let Some(_locks) = cache.lock() else {
        let admin = cache.admin_of_process()?;
        return purge::send(&admin, path);
    };
    let unknown = |e: RouteError| Failure::Other(format!("{path}: {e}"));
    let removed = match path.strip_suffix('*') {
        Some(beginning) => {
            let prefixes = cache.keys.beginning_with(beginning).map_err(unknown)?;
            remove_all(&cache, |meta| {
                let (tag, key) = (meta.key.user_tag.as_ref(), &meta.primary_key);
                prefixes.iter().any(|prefix| prefix.matches(tag, key))
            })
        }
        None => {
            let hash = cache.keys.object(path).map_err(unknown)?.combined_bin();
            let mut removed = 0;
            for (folder, _) in &cache.folders {
                match folder.remove_key(&hash) {
                    Ok(true) => {
                        removed = 1;
                        sync(&cache, folder, &BTreeSet::from([hash[0]]));
                    }
                    Ok(false) => {}
                    Err(e) => cache.report(e),
                }
            }
            if removed == 0 {
                return Err(Failure::Other(format!("{path}: not in the cache")));
            }
            removed
        }
    };
    let mut output = Output::new();
    output.line(format_args!("removed {removed}"))?;
    output.flush()?;
    Ok(cache.exit_code())
}

/// The number of removed entries.
fn remove_all(cache: &Cache, wanted: impl Fn(&EntryMeta) -> bool) -> u64 {
    let mut removed = 0;
    for (folder, _) in &cache.folders {
        let mut touched = BTreeSet::new();
        for found in folder.walk() {
            let (id, meta) = match &found {
                Ok(Found::Entry(entry)) => (&entry.id, Some(&entry.meta)),
                Ok(Found::Damaged(damaged)) => (&damaged.id, damaged.meta.as_ref()),
                Ok(Found::Leftover { .. }) => continue,
                Err(e) => {
                    cache.report(e);
                    continue;
                }
            };
            if !meta.is_some_and(&wanted) {
                continue;
            }
            touched.insert(id.hash[0]);
            match found.and_then(|found| folder.remove(&found)) {
                Ok(()) => removed += 1,
                Err(e) => cache.report(e),
            }
        }
        sync(cache, folder, &touched);
    }
    removed
}

fn sync(cache: &Cache, folder: &CacheFolder, shards: &BTreeSet<u8>) {
    if let Err(e) = folder.sync(shards) {
        cache.report(e);
    }
}

// === impl Cache ===

impl Cache {
    /// The admin listener of the process that serves from the folders.
    pub(super) fn admin_of_process(&self) -> Result<AdminClient, Failure> {
        AdminClient::new(&self.config).map_err(|e| {
            let paths = self.folders.iter().map(|(folder, _)| folder.path());
            let paths: Vec<_> = paths.map(|path| path.display().to_string()).collect();
            Failure::Config(format!(
                "{e}; or stop the process that serves from {}",
                paths.join(" and ")
            ))
        })
    }
}
