//! `s3-proxy cache stat`.

use std::fmt;

use indicatif::DecimalBytes;
use pingora_sendfile::cache::inspect::Found;
use serde_json::json;

use super::{damage, rfc3339, Cache};
use crate::cli::{Outcome, Output};

/// The content of a cache folder.
#[derive(Default)]
struct Summary {
    path: String,
    in_use: bool,
    limit: u64,
    entries: u64,
    bodies: u64,
    metadata: u64,
    /// Bytes that both take on the disk.
    on_disk: u64,
    /// The start of the first and of the last fill.
    stored: Option<(u64, u64)>,
    leftovers: u64,
    leftover_bytes: u64,
    damaged: u64,
}

pub fn run(cache: &Cache, json: bool) -> Outcome {
    let mut summaries = Vec::new();
    for (folder, limit) in &cache.folders {
        let mut summary = Summary {
            path: folder.path().display().to_string(),
            in_use: folder.is_in_use().unwrap_or_else(|e| {
                cache.report(e);
                false
            }),
            limit: *limit,
            ..Summary::default()
        };
        for found in folder.walk() {
            match found {
                Ok(found) => summary.add(&found),
                Err(e) => cache.report(e),
            }
        }
        summaries.push(summary);
    }
    let mut output = Output::new();
    if let [only] = &summaries[..] {
        match json {
            true => output.line(only.json())?,
            false => output.line(only)?,
        };
    } else {
        let total = Summary::total(&summaries);
        if json {
            let mut json = total.json();
            json["folders"] = summaries.iter().map(Summary::json).collect();
            output.line(json)?;
        } else {
            for summary in &summaries {
                output.line(format_args!("{summary}\n"))?;
            }
            output.line(total)?;
        }
    }
    output.flush()?;
    Ok(cache.exit_code())
}

// === impl Summary ===

impl Summary {
    /// The sum of several folders.
    fn total(summaries: &[Summary]) -> Summary {
        let paths: Vec<_> = summaries.iter().map(|of| of.path.as_str()).collect();
        let mut total = Summary {
            path: paths.join(", "),
            ..Summary::default()
        };
        for of in summaries {
            total.in_use |= of.in_use;
            total.limit = total.limit.saturating_add(of.limit);
            total.entries += of.entries;
            total.bodies += of.bodies;
            total.metadata += of.metadata;
            total.on_disk += of.on_disk;
            total.leftovers += of.leftovers;
            total.leftover_bytes += of.leftover_bytes;
            total.damaged += of.damaged;
            if let Some((oldest, newest)) = of.stored {
                total.note_stored(oldest, newest);
            }
        }
        total
    }

    fn note_stored(&mut self, first: u64, last: u64) {
        let (oldest, newest) = self.stored.unwrap_or((u64::MAX, 0));
        self.stored = Some((oldest.min(first), newest.max(last)));
    }

    fn add(&mut self, found: &Found) {
        match found {
            Found::Entry(entry) => {
                let meta = &entry.meta;
                self.entries += 1;
                self.bodies += meta.stored_len();
                self.metadata += meta.encoded_len();
                self.on_disk += meta.weight();
                self.note_stored(meta.stored_at, meta.stored_at);
            }
            Found::Damaged(damaged) => {
                eprintln!("s3-proxy: damaged: {}", damage(damaged));
                self.damaged += 1;
            }
            Found::Leftover { len, .. } => {
                self.leftovers += 1;
                self.leftover_bytes += len;
            }
        }
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "path": self.path,
            "in_use": self.in_use,
            "entries": self.entries,
            "body_bytes": self.bodies,
            "metadata_bytes": self.metadata,
            "disk_bytes": self.on_disk,
            "limit_bytes": self.limit,
            "oldest": self.stored.map(|(oldest, _)| rfc3339(oldest)),
            "newest": self.stored.map(|(_, newest)| rfc3339(newest)),
            "leftovers": self.leftovers,
            "leftover_bytes": self.leftover_bytes,
            "damaged": self.damaged,
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: u64| format!("{} ({bytes} bytes)", DecimalBytes(bytes));
        let used = self.on_disk as f64 / self.limit as f64 * 100.0;
        writeln!(f, "folder     {}", self.path)?;
        let in_use = if self.in_use {
            "yes, a process serves from it"
        } else {
            "no"
        };
        writeln!(f, "in use     {in_use}")?;
        writeln!(f, "entries    {}", self.entries)?;
        writeln!(f, "bodies     {}", size(self.bodies))?;
        writeln!(f, "metadata   {}", size(self.metadata))?;
        writeln!(f, "on disk    {}", size(self.on_disk))?;
        writeln!(f, "limit      {}, {used:.1} % used", size(self.limit))?;
        if let Some((oldest, newest)) = self.stored {
            writeln!(f, "stored     {} to {}", rfc3339(oldest), rfc3339(newest))?;
        }
        // Those of a process that runs may be what it is writing.
        let leftovers = if self.in_use {
            "leftovers, or being written"
        } else {
            "leftovers"
        };
        writeln!(
            f,
            "files      {} {leftovers}: {}",
            self.leftovers,
            size(self.leftover_bytes)
        )?;
        write!(f, "damaged    {}", self.damaged)
    }
}
