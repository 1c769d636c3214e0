use std::fmt::Debug;

/// The work of a proxy for a request of which it may have had a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Used what was stored; the origin was not asked.
    Reused,
    /// Asked the origin whether what is stored can be used.
    Validated,
    /// Asked the origin as if nothing was stored.
    Fetched,
}

/// A table of rules: all are tried, and the test fails with those that were
/// broken.
#[derive(Default)]
pub struct Rules {
    tried: usize,
    broken: Vec<String>,
}

// === impl Rules ===

impl Rules {
    pub fn new() -> Self {
        Self::default()
    }

    /// One rule: where it stands, what it is about, what must be and what is.
    pub fn expect<T: PartialEq + Debug>(&mut self, section: &str, what: &str, expected: T, got: T) {
        self.holds(
            section,
            what,
            expected == got,
            format!("expected {expected:?}, got {got:?}"),
        );
    }

    /// As [`Self::expect`], of what has more than one right value.
    pub fn holds(&mut self, section: &str, what: &str, holds: bool, got: impl Debug) {
        self.tried += 1;
        if !holds {
            self.broken.push(format!("  {section}: {what}: {got:?}"));
        }
    }

    /// Fails the test where a rule was broken.
    pub fn check(self) {
        assert!(self.tried > 0, "no rule was tried");
        assert!(
            self.broken.is_empty(),
            "{} of {} rules broken:\n{}",
            self.broken.len(),
            self.tried,
            self.broken.join("\n")
        );
    }
}
