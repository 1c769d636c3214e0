//! Medians, spreads and percentiles.

/// A figure of several rounds.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
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
        Some(Self { median, min, max })
    }

    /// Half of the distance from lowest to highest, as a part of the median.
    pub fn spread(&self) -> f64 {
        (self.max - self.min) / 2.0 / self.median
    }
}

/// Sorts what it is given; 0 where that is empty.
pub fn percentiles<const N: usize>(values: &mut [u32], percents: [usize; N]) -> [u32; N] {
    values.sort_unstable();
    percents.map(|percent| {
        let rank = (values.len() * percent).div_ceil(100).max(1) - 1;
        values.get(rank).copied().unwrap_or(0)
    })
}
