//! `s3-proxy cache`: inspects the cache directory, with or without a running proxy.

mod list;
mod remove;
mod stat;
mod verify;

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use pingora_sendfile::cache::inspect::{CacheFolder, Damaged};
use pingora_sendfile::cache::EntryMeta;
use pingora_sendfile::config::Config;
use pingora_sendfile::proxy::CacheKeys;
use time::format_description::well_known::Rfc3339;
use time::OffsetDateTime;

use super::{url_path, Failure, Outcome};

/// The commands for the cache.
#[derive(Subcommand)]
pub enum CacheCommand {
    /// Show the size of the cache, and whether a process uses it.
    Stat {
        /// The YAML configuration, see config.yaml.example.
        #[arg(long)]
        config: PathBuf,
        /// Write one JSON object, sizes in bytes.
        #[arg(long)]
        json: bool,
    },
    /// List the entries: size in bytes, start of the fill, remaining freshness, path,
    /// name of the files.
    Ls {
        /// The YAML configuration, see config.yaml.example.
        #[arg(long)]
        config: PathBuf,
        /// List only entries whose path has this prefix.
        #[arg(value_parser = url_path)]
        prefix: Option<String>,
    },
    /// Compare every body with its checksum: exit 1 if one is damaged.
    Verify {
        /// The YAML configuration, see config.yaml.example.
        #[arg(long)]
        config: PathBuf,
        /// Remove damaged entries, so that they are fetched again.
        #[arg(long)]
        remove: bool,
    },
    /// Remove one object, or with a final * all whose path has this prefix.
    Rm {
        /// The YAML configuration, see config.yaml.example.
        #[arg(long)]
        config: PathBuf,
        /// The path as clients request it.
        #[arg(value_parser = url_path)]
        path: String,
    },
}

/// The folders of a cache, and the buckets whose objects it holds.
struct Cache {
    config: Config,
    /// Those that can be used, each with its limit in bytes.
    folders: Vec<(CacheFolder, u64)>,
    /// True once something could not be done in a folder.
    has_failed: Cell<bool>,
    keys: CacheKeys,
}

/// Runs the command.
pub fn run(command: &CacheCommand) -> Outcome {
    match command {
        CacheCommand::Stat { config, json } => stat::run(&Cache::open(config)?, *json),
        CacheCommand::Ls { config, prefix } => list::run(&Cache::open(config)?, prefix.as_deref()),
        CacheCommand::Verify { config, remove } => verify::run(Cache::open(config)?, *remove),
        CacheCommand::Rm { config, path } => remove::run(Cache::open(config)?, path),
    }
}

// === impl Cache ===

impl Cache {
    fn open(file: &Path) -> Result<Self, Failure> {
        let config = Config::load(file)?;
        let named = config.cache.disk.named_folders();
        if named.is_empty() {
            let what = "is missing; without it there is no cache on disk";
            return Err(config.mistake("cache.disk.path", what).into());
        }
        let (mut folders, mut failures) = (Vec::new(), Vec::new());
        for folder in named {
            match CacheFolder::open(&folder.path) {
                Ok(opened) => folders.push((opened, folder.max_size_bytes)),
                Err(e) => failures.push(e),
            }
        }
        if folders.is_empty() {
            return Err(failures.remove(0).into());
        }
        let cache = Cache {
            folders,
            has_failed: Cell::new(false),
            keys: CacheKeys::new(&config),
            config,
        };
        failures.iter().for_each(|e| cache.report(e));
        Ok(cache)
    }

    /// Prints an error that names a folder or a file. The work goes on with the next.
    fn report(&self, e: impl fmt::Display) {
        eprintln!("s3-proxy: {e}");
        self.has_failed.set(true);
    }

    /// The exit code of a command that has done what it could.
    fn exit_code(&self) -> ExitCode {
        match self.has_failed.get() {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        }
    }

    /// Keeps processes from serving from the folders as long as the locks live. `None`: one does
    /// already. A folder that cannot be locked is left out from now on.
    fn lock(&mut self) -> Option<Vec<File>> {
        let mut locks = Vec::new();
        for (folder, limit) in std::mem::take(&mut self.folders) {
            match folder.lock() {
                Ok(lock) => {
                    locks.push(lock);
                    self.folders.push((folder, limit));
                }
                Err(e) => self.report(e),
            }
        }
        locks.into_iter().collect()
    }

    /// The path of an entry, as clients request it.
    fn path_of(&self, meta: &EntryMeta) -> Option<String> {
        self.keys
            .path_of(meta.key.user_tag.as_ref(), &meta.primary_key)
    }
}

/// One line with the file and its damage.
fn damage(damaged: &Damaged) -> String {
    format!("{}: {}", damaged.file.display(), damaged.reason)
}

/// A time in seconds since 1970, in the format of RFC 3339 and in UTC.
fn rfc3339(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        // Later than the year 9999.
        .unwrap_or_else(|| format!("@{seconds}"))
}
