//! Medians, spreads and percentiles.

use std::fmt;

/// A figure of several rounds.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    quartiles: [f64; 2],
}

/// The median, and the lowest and the highest in brackets.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            median, min, max, ..
        } = self;
        write!(f, "{median:.2} [{min:.2}, {max:.2}]")
    }
}

// === impl Summary ===

impl Summary {
    /// None: there are no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            (values[middle - 1] + values[middle]) / 2.0
        };
        let last = values.len() - 1;
        let quartiles = [last / 4, last - last / 4].map(|index| values[index]);
        Some(Self {
            median,
            min,
            max,
            quartiles,
        })
    }

    /// Of two series, round by round.
    pub fn of_ratios(rounds: &[f64], base: &[f64]) -> Option<Self> {
        Self::of(rounds.iter().zip(base).map(|(value, base)| value / base))
    }

    /// Half of the distance between the quartiles, as a part of the median.
    pub fn spread(&self) -> f64 {
        let [first, third] = self.quartiles;
        (third - first) / 2.0 / self.median
    }
}

/// 0 where there are no values.
pub fn median(values: &[f64]) -> f64 {
    Summary::of(values.iter().copied()).map_or(0.0, |summary| summary.median)
}

/// Sorts what it is given; 0 where that is empty.
pub fn percentiles<const N: usize>(values: &mut [u32], percents: [usize; N]) -> [u32; N] {
    values.sort_unstable();
    percents.map(|percent| {
        let rank = (values.len() * percent).div_ceil(100).max(1) - 1;
        values.get(rank).copied().unwrap_or(0)
    })
}
