//! `s3-proxy cache rm`.

use std::collections::BTreeSet;
use std::process::ExitCode;

use pingora_cache::key::CacheHashKey;
use pingora_sendfile::cache::inspect::Found;
use pingora_sendfile::cache::EntryMeta;
use pingora_sendfile::s3::RouteError;

use super::Cache;
use crate::cli::admin::AdminClient;
use crate::cli::purge;
use crate::cli::{Failure, Outcome, Output};

pub fn run(cache: &Cache, path: &str) -> Outcome {
    // Held to the end: no process starts on a folder that is being changed.
    let Some(_lock) = cache.folder.lock()? else {
        let admin = cache.admin_of_process()?;
        return purge::send(&admin, path);
    };
    let unknown = |e: RouteError| Failure::Other(format!("{path}: {e}"));
    let removed = match path.strip_suffix('*') {
        Some(beginning) => {
            let prefixes = cache.keys.beginning_with(beginning).map_err(unknown)?;
            remove_all(cache, |meta| {
                let (tag, key) = (meta.key.user_tag.as_ref(), &meta.primary_key);
                prefixes.iter().any(|prefix| prefix.matches(tag, key))
            })?
        }
        None => {
            let hash = cache.keys.object(path).map_err(unknown)?.combined_bin();
            if !cache.folder.remove_key(&hash)? {
                return Err(Failure::Other(format!("{path}: not in the cache")));
            }
            cache.folder.sync(&BTreeSet::from([hash[0]]))?;
            1
        }
    };
    let mut output = Output::new();
    output.line(format_args!("removed {removed}"))?;
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The number of removed entries.
fn remove_all(cache: &Cache, wanted: impl Fn(&EntryMeta) -> bool) -> Result<u64, Failure> {
    let mut removed = 0;
    let mut touched = BTreeSet::new();
    for found in cache.folder.walk() {
        let found = found?;
        let (id, meta) = match &found {
            Found::Entry(entry) => (&entry.id, Some(&entry.meta)),
            Found::Damaged(damaged) => (&damaged.id, damaged.meta.as_ref()),
            Found::Leftover { .. } => continue,
        };
        if meta.is_some_and(&wanted) {
            cache.folder.remove(&found)?;
            touched.insert(id.hash[0]);
            removed += 1;
        }
    }
    cache.folder.sync(&touched)?;
    Ok(removed)
}

// === impl Cache ===

impl Cache {
    /// The admin listener of the process that serves from the folder.
    pub(super) fn admin_of_process(&self) -> Result<AdminClient, Failure> {
        AdminClient::new(&self.config).map_err(|e| {
            Failure::Config(format!(
                "{e}; or stop the process that serves from {}",
                self.folder.path().display()
            ))
        })
    }
}
