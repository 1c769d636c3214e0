use std::collections::{BTreeMap, BTreeSet};

/// One scrape of the proxy's metrics, in Prometheus' text format.
#[derive(Clone, Debug)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

// === impl Metrics ===

impl Metrics {
    /// Panics on a line that is not of the format.
    pub fn parse(text: &str) -> Self {
        let samples = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| Sample::parse(line).unwrap_or_else(|| panic!("not a sample: {line:?}")))
            .collect();
        Self { samples }
    }

    /// The metric, summed over its labels. Panics where the proxy does not
    /// expose it: a misspelt name must not read as 0.
    pub fn sum(&self, name: &str) -> u64 {
        self.sum_where(name, &[])
    }

    /// The metric, summed over the samples that carry all of `labels`; 0 where
    /// none does yet. Panics where the proxy does not expose the name at all.
    pub fn sum_where(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let named: Vec<_> = self.samples.iter().filter(|s| s.name == name).collect();
        assert!(!named.is_empty(), "the proxy exposes no metric {name}");
        let sum: f64 = named
            .into_iter()
            .filter(|sample| sample.carries(labels))
            .map(|sample| sample.value)
            .sum();
        assert!(
            sum >= 0.0 && sum.fract() == 0.0,
            "{name} is {sum}, not a count"
        );
        sum as u64
    }

    /// The metric in seconds, summed as by [`Self::sum_where`].
    pub fn seconds(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        assert!(self.has(name), "the proxy exposes no metric {name}");
        let named = self.samples.iter().filter(|sample| sample.name == name);
        let carries = named.filter(|sample| sample.carries(labels));
        carries.map(|sample| sample.value).sum()
    }

    /// True if there is a sample of the metric.
    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|sample| sample.name == name)
    }

    /// The values that a label of the metric has.
    pub fn values(&self, name: &str, label: &str) -> BTreeSet<&str> {
        let named = self.samples.iter().filter(|sample| sample.name == name);
        let labels = named.filter_map(|sample| sample.labels.get(label));
        labels.map(String::as_str).collect()
    }
}

// === impl Sample ===

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let name_len = line.find(['{', ' '])?;
        let (name, mut rest) = line.split_at(name_len);
        let mut labels = BTreeMap::new();
        if let Some(mut inner) = rest.strip_prefix('{') {
            while !inner.starts_with('}') {
                let (label, quoted) = inner.split_once("=\"")?;
                let (value, after) = unescape(quoted)?;
                labels.insert(label.trim_start_matches([',', ' ']).to_owned(), value);
                inner = after.trim_start_matches(',');
            }
            rest = &inner[1..];
        }
        let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Self {
            name: name.to_owned(),
            labels,
            value,
        })
    }

    fn carries(&self, labels: &[(&str, &str)]) -> bool {
        labels
            .iter()
            .all(|(label, value)| self.labels.get(*label).is_some_and(|v| v == value))
    }
}

/// Reads a label's value up to its closing quote; returns what follows too.
fn unescape(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    loop {
        match chars.next()? {
            (at, '"') => return Some((value, &quoted[at + 1..])),
            (_, '\\') => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            (_, other) => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP hits Hits.
# TYPE hits counter
hits{bucket="a",path="/x\"y}"} 3
hits{bucket="b"} 4 1700000000000
bytes 1.5e3
"#;

    #[test]
    fn samples_add_up_over_the_labels_asked_for() {
        let metrics = Metrics::parse(TEXT);
        assert_eq!(metrics.sum("hits"), 7);
        assert_eq!(metrics.sum_where("hits", &[("bucket", "b")]), 4);
        assert_eq!(metrics.sum_where("hits", &[("path", "/x\"y}")]), 3);
        assert_eq!(metrics.sum_where("hits", &[("bucket", "c")]), 0);
        assert_eq!(metrics.sum("bytes"), 1500);
        assert_eq!(metrics.seconds("bytes", &[]), 1500.0);
    }

    #[test]
    #[should_panic(expected = "exposes no metric hit")]
    fn a_name_that_is_not_exposed_is_not_zero() {
        Metrics::parse(TEXT).sum("hit");
    }
}
