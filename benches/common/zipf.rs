//! Zipf's law.

/// The popularity of `count` ranks: the rank n, from 1 on, has n^-exponent.
pub struct Zipf {
    /// The sum of the popularity of each rank and of those before it.
    sums: Vec<f64>,
}

// === impl Zipf ===

impl Zipf {
    pub fn new(count: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=count).map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        });
        Self {
            sums: sums.collect(),
        }
    }

    /// The rank, from 0 on, for a random number from 0 to 1.
    pub fn rank(&self, unit: f64) -> usize {
        let at = unit * self.sums.last().copied().unwrap_or_default();
        let rank = self.sums.partition_point(|sum| *sum <= at);
        rank.min(self.sums.len().saturating_sub(1))
    }
}
