//! Tables in Markdown.

use std::fmt;

/// A table whose first column is text, and every other one numbers.
pub struct Table {
    text: String,
    columns: usize,
}

// === impl Table ===

impl Table {
    pub fn new(head: &[&str]) -> Self {
        let rule = format!("|---|{}\n", "---:|".repeat(head.len() - 1));
        Self {
            text: format!("| {} |\n{rule}", head.join(" | ")),
            columns: head.len(),
        }
    }

    pub fn row(&mut self, cells: &[String]) {
        assert_eq!(cells.len(), self.columns, "a cell for each column");
        self.text += &format!("| {} |\n", cells.join(" | "));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
