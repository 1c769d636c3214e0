//! The metrics and labels that an expression of Prometheus names.

/// Words before a list of labels in parentheses.
const GROUPING: [&str; 6] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
];

/// Words that are neither metrics nor followed by a parenthesis.
const WORDS: [&str; 10] = [
    "and", "or", "unless", "bool", "offset", "sum", "min", "max", "avg", "count",
];

/// The metrics and labels in an expression.
#[derive(Debug, Default, PartialEq)]
pub struct Expression {
    pub selectors: Vec<Selector>,
    /// Labels by which series are grouped or matched.
    pub grouping: Vec<String>,
}

/// A metric, and the labels that restrict it.
#[derive(Debug, PartialEq)]
pub struct Selector {
    pub metric: String,
    /// Label and value, or alternatives of a value.
    pub matchers: Vec<(String, String)>,
    /// True: the values over a time, as in `[5m]`.
    pub is_range: bool,
}

struct Scanner<'a>(&'a str);

// === impl Expression ===

impl Expression {
    /// Panics on a text that is not one.
    pub fn parse(text: &str) -> Self {
        let mut scanner = Scanner(text);
        let mut expression = Expression::default();
        while let Some(next) = scanner.peek() {
            if next.is_ascii_alphabetic() {
                let word = scanner.word();
                if GROUPING.contains(&word) {
                    expression.grouping.extend(scanner.labels());
                } else if scanner.peek() != Some('(') && !WORDS.contains(&word) {
                    expression.selectors.push(scanner.selector(word));
                }
            } else if next.is_ascii_digit() {
                // A number, or a duration.
                scanner.word();
            } else {
                scanner.skip(next);
            }
        }
        expression
    }
}

// === impl Scanner ===

impl<'a> Scanner<'a> {
    /// The next character that is not white space.
    fn peek(&mut self) -> Option<char> {
        self.0 = self.0.trim_start();
        self.0.chars().next()
    }

    fn skip(&mut self, expected: char) {
        assert_eq!(self.peek(), Some(expected), "before {}", self.0);
        self.0 = &self.0[expected.len_utf8()..];
    }

    fn word(&mut self) -> &'a str {
        let in_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.');
        let end = self.0.find(|c| !in_word(c)).unwrap_or(self.0.len());
        assert!(end > 0, "no word before {}", self.0);
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        word
    }

    /// The text before `end`, which is skipped.
    fn until(&mut self, end: char) -> &'a str {
        let (text, rest) = self.0.split_once(end).expect("an end");
        self.0 = rest;
        text
    }

    fn labels(&mut self) -> Vec<String> {
        self.skip('(');
        let labels = self.until(')').split(',').map(str::trim);
        labels.map(str::to_owned).collect()
    }

    fn selector(&mut self, metric: &str) -> Selector {
        let mut matchers = Vec::new();
        if self.peek() == Some('{') {
            self.skip('{');
            while self.peek() != Some('}') {
                let label = self.word().to_owned();
                let operator = self.until('"').trim();
                assert!(["=", "=~", "!=", "!~"].contains(&operator), "{operator}");
                matchers.push((label, self.until('"').to_owned()));
                if self.peek() == Some(',') {
                    self.skip(',');
                    self.peek();
                }
            }
            self.skip('}');
        }
        let is_range = self.peek() == Some('[');
        if is_range {
            self.until(']');
        }
        Selector {
            metric: metric.to_owned(),
            matchers,
            is_range,
        }
    }
}

#[test]
fn metrics_and_labels_of_an_expression_are_found() {
    let text = r#"sum by (source) (rate(errors_total{source=~"a|b", instance="x"}[5m]))
        / ignoring (cause) group_left () (up - time()) > 0.01 * 86400"#;
    let expression = Expression::parse(text);
    assert_eq!(expression.grouping, ["source", "cause", ""]);
    let [errors, up] = &expression.selectors[..] else {
        panic!("{expression:?}");
    };
    assert_eq!((&*errors.metric, errors.is_range), ("errors_total", true));
    let matchers = [("source", "a|b"), ("instance", "x")];
    assert_eq!(
        errors.matchers,
        matchers.map(|(label, value)| (label.to_owned(), value.to_owned()))
    );
    assert_eq!((&*up.metric, up.is_range), ("up", false));
}
