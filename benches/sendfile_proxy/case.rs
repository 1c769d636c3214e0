//! The cases that are measured: responses, and the ways to serve them.

pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;

/// The proxy keeps bodies up to this length in memory, whatever is configured.
const LONGEST_IN_MEMORY: u64 = 64 * KIB;

const SIZES: [Size; 6] = [
    Size("4KiB", 4 * KIB),
    Size("16KiB", 16 * KIB),
    Size("64KiB", 64 * KIB),
    Size("256KiB", 256 * KIB),
    Size("1MiB", MIB),
    Size("10MiB", 10 * MIB),
];

const RANGES: [Size; 2] = [Size("64KiB", 64 * KIB), Size("1MiB", MIB)];

/// The length of the object that ranges are taken from.
const RANGED: u64 = 10 * MIB;

const OVER_UNIX: [Size; 3] = [
    Size("64KiB", 64 * KIB),
    Size("1MiB", MIB),
    Size("10MiB", 10 * MIB),
];

#[derive(Clone, Copy)]
struct Size(&'static str, u64);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Whole,
    Range,
    OverUnix,
}

/// Responses of one length, got in the same manner.
pub struct Case {
    kind: Kind,
    size: Size,
}

/// The way of a body from the cache to the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Copied from its open file.
    File,
    /// By sendfile.
    Sendfile,
    /// Copied from the memory tier.
    Memory,
    /// By sendfile, to a client whose signature is verified.
    Signed,
}

// === impl Case ===

impl Case {
    pub fn all() -> impl Iterator<Item = Self> {
        let of = |kind, sizes: &'static [Size]| sizes.iter().map(move |&size| Self { kind, size });
        of(Kind::Whole, &SIZES)
            .chain(of(Kind::Range, &RANGES))
            .chain(of(Kind::OverUnix, &OVER_UNIX))
    }

    /// The name for criterion and for filters.
    pub fn name(&self) -> String {
        let group = match self.kind {
            Kind::Whole => "hit",
            Kind::Range => "range",
            Kind::OverUnix => "unix",
        };
        format!("{group}/{}", self.size.0)
    }

    pub fn ways(&self) -> &'static [Way] {
        if self.kind == Kind::Whole && self.size.1 <= LONGEST_IN_MEMORY {
            &[Way::File, Way::Sendfile, Way::Memory, Way::Signed]
        } else {
            &[Way::File, Way::Sendfile]
        }
    }

    /// Length of the body of a response.
    pub fn body_len(&self) -> u64 {
        self.size.1
    }

    /// Length of the objects that are cached.
    pub fn object_len(&self) -> u64 {
        match self.kind {
            Kind::Whole | Kind::OverUnix => self.body_len(),
            Kind::Range => RANGED,
        }
    }

    pub fn is_range(&self) -> bool {
        self.kind == Kind::Range
    }

    pub fn is_over_unix(&self) -> bool {
        self.kind == Kind::OverUnix
    }
}

// === impl Way ===

impl Way {
    /// True if it is sendfile that sends.
    pub fn is_sendfile(self) -> bool {
        matches!(self, Self::Sendfile | Self::Signed)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::File => "sendfile-off",
            Self::Sendfile => "sendfile-on",
            Self::Memory => "memory",
            Self::Signed => "signed",
        }
    }
}
