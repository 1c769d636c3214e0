//! The header of responses: rules, security fields, and types by the endings of keys.

use std::ffi::OsStr;
use std::sync::Arc;

use globset::GlobMatcher;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue};
use pingora_core::Result;
use pingora_http::ResponseHeader;

use super::cors::Cors;
use crate::config;
use crate::http::response_fields::{
    FieldChanges, FieldRule, FieldRules, RemovedField, ResponseFields,
};

/// The fields of `security_headers`.
const SECURITY: [(&str, &str); 4] = [
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "SAMEORIGIN"),
    ("referrer-policy", "strict-origin-when-cross-origin"),
    ("x-permitted-cross-domain-policies", "none"),
];

/// The types that S3 and clients give to objects whose type nobody has stated.
const UNKNOWN_TYPES: [&[u8]; 2] = [b"binary/octet-stream", b"application/octet-stream"];

/// The rules of a bucket.
pub(super) struct Fields {
    rules: Arc<FieldRules>,
    /// The objects of each rule.
    keys: Vec<GlobMatcher>,
}

// === impl Fields ===

impl Fields {
    pub(super) fn new(bucket: &config::Bucket, cors: Option<&Cors>) -> Fields {
        let security = SECURITY.iter().filter(|_| bucket.security_headers);
        let always = FieldChanges {
            set: security
                .map(|(name, value)| {
                    (
                        HeaderName::from_static(name),
                        HeaderValue::from_static(value),
                    )
                })
                .collect(),
            add: cors.map_or(Vec::new(), Cors::always),
            ..FieldChanges::default()
        };
        let variants = cors.map_or(Vec::new(), Cors::variants);
        let rules = bucket.response_headers.iter();
        let keys = rules.clone().map(|rule| rule.key.compile_matcher());
        let rules = rules.clone().map(rule).collect();
        Fields {
            keys: keys.collect(),
            rules: Arc::new(FieldRules::new(always, rules, variants)),
        }
    }

    pub(super) fn of(&self, key: &str, variant: Option<u16>) -> ResponseFields {
        // A key is no path: dots and slashes are ordinary characters.
        let matches = |glob: &GlobMatcher| glob.is_match(OsStr::new(key));
        let keys = self.keys.iter().enumerate();
        let selected = keys.filter(|(_, glob)| matches(glob));
        let selected = selected.map(|(index, _)| index);
        ResponseFields::new(self.rules.clone(), selected, variant)
    }
}

fn rule(rule: &config::HeaderRule) -> FieldRule {
    let fields = |map: &[(config::ResponseField, config::FieldText)]| {
        let fields = map.iter();
        fields
            .map(|(name, value)| ((**name).clone(), (**value).clone()))
            .collect()
    };
    let removed = rule.remove.iter().filter_map(|pattern| {
        Some(match pattern.strip_suffix('*') {
            Some(beginning) => RemovedField::Prefix(beginning.to_owned()),
            None => RemovedField::Name(HeaderName::from_bytes(pattern.as_bytes()).ok()?),
        })
    });
    FieldRule {
        changes: FieldChanges {
            remove: removed.collect(),
            set: fields(&rule.set),
            add: fields(&rule.add),
        },
        of_errors: rule.errors,
    }
}

/// Replace a type that says nothing by that of the ending of a key.
pub(in crate::proxy) fn guess_type(key: &str, response: &mut ResponseHeader) -> Result<()> {
    let stated = response
        .headers
        .get(CONTENT_TYPE)
        .map(HeaderValue::as_bytes);
    let is_unknown = stated.is_none_or(|stated| {
        let essence = stated
            .split(|byte| *byte == b';')
            .next()
            .unwrap_or_default();
        let essence = essence.trim_ascii();
        UNKNOWN_TYPES
            .iter()
            .any(|unknown| essence.eq_ignore_ascii_case(unknown))
    });
    // To a path, a slash at the end is nothing.
    let guessed = mime_guess::from_path(key).first_raw();
    let guessed = guessed.filter(|_| !key.ends_with('/'));
    if let Some(guessed) = guessed.filter(|_| is_unknown) {
        // Texts of today are UTF-8; without it, browsers take an encoding of the user's region.
        let is_text = guessed.starts_with("text/");
        let value = match is_text && !guessed.contains(';') {
            true => format!("{guessed}; charset=utf-8"),
            false => guessed.to_owned(),
        };
        response.insert_header(CONTENT_TYPE, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guessed(key: &str, stated: Option<&str>) -> Option<String> {
        let mut header = ResponseHeader::build(200, None).unwrap();
        if let Some(stated) = stated {
            header.insert_header(CONTENT_TYPE, stated).unwrap();
        }
        guess_type(key, &mut header).unwrap();
        let found = header.headers.get(CONTENT_TYPE);
        found.map(|found| found.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_type_is_guessed_only_where_the_origin_states_none() {
        const UNKNOWN: Option<&str> = Some("binary/octet-stream");
        for (key, stated, expected) in [
            ("a.html", UNKNOWN, Some("text/html; charset=utf-8")),
            ("a.b/c.CSS", None, Some("text/css; charset=utf-8")),
            (
                "a.png",
                Some("Application/Octet-Stream; a=b"),
                Some("image/png"),
            ),
            ("a.json", UNKNOWN, Some("application/json")),
            ("a.html", Some("text/plain"), Some("text/plain")),
            ("a", UNKNOWN, UNKNOWN),
            ("a.unknown-ending", UNKNOWN, UNKNOWN),
            ("html", None, None),
            ("a.html/", UNKNOWN, UNKNOWN),
        ] {
            let found = guessed(key, stated);
            assert_eq!(found.as_deref(), expected, "{key} {stated:?}");
        }
    }
}
