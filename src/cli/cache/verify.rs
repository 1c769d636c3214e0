//! `s3-proxy cache verify`.

use std::collections::BTreeSet;
use std::fs::File;
use std::process::ExitCode;

use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use pingora_sendfile::cache::inspect::{CacheFolder, Damaged, Found};

use super::{damage, Cache};
use crate::cli::admin::AdminClient;
use crate::cli::{Failure, Outcome, Output};

/// The number of steps of the progress bar.
const STEPS: u64 = 1000;

/// The way damaged entries are removed.
enum Remover {
    /// They are kept.
    No,
    /// As files: while the locks are held, no other process knows them.
    Files { _locks: Vec<File> },
    /// By the process that serves from the folders.
    Process(AdminClient),
}

pub fn run(mut cache: Cache, remove: bool) -> Outcome {
    let remover = if remove {
        Remover::new(&mut cache)?
    } else {
        Remover::No
    };
    // Draws nothing unless standard error is a terminal.
    let bar = ProgressBar::new(STEPS).with_style(
        ProgressStyle::with_template("{wide_bar} {percent:>3} % {msg}")
            .map_err(|e| Failure::Other(format!("progress bar: {e}")))?,
    );
    let mut output = Output::new();
    let (mut entries, mut bytes, mut damaged) = (0u64, 0u64, 0u64);
    let count = cache.folders.len() as f64;
    for (position, (folder, _)) in cache.folders.iter().enumerate() {
        let mut touched = BTreeSet::new();
        let mut walk = folder.walk();
        while let Some(found) = walk.next() {
            let progress = (position as f64 + walk.progress()) / count;
            bar.set_position((progress * STEPS as f64) as u64);
            let verified = match found {
                Ok(Found::Entry(entry)) => folder.verify(entry, |read| {
                    bytes += read;
                    bar.set_message(DecimalBytes(bytes).to_string());
                }),
                found => found.map(Some),
            };
            match verified {
                Ok(Some(Found::Entry(_))) => entries += 1,
                Ok(Some(Found::Damaged(found))) => {
                    entries += 1;
                    damaged += 1;
                    let mut line = damage(&found);
                    touched.insert(found.id.hash[0]);
                    match remover.remove(&cache, folder, found) {
                        Ok(false) => {}
                        Ok(true) => line += "; removed",
                        Err(e) => line += &format!("; not removed: {e}"),
                    }
                    bar.suspend(|| output.line(line).and_then(|_| output.flush()))?;
                }
                Ok(Some(Found::Leftover { .. }) | None) => {}
                Err(e) => bar.suspend(|| cache.report(e)),
            }
        }
        if matches!(remover, Remover::Files { .. }) {
            if let Err(e) = folder.sync(&touched) {
                bar.suspend(|| cache.report(e));
            }
        }
    }
    bar.finish_and_clear();
    eprintln!(
        "s3-proxy: {entries} entries verified, {}: {damaged} damaged",
        DecimalBytes(bytes)
    );
    Ok(match damaged {
        0 => cache.exit_code(),
        _ => ExitCode::FAILURE,
    })
}

// === impl Remover ===

impl Remover {
    fn new(cache: &mut Cache) -> Result<Self, Failure> {
        Ok(match cache.lock() {
            Some(locks) => Remover::Files { _locks: locks },
            None => Remover::Process(cache.admin_of_process()?),
        })
    }

    /// Returns true if the entry was removed.
    fn remove(
        &self,
        cache: &Cache,
        folder: &CacheFolder,
        damaged: Damaged,
    ) -> Result<bool, Failure> {
        match self {
            Remover::No => Ok(false),
            Remover::Files { .. } => {
                folder.remove(&Found::Damaged(damaged))?;
                Ok(true)
            }
            Remover::Process(admin) => {
                let path = damaged.meta.and_then(|meta| cache.path_of(&meta));
                let Some(path) = path else {
                    return Err(Failure::Other(
                        "its path is unknown; stop the proxy, then verify again".into(),
                    ));
                };
                let answer = admin.purge(&path)?;
                // The process has dropped missing entries by itself.
                if answer.status != 200 && answer.text != "not in the cache" {
                    return Err(Failure::Other(answer.text));
                }
                Ok(true)
            }
        }
    }
}
