//! A proxy's own rules for the header of its responses.
//!
//! They apply when a response is sent. What is stored is the origin's response.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use http::header::VARY;
use http::{HeaderName, HeaderValue};
use pingora_core::Result;
use pingora_http::ResponseHeader;

/// The most conditional changes of a set of rules.
pub const MAX_RULES: usize = 64;

/// The rules of a part of a proxy, such as one of its sites.
#[derive(Debug, Default)]
pub struct FieldRules {
    /// For every response.
    always: FieldChanges,
    /// For the responses that a request selects.
    rules: Vec<FieldRule>,
    /// For the responses to a kind of request.
    variants: Vec<FieldChanges>,
    /// The first tag of the headers that are prepared by these rules: two for responses without a variant,
    /// and two for each variant.
    first_tag: u32,
}

/// Changes of some responses.
#[derive(Debug, Default)]
pub struct FieldRule {
    /// The changes.
    pub changes: FieldChanges,
    /// Responses with an error are changed too.
    pub of_errors: bool,
}

/// Changes of a header, in this order.
#[derive(Debug, Default)]
pub struct FieldChanges {
    /// Fields that are removed.
    pub remove: Vec<RemovedField>,
    /// Fields that take the place of others of their names.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields that are added to others of their names. A value of `Vary` that is there already is not
    /// added.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

/// Fields that are removed.
#[derive(Debug, PartialEq, Eq)]
pub enum RemovedField {
    /// Those with this name.
    Name(HeaderName),
    /// Those whose name begins with this, in lower case.
    Prefix(String),
}

/// The rules for the response to a request.
#[derive(Clone, Debug)]
pub struct ResponseFields {
    rules: Arc<FieldRules>,
    /// A bit for each of the rules that the request selects.
    selected: u64,
    variant: Option<u16>,
    /// The response is another form of the object, which has an entry of its own.
    is_coded: bool,
}

// === impl FieldRules ===

impl FieldRules {
    /// Rules that apply to every response, to those that a request selects, and to those of a variant.
    /// Further rules than [`MAX_RULES`] never apply.
    pub fn new(
        always: FieldChanges,
        rules: Vec<FieldRule>,
        variants: Vec<FieldChanges>,
    ) -> FieldRules {
        // Zero is the tag of a header without rules.
        static NEXT_TAG: AtomicU32 = AtomicU32::new(1);
        let tags = u32::from(u16::try_from(variants.len()).unwrap_or(u16::MAX));
        FieldRules {
            first_tag: NEXT_TAG.fetch_add(2 * (tags + 1), Ordering::Relaxed),
            always,
            rules,
            variants,
        }
    }
}

// === impl ResponseFields ===

impl ResponseFields {
    /// The rules for a response. `selected`: the indices of the rules that the request selects.
    pub fn new(
        rules: Arc<FieldRules>,
        selected: impl Iterator<Item = usize>,
        variant: Option<u16>,
    ) -> ResponseFields {
        let bits = selected.filter(|index| *index < MAX_RULES);
        let selected = bits.fold(0, |bits, index| bits | 1 << index);
        ResponseFields {
            rules,
            selected,
            variant,
            is_coded: false,
        }
    }

    /// Note that the proxy describes the response as another form of what was asked for. Prepared headers
    /// of the same entry that describe it as it is are not sent then.
    pub fn set_coded(&mut self) {
        self.is_coded = true;
    }

    /// The tag of prepared headers to which these rules were applied. The selected rules are not part of
    /// it: all responses with the same cache key must select the same ones.
    pub fn tag(&self) -> u32 {
        let variant = self.variant.map_or(0, |variant| u32::from(variant) + 1);
        let tag = 2 * variant + u32::from(self.is_coded);
        self.rules.first_tag.wrapping_add(tag)
    }

    /// Change the header of a response.
    ///
    /// # Errors
    /// The header has too many fields.
    pub fn apply(&self, response: &mut ResponseHeader) -> Result<()> {
        let is_error = response.status.is_client_error() || response.status.is_server_error();
        self.rules.always.apply(response)?;
        for (index, rule) in self.rules.rules.iter().enumerate().take(MAX_RULES) {
            if self.selected & (1 << index) != 0 && (rule.of_errors || !is_error) {
                rule.changes.apply(response)?;
            }
        }
        match self
            .variant
            .and_then(|variant| self.rules.variants.get(usize::from(variant)))
        {
            Some(changes) => changes.apply(response),
            None => Ok(()),
        }
    }
}

// === impl FieldChanges ===

impl FieldChanges {
    fn apply(&self, response: &mut ResponseHeader) -> Result<()> {
        for removed in &self.remove {
            removed.remove_from(response);
        }
        for (name, value) in &self.set {
            response.insert_header(name.clone(), value.clone())?;
        }
        for (name, value) in &self.add {
            if *name != VARY || !varies_by(response, value) {
                response.append_header(name.clone(), value.clone())?;
            }
        }
        Ok(())
    }
}

fn varies_by(response: &ResponseHeader, name: &HeaderValue) -> bool {
    let values = response.headers.get_all(VARY).iter();
    let mut members = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    members.any(|member| member.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
}

// === impl RemovedField ===

impl RemovedField {
    fn remove_from(&self, response: &mut ResponseHeader) {
        match self {
            RemovedField::Name(name) => {
                response.remove_header(name);
            }
            RemovedField::Prefix(prefix) => {
                let names = response.headers.keys();
                let begins = |name: &&HeaderName| name.as_str().starts_with(&**prefix);
                let names: Vec<_> = names.filter(begins).cloned().collect();
                for name in names {
                    response.remove_header(&name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::heads_for_tests::{response, text};

    fn field(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
        let name = HeaderName::from_static(name);
        (name, HeaderValue::from_static(value))
    }

    #[test]
    fn fields_are_removed_set_and_added() {
        let changes = FieldChanges {
            remove: vec![
                RemovedField::Name(HeaderName::from_static("server")),
                RemovedField::Prefix("x-amz-".to_owned()),
            ],
            set: vec![field("cache-control", "no-cache")],
            add: vec![field("link", "<b>"), field("vary", "Origin")],
        };
        let mut response = response(
            200,
            &[
                ("server", "S3"),
                ("x-amz-id-2", "a"),
                ("x-amz-meta-b", "c"),
                ("cache-control", "max-age=1"),
                ("link", "<a>"),
                ("vary", "accept-encoding, origin"),
                ("etag", "\"a\""),
            ],
        );
        changes.apply(&mut response).unwrap();
        assert_eq!(
            text(&response),
            "cache-control: no-cache, etag: \"a\", link: <a>, link: <b>, vary: accept-encoding, origin"
        );
    }

    #[test]
    fn a_request_selects_rules_and_a_variant() {
        let set = |value| FieldChanges {
            set: vec![field("x-rule", value)],
            ..FieldChanges::default()
        };
        let add = |value| FieldChanges {
            add: vec![field("x-add", value)],
            ..FieldChanges::default()
        };
        let rule = |changes, of_errors| FieldRule { changes, of_errors };
        let rules = Arc::new(FieldRules::new(
            set("all"),
            vec![rule(set("first"), false), rule(add("second"), true)],
            vec![add("variant")],
        ));
        let applied = |status, selected: &[usize], variant| {
            let selected = selected.iter().copied();
            let fields = ResponseFields::new(rules.clone(), selected, variant);
            let mut response = response(status, &[]);
            fields.apply(&mut response).unwrap();
            text(&response)
        };
        assert_eq!(applied(200, &[], None), "x-rule: all");
        assert_eq!(applied(206, &[0, 1], None), "x-add: second, x-rule: first");
        assert_eq!(applied(404, &[0, 1], None), "x-add: second, x-rule: all");
        assert_eq!(applied(503, &[0], Some(0)), "x-add: variant, x-rule: all");
        assert_eq!(applied(200, &[100], Some(7)), "x-rule: all");
    }

    #[test]
    fn headers_of_different_rules_have_different_tags() {
        let rules = || {
            let variants = vec![FieldChanges::default(), FieldChanges::default()];
            Arc::new(FieldRules::new(
                FieldChanges::default(),
                Vec::new(),
                variants,
            ))
        };
        let mut tags = vec![0];
        for rules in [rules(), rules()] {
            for variant in [None, Some(0), Some(1)] {
                let mut fields = ResponseFields::new(rules.clone(), std::iter::empty(), variant);
                tags.push(fields.tag());
                fields.set_coded();
                tags.push(fields.tag());
            }
        }
        let all = tags.len();
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), all);
    }
}
