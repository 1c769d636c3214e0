//! Cache directives: those of Cache-Control, and of fields that target one kind of cache.

use std::borrow::Cow;

use http::header::{HeaderMap, HeaderName, CACHE_CONTROL, PRAGMA};
use sfv::{BareItem, Dictionary, Item, ListEntry, Parser};

use super::fields::{is_tchar, members, trim_ows};

/// The value of delta-seconds that are too large to represent (RFC 9111 §1.2.2).
const MAX_SECONDS: u32 = 1 << 31;

/// Seconds of a directive that is present, at most 2^31 (delta-seconds, RFC 9111
/// §1.2.2).
pub type Seconds = Result<u32, InvalidSeconds>;

/// The error of a directive whose argument is not a number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidSeconds;

/// The part of a response to which `no-cache` or `private` applies (RFC 9111 §5.2.2.4 and
/// §5.2.2.7).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    /// The directive is absent.
    #[default]
    Nothing,
    /// The fields that the directive names. There is at least one; a field may be repeated.
    Fields(Vec<HeaderName>),
    /// The whole response: the directive names no fields, or names that cannot be parsed.
    Everything,
}

/// Directives of a response (RFC 9111 §5.2.2, RFC 5861, RFC 8246).
///
/// A directive that takes no argument and has one is malformed. It counts if it restricts the cache
/// (`no-store`, `must-revalidate`, `proxy-revalidate`, `no-transform`). It is ignored if it permits
/// something (`public`, `immutable`, and `must-understand`, which cancels `no-store`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseDirectives {
    /// Seconds for which the response is fresh (RFC 9111 §5.2.2.1).
    pub max_age: Option<Seconds>,
    /// The same for shared caches. It overrides `max-age` and Expires (RFC 9111 §5.2.2.10).
    pub s_maxage: Option<Seconds>,
    /// The response is not stored (RFC 9111 §5.2.2.5).
    pub no_store: bool,
    /// The part that is not reused without validation (RFC 9111 §5.2.2.4).
    pub no_cache: Scope,
    /// The part that a shared cache does not store (RFC 9111 §5.2.2.7).
    pub private: Scope,
    /// A shared cache may store the response even if it otherwise must not (RFC 9111 §5.2.2.9).
    pub public: bool,
    /// The response is never used stale (RFC 9111 §5.2.2.2).
    pub must_revalidate: bool,
    /// The response is never used stale by a shared cache (RFC 9111 §5.2.2.8).
    pub proxy_revalidate: bool,
    /// The response is stored in spite of `no-store` by a cache that implements the caching rules
    /// of its status (RFC 9111 §5.2.2.3).
    pub must_understand: bool,
    /// The content must not be transformed (RFC 9111 §5.2.2.6).
    pub no_transform: bool,
    /// The response does not change while it is fresh (RFC 8246 §2).
    pub immutable: bool,
    /// Seconds for which the response may be used stale while it is validated (RFC 5861 §3).
    pub stale_while_revalidate: Option<Seconds>,
    /// Seconds for which the response may be used stale if the origin fails (RFC 5861 §4).
    pub stale_if_error: Option<Seconds>,
}

/// Directives of a request (RFC 9111 §5.2.1, RFC 5861).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// The client accepts no stored response without validation (RFC 9111 §5.2.1.4).
    pub no_cache: bool,
    /// Neither the request nor its response is stored (RFC 9111 §5.2.1.5).
    pub no_store: bool,
    /// The client accepts a stored response or 504 (RFC 9111 §5.2.1.7).
    pub only_if_cached: bool,
    /// The greatest acceptable age in seconds (RFC 9111 §5.2.1.1); 0 if the argument is invalid.
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

/// The directives of a request that has none.
pub const NO_DIRECTIVES: RequestDirectives = RequestDirectives {
    no_cache: false,
    no_store: false,
    only_if_cached: false,
    max_age: None,
    min_fresh: None,
    max_stale: None,
    stale_if_error: None,
};

// === impl ResponseDirectives ===

impl ResponseDirectives {
    /// Read all lines of Cache-Control. Without any, no directive is present.
    ///
    /// Names are matched in any case; arguments are tokens or quoted strings (RFC 9111 §5.2). White
    /// space around `=` makes the argument invalid. If `max-age` or a similar directive is
    /// repeated, the first one decides, even if it is invalid (§4.2.1). A quoted string without an
    /// end takes the remainder of its line, and makes the argument invalid.
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

    /// Read a field of RFC 9213, such as CDN-Cache-Control: a dictionary of structured fields,
    /// whose parameters are ignored. None if the field is absent, empty, or no such dictionary; it
    /// then counts as absent (§2.1).
    ///
    /// Seconds that are no integer count as absent (§2.1), negative ones as invalid. Other
    /// directives are read as in Cache-Control; `?0` means absent, and `?1` means present without
    /// an argument. If a directive is repeated, the last one counts (RFC 9651 §4.2.2).
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

    /// The field for the seconds of a directive, if it has any.
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
    /// Read all lines of Cache-Control or, if there are none, of Pragma, whose `no-cache` means the
    /// same (RFC 9111 §5.4).
    ///
    /// The syntax is that of [`ResponseDirectives::from_cache_control`]. An invalid `max-age` is 0;
    /// other invalid seconds are ignored. `only-if-cached` counts only without an argument;
    /// `no-cache` and `no-store` also count with one.
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
            Self::Nothing => *self = Self::Fields(names),
            Self::Fields(fields) => fields.extend(names),
            Self::Everything => {}
        }
    }
}

/// Note the seconds of a directive. If it is repeated, the first one decides (RFC 9111 §4.2.1).
fn first(decided: &mut Option<Seconds>, seconds: Seconds) {
    decided.get_or_insert(seconds);
}

/// Read seconds. More than 2^31 are 2^31 (RFC 9111 §1.2.2).
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

/// Longer than the name of any known directive.
const LONGEST_NAME: usize = 32;

/// Call `read` with the name of a directive in lower case, unless it is too long to be known.
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
    /// A token, or the content of a quoted string.
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

    /// The fields of a list that has at least one name, and nothing else.
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
/// Each line is parsed separately: a quoted string without an end hides only the remainder of its
/// line.
fn lines<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = Directive<'a>> {
    headers
        .get_all(name)
        .into_iter()
        .flat_map(|line| Directives(line.as_bytes()))
}

type Directive<'a> = (&'a [u8], Argument<'a>);

/// The remainder of a line.
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
    /// Read up to the end of the directive, including its comma.
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
        // A quote elsewhere opens no string. Otherwise a stray one could hide a `no-store`.
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

    /// Read a quoted string behind its opening quote. None if it has no closing one (RFC 9110
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

    /// Read past the next comma, and return the text before it.
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

    /// Skip white space. True if there was any.
    fn skip_ows(&mut self) -> bool {
        !self
            .take_until(|byte| byte != b' ' && byte != b'\t')
            .is_empty()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const INVALID: Option<Seconds> = Some(Err(InvalidSeconds));

    const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

    fn headers(name: &HeaderName, lines: &[&str]) -> HeaderMap {
        lines
            .iter()
            .map(|line| {
                (
                    name.clone(),
                    HeaderValue::from_bytes(line.as_bytes()).unwrap(),
                )
            })
            .collect()
    }

    fn of(lines: &[&str]) -> ResponseDirectives {
        ResponseDirectives::from_cache_control(&headers(&CACHE_CONTROL, lines))
    }

    fn targeted(lines: &[&str]) -> Option<ResponseDirectives> {
        let headers = headers(&CDN_CACHE_CONTROL, lines);
        ResponseDirectives::from_targeted(&headers, &CDN_CACHE_CONTROL)
    }

    fn request(lines: &[&str]) -> RequestDirectives {
        RequestDirectives::from_headers(&headers(&CACHE_CONTROL, lines))
    }

    fn fields(names: &[&'static str]) -> Scope {
        Scope::Fields(names.iter().copied().map(HeaderName::from_static).collect())
    }

    fn everything() -> ResponseDirectives {
        ResponseDirectives {
            max_age: Some(Ok(1)),
            s_maxage: Some(Ok(2)),
            no_store: true,
            no_cache: Scope::Everything,
            private: fields(&["set-cookie"]),
            public: true,
            must_revalidate: true,
            proxy_revalidate: true,
            must_understand: true,
            no_transform: true,
            immutable: true,
            stale_while_revalidate: Some(Ok(3)),
            stale_if_error: Some(Ok(4)),
        }
    }

    #[test]
    fn each_directive_is_known() {
        // RFC 9111 §5.2.2, RFC 5861 §3 and §4, RFC 8246 §2
        let line = "max-age=1, s-maxage=2, no-store, no-cache, private=\"set-cookie\", public, \
                    must-revalidate, proxy-revalidate, must-understand, no-transform, immutable, \
                    stale-while-revalidate=3, stale-if-error=4";
        assert_eq!(of(&[line]), everything());
    }

    #[test]
    fn without_cache_control_no_directive_is_present() {
        for lines in [&[][..], &[""], &[" , ,"]] {
            assert_eq!(of(lines), ResponseDirectives::default(), "{lines:?}");
        }
    }

    #[test]
    fn names_are_case_insensitive() {
        // RFC 9111 §5.2
        let directives = of(&["MAX-AGE=5, No-Store, PRIVATE"]);
        assert_eq!(directives.max_age, Some(Ok(5)));
        assert!(directives.no_store);
        assert_eq!(directives.private, Scope::Everything);
    }

    #[test]
    fn unknown_directives_are_ignored() {
        // RFC 9111 §5.2.3
        for line in [
            "max-age=5, community=\"UCI\"",
            "community=UCI, max-age=5",
            "max-agex=1, xmax-age=2, max-age=5",
            "max=1, age=2, max-age=5",
            "a-directive-whose-name-is-longer-than-any-that-is-known=1, max-age=5",
            "=1, max-age=5",
            "\"x\", max-age=5",
            "(x), max-age=5",
        ] {
            let expected = ResponseDirectives {
                max_age: Some(Ok(5)),
                ..Default::default()
            };
            assert_eq!(of(&[line]), expected, "{line}");
        }
    }

    #[test]
    fn all_lines_count() {
        // RFC 9110 §5.3
        let directives = of(&["max-age=5", "no-store", "", "private"]);
        assert_eq!(directives.max_age, Some(Ok(5)));
        assert!(directives.no_store);
        assert_eq!(directives.private, Scope::Everything);
    }

    #[test]
    fn white_space_and_empty_elements_of_the_list_are_ignored() {
        // RFC 9110 §5.6.1.2
        for line in [
            "no-store,max-age=5",
            " no-store\t,\t max-age=5 ",
            ",, no-store , ,max-age=5,",
        ] {
            let directives = of(&[line]);
            assert!(directives.no_store, "{line}");
            assert_eq!(directives.max_age, Some(Ok(5)), "{line}");
        }
    }

    #[test]
    fn seconds_are_digits_quoted_or_not() {
        // RFC 9111 §1.2.2 and §5.2
        for (argument, expected) in [
            ("=0", Some(Ok(0))),
            ("=3600", Some(Ok(3600))),
            ("=\"3600\"", Some(Ok(3600))),
            ("=\"36\\00\"", Some(Ok(3600))),
            ("=0003600", Some(Ok(3600))),
            ("", INVALID),
            ("=", INVALID),
            ("=\"\"", INVALID),
            ("=-1", INVALID),
            ("=\"-1\"", INVALID),
            ("=+1", INVALID),
            ("=1.5", INVALID),
            ("=1e3", INVALID),
            ("=0x10", INVALID),
            ("=10s", INVALID),
            ("=a10", INVALID),
            ("='10'", INVALID),
            ("=\" 10\"", INVALID),
            ("=1 0", INVALID),
            ("=10;a=b", INVALID),
            ("=\"10\"x", INVALID),
            ("=1\"0\"", INVALID),
            ("==10", INVALID),
            (" 10", INVALID),
        ] {
            assert_eq!(
                of(&[&format!("max-age{argument}")]).max_age,
                expected,
                "{argument}"
            );
            let directives = of(&[&format!("s-maxage{argument}, public")]);
            assert_eq!(directives.s_maxage, expected, "{argument}");
            assert!(directives.public, "{argument}");
        }
    }

    #[test]
    fn seconds_are_capped() {
        // RFC 9111 §1.2.2
        for digits in [
            "2147483648",
            "2147483649",
            "4294967296",
            "99999999999999999999999",
        ] {
            assert_eq!(
                of(&[&format!("max-age={digits}")]).max_age,
                Some(Ok(1 << 31)),
                "{digits}"
            );
        }
        assert_eq!(of(&["max-age=2147483647"]).max_age, Some(Ok((1 << 31) - 1)));
    }

    #[test]
    fn white_space_around_the_equals_sign_makes_seconds_invalid() {
        // RFC 9111 §5.2: cache-directive has none.
        for line in [
            "max-age =10, public",
            "max-age= 10, public",
            "max-age\t=\t10, public",
            "max-age= \"10\", public",
            "max-age= \"10, no-store\", public",
        ] {
            let expected = ResponseDirectives {
                max_age: INVALID,
                public: true,
                ..Default::default()
            };
            assert_eq!(of(&[line]), expected, "{line}");
        }
    }

    #[test]
    fn the_first_of_repeated_seconds_decides() {
        // RFC 9111 §4.2.1
        for (lines, expected) in [
            (&["max-age=1, max-age=2"][..], Some(Ok(1))),
            (&["max-age=1", "max-age=2"], Some(Ok(1))),
            (&["max-age=2, max-age=1"], Some(Ok(2))),
            (&["max-age=x, max-age=1"], INVALID),
            (&["max-age, max-age=1"], INVALID),
            (&["max-age=1, max-age=x"], Some(Ok(1))),
        ] {
            assert_eq!(of(lines).max_age, expected, "{lines:?}");
        }
    }

    #[test]
    fn nothing_inside_a_quoted_string_is_a_directive() {
        // RFC 9110 §5.6.4
        for line in [
            "ext=\"max-age=100, no-store\", max-age=1",
            "ext=\"a\\\", no-store, max-age=100\", max-age=1",
            "ext=\"a\\\\\", max-age=1",
            "max-age=1, ext=\",\"",
            "ext= \"max-age=100, no-store\", max-age=1",
        ] {
            let expected = ResponseDirectives {
                max_age: Some(Ok(1)),
                ..Default::default()
            };
            assert_eq!(of(&[line]), expected, "{line}");
        }
    }

    #[test]
    fn a_quoted_string_that_does_not_end_takes_the_rest_of_its_line() {
        for (lines, max_age, no_store) in [
            (&["max-age=1, ext=\"a, no-store"][..], Some(Ok(1)), false),
            (&["max-age=\"1"], INVALID, false),
            (&["max-age=\"1, no-store"], INVALID, false),
            (&["max-age=\"1\\"], INVALID, false),
            (&["max-age=\"1\\\", no-store"], INVALID, false),
            (&["ext=\"a", "no-store"], None, true),
        ] {
            let directives = of(lines);
            assert_eq!(directives.max_age, max_age, "{lines:?}");
            assert_eq!(directives.no_store, no_store, "{lines:?}");
        }
    }

    #[test]
    fn a_stray_quote_hides_nothing() {
        for line in [
            "max-age=1\", no-store",
            "max-age\", no-store",
            "\", no-store",
            "ext=\"a\"\", no-store",
        ] {
            assert!(of(&[line]).no_store, "{line}");
        }
    }

    #[test]
    fn restrictive_directives_count_with_an_argument() {
        for argument in ["=", "=foo", "=\"foo\"", "=\"foo", " =foo", " foo", "; foo"] {
            for name in [
                "no-store",
                "must-revalidate",
                "proxy-revalidate",
                "no-transform",
            ] {
                let line = format!("{name}{argument}");
                let directives = of(&[&line]);
                let counts = [
                    directives.no_store,
                    directives.must_revalidate,
                    directives.proxy_revalidate,
                    directives.no_transform,
                ];
                assert_eq!(counts.iter().filter(|&&counts| counts).count(), 1, "{line}");
            }
        }
    }

    #[test]
    fn permissive_directives_do_not_count_with_an_argument() {
        for argument in ["=", "=foo", "=\"foo\"", "=\"foo", " =foo", " foo", "; foo"] {
            for name in ["public", "immutable", "must-understand"] {
                let line = format!("{name}{argument}");
                assert_eq!(of(&[&line]), ResponseDirectives::default(), "{line}");
            }
        }
        assert!(of(&["public, public=foo"]).public);
    }

    #[test]
    fn no_cache_and_private_may_name_fields() {
        // RFC 9111 §5.2.2.4 and §5.2.2.7
        for (argument, expected) in [
            ("=\"Set-Cookie\"", fields(&["set-cookie"])),
            ("=Set-Cookie", fields(&["set-cookie"])),
            ("=\"a, B\tc\"", Scope::Everything),
            ("=\"a,b , c\"", fields(&["a", "b", "c"])),
            ("=\",a,,\"", fields(&["a"])),
            ("=\"a, A\"", fields(&["a", "a"])),
            ("=\"\\a\"", fields(&["a"])),
            ("", Scope::Everything),
            ("=", Scope::Everything),
            ("=\"\"", Scope::Everything),
            ("=\" , \"", Scope::Everything),
            ("=\"a b\"", Scope::Everything),
            ("=\"a, (b)\"", Scope::Everything),
            ("=\"a", Scope::Everything),
            ("= \"a\"", Scope::Everything),
            (" =\"a\"", Scope::Everything),
            ("=\"a\"b", Scope::Everything),
            ("=a b", Scope::Everything),
            ("; a", Scope::Everything),
            ("=\"\u{e4}\"", Scope::Everything),
        ] {
            let directives = of(&[&format!("no-cache{argument}")]);
            assert_eq!(directives.no_cache, expected, "{argument}");
            let directives = of(&[&format!("private{argument}")]);
            assert_eq!(directives.private, expected, "{argument}");
        }
    }

    #[test]
    fn of_repeated_scopes_the_widest_counts() {
        // RFC 9111 §4.2.1: the most restrictive.
        for (lines, expected) in [
            (&["private, private=\"a\""][..], Scope::Everything),
            (&["private=\"a\", private"], Scope::Everything),
            (&["private=\"a\"", "private=\"\""], Scope::Everything),
            (
                &["private=\"a\", private=\"b, a\""],
                fields(&["a", "b", "a"]),
            ),
        ] {
            assert_eq!(of(lines).private, expected, "{lines:?}");
        }
    }

    #[test]
    fn bytes_beyond_ascii_are_read_over() {
        // obs-text, RFC 9110 §5.5
        let line = HeaderValue::from_bytes(b"\xff, ext=\"\xe4\", no-store, max-age=\xb2").unwrap();
        let directives =
            ResponseDirectives::from_cache_control(&HeaderMap::from_iter([(CACHE_CONTROL, line)]));
        assert!(directives.no_store);
        assert_eq!(directives.max_age, INVALID);
    }

    #[test]
    fn a_targeted_field_knows_each_directive() {
        // RFC 9213 §2.1
        let line = "max-age=1, s-maxage=2, no-store, no-cache, private=\"set-cookie\", public, \
                    must-revalidate, proxy-revalidate, must-understand, no-transform, immutable, \
                    stale-while-revalidate=3, stale-if-error=4";
        assert_eq!(targeted(&[line]), Some(everything()));
    }

    #[test]
    fn a_targeted_field_that_is_absent_empty_or_invalid_counts_as_absent() {
        // RFC 9213 §2.1
        for lines in [
            &[][..],
            &[""],
            &["  "],
            &["max-age=10,"],
            &["max-age=10,,no-store"],
            &["MAX-AGE=10"],
            &["max-age = 10"],
            &["max-age=10 public"],
            &["max-age=\"10"],
            &["max-age=1234567890123456"],
            &["max-age='10'"],
            &["max-age=10", "&"],
            &["max-age=10, x=\u{e4}"],
            &["a=(1 2"],
        ] {
            assert_eq!(targeted(lines), None, "{lines:?}");
        }
    }

    #[test]
    fn a_targeted_field_of_unknown_directives_is_present() {
        // RFC 9213 §2.2
        assert_eq!(
            targeted(&["foo, bar=(a b);c"]),
            Some(ResponseDirectives::default())
        );
    }

    #[test]
    fn seconds_of_a_targeted_field_are_integers() {
        // RFC 9213 §2.1
        for (value, expected) in [
            ("=0", Some(Ok(0))),
            ("=10", Some(Ok(10))),
            ("=010", Some(Ok(10))),
            ("=10;a=b;c", Some(Ok(10))),
            ("=999999999999999", Some(Ok(1 << 31))),
            ("=3000000000", Some(Ok(1 << 31))),
            ("=-1", INVALID),
            ("=-999999999999999", INVALID),
            ("=10.0", None),
            ("=\"10\"", None),
            ("=ten", None),
            ("=?1", None),
            ("=?0", None),
            ("=(10)", None),
            ("=@10", None),
            ("", None),
        ] {
            let directives = targeted(&[&format!("public, max-age{value}")]).unwrap();
            assert_eq!(directives.max_age, expected, "{value}");
            assert!(directives.public, "{value}");
        }
    }

    #[test]
    fn the_last_of_a_repeated_directive_counts_in_a_targeted_field() {
        // RFC 9651 §4.2.2
        for (lines, expected) in [
            (&["max-age=1, max-age=2"][..], Some(Ok(2))),
            (&["max-age=1", "max-age=2"], Some(Ok(2))),
            (&["max-age=1, max-age=x"], None),
        ] {
            assert_eq!(targeted(lines).unwrap().max_age, expected, "{lines:?}");
        }
    }

    #[test]
    fn a_false_directive_of_a_targeted_field_is_absent() {
        // RFC 9213 §2.1: no-store always has a Boolean true value.
        let line = "no-store=?0, no-cache=?0, private=?0, public=?0, must-revalidate=?0";
        assert_eq!(targeted(&[line]), Some(ResponseDirectives::default()));
        let directives = targeted(&["no-store=?1, private=?1, public=?1"]).unwrap();
        assert!(directives.no_store && directives.public);
        assert_eq!(directives.private, Scope::Everything);
    }

    #[test]
    fn in_a_targeted_field_a_value_of_the_wrong_type_restricts() {
        for value in ["=1", "=x", "=\"x\"", "=(x)", "=1.5", "=:eA==:"] {
            let line = format!("no-store{value}, public{value}, must-understand{value}");
            let directives = targeted(&[&line]).unwrap();
            assert!(directives.no_store, "{line}");
            assert!(!directives.public && !directives.must_understand, "{line}");
        }
        for (value, expected) in [
            ("=\"a, b\"", fields(&["a", "b"])),
            ("=a", fields(&["a"])),
            ("=1", Scope::Everything),
            ("=(a b)", Scope::Everything),
            ("=\"\"", Scope::Everything),
        ] {
            let directives = targeted(&[&format!("private{value}")]).unwrap();
            assert_eq!(directives.private, expected, "{value}");
        }
    }

    #[test]
    fn each_request_directive_is_known() {
        // RFC 9111 §5.2.1, RFC 5861 §4
        let line = "no-cache, no-store, only-if-cached, max-age=1, min-fresh=2, max-stale=3, \
                    stale-if-error=\"4\"";
        let expected = RequestDirectives {
            no_cache: true,
            no_store: true,
            only_if_cached: true,
            max_age: Some(1),
            min_fresh: Some(2),
            max_stale: Some(3),
            stale_if_error: Some(4),
        };
        assert_eq!(request(&[line]), expected);
        assert_eq!(request(&[]), RequestDirectives::default());
    }

    #[test]
    fn max_stale_without_an_argument_is_without_limit() {
        // RFC 9111 §5.2.1.2
        for (value, expected) in [
            ("", Some(u32::MAX)),
            ("=5", Some(5)),
            ("=", None),
            ("=x", None),
            (" =5", None),
        ] {
            assert_eq!(
                request(&[&format!("max-stale{value}")]).max_stale,
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn invalid_seconds_of_a_request_ask_for_the_most_or_for_nothing() {
        for value in ["", "=", "=x", "=-1", "=1.5"] {
            let line = format!("max-age{value}, min-fresh{value}, stale-if-error{value}");
            let expected = RequestDirectives {
                max_age: Some(0),
                ..Default::default()
            };
            assert_eq!(request(&[&line]), expected, "{line}");
        }
    }

    #[test]
    fn the_first_of_repeated_seconds_of_a_request_decides() {
        assert_eq!(request(&["max-age=1, max-age=2"]).max_age, Some(1));
        assert_eq!(
            request(&["max-stale", "max-stale=2"]).max_stale,
            Some(u32::MAX)
        );
    }

    #[test]
    fn of_a_request_no_cache_and_no_store_count_with_an_argument() {
        let directives = request(&["no-cache=x, no-store=\"y\", only-if-cached=z"]);
        assert!(directives.no_cache && directives.no_store && !directives.only_if_cached);
    }

    #[test]
    fn pragma_counts_without_cache_control() {
        // RFC 9111 §5.4
        for (pragma, cache_control, expected) in [
            ("no-cache", None, true),
            ("No-Cache", None, true),
            ("foo, no-cache", None, true),
            ("foo=\"no-cache\"", None, false),
            ("no-store", None, false),
            ("no-cache", Some("max-age=1"), false),
            ("no-cache", Some(""), false),
        ] {
            let mut headers = headers(&PRAGMA, &[pragma]);
            if let Some(line) = cache_control {
                headers.insert(CACHE_CONTROL, HeaderValue::from_static(line));
            }
            let no_cache = RequestDirectives::from_headers(&headers).no_cache;
            assert_eq!(no_cache, expected, "{pragma} {cache_control:?}");
        }
    }
}
