//! The traces: which object is requested next.

use std::f64::consts::TAU;

use crate::zipf::Zipf;

const KIB: u64 = 1024;
const GIB: u64 = 1024 * 1024 * KIB;

/// The least and the greatest size of an object.
const SIZES: [u64; 2] = [16 * KIB, GIB];

/// The exponent of Zipf's law.
const EXPONENT: f64 = 0.9;

/// Full scans in a trace.
const SCANS: usize = 5;

/// Of the ranks by popularity, those whose objects change in a trace with drift: one in this many.
const DRIFTING: u64 = 10;

/// The mean number of objects that a drifting rank has in a trace.
const CHANGES: u64 = 10;

/// Objects that a scan in parts downloads at a time, and the parts of each.
const AT_A_TIME: usize = 4;
const PARTS: u32 = 5;

/// Requests in their order.
pub struct Trace {
    pub name: &'static str,
    pub requests: Vec<Request>,
}

/// A request for an object, or for one of so many parts of it.
#[derive(Clone, Copy)]
pub struct Request {
    pub object: u32,
    pub parts: u32,
}

/// Parts of a trace besides requests by Zipf's law.
#[derive(Clone, Copy, Default)]
struct Disturbance {
    scans: bool,
    scans_in_parts: bool,
    drift: bool,
}

/// SplitMix64, whose sequence is the same everywhere.
struct Random(u64);

// === impl Trace ===

impl Trace {
    /// All traces of `requests` requests for `objects` objects. The requests of scans are on top.
    pub fn all(objects: usize, requests: usize) -> [Self; 5] {
        let none = Disturbance::default();
        let scans = Disturbance {
            scans: true,
            ..none
        };
        let drift = Disturbance {
            drift: true,
            ..none
        };
        let both = Disturbance {
            drift: true,
            ..scans
        };
        let in_parts = Disturbance {
            scans_in_parts: true,
            ..both
        };
        [
            ("Zipf", none),
            ("Zipf, scans", scans),
            ("Zipf, drift", drift),
            ("Zipf, scans, drift", both),
            ("Zipf, scans in parts, drift", in_parts),
        ]
        .map(|(name, disturbance)| Self {
            name,
            requests: generate(objects, requests, disturbance),
        })
    }
}

/// The sizes of `count` objects: log-normal, three standard deviations to either end of [`SIZES`].
pub fn sizes(count: usize) -> Vec<u64> {
    let mut random = Random(1);
    let [least, most] = SIZES.map(|size| (size as f64).ln());
    let (mean, deviation) = ((least + most) / 2.0, (most - least) / 6.0);
    let mut size = || loop {
        let size = (mean + deviation * random.normal()).exp() as u64;
        if (SIZES[0]..=SIZES[1]).contains(&size) {
            return size;
        }
    };
    (0..count).map(|_| size()).collect()
}

fn generate(objects: usize, requests: usize, disturbance: Disturbance) -> Vec<Request> {
    let mut random = Random(2);
    let mut by_rank: Vec<u32> = (0..objects as u32).collect();
    for rank in (1..objects).rev() {
        by_rank.swap(rank, random.below(rank as u64 + 1) as usize);
    }
    let zipf = Zipf::new(objects, EXPONENT);
    // Drift has a sequence of its own: all traces request the same ranks.
    let mut drift = Random(3);
    let drifting = objects as u64 / DRIFTING;
    let mut trace = Vec::new();
    for request in 0..requests {
        if disturbance.scans && request % (requests / SCANS) == requests / SCANS / 2 {
            scan(objects, disturbance.scans_in_parts, &mut trace);
        }
        if disturbance.drift && drift.below(requests as u64) < drifting * CHANGES {
            let rank = drift.below(drifting) as usize;
            by_rank.swap(rank, drift.below(objects as u64) as usize);
        }
        trace.push(Request {
            object: by_rank[zipf.rank(random.unit())],
            parts: 1,
        });
    }
    trace
}

fn scan(objects: usize, in_parts: bool, trace: &mut Vec<Request>) {
    let parts = if in_parts { PARTS } else { 1 };
    let objects: Vec<u32> = (0..objects as u32).collect();
    for batch in objects.chunks(AT_A_TIME) {
        for _ in 0..parts {
            trace.extend(batch.iter().map(|object| Request {
                object: *object,
                parts,
            }));
        }
    }
}

// === impl Random ===

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1, without 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.unit() * bound as f64) as u64
    }

    /// Of the standard normal distribution (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (TAU * self.unit()).cos()
    }
}
