//! Cache directives: of Cache-Control, and of the fields that target one kind of
//! cache.

use std::borrow::Cow;

use http::header::{HeaderMap, HeaderName, CACHE_CONTROL, PRAGMA};
use sfv::{BareItem, Dictionary, Item, ListEntry, Parser};

use super::fields::{is_tchar, members, trim_ows};

/// What delta-seconds too large to represent are taken for (RFC 9111 §1.2.2).
const MAX_SECONDS: u32 = 1 << 31;

/// Seconds of a directive that is present, at most 2^31 (delta-seconds, RFC 9111
/// §1.2.2).
pub type Seconds = Result<u32, InvalidSeconds>;

/// A directive is present, and its argument is no number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidSeconds;

/// What part of a response `no-cache` or `private` applies to (RFC 9111 §5.2.2.4
/// and §5.2.2.7).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    /// The directive is absent.
    #[default]
    Nothing,
    /// The fields it names; more than none, and no field twice.
    Fields(Vec<HeaderName>),
    /// The whole response: it names no fields, or what it names cannot be read.
    Everything,
}

/// Directives of a response (RFC 9111 §5.2.2, RFC 5861, RFC 8246).
///
/// A directive that takes no argument and has one is malformed. It counts where it
/// restricts the cache (`no-store`, `must-revalidate`, `proxy-revalidate`,
/// `no-transform`), and does not where it permits something (`public`, `immutable`,
/// `must-understand`, which cancels `no-store`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseDirectives {
    /// Seconds that the response is fresh (RFC 9111 §5.2.2.1).
    pub max_age: Option<Seconds>,
    /// The same for shared caches, which it tells to ignore `max-age` and Expires
    /// (RFC 9111 §5.2.2.10).
    pub s_maxage: Option<Seconds>,
    /// The response is not stored (RFC 9111 §5.2.2.5).
    pub no_store: bool,
    /// What is not used again without validation (RFC 9111 §5.2.2.4).
    pub no_cache: Scope,
    /// What a shared cache does not store (RFC 9111 §5.2.2.7).
    pub private: Scope,
    /// A shared cache may store the response where it otherwise must not (RFC 9111
    /// §5.2.2.9).
    pub public: bool,
    /// Never used stale (RFC 9111 §5.2.2.2).
    pub must_revalidate: bool,
    /// Never used stale by a shared cache (RFC 9111 §5.2.2.8).
    pub proxy_revalidate: bool,
    /// Stored, despite `no-store`, by a cache that knows the status and what it asks
    /// of caches (RFC 9111 §5.2.2.3).
    pub must_understand: bool,
    /// The content is left as it is (RFC 9111 §5.2.2.6).
    pub no_transform: bool,
    /// Does not change while it is fresh (RFC 8246 §2).
    pub immutable: bool,
    /// Seconds for which it may be used stale while it is validated (RFC 5861 §3).
    pub stale_while_revalidate: Option<Seconds>,
    /// Seconds for which it may be used stale if the origin fails (RFC 5861 §4).
    pub stale_if_error: Option<Seconds>,
}

/// Directives of a request (RFC 9111 §5.2.1, RFC 5861).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// No stored response without validation (RFC 9111 §5.2.1.4).
    pub no_cache: bool,
    /// Neither the request nor its response is stored (RFC 9111 §5.2.1.5).
    pub no_store: bool,
    /// A stored response or 504 (RFC 9111 §5.2.1.7).
    pub only_if_cached: bool,
    /// Seconds that a response may be old (RFC 9111 §5.2.1.1); 0 if the argument is
    /// invalid.
    pub max_age: Option<u32>,
    /// Seconds for which a response must stay fresh (RFC 9111 §5.2.1.3).
    pub min_fresh: Option<u32>,
    /// Seconds for which a response may have been stale (RFC 9111 §5.2.1.2);
    /// [`u32::MAX`] without an argument.
    pub max_stale: Option<u32>,
    /// Seconds for which a response may have been stale if the origin fails (RFC
    /// 5861 §4).
    pub stale_if_error: Option<u32>,
}

// === impl ResponseDirectives ===

impl ResponseDirectives {
    /// Reads all lines of Cache-Control; without any, no directive is present.
    ///
    /// Names are read in any case, arguments as token or as quoted string (RFC 9111
    /// §5.2). White space around `=` makes the argument invalid. Of several
    /// `max-age` and the like, the first decides (§4.2.1), even if it is invalid.
    /// A quoted string that does not end takes the rest of its line, and makes its
    /// directive's argument invalid.
    pub fn from_cache_control(headers: &HeaderMap) -> Self {
        let mut directives = Self::default();
        for (name, argument) in lines(headers, &CACHE_CONTROL) {
            with_lowercase(name, |name| match directives.seconds(name) {
                Some(seconds) => first(seconds, argument.seconds()),
                None => directives.add(name, &argument),
            });
        }
        directives
    }

    /// Reads a field of RFC 9213, such as CDN-Cache-Control: a dictionary of
    /// structured fields, whose parameters are ignored. None if the field is absent,
    /// empty, or no such dictionary: it then counts as absent (§2.1).
    ///
    /// Seconds that are no integer count as absent (§2.1), negative ones are
    /// invalid. Other directives are read as in Cache-Control, where `?0` is absent
    /// and `?1` is no argument. Of a directive that is repeated, the last counts
    /// (RFC 9651 §4.2.2).
    pub fn from_targeted(headers: &HeaderMap, name: &HeaderName) -> Option<Self> {
        let lines: Vec<_> = headers
            .get_all(name)
            .into_iter()
            .map(|line| line.as_bytes())
            .collect();
        let dictionary: Dictionary = Parser::new(&lines.join(&b", "[..])).parse().ok()?;
        if dictionary.is_empty() {
            return None;
        }
        let mut directives = Self::default();
        for (name, entry) in &dictionary {
            let value = match entry {
                ListEntry::Item(Item { bare_item, .. }) => Some(bare_item),
                ListEntry::InnerList(_) => None,
            };
            let name = name.as_str().as_bytes();
            if let Some(seconds) = directives.seconds(name) {
                if let Some(BareItem::Integer(integer)) = value {
                    *seconds = Some(from_integer(i64::from(*integer)));
                }
                continue;
            }
            let argument = match value {
                Some(BareItem::Boolean(false)) => continue,
                Some(BareItem::Boolean(true)) => Argument::Absent,
                Some(BareItem::String(string)) => Argument::of(string.as_str()),
                Some(BareItem::Token(token)) => Argument::of(token.as_str()),
                _ => Argument::Invalid,
            };
            directives.add(name, &argument);
        }
        Some(directives)
    }

    /// Where the seconds of a directive go, if it has any.
    fn seconds(&mut self, name: &[u8]) -> Option<&mut Option<Seconds>> {
        match name {
            b"max-age" => Some(&mut self.max_age),
            b"s-maxage" => Some(&mut self.s_maxage),
            b"stale-while-revalidate" => Some(&mut self.stale_while_revalidate),
            b"stale-if-error" => Some(&mut self.stale_if_error),
            _ => None,
        }
    }

    fn add(&mut self, name: &[u8], argument: &Argument) {
        match name {
            b"no-store" => self.no_store = true,
            b"no-cache" => self.no_cache.add(argument),
            b"private" => self.private.add(argument),
            b"must-revalidate" => self.must_revalidate = true,
            b"proxy-revalidate" => self.proxy_revalidate = true,
            b"no-transform" => self.no_transform = true,
            b"public" => self.public |= argument.is_absent(),
            b"must-understand" => self.must_understand |= argument.is_absent(),
            b"immutable" => self.immutable |= argument.is_absent(),
            _ => {}
        }
    }
}

// === impl RequestDirectives ===

impl RequestDirectives {
    /// Reads all lines of Cache-Control or, without any, of Pragma, whose `no-cache`
    /// means the same (RFC 9111 §5.4).
    ///
    /// The syntax is that of [`ResponseDirectives::from_cache_control`]. An invalid
    /// `max-age` is 0, other invalid seconds are ignored. `only-if-cached` counts
    /// only without an argument, `no-cache` and `no-store` with one, too.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let mut directives = Self::default();
        if !headers.contains_key(CACHE_CONTROL) {
            directives.no_cache =
                lines(headers, &PRAGMA).any(|(name, _)| name.eq_ignore_ascii_case(b"no-cache"));
            return directives;
        }
        let mut max_age = None;
        let mut min_fresh = None;
        let mut max_stale = None;
        let mut stale_if_error = None;
        for (name, argument) in lines(headers, &CACHE_CONTROL) {
            let seconds = argument.seconds();
            with_lowercase(name, |name| match name {
                b"no-cache" => directives.no_cache = true,
                b"no-store" => directives.no_store = true,
                b"only-if-cached" => directives.only_if_cached |= argument.is_absent(),
                b"max-age" => first(&mut max_age, seconds),
                b"min-fresh" => first(&mut min_fresh, seconds),
                b"max-stale" if argument.is_absent() => first(&mut max_stale, Ok(u32::MAX)),
                b"max-stale" => first(&mut max_stale, seconds),
                b"stale-if-error" => first(&mut stale_if_error, seconds),
                _ => {}
            });
        }
        directives.max_age = max_age.map(|seconds| seconds.unwrap_or(0));
        directives.min_fresh = min_fresh.and_then(Seconds::ok);
        directives.max_stale = max_stale.and_then(Seconds::ok);
        directives.stale_if_error = stale_if_error.and_then(Seconds::ok);
        directives
    }
}

// === impl Scope ===

impl Scope {
    fn add(&mut self, argument: &Argument) {
        let Some(names) = argument.field_names() else {
            *self = Self::Everything;
            return;
        };
        match self {
            Self::Nothing => {
                *self = Self::Fields(Vec::new());
                self.add(argument);
            }
            Self::Fields(fields) => {
                for name in names {
                    if !fields.contains(&name) {
                        fields.push(name);
                    }
                }
            }
            Self::Everything => {}
        }
    }
}

/// Of a directive that is repeated, the first decides (RFC 9111 §4.2.1).
fn first(decided: &mut Option<Seconds>, seconds: Seconds) {
    decided.get_or_insert(seconds);
}

/// Reads seconds; more than 2^31 are 2^31 (RFC 9111 §1.2.2).
pub(super) fn delta_seconds(digits: &[u8]) -> Seconds {
    if digits.is_empty() {
        return Err(InvalidSeconds);
    }
    digits.iter().try_fold(0u32, |seconds, digit| {
        if !digit.is_ascii_digit() {
            return Err(InvalidSeconds);
        }
        Ok(seconds
            .saturating_mul(10)
            .saturating_add(u32::from(digit - b'0'))
            .min(MAX_SECONDS))
    })
}

fn from_integer(seconds: i64) -> Seconds {
    match u64::try_from(seconds) {
        Ok(seconds) => Ok(u32::try_from(seconds).map_or(MAX_SECONDS, |s| s.min(MAX_SECONDS))),
        Err(_) => Err(InvalidSeconds),
    }
}

/// Longer than the name of any directive that is known.
const LONGEST_NAME: usize = 32;

/// Calls `read` with a directive's name in lower case, unless it is too long to be
/// known.
fn with_lowercase(name: &[u8], read: impl FnOnce(&[u8])) {
    let mut lowercase = [0; LONGEST_NAME];
    if let Some(lowercase) = lowercase.get_mut(..name.len()) {
        lowercase.copy_from_slice(name);
        lowercase.make_ascii_lowercase();
        read(lowercase);
    }
}

/// A directive's argument (RFC 9111 §5.2).
enum Argument<'a> {
    Absent,
    /// A token, or what a quoted string quotes.
    Value(Cow<'a, [u8]>),
    Invalid,
}

impl<'a> Argument<'a> {
    fn of(value: &'a str) -> Self {
        Self::Value(Cow::Borrowed(value.as_bytes()))
    }

    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    fn seconds(&self) -> Seconds {
        match self {
            Self::Value(value) => delta_seconds(value),
            Self::Absent | Self::Invalid => Err(InvalidSeconds),
        }
    }

    /// The fields of a list that names at least one, and nothing else.
    fn field_names(&self) -> Option<Vec<HeaderName>> {
        let Self::Value(value) = self else {
            return None;
        };
        let names: Vec<_> = members(value)
            .filter(|member| !member.is_empty())
            .map(|member| HeaderName::from_bytes(member).ok())
            .collect::<Option<_>>()?;
        (!names.is_empty()).then_some(names)
    }
}

/// The directives of all lines of a field.
///
/// Each line is read by itself: what a quoted string that does not end hides is on
/// its own line.
fn lines<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = Directive<'a>> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| Directives(line.as_bytes()))
}

type Directive<'a> = (&'a [u8], Argument<'a>);

/// What is left to read of a line.
struct Directives<'a>(&'a [u8]);

impl<'a> Iterator for Directives<'a> {
    type Item = Directive<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.0.is_empty() {
            self.skip_ows();
            let name = self.take_until(|byte| !is_tchar(byte));
            if !name.is_empty() {
                return Some((name, self.argument()));
            }
            self.take_member();
        }
        None
    }
}

impl<'a> Directives<'a> {
    /// Reads up to the end of the directive, its comma included.
    fn argument(&mut self) -> Argument<'a> {
        let spaced = self.skip_ows();
        if self.0.first() != Some(&b'=') {
            return match self.take_member() {
                [] => Argument::Absent,
                _ => Argument::Invalid,
            };
        }
        self.0 = &self.0[1..];
        let spaced = self.skip_ows() || spaced;
        // Elsewhere a quote opens nothing: a stray one shall not hide a `no-store`.
        let value = if self.0.first() == Some(&b'"') {
            self.0 = &self.0[1..];
            let quoted = self.quoted_string();
            quoted.filter(|_| self.take_member().is_empty())
        } else {
            let token = self.take_member();
            let valid = !token.is_empty() && token.iter().copied().all(is_tchar);
            valid.then_some(Cow::Borrowed(token))
        };
        match value {
            Some(value) if !spaced => Argument::Value(value),
            _ => Argument::Invalid,
        }
    }

    /// Reads what follows an opening quote; None if no closing one does (RFC 9110
    /// §5.6.4).
    fn quoted_string(&mut self) -> Option<Cow<'a, [u8]>> {
        let mut value = Cow::Borrowed(&[][..]);
        loop {
            let text = self.take_until(|byte| byte == b'"' || byte == b'\\');
            match &mut value {
                Cow::Borrowed([]) => value = Cow::Borrowed(text),
                value => value.to_mut().extend_from_slice(text),
            }
            match self.0 {
                [b'"', rest @ ..] => {
                    self.0 = rest;
                    return Some(value);
                }
                [_, escaped, rest @ ..] => {
                    value.to_mut().push(*escaped);
                    self.0 = rest;
                }
                _ => {
                    self.0 = &[];
                    return None;
                }
            }
        }
    }

    /// Reads past the next comma, and returns what comes before it.
    fn take_member(&mut self) -> &'a [u8] {
        let member = self.take_until(|byte| byte == b',');
        self.0 = self.0.get(1..).unwrap_or_default();
        trim_ows(member)
    }

    fn take_until(&mut self, end: impl Fn(u8) -> bool) -> &'a [u8] {
        let at = self.0.iter().position(|&byte| end(byte));
        let (head, rest) = self.0.split_at(at.unwrap_or(self.0.len()));
        self.0 = rest;
        head
    }

    /// Whether there was white space.
    fn skip_ows(&mut self) -> bool {
        !self
            .take_until(|byte| byte != b' ' && byte != b'\t')
            .is_empty()
    }
}
