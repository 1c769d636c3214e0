//! Pages of the entries in the cache, for the status page.
//!
//! The index in memory has no names, so the files are read, in the order of the hashes of their keys. A
//! page ends once it is full or has taken some time, and the next one goes on from there. One page is
//! read at a time, on a thread of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Semaphore;

use crate::cache::inspect::{CacheFolder, Found};
use crate::config::Config;
use crate::proxy::cache_key::{CacheKeys, KeyPrefix};
use crate::s3::RouteError;

/// The most entries of a page.
const PAGE: usize = 100;

/// The time after which a page ends, full or not.
const TIME: Duration = Duration::from_secs(2);

/// Reads pages.
pub(super) struct Browser {
    folders: Arc<[PathBuf]>,
    turn: Arc<Semaphore>,
}

/// A page of entries.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) entries: Vec<Entry>,
    /// The marker of the next page; `None`: this is the last one.
    pub(super) next: Option<String>,
    /// The share of the cache that has been searched, from 0 to 1.
    pub(super) searched: f64,
    /// Files that could not be read.
    pub(super) failures: Vec<String>,
}

/// An entry.
#[derive(Debug)]
pub(super) struct Entry {
    /// The path as clients request it; `None`: no configured bucket has it.
    pub(super) path: Option<String>,
    /// The key in clear text.
    pub(super) key: String,
    pub(super) len: u64,
    /// In seconds since 1970.
    pub(super) stored_at: u64,
    /// The remaining freshness; `None`: it is stale.
    pub(super) fresh_for: Option<Duration>,
}

/// The reason for a page that is not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoPage {
    /// Another one is being read.
    Busy,
    /// The prefix is none. The text says why.
    Prefix(String),
    /// The marker is none of a page.
    Marker,
}

/// An entry as it was read.
struct Raw {
    user_tag: String,
    primary_key: Vec<u8>,
    entry: Entry,
}

/// The place of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Marker {
    folder: usize,
    after: Option<[u8; 16]>,
}

// === impl Browser ===

impl Browser {
    pub(super) fn new(config: &Config) -> Browser {
        let folders = config.cache.disk.folders().into_iter();
        Browser {
            folders: folders.map(|folder| folder.path).collect(),
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// The page of the entries whose path begins with `prefix`; all, if that is empty. `after`: the
    /// marker of the page.
    pub(super) async fn page(
        &self,
        keys: &CacheKeys,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Page, NoPage> {
        let prefixes = match prefix {
            "" => None,
            prefix => {
                let prefixes = keys.beginning_with(prefix);
                Some(prefixes.map_err(|e: RouteError| NoPage::Prefix(e.to_string()))?)
            }
        };
        let marker = after.map_or(Some(Marker::default()), Marker::parse);
        let marker = marker.ok_or(NoPage::Marker)?;
        let turn = self.turn.clone().try_acquire_owned();
        let turn = turn.map_err(|_| NoPage::Busy)?;
        let folders = self.folders.clone();
        let read = tokio::task::spawn_blocking(move || {
            // The thread may wait for a disk longer than the operator for the thread.
            let _turn = turn;
            read(&folders, prefixes.as_deref(), marker, Instant::now() + TIME)
        });
        let Ok((mut page, raw)) = read.await else {
            return Err(NoPage::Busy);
        };
        page.entries = raw
            .into_iter()
            .map(|raw| Entry {
                path: keys.path_of(&raw.user_tag, &raw.primary_key),
                ..raw.entry
            })
            .collect();
        Ok(page)
    }
}

/// Read a page. Blocks.
fn read(
    folders: &[PathBuf],
    prefixes: Option<&[KeyPrefix]>,
    marker: Marker,
    end: Instant,
) -> (Page, Vec<Raw>) {
    let mut page = Page::default();
    let mut entries = Vec::new();
    let now = SystemTime::now();
    for (number, path) in folders.iter().enumerate().skip(marker.folder) {
        let folder = match CacheFolder::open(path) {
            Ok(folder) => folder,
            Err(e) => {
                page.failures.push(e.to_string());
                continue;
            }
        };
        let after = marker.after.filter(|_| number == marker.folder);
        let mut walk = folder.entries_after(after);
        while let Some(found) = walk.next() {
            match found {
                Ok(Found::Entry(entry)) => {
                    let meta = &entry.meta;
                    let user_tag = &*meta.key.user_tag;
                    let is_wanted = prefixes.is_none_or(|prefixes| {
                        let mut prefixes = prefixes.iter();
                        prefixes.any(|prefix| prefix.matches(user_tag, &meta.primary_key))
                    });
                    if is_wanted {
                        entries.push(Raw {
                            user_tag: user_tag.to_owned(),
                            primary_key: meta.primary_key.clone(),
                            entry: Entry {
                                path: None,
                                key: meta.primary_key.escape_ascii().to_string(),
                                len: meta.body_len,
                                stored_at: meta.stored_at,
                                fresh_for: entry.fresh_for(now),
                            },
                        });
                    }
                }
                Ok(_) => {}
                Err(e) if page.failures.len() < PAGE => page.failures.push(e.to_string()),
                Err(_) => {}
            }
            if entries.len() >= PAGE || Instant::now() >= end {
                let next = Marker {
                    folder: number,
                    after: walk.examined(),
                };
                page.next = Some(next.to_string());
                page.searched = (number as f64 + walk.progress()) / folders.len() as f64;
                return (page, entries);
            }
        }
    }
    page.searched = 1.0;
    (page, entries)
}

// === impl Marker ===

impl Marker {
    fn parse(text: &str) -> Option<Marker> {
        let (folder, hash) = text.split_once('.')?;
        let after = match hash {
            "" => None,
            hash if hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Some(u128::from_str_radix(hash, 16).ok()?.to_be_bytes())
            }
            _ => return None,
        };
        Some(Marker {
            folder: folder.parse().ok()?,
            after,
        })
    }
}

impl std::fmt::Display for Marker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.", self.folder)?;
        match self.after {
            Some(hash) => write!(f, "{:032x}", u128::from_be_bytes(hash)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_read_as_it_is_written_and_nothing_else_is_one() {
        for marker in [
            Marker::default(),
            Marker {
                folder: 255,
                after: Some([7; 16]),
            },
            Marker {
                folder: 0,
                after: Some([0xff; 16]),
            },
        ] {
            assert_eq!(Marker::parse(&marker.to_string()), Some(marker));
        }
        let (signed, foreign) = ("+".repeat(32), "é".repeat(16));
        for text in [
            "",
            ".",
            "0",
            "-1.",
            "0.7",
            "a.",
            &format!("0.{signed}"),
            &format!("0.{foreign}"),
        ] {
            assert_eq!(Marker::parse(text), None, "{text}");
        }
    }
}
