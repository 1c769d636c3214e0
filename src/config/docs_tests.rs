//! The documents name every key of the model, and its default.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeSeed, IntoDeserializer, MapAccess};
use serde::forward_to_deserialize_any;

use super::*;

const EXAMPLE: &str = include_str!("../../config.yaml.example");
const README: &str = include_str!("../../README.md");

/// Every section, with no more than it must have.
const LEAST: &str = "\
server: {address: '127.0.0.1:0', tls: {address: '127.0.0.1:0', certificate: Cargo.toml, key: Cargo.toml}}
buckets: [{path_prefix: /assets, bucket: my-bucket, region: us-east-1, assume_role: {role_arn: 'arn:aws:iam::1:role/reader'}}]
cache: {range_fill: {}, memory: {}, disk: {path: c, sendfile: {}}, rules: [{}]}
";

fn printed(text: &str) -> String {
    let env = |name: &str| Some(format!("value-of-{name}"));
    let config = Config::parse(text, Path::new("proxy.yaml"), &env);
    let config = config.unwrap_or_else(|e| panic!("{text}\n{e}"));
    config.to_yaml()
}

/// The model as a source of its own keys: every value is a stand-in.
struct Probe<'a> {
    path: String,
    keys: &'a RefCell<BTreeSet<String>>,
}

// === impl Probe ===

impl Probe<'_> {
    fn keys() -> BTreeSet<String> {
        let keys = RefCell::default();
        let path = String::new();
        Config::deserialize(Probe { path, keys: &keys }).expect("stand-ins");
        keys.into_inner()
    }

    fn found(&self) {
        // A list of values is one key.
        let key = self.path.strip_suffix("[]").unwrap_or(&self.path);
        self.keys.borrow_mut().insert(key.to_owned());
    }
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.found();
        visitor.visit_unit()
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.found();
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
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.found();
        let first: StrDeserializer<Error> = variants[0].into_deserializer();
        visitor.visit_enum(first)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(One(Some(Probe {
            path: self.path + "[]",
            keys: self.keys,
        })))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(All {
            of: self,
            names: names.iter(),
            name: "",
        })
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct tuple tuple_struct map identifier ignored_any
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
        let section = &self.of.path;
        let dot = if section.is_empty() { "" } else { "." };
        seed.deserialize(Probe {
            path: format!("{section}{dot}{}", self.name),
            keys: self.of.keys,
        })
    }
}

/// The example with every key that is commented out there.
fn whole_example() -> String {
    let line = |line: &str| {
        let (indent, comment) = line.split_once("# ")?;
        let key = comment.trim_start().trim_start_matches("- ");
        let key = key.split_once(':')?.0;
        let is_key = !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        (indent.trim().is_empty() && is_key).then(|| format!("{indent}{comment}"))
    };
    let lines = EXAMPLE
        .lines()
        .map(|text| line(text).unwrap_or(text.to_owned()) + "\n");
    let files = ["cert", "key", "ca"].map(|name| format!("/etc/s3-proxy/{name}.pem"));
    let whole = lines.collect::<String>();
    files
        .iter()
        .fold(whole, |text, file| text.replace(file, "Cargo.toml"))
}

/// The keys of a table, each with what stands in the column for the default.
fn table() -> Vec<(String, String)> {
    let rows = README
        .lines()
        .skip_while(|line| !line.starts_with("| key | default |"));
    let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
    let mut keys = Vec::new();
    for row in rows {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let mut section = String::new();
        for name in cells[1].split('`').skip(1).step_by(2) {
            let name = match name.strip_prefix('.') {
                Some(name) => format!("{section}.{name}"),
                None => name.to_owned(),
            };
            section = name.rsplit_once('.').expect("a section").0.to_owned();
            let names = match name.split_once('{') {
                Some((section, names)) => {
                    let names = names.trim_end_matches('}').split(',');
                    names.map(|name| format!("{section}{name}")).collect()
                }
                None => vec![name],
            };
            keys.extend(names.into_iter().map(|name| (name, cells[2].to_owned())));
        }
    }
    keys
}

/// [`LEAST`] with one more key.
fn with(key: &str, value: &str) -> String {
    let (section, name) = key.rsplit_once('.').expect("a section");
    let section = section.rsplit('.').next().expect("a name");
    let start = match section.strip_suffix("[]") {
        Some(list) => format!("{list}: [{{"),
        None => format!("{section}: {{"),
    };
    assert_eq!(LEAST.matches(&start).count(), 1, "{key}");
    LEAST.replace(&start, &format!("{start}{name}: {value}, "))
}

#[test]
fn the_example_names_every_key() {
    let root = document::parse(&whole_example(), &mut Vec::new());
    let root = root.ok().flatten().expect("YAML");
    let mut named = BTreeSet::new();
    root.walk(&mut Vec::new(), &mut |path, _, value| {
        if matches!(value.kind, Kind::Scalar(_)) {
            let key = wording::key(path).replace("[0]", "[]");
            named.insert(key.strip_suffix("[]").unwrap_or(&key).to_owned());
        }
    });
    assert_eq!(named, Probe::keys());
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
fn the_table_names_every_key_once() {
    let table = table();
    let named: BTreeSet<_> = table.iter().map(|(key, _)| key.clone()).collect();
    assert_eq!(named, Probe::keys());
    assert_eq!(named.len(), table.len());
}

#[test]
fn a_default_in_the_table_is_the_one_that_holds() {
    let expected = printed(LEAST);
    let mut defaults = 0;
    for (key, default) in table() {
        let value = match default.split('`').collect::<Vec<_>>()[..] {
            ["", value, ""] => value,
            ["", value, " on Linux"] if cfg!(target_os = "linux") => value,
            _ => continue,
        };
        defaults += 1;
        let text = with(&key, value);
        assert_eq!(printed(&text), expected, "{text}");
        assert_ne!(text, LEAST);
    }
    assert!(defaults > 20, "{defaults}");
}

#[test]
fn what_the_table_calls_required_is() {
    let empty = "server: {tls: {}}\nbuckets: [{}]\ncache: {disk: {}}\nmetrics: {}\nadmin: {}";
    let error = Config::parse(empty, Path::new("proxy.yaml"), &|_| None).unwrap_err();
    let missing = error.mistakes().iter().map(|mistake| {
        assert!(mistake.to_string().contains(": is missing; "), "{mistake}");
        mistake.key().expect("a key").replace("[0]", "[]")
    });
    let missing: BTreeSet<_> = missing.collect();
    for (key, default) in table() {
        let in_optional_section = ["server.tls.", "metrics.", "admin."]
            .iter()
            .any(|section| key.starts_with(section));
        let required = match in_optional_section {
            true => default == "none",
            false => default.starts_with("required"),
        };
        assert_eq!(required, missing.contains(&key), "{key}: {default}");
    }
}
