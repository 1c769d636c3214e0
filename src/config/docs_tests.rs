//! The documents name every key of the model, and its default.
//!
//! The reference in `docs/configuration.md` is generated from the model. After a change of the
//! model, `UPDATE_DOCS=1 cargo test --lib --features full config::docs_tests` writes it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeSeed, Expected, IntoDeserializer, MapAccess};
use serde::forward_to_deserialize_any;

use super::*;

const EXAMPLE: &str = include_str!("../../config.yaml.example");
const DOCUMENT: &str = include_str!("../../docs/configuration.md");
const README: &str = include_str!("../../README.md");
const MODEL: &str = concat!(include_str!("mod.rs"), include_str!("web.rs"));

/// The line of [`DOCUMENT`] after which all is generated.
const MARKER: &str = "<!-- Generated from src/config/mod.rs; UPDATE_DOCS=1 rewrites it. -->\n";

/// Every section, with no more than it must have.
const LEAST: &str = "\
server: {address: '127.0.0.1:0', tls: {address: '127.0.0.1:0', certificate: Cargo.toml, key: Cargo.toml, certificates: [{certificate: Cargo.toml, key: Cargo.toml}]}}
buckets: [{path_prefix: /assets, bucket: my-bucket, region: us-east-1, assume_role: {role_arn: 'arn:aws:iam::1:role/reader'}, web: {compress: {}}, response_headers: [{}], cors: {origins: ['*']}}]
cache: {range_fill: {}, blocks: {}, memory: {}, disk: {paths: [{path: c}], sendfile: {}}, rules: [{}]}
access_log: {path: l}
traces: {endpoint: 'http://localhost:4318/v1/traces', headers: [{name: authorization, secret: t}]}
";

fn printed(text: &str) -> String {
    let env = |name: &str| Some(format!("value-of-{name}"));
    let config = Config::parse(text, Path::new("proxy.yaml"), &env);
    let config = config.unwrap_or_else(|e| panic!("{text}\n{e}"));
    config.to_yaml()
}

/// A key of the model.
#[derive(Clone)]
struct Key {
    name: String,
    is_list: bool,
    allowed: Allowed,
}

/// The values that a key allows.
#[derive(Clone)]
enum Allowed {
    /// In words.
    Words(String),
    /// The values of an enumeration with this name.
    Enumeration(&'static str, &'static [&'static str]),
}

/// A section of the model.
#[derive(Default)]
struct Section {
    path: String,
    /// The type of the section in the model.
    of_type: &'static str,
    keys: Vec<Key>,
}

/// The model as a source of its own sections and keys: every value is a stand-in.
struct Probe<'a> {
    /// The path of the section, then the name of the key.
    section: String,
    name: String,
    is_list: bool,
    sections: &'a RefCell<Vec<Section>>,
}

// === impl Probe ===

impl Probe<'_> {
    /// All sections in the order of the model.
    fn sections() -> Vec<Section> {
        let sections = RefCell::default();
        let root = Probe {
            section: String::new(),
            name: String::new(),
            is_list: false,
            sections: &sections,
        };
        Config::deserialize(root).expect("stand-ins");
        sections.into_inner()
    }

    /// The paths of all keys.
    fn keys() -> BTreeSet<String> {
        let paths = Self::sections().into_iter().flat_map(|section| {
            let path = section.path;
            section
                .keys
                .into_iter()
                .map(move |key| join(&path, &key.name))
        });
        paths.collect()
    }

    fn path(&self) -> String {
        let list = if self.is_list { "[]" } else { "" };
        join(&self.section, &self.name) + list
    }

    fn found(&self, allowed: Allowed) {
        let mut sections = self.sections.borrow_mut();
        let mut sections = sections.iter_mut();
        let section = sections.find(|section| section.path == self.section);
        section.expect("a section").keys.push(Key {
            name: self.name.clone(),
            is_list: self.is_list,
            allowed,
        });
    }

    fn found_value(&self, expected: &dyn Expected) {
        let words = expected.to_string();
        let words = words.strip_prefix("write ").expect("an imperative");
        self.found(Allowed::Words(words.to_owned()));
    }
}

fn join(section: &str, name: &str) -> String {
    let dot = if section.is_empty() { "" } else { "." };
    format!("{section}{dot}{name}")
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.found_value(&visitor);
        visitor.visit_unit()
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.found(Allowed::Words("`true` or `false`".to_owned()));
        visitor.visit_bool(false)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.found(Allowed::Enumeration(name, variants));
        let first: StrDeserializer<Error> = variants[0].into_deserializer();
        visitor.visit_enum(first)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(One(Some(Probe {
            is_list: true,
            ..self
        })))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        of_type: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.sections.borrow_mut().push(Section {
            path: self.path(),
            of_type,
            keys: Vec::new(),
        });
        visitor.visit_map(All {
            of: self,
            names: names.iter(),
            name: "",
        })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.found_value(&visitor);
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct One<'a>(Option<Probe<'a>>);

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        self.0
            .take()
            .map(|probe| seed.deserialize(probe))
            .transpose()
    }
}

struct All<'a> {
    of: Probe<'a>,
    names: std::slice::Iter<'static, &'static str>,
    name: &'static str,
}

impl<'de> MapAccess<'de> for All<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some(name) = self.names.next() else {
            return Ok(None);
        };
        self.name = name;
        let name: StrDeserializer<Error> = self.name.into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(Probe {
            section: self.of.path(),
            name: self.name.to_owned(),
            is_list: false,
            sections: self.of.sections,
        })
    }
}

/// The comment of the line of [`MODEL`] that begins so, after `from`.
fn comment_of(from: &str, line: &str) -> String {
    let from = MODEL.find(from).unwrap_or_else(|| panic!("no {from}"));
    let mut comment = Vec::new();
    for text in MODEL[from..].lines().map(str::trim) {
        match text.strip_prefix("///") {
            _ if text.starts_with(line) => return comment.join(" "),
            Some(words) => comment.push(words.trim()),
            // An attribute, of several lines too, stands between a comment and its field.
            None if text.ends_with(',') && !text.starts_with("de") && !text.starts_with("skip") => {
                comment.clear();
            }
            None => {}
        }
    }
    panic!("no {line} after {from}")
}

/// The comment of a type of the model.
fn comment_of_type(declaration: &str) -> String {
    let end = MODEL.find(declaration).expect("a type");
    let lines: Vec<_> = MODEL[..end].lines().collect();
    let comment = lines.rsplit(|line| line.is_empty()).next();
    let comment = comment.expect("a paragraph").iter();
    let words = comment.filter_map(|line| Some(line.strip_prefix("///")?.trim()));
    words.collect::<Vec<_>>().join(" ")
}

/// The types that have a name in the reference, each with the beginning of its words.
const TYPES: [(&str, &str); 34] = [
    ("address", "IP:PORT"),
    ("ARN", "the ARN of a role"),
    ("bucket name", "3 to 63 of"),
    ("collector", "http://HOST[:PORT][/PATH]"),
    ("directory", "the path of a directory"),
    ("document", "the name of a document"),
    ("duration", "a whole number with a unit"),
    ("error documents", "403, 404"),
    ("external ID", "2 to 1224"),
    ("field names", "the name of a response field"),
    ("fields", "names of response fields"),
    ("gigabytes", "a number of gigabytes"),
    ("host name", "a host name such as"),
    ("key prefix", "the beginning of keys"),
    ("key set file", "the path of a JSON Web Key Set"),
    ("log file", "the path of a file, such as"),
    (
        "megabytes",
        "a number of megabytes (10^6 bytes) from 0 to 1000000; 0: none",
    ),
    (
        "megabytes per minute",
        "a number of megabytes (10^6 bytes) from 0 to 1000000; 0: no limit",
    ),
    (
        "megabytes per second",
        "a number of megabytes (10^6 bytes) a second",
    ),
    ("name", "a name of letters"),
    ("network", "an address or a network"),
    ("path prefix", "/ or a path"),
    ("pattern", "a pattern"),
    ("PEM file", "the path of a readable PEM file"),
    ("public key file", "the path of a PEM file with one"),
    ("region", "a region"),
    ("secret", "${NAME} to take it from the environment, or"),
    ("secret file", "the path of a file that holds nothing"),
    ("session name", "2 to 64"),
    ("socket", "the path of a Unix socket"),
    ("text", "a text"),
    ("token", "${NAME} to take it from the environment: 16"),
    ("URL", "http://HOST"),
    ("web origin", "the origin of web pages"),
];

/// A name of [`TYPES`], if the words are those of one.
fn type_name(words: &str) -> Option<&'static str> {
    let mut types = TYPES.into_iter();
    Some(types.find(|(_, start)| words.starts_with(start))?.0)
}

/// The default of each key that is printed when it is left out.
fn printed_defaults() -> BTreeMap<String, String> {
    let yaml = printed(LEAST);
    let root = document::parse(&yaml, &mut Vec::new()).ok().flatten();
    let mut defaults = BTreeMap::new();
    root.expect("YAML")
        .walk(&mut Vec::new(), &mut |path, _, value| {
            if let Kind::Scalar(scalar) = &value.kind {
                let key = wording::key(path).replace("[0]", "[]");
                defaults.insert(key, scalar.written.to_string());
            }
        });
    defaults
}

/// The keys that are missing where all sections are there, and nothing in them.
fn required() -> BTreeSet<String> {
    let empty = "server: {tls: {certificates: [{}]}}\nbuckets: [{assume_role: {}, clients: [{}], jwt: {}, web: {compress: {}}, response_headers: [{}], cors: {}}]\n\
                 cache: {disk: {}}\nmetrics: {}\nadmin: {}\naccess_log: {}\ntraces: {headers: [{}]}";
    let error = Config::parse(empty, Path::new("proxy.yaml"), &|_| None).unwrap_err();
    let missing = error.mistakes().iter().filter(|mistake| {
        let text = mistake.to_string();
        text.contains(": is missing; ")
    });
    missing
        .map(|mistake| mistake.key().expect("a key").replace("[0]", "[]"))
        .collect()
}

/// The type, the default and the meaning of a key.
struct Row {
    of_type: String,
    default: String,
    meaning: String,
}

// === impl Row ===

impl Row {
    fn new(section: &Section, key: &Key) -> Row {
        let path = join(&section.path, &key.name);
        let declaration = format!("pub struct {} {{", section.of_type);
        let comment = comment_of(&declaration, &format!("pub {}: ", key.name));
        let (mut meaning, stated) = match comment.split_once(" Default: ") {
            Some((meaning, default)) => {
                let default = default.strip_suffix('.').expect("a sentence");
                (meaning.to_owned(), Some(default.to_owned()))
            }
            None => (comment, None),
        };
        let mut of_type = match &key.allowed {
            Allowed::Words(words) => match type_name(words) {
                Some(name) => name.to_owned(),
                None => words
                    .replace("auto or a whole number from ", "`auto` or integer, ")
                    .replace("a whole number from ", "integer, "),
            },
            Allowed::Enumeration(name, variants) => {
                for variant in *variants {
                    let first = variant[..1].to_uppercase();
                    let line = format!("{first}{},", &variant[1..]);
                    let comment = comment_of(&format!("rename = \"{name}\""), &line);
                    let comment = comment.strip_suffix('.').expect("a sentence").to_owned();
                    write!(meaning, "<br>`{variant}`: {comment}").expect("a string");
                }
                let quoted: Vec<_> = variants.iter().map(|name| format!("`{name}`")).collect();
                quoted.join(", ")
            }
        };
        if key.is_list {
            of_type.insert_str(0, "list of ");
        }
        let printed = printed_defaults().remove(&path);
        let is_required = required().contains(&path);
        let default = match (stated, printed) {
            (Some(stated), _) => stated,
            (None, _) if is_required => "required".to_owned(),
            (None, Some(printed)) => format!("`{printed}`"),
            (None, None) => "none".to_owned(),
        };
        Row {
            of_type,
            default,
            meaning,
        }
    }
}

/// The reference as Markdown.
fn reference() -> String {
    let mut text = String::new();
    for section in Probe::sections() {
        if section.keys.is_empty() {
            continue;
        }
        let comment = comment_of_type(&format!("pub struct {} {{", section.of_type));
        let _ = write!(text, "\n## `{}`\n\n{comment}\n\n", section.path);
        text.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
        for key in &section.keys {
            let row = Row::new(&section, key);
            let cells = [&row.of_type, &row.default, &row.meaning].map(|cell| {
                // The only character that ends a cell.
                cell.replace('|', "\\|")
            });
            let _ = writeln!(text, "| `{}` | {} |", key.name, cells.join(" | "));
        }
    }
    text.push_str("\n## Types\n\n| type | value |\n|---|---|\n");
    let sections = Probe::sections();
    let keys = sections.iter().flat_map(|section| &section.keys);
    let words: BTreeSet<_> = keys
        .filter_map(|key| match &key.allowed {
            Allowed::Words(words) => Some((type_name(words)?, words.clone())),
            Allowed::Enumeration(..) => None,
        })
        .collect();
    assert_eq!(words.len(), TYPES.len());
    for (name, _) in TYPES {
        let (_, words) = words.iter().find(|(of, _)| *of == name).expect("a type");
        let words = words.replace('*', "\\*");
        let _ = writeln!(text, "| {name} | {words} |");
    }
    text
}

/// The example with every key that is commented out there.
fn whole_example() -> String {
    let line = |line: &str| {
        let (indent, comment) = line.split_once("# ")?;
        let key = comment.trim_start().trim_start_matches("- ");
        let key = key.split_once(':')?.0;
        let is_key = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let is_key = !key.is_empty() && key.bytes().all(is_key);
        (indent.trim().is_empty() && is_key).then(|| format!("{indent}{comment}"))
    };
    let lines = EXAMPLE
        .lines()
        .map(|text| line(text).unwrap_or(text.to_owned()) + "\n");
    let files = [
        "cert",
        "key",
        "ca",
        "assets-cert",
        "assets-key",
        "clients-ca",
    ]
    .map(|name| format!("/etc/s3-proxy/{name}.pem"));
    let whole = lines.collect::<String>();
    files
        .iter()
        .fold(whole, |text, file| text.replace(file, "Cargo.toml"))
}

#[test]
fn the_example_names_every_key() {
    let root = document::parse(&whole_example(), &mut Vec::new());
    let root = root.ok().flatten().expect("YAML");
    let keys = Probe::keys();
    let mut named = BTreeSet::new();
    root.walk(&mut Vec::new(), &mut |path, _, value| {
        if matches!(value.kind, Kind::Scalar(_)) {
            let key = wording::key(path).replace("[0]", "[]");
            let key = key.strip_suffix("[]").unwrap_or(&key);
            // The user chooses the names in a map.
            let map = key.rsplit_once('.').map(|(map, _)| map);
            let map = map.filter(|map| keys.contains(*map));
            named.insert(map.unwrap_or(key).to_owned());
        }
    });
    assert_eq!(named, keys);
}

/// Leave the key out that stands in this line.
fn leave_out(node: &mut Node, line: usize) {
    match &mut node.kind {
        Kind::Section(entries) => {
            entries.retain(|entry| entry.place.line != line);
            entries
                .iter_mut()
                .for_each(|entry| leave_out(&mut entry.value, line));
        }
        Kind::List(items) => items.iter_mut().for_each(|item| leave_out(item, line)),
        _ => {}
    }
}

#[test]
fn what_the_example_calls_a_default_may_be_left_out() {
    let keys = tempfile::tempdir().expect("a folder");
    let key = test_support::TokenKey::es256();
    let whole = [
        ("jwks.json", format!("{{\"keys\": [{}]}}", key.jwk("a"))),
        ("jwt.pem", key.public_pem()),
        ("jwt.hmac", "0".repeat(32)),
    ]
    .into_iter()
    .fold(whole_example(), |whole, (name, content)| {
        let path = keys.path().join(name);
        std::fs::write(&path, content).expect("write a key");
        let path = format!("'{}'", path.display());
        whole.replace(&format!("/etc/s3-proxy/{name}"), &path)
    });
    let without = |line: usize| {
        let mut root = document::parse(&whole, &mut Vec::new()).ok().flatten();
        leave_out(root.as_mut().expect("YAML"), line);
        let env = |name: &str| Some(format!("value-of-{name}"));
        let root = root.as_mut().expect("YAML");
        let config = reader::read::<Config>(root, &env, &mut Vec::new());
        config.map(|config| config.to_yaml())
    };
    let expected = without(0);
    assert!(expected.is_some());
    let mut defaults = 0;
    for (index, line) in whole.lines().enumerate() {
        let comment = line.split_once("# default").map(|(_, comment)| comment);
        let is_default = match comment {
            Some(" on Linux") => cfg!(target_os = "linux"),
            Some(" in this section") => true,
            Some(comment) => comment.is_empty() || comment.starts_with(';'),
            None => false,
        };
        if is_default {
            defaults += 1;
            assert_eq!(without(index + 1), expected, "without {line}");
        }
    }
    assert!(defaults > 20, "{defaults}");
}

#[test]
fn the_reference_is_that_of_the_model() {
    let (introduction, written) = DOCUMENT.split_once(MARKER).expect("the marker");
    let reference = reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        std::fs::write(file, format!("{introduction}{MARKER}{reference}")).expect("a document");
        return;
    }
    for (written, generated) in written.lines().zip(reference.lines()) {
        assert_eq!(written, generated, "run with UPDATE_DOCS=1");
    }
    assert_eq!(written, reference, "run with UPDATE_DOCS=1");
}

#[test]
fn a_default_is_stated_in_words_only_where_none_can_be_printed() {
    let printed = printed_defaults();
    let mut stated = BTreeSet::new();
    for section in Probe::sections() {
        for key in &section.keys {
            let path = join(&section.path, &key.name);
            let default = Row::new(&section, key).default;
            if printed
                .get(&path)
                .is_some_and(|value| default != format!("`{value}`"))
            {
                stated.insert(path);
            }
        }
    }
    // The machine or another key decides on the first four; the others are in `LEAST`.
    let expected = [
        "server.threads",
        "server.upgrade_sock",
        "server.control_sock",
        "cache.disk.sendfile.enabled",
        "server.address",
        "server.tls.address",
        "server.tls.certificate",
        "server.tls.key",
        "server.tls.certificates[].certificate",
        "server.tls.certificates[].key",
        "buckets[].path_prefix",
        "buckets[].bucket",
        "buckets[].region",
        "buckets[].assume_role.role_arn",
        "cache.disk.paths[].path",
        "access_log.path",
        "traces.endpoint",
        "traces.headers[].name",
        "traces.headers[].secret",
    ];
    assert_eq!(stated, expected.map(str::to_owned).into());
}

#[test]
fn required_keys_are_those_that_have_no_default() {
    for path in required() {
        let sections = Probe::sections();
        let mut sections = sections.iter().rev();
        let (section, name) = path.rsplit_once('.').expect("a section");
        let section = sections.find(|of| of.path == section).expect("a section");
        let key = section.keys.iter().find(|key| key.name == name);
        let row = Row::new(section, key.expect("a key"));
        assert!(row.default.contains("required"), "{path}: {}", row.default);
    }
}

#[test]
fn configurations_in_documents_are_valid() {
    for document in [README, DOCUMENT] {
        let (_, example) = document.split_once("```yaml\n").expect("an example");
        let (example, _) = example.split_once("```").expect("its end");
        printed(example);
    }
}
