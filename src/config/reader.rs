//! A deserializer for the tree of the file, which finds all mistakes.
//!
//! serde stops at the first mistake. Therefore each mistake is noted, its value is replaced by a
//! stand-in that is valid for any type, and reading begins anew. So the model can have derived
//! implementations. A file is small, and the number of reported mistakes is bounded.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_path_to_error::Segment;
use zeroize::Zeroizing;

use super::document::{Entry, Kind, Meaning, Node, Scalar};
use super::error::Place;
use super::variables::{fill, Env};
use super::wording::MAX_FINDINGS;

/// A mistake that is not yet put into words.
pub(super) struct Finding {
    pub place: Option<Place>,
    /// The path of the key; empty for the file as a whole.
    pub path: Vec<Step>,
    pub problem: Problem,
}

/// A step of a path to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Name(String),
    Index(usize),
}

/// The problem with a value, and the allowed values.
#[derive(Debug)]
pub(super) struct Problem {
    kind: ProblemKind,
    /// The value as it is written, if it may be shown, and true if it is a string.
    pub shown: Option<(Zeroizing<String>, bool)>,
    pub what: String,
    pub remedy: String,
}

#[derive(Debug, PartialEq, Eq)]
enum ProblemKind {
    /// The section lacks this key.
    Missing(&'static str),
    /// The section has no such key.
    Unknown,
    /// The value is of another type.
    Type,
    /// The value is invalid; `what` follows the value in the message.
    Value,
    Other,
}

/// Reads a `T`; `None`: there are mistakes, which go to `findings`.
pub(super) fn read<T: DeserializeOwned>(
    root: &mut Node,
    env: Env,
    findings: &mut Vec<Finding>,
) -> Option<T> {
    // One more shows that there are more.
    while findings.len() <= MAX_FINDINGS {
        let error = match serde_path_to_error::deserialize(Reader { node: root, env }) {
            Ok(model) => return findings.is_empty().then_some(model),
            Err(error) => error,
        };
        let path = steps(error.path());
        let problem = error.into_inner();
        let place = match problem.kind {
            // Read as an absent value, it is reported with the allowed values.
            ProblemKind::Missing(name) if root.add_absent(&path, name) => continue,
            ProblemKind::Unknown => root.remove(&path),
            _ => root.mark_reported(&path),
        };
        findings.push(Finding {
            place,
            path,
            problem,
        });
        // Without a place, nothing has changed, and reading would stop at the same value.
        place?;
    }
    None
}

/// Reads a single value; `None`: it is missing or wrong.
pub(super) fn value<T: DeserializeOwned>(node: Option<&Node>, env: Env) -> Option<T> {
    let node = node?;
    match node.kind {
        Kind::Reported | Kind::Absent => None,
        _ => T::deserialize(Reader { node, env }).ok(),
    }
}

fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Map { key } => Some(Step::Name(key.clone())),
            Segment::Seq { index } => Some(Step::Index(*index)),
            // Such a value has no values below it.
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

/// A value of the file.
#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    env: Env<'a>,
}

/// A stand-in for a value of which a mistake has been reported.
static STAND_IN: Node = Node {
    place: Place { line: 1, column: 1 },
    kind: Kind::Reported,
};

// === impl Problem ===

impl Problem {
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem {
            kind: ProblemKind::Other,
            shown: None,
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    fn of_kind(kind: ProblemKind, what: impl Into<String>) -> Problem {
        Problem {
            kind,
            ..Problem::new(what, "")
        }
    }
}

impl de::Error for Problem {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Problem::new(what.to_string(), "")
    }

    // The message does not repeat the value, which may come from the environment.
    fn invalid_type(_: Unexpected, expected: &dyn Expected) -> Self {
        Problem {
            remedy: expected.to_string(),
            ..Problem::of_kind(ProblemKind::Type, "")
        }
    }

    /// `expected` follows the value in the message, such as "is not a region".
    fn invalid_value(_: Unexpected, expected: &dyn Expected) -> Self {
        Problem::of_kind(ProblemKind::Value, expected.to_string())
    }

    fn missing_field(name: &'static str) -> Self {
        Problem::of_kind(ProblemKind::Missing(name), format!("lacks the key {name}"))
    }

    fn unknown_field(_: &str, allowed: &'static [&'static str]) -> Self {
        Problem {
            remedy: format!("allowed keys here: {}", allowed.join(", ")),
            ..Problem::of_kind(ProblemKind::Unknown, "is not a known key")
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

impl std::error::Error for Problem {}

// === impl Reader ===

impl<'a> Reader<'a> {
    fn wrong_type(self, expected: &str, remedy: String) -> Problem {
        let found = match &self.node.kind {
            Kind::Scalar(Scalar { meaning, .. }) => match meaning {
                Meaning::Null => return Problem::new("has no value", remedy),
                Meaning::Mistagged => {
                    let what = "holds a value that its YAML tag does not allow";
                    return Problem::new(what, remedy);
                }
                Meaning::Bool(_) => "true or false",
                Meaning::Whole(_) | Meaning::Negative | Meaning::Decimal(_) => "a number",
                Meaning::Text => "a string",
            },
            Kind::List(_) => "a list",
            Kind::Section(_) => "a section",
            Kind::Tagged => "a tagged value",
            Kind::Reported | Kind::Absent => return Problem::new("is missing", remedy),
        };
        Problem::new(format!("is {found}, not {expected}"), remedy)
    }

    fn shown(self) -> Option<(Zeroizing<String>, bool)> {
        match &self.node.kind {
            Kind::Scalar(scalar) => Some((scalar.written.clone(), scalar.meaning == Meaning::Text)),
            _ => None,
        }
    }

    fn unfit(self, what: &str, remedy: String) -> Problem {
        Problem {
            shown: self.shown(),
            ..Problem::new(what, remedy)
        }
    }

    /// The string with its variables replaced.
    fn text(self, remedy: &str) -> Result<Zeroizing<String>, Problem> {
        let Kind::Scalar(Scalar {
            written,
            meaning: Meaning::Text,
        }) = &self.node.kind
        else {
            return Err(self.wrong_type("a string", remedy.to_owned()));
        };
        let filled = fill(written, self.env)?;
        if filled.is_empty() {
            return Err(Problem::new("is empty", remedy));
        }
        Ok(filled)
    }

    /// The text of a value that is not of the expected type itself. Only a string with variables may
    /// replace one.
    fn variable(self, expected: &str, remedy: &str) -> Result<Zeroizing<String>, Problem> {
        match &self.node.kind {
            Kind::Scalar(Scalar {
                written,
                meaning: Meaning::Text,
            }) if written.contains("${") => self.text(remedy),
            _ => Err(self.wrong_type(expected, remedy.to_owned())),
        }
    }

    fn meaning(self) -> Option<Meaning> {
        match &self.node.kind {
            Kind::Scalar(scalar) => Some(scalar.meaning),
            _ => None,
        }
    }

    fn is_reported(self) -> bool {
        matches!(self.node.kind, Kind::Reported)
    }

    /// Passes a scalar to a visitor, and completes its error.
    fn visit<'de, V: Visitor<'de>>(
        self,
        visitor: V,
        take: impl FnOnce(V, &str) -> Result<V::Value, Problem>,
    ) -> Result<V::Value, Problem> {
        // No key has the type unit, so to visitors a unit is a stand-in.
        if self.is_reported() {
            return visitor.visit_unit();
        }
        let remedy = (&visitor as &dyn Expected).to_string();
        take(visitor, &remedy).map_err(|problem| match problem.kind {
            ProblemKind::Type => self.wrong_type("what is expected", remedy),
            ProblemKind::Value => self.unfit(&problem.what, remedy),
            _ if problem.remedy.is_empty() => Problem { remedy, ..problem },
            _ => problem,
        })
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.visit(visitor, |visitor, remedy| match self.meaning() {
            Some(Meaning::Whole(number)) => visitor.visit_u64(number),
            Some(Meaning::Decimal(number)) => visitor.visit_f64(number),
            Some(Meaning::Negative) => visitor.visit_i64(-1),
            _ => visitor.visit_str(&self.text(remedy)?),
        })
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.visit(visitor, |visitor, remedy| {
            visitor.visit_str(&self.text(remedy)?)
        })
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_str(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.visit(visitor, |visitor, remedy| match self.meaning() {
            Some(Meaning::Whole(number)) => visitor.visit_u64(number),
            Some(Meaning::Negative) => Err(self.unfit("is out of range", remedy.to_owned())),
            Some(Meaning::Decimal(_)) => {
                Err(self.unfit("is not a whole number", remedy.to_owned()))
            }
            _ => match self.variable("a number", remedy)?.parse() {
                Ok(number) => visitor.visit_u64(number),
                Err(_) => Err(self.unfit("is not a whole number", remedy.to_owned())),
            },
        })
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.visit(visitor, |visitor, remedy| match self.meaning() {
            Some(Meaning::Whole(number)) => visitor.visit_f64(number as f64),
            Some(Meaning::Decimal(number)) => visitor.visit_f64(number),
            Some(Meaning::Negative) => Err(self.unfit("is out of range", remedy.to_owned())),
            _ => match self.variable("a number", remedy)?.parse() {
                Ok(number) => visitor.visit_f64(number),
                Err(_) => Err(self.unfit("is not a number", remedy.to_owned())),
            },
        })
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        const REMEDY: &str = "write true or false";
        if self.is_reported() {
            return visitor.visit_bool(false);
        }
        if let Some(Meaning::Bool(boolean)) = self.meaning() {
            return visitor.visit_bool(boolean);
        }
        match self.variable("true or false", REMEDY)?.parse() {
            Ok(boolean) => visitor.visit_bool(boolean),
            Err(_) => Err(self.unfit("is not true or false", REMEDY.to_owned())),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        let remedy = match variants.split_last() {
            Some((last, [])) => format!("write {last}"),
            Some((last, others)) => format!("write {} or {last}", others.join(", ")),
            None => String::new(),
        };
        let variant = if self.is_reported() {
            variants.first().copied()
        } else {
            let text = self.text(&remedy)?;
            variants
                .iter()
                .copied()
                .find(|variant| *variant == text.as_str())
        };
        match variant {
            Some(variant) => {
                let variant: StrDeserializer<Problem> = variant.into_deserializer();
                visitor.visit_enum(variant)
            }
            None => Err(self.unfit(&format!("is not a {name}"), remedy)),
        }
    }

    // A key without a value is a mistake, not a missing key.
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Problem> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let remedy = (&visitor as &dyn Expected).to_string();
        let items = match &self.node.kind {
            Kind::List(items) => items.as_slice(),
            Kind::Reported => std::slice::from_ref(&STAND_IN),
            _ => return Err(self.wrong_type("a list", remedy)),
        };
        let env = self.env;
        visitor
            .visit_seq(Items {
                items: items.iter(),
                env,
            })
            .map_err(|problem| match problem.kind {
                ProblemKind::Other if problem.remedy.is_empty() => Problem { remedy, ..problem },
                _ => problem,
            })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        keys: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        let env = self.env;
        let all = keys.join(", ");
        match &self.node.kind {
            Kind::Section(section) => visitor.visit_map(entries(section, env)),
            Kind::Reported => visitor.visit_map(Entries {
                entries: keys.iter().map(|key| (*key, &STAND_IN)),
                value: None,
                env,
            }),
            Kind::Absent => {
                let remedy = format!("add the section with keys {all}");
                Err(self.wrong_type("", remedy))
            }
            _ => {
                let remedy = format!("allowed keys: {all}");
                Err(self.wrong_type("a section of keys", remedy))
            }
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let remedy = (&visitor as &dyn Expected).to_string();
        let env = self.env;
        match &self.node.kind {
            Kind::Section(section) => visitor.visit_map(entries(section, env)),
            Kind::Reported => visitor.visit_unit(),
            _ => return Err(self.wrong_type("a section", remedy)),
        }
        .map_err(|problem| match problem.kind {
            ProblemKind::Unknown if problem.remedy.is_empty() => Problem { remedy, ..problem },
            _ => problem,
        })
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u128 f32 char bytes byte_buf unit unit_struct tuple
        tuple_struct identifier ignored_any
    }
}

/// The values of a list.
struct Items<'a> {
    items: std::slice::Iter<'a, Node>,
    env: Env<'a>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Problem> {
        let env = self.env;
        let reader = self.items.next().map(|node| Reader { node, env });
        reader.map(|reader| seed.deserialize(reader)).transpose()
    }
}

/// The keys and values of a section.
struct Entries<'a, I> {
    entries: I,
    value: Option<&'a Node>,
    env: Env<'a>,
}

fn entries<'a>(
    section: &'a [Entry],
    env: Env<'a>,
) -> Entries<'a, impl Iterator<Item = (&'a str, &'a Node)>> {
    let entries = section.iter();
    Entries {
        entries: entries.map(|entry| (entry.name.as_str(), &entry.value)),
        value: None,
        env,
    }
}

impl<'a, 'de, I: Iterator<Item = (&'a str, &'a Node)>> MapAccess<'de> for Entries<'a, I> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Problem> {
        let Some((name, value)) = self.entries.next() else {
            return Ok(None);
        };
        self.value = Some(value);
        let name: StrDeserializer<Problem> = name.into_deserializer();
        // A wrong name is left out, so that it is reported once.
        let key = seed.deserialize(name).map_err(|problem| Problem {
            kind: ProblemKind::Unknown,
            ..problem
        });
        key.map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        let node = self.value.take().unwrap_or(&STAND_IN);
        let env = self.env;
        seed.deserialize(Reader { node, env })
    }
}
