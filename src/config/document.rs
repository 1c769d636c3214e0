//! The YAML of the file as a tree with positions.

use std::collections::HashMap;

use granit_parser::{Event, Marker, Options, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use zeroize::Zeroizing;

use super::error::Place;
use super::reader::{Finding, Problem, Step};

/// The longest file that is read, in bytes.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// The deepest nesting.
const MAX_DEPTH: usize = 32;

/// The most values, including those of each alias.
const MAX_NODES: usize = 100_000;

/// A value and its position.
#[derive(Clone)]
pub(super) struct Node {
    pub place: Place,
    pub kind: Kind,
}

#[derive(Clone)]
pub(super) enum Kind {
    Scalar(Scalar),
    List(Vec<Node>),
    Section(Vec<Entry>),
    /// A value with a tag such as `!x`.
    Tagged,
    /// A value of which a mistake has been reported. It reads as a valid value of any type, so that
    /// reading continues.
    Reported,
    /// A missing value.
    Absent,
}

/// A key and its value.
#[derive(Clone)]
pub(super) struct Entry {
    pub name: String,
    pub place: Place,
    pub value: Node,
}

/// A value that is neither a list nor a section.
#[derive(Clone)]
pub(super) struct Scalar {
    /// The text without quotes, which may be a secret.
    pub written: Zeroizing<String>,
    pub meaning: Meaning,
}

/// The type of a scalar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Meaning {
    Null,
    Bool(bool),
    Whole(u64),
    /// A whole number below zero.
    Negative,
    Decimal(f64),
    Text,
    /// A value that is not of the type of its tag.
    Mistagged,
}

/// A text that cannot be read to its end. The reason is among the findings.
pub(super) struct Unreadable;

/// Reads the text of a file; `None`: it contains only comments. Mistakes go to `findings`. A key that
/// is given twice has its first value.
pub(super) fn parse(text: &str, findings: &mut Vec<Finding>) -> Result<Option<Node>, Unreadable> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder {
        parser: Parser::new_from_str_with_options(text, options()),
        anchors: HashMap::new(),
        nodes: 0,
        depth: 0,
        path: Vec::new(),
        findings,
    };
    let mut root = None;
    loop {
        let (event, span) = builder.next()?;
        match event {
            Event::StreamEnd => return Ok(root),
            Event::DocumentStart(..) if root.is_some() => {
                return Err(builder.invalid(
                    place(&span.start),
                    "a second document begins here",
                    "keep one document; config.yaml.example shows the layout",
                ))
            }
            Event::DocumentStart(..) => {
                let first = builder.next()?;
                root = Some(builder.node(first)?);
            }
            _ => {}
        }
    }
}

/// Options for files that libyaml accepts: a closing bracket at the start of a line, and a byte order
/// mark in the middle.
fn options() -> Options {
    let mut options = Options::default();
    options.strict_indentation = false;
    options.bom_inside_document_as_content = true;
    options
}

struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    depth: usize,
    path: Vec<Step>,
    findings: &'a mut Vec<Finding>,
}

// === impl Builder ===

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Unreadable> {
        const REMEDY: &str =
            "correct the indentation and quoting there; config.yaml.example shows the layout";
        match self.parser.next_event() {
            Some(event) => event.map_err(|e| self.syntax(&e, REMEDY)),
            None => Ok((Event::StreamEnd, Span::empty(Marker::new(0, 1, 0)))),
        }
    }

    fn node(&mut self, (event, span): (Event<'a>, Span)) -> Result<Node, Unreadable> {
        let place = place(&span.start);
        self.count(1, place)?;
        if self.depth > MAX_DEPTH {
            return Err(self.invalid(
                place,
                &format!("the sections and lists are nested deeper than {MAX_DEPTH}"),
                "config.yaml.example shows the layout",
            ));
        }
        self.depth += 1;
        let (anchor, kind) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                (anchor, scalar(&text, style, tag.as_deref()))
            }
            Event::SequenceStart(_, anchor, tag) => {
                (anchor, collection(tag.as_deref(), self.list()?))
            }
            Event::MappingStart(_, anchor, tag) => {
                (anchor, collection(tag.as_deref(), self.section()?))
            }
            Event::Alias(anchor) => {
                let Some(meant) = self.anchors.get(&anchor) else {
                    return Err(self.invalid(
                        place,
                        "an alias refers to a value that contains it",
                        "write the value itself",
                    ));
                };
                let size = meant.size();
                self.count(size, place)?;
                let kind = self.anchors[&anchor].kind.clone();
                self.depth -= 1;
                return Ok(Node { place, kind });
            }
            _ => return Err(self.invalid(place, "a value is missing", "write one")),
        };
        self.depth -= 1;
        let node = Node { place, kind };
        if anchor > 0 {
            self.count(node.size(), place)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self) -> Result<Kind, Unreadable> {
        let mut items = Vec::new();
        loop {
            let event = self.next()?;
            if event.0 == Event::SequenceEnd {
                return Ok(Kind::List(items));
            }
            self.path.push(Step::Index(items.len()));
            items.push(self.node(event)?);
            self.path.pop();
        }
    }

    fn section(&mut self) -> Result<Kind, Unreadable> {
        let mut entries: Vec<Entry> = Vec::new();
        // It avoids comparing every key of a section with every other.
        let mut lines: HashMap<String, usize> = HashMap::new();
        loop {
            let event = self.next()?;
            if event.0 == Event::MappingEnd {
                return Ok(Kind::Section(entries));
            }
            let place = place(&event.1.start);
            let name = match self.node(event)?.kind {
                Kind::Scalar(scalar) if scalar.meaning != Meaning::Mistagged => {
                    scalar.written.to_string()
                }
                _ => {
                    let problem = "has a key that is not a plain word";
                    self.note(place, Problem::new(problem, "write KEY: VALUE"));
                    let value = self.next()?;
                    self.node(value)?;
                    continue;
                }
            };
            self.path.push(Step::Name(name.clone()));
            let value = self.next()?;
            let value = self.node(value)?;
            match lines.get(&name) {
                Some(line) => {
                    let problem = format!("is given twice in this section, first in line {line}");
                    self.note(place, Problem::new(problem, "keep one of the two"));
                }
                None => {
                    lines.insert(name.clone(), place.line);
                    entries.push(Entry { name, place, value });
                }
            }
            self.path.pop();
        }
    }

    fn count(&mut self, nodes: usize, place: Place) -> Result<(), Unreadable> {
        self.nodes += nodes;
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        Err(self.invalid(
            place,
            &format!("the file has more than {MAX_NODES} values, including those of its aliases"),
            "write fewer, without aliases",
        ))
    }

    fn note(&mut self, place: Place, problem: Problem) {
        self.findings.push(Finding {
            place: Some(place),
            path: self.path.clone(),
            problem,
        });
    }

    fn syntax(&mut self, error: &ScanError, remedy: &str) -> Unreadable {
        // The parser's messages contain at most one character of the text.
        self.invalid(place(error.marker()), &error.info(), remedy)
    }

    fn invalid(&mut self, place: Place, why: &str, remedy: &str) -> Unreadable {
        self.path.clear();
        // Names of keys, which may contain a secret, are shown only after everything is read.
        self.findings.clear();
        self.note(
            place,
            Problem::new(format!("is not valid YAML: {why}"), remedy),
        );
        Unreadable
    }
}

fn place(marker: &Marker) -> Place {
    Place {
        line: marker.line().max(1),
        column: marker.col() + 1,
    }
}

// === impl Node ===

impl Node {
    /// The value of a key.
    pub fn get(&self, name: &str) -> Option<&Node> {
        Some(&self.entry(name)?.value)
    }

    /// A key and its value.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        match &self.kind {
            Kind::Section(entries) => entries.iter().find(|entry| entry.name == name),
            _ => None,
        }
    }

    /// Adds a missing key to a section. Returns false if the key is there, or there is no such section.
    pub fn add_absent(&mut self, section: &[Step], name: &str) -> bool {
        let Some(section) = self.at_mut(section) else {
            return false;
        };
        let place = section.place;
        match &mut section.kind {
            Kind::Section(entries) if entries.iter().all(|entry| entry.name != name) => {
                let kind = Kind::Absent;
                entries.push(Entry {
                    name: name.to_owned(),
                    place,
                    value: Node { place, kind },
                });
                true
            }
            _ => false,
        }
    }

    /// Gives a key, which has a section and a name, another name, maybe in another section. If that
    /// is there too, the key is removed instead, and its place returned.
    pub fn rename(&mut self, former: (&str, &str), present: (&str, &str)) -> Option<Place> {
        let ((former_section, former), (section, name)) = (former, present);
        let from = self.section_mut(former_section)?;
        let at = from.iter().position(|entry| entry.name == former)?;
        let mut entry = from.remove(at);
        entry.name = name.to_owned();
        if self.get(section).is_none() {
            let Kind::Section(sections) = &mut self.kind else {
                return None;
            };
            sections.push(Entry {
                name: section.to_owned(),
                place: entry.place,
                value: Node {
                    place: entry.place,
                    kind: Kind::Section(Vec::new()),
                },
            });
        }
        // A section that is none is reported as such.
        let to = self.section_mut(section)?;
        if to.iter().any(|entry| entry.name == name) {
            return Some(entry.place);
        }
        to.push(entry);
        None
    }

    /// The keys of a section of the root.
    fn section_mut(&mut self, name: &str) -> Option<&mut Vec<Entry>> {
        let section = self.at_mut(&[Step::Name(name.into())])?;
        match &mut section.kind {
            Kind::Section(entries) => Some(entries),
            _ => None,
        }
    }

    /// Removes a key. Returns its position, if it was there.
    pub fn remove(&mut self, path: &[Step]) -> Option<Place> {
        let (Step::Name(name), section) = path.split_last()? else {
            return None;
        };
        let Kind::Section(entries) = &mut self.at_mut(section)?.kind else {
            return None;
        };
        let at = entries.iter().position(|entry| entry.name == *name)?;
        Some(entries.remove(at).place)
    }

    /// Marks a value as reported. Returns its position, unless it is marked already.
    pub fn mark_reported(&mut self, path: &[Step]) -> Option<Place> {
        let node = self.at_mut(path)?;
        match std::mem::replace(&mut node.kind, Kind::Reported) {
            Kind::Reported => None,
            _ => Some(node.place),
        }
    }

    fn at_mut(&mut self, path: &[Step]) -> Option<&mut Node> {
        let Some((step, rest)) = path.split_first() else {
            return Some(self);
        };
        let child = match (step, &mut self.kind) {
            (Step::Name(name), Kind::Section(entries)) => {
                &mut entries.iter_mut().find(|entry| entry.name == *name)?.value
            }
            (Step::Index(index), Kind::List(items)) => items.get_mut(*index)?,
            _ => return None,
        };
        child.at_mut(rest)
    }

    /// Calls `found` for every key below this value.
    pub fn walk<'a>(
        &'a self,
        path: &mut Vec<Step>,
        found: &mut dyn FnMut(&[Step], Place, &'a Node),
    ) {
        match &self.kind {
            Kind::Section(entries) => {
                for entry in entries {
                    path.push(Step::Name(entry.name.clone()));
                    found(path, entry.place, &entry.value);
                    entry.value.walk(path, found);
                    path.pop();
                }
            }
            Kind::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    path.push(Step::Index(index));
                    found(path, item.place, item);
                    item.walk(path, found);
                    path.pop();
                }
            }
            _ => {}
        }
    }

    fn size(&self) -> usize {
        1 + match &self.kind {
            Kind::Section(entries) => entries.iter().map(|entry| entry.value.size()).sum(),
            Kind::List(items) => items.iter().map(Node::size).sum(),
            _ => 0,
        }
    }
}

fn collection(tag: Option<&Tag>, kind: Kind) -> Kind {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema() => Kind::Tagged,
        _ => kind,
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Kind {
    let meaning = match tag {
        Some(tag) if !tag.is_yaml_core_schema() => return Kind::Tagged,
        Some(tag) => {
            let plain = Meaning::of_plain(text);
            match (tag.core_suffix(), plain) {
                (Some("null"), Meaning::Null)
                | (Some("bool"), Meaning::Bool(_))
                | (Some("int"), Meaning::Whole(_) | Meaning::Negative)
                | (Some("float"), Meaning::Decimal(_)) => plain,
                (Some("float"), Meaning::Whole(_) | Meaning::Negative) => {
                    text.parse().map_or(Meaning::Mistagged, Meaning::Decimal)
                }
                (Some("null" | "bool" | "int" | "float"), _) => Meaning::Mistagged,
                _ => Meaning::Text,
            }
        }
        None if style == ScalarStyle::Plain => Meaning::of_plain(text),
        None => Meaning::Text,
    };
    Kind::Scalar(Scalar {
        written: text.to_owned().into(),
        meaning,
    })
}

// === impl Meaning ===

impl Meaning {
    /// The type of a scalar without quotes: the core schema of YAML 1.2.2 §10.3.2, with
    /// binary numbers, and with a sign before a radix. `no` and `0777` are text.
    fn of_plain(text: &str) -> Meaning {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => return Meaning::Null,
            "true" | "True" | "TRUE" => return Meaning::Bool(true),
            "false" | "False" | "FALSE" => return Meaning::Bool(false),
            ".nan" | ".NaN" | ".NAN" => return Meaning::Decimal(f64::NAN),
            _ => {}
        }
        let (negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        if let ".inf" | ".Inf" | ".INF" = digits {
            return Meaning::Decimal(if negative {
                f64::NEG_INFINITY
            } else {
                f64::INFINITY
            });
        }
        let (radix, bare) = match digits.get(..2) {
            Some("0x") => (16, &digits[2..]),
            Some("0o") => (8, &digits[2..]),
            Some("0b") => (2, &digits[2..]),
            _ => (10, digits),
        };
        // Rust's parsers also accept a second sign, and names such as `nan` and `infinity`.
        if bare.starts_with(['+', '-']) || digits.contains(['n', 'N', '_']) {
            return Meaning::Text;
        }
        let zeros = |digits: &str| digits.len() > 1 && digits.starts_with('0');
        if digits.bytes().all(|b| b.is_ascii_digit()) && zeros(digits) {
            return Meaning::Text;
        }
        match (u64::from_str_radix(bare, radix), negative) {
            (Ok(0), true) => Meaning::Whole(0),
            (Ok(number), false) => Meaning::Whole(number),
            (Ok(_), true) => Meaning::Negative,
            (Err(_), _) => match digits.parse::<f64>() {
                Ok(number) if number.is_finite() => {
                    Meaning::Decimal(if negative { -number } else { number })
                }
                _ => Meaning::Text,
            },
        }
    }
}
