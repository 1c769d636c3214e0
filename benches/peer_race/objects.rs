//! The objects that are served: of some sizes, each a pattern of its own.

use std::{fs, io, path::Path};

use test_support::Pattern;

use crate::{
    client::{http2::header_block, Order, Requests},
    paths::file,
    protocol::Protocol,
};

pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;
pub const GIB: u64 = 1024 * MIB;

/// All objects of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Objects {
    pub label: &'static str,
    pub len: u64,
    pub count: u64,
}

/// 1.1 GiB in all. Those of 4 KiB are limited by their number, as each is an open
/// file of a peer that keeps them open, and 20,000 is a usual limit; they exceed
/// the processor's caches as well.
pub const FULL: [Objects; 4] = [
    Objects::new("4KiB", 4 * KIB, 12_000),
    Objects::new("64KiB", 64 * KIB, 4_096),
    Objects::new("1MiB", MIB, 400),
    Objects::new("10MiB", 10 * MIB, 40),
];

/// Sizes that are raced only if `--sizes` names them.
pub const MORE: [Objects; 1] = [Objects::new("16KiB", 16 * KIB, 12_000)];

/// For a smoke run.
pub const QUICK: [Objects; 4] = [
    Objects::new("4KiB", 4 * KIB, 2_000),
    Objects::new("64KiB", 64 * KIB, 512),
    Objects::new("1MiB", MIB, 64),
    Objects::new("10MiB", 10 * MIB, 8),
];

// === impl Objects ===

impl Objects {
    const fn new(label: &'static str, len: u64, count: u64) -> Self {
        Self { label, len, count }
    }

    pub fn bytes(&self) -> u64 {
        self.len * self.count
    }

    /// A request for each of them.
    pub fn requests(&self, protocol: Protocol, order: Order) -> Requests {
        let request = |index| {
            let path = path(self.len, index);
            match protocol {
                Protocol::Http2 => header_block("bench", &path),
                _ => format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").into_bytes(),
            }
        };
        Requests {
            texts: (0..self.count).map(request).collect(),
            order,
            status: "200",
            body_len: self.len,
        }
    }

    /// Writes them all as files that [`file`] names.
    pub fn write_to(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir.join(self.len.to_string()))?;
        let mut body = vec![0; self.len as usize];
        for index in 0..self.count {
            pattern(self.len, index).fill(0, &mut body);
            fs::write(file(dir, self.len, index), &body)?;
        }
        Ok(())
    }
}

/// The path that clients ask for.
pub fn path(len: u64, index: u64) -> String {
    format!("/o/{len}/{index}")
}

pub fn pattern(len: u64, index: u64) -> Pattern {
    Pattern::new(len + index)
}
