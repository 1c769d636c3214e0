//! Permission for scripts of other websites (CORS).
//!
//! Source: "Fetch" (WHATWG), section 3.2.

use http::header::{
    HeaderName, HeaderValue, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    VARY,
};
use http::HeaderMap;

use crate::config::{self, CorsMethod};
use crate::http::response_fields::FieldChanges;

/// The response fields that scripts may read by default: those of an object that need a permission.
const EXPOSED: &str = "Accept-Ranges, Content-Encoding, Content-Range, ETag";

/// The longest list of fields that a script may ask for, in bytes.
const MAX_ASKED: usize = 4096;

type Field = (HeaderName, HeaderValue);

/// The permissions of a bucket.
pub(in crate::proxy) struct Cors {
    /// The websites whose scripts may read; `None`: all.
    origins: Option<Vec<HeaderValue>>,
    methods: HeaderValue,
    allows_get: bool,
    allows_head: bool,
    /// The request fields that scripts may set, in lower case; empty: any.
    headers: Vec<String>,
    exposed: HeaderValue,
    max_age: HeaderValue,
    credentials: bool,
}

// === impl Cors ===

impl Cors {
    pub(super) fn new(cors: &config::Cors) -> Cors {
        let is_all = cors.origins.iter().any(|origin| &**origin == "*");
        let origins = cors.origins.iter();
        let origins = origins.filter_map(|origin| HeaderValue::from_str(origin).ok());
        let allows = |method| cors.methods.contains(&method) || cors.methods.is_empty();
        let (get, head) = (allows(CorsMethod::Get), allows(CorsMethod::Head));
        let exposed = cors.expose_headers.iter().map(|name| &**name);
        let exposed = exposed.collect::<Vec<_>>().join(", ");
        let headers = cors.headers.iter();
        Cors {
            origins: (!is_all).then(|| origins.collect()),
            methods: HeaderValue::from_static(match (get, head) {
                (true, false) => "GET",
                (false, true) => "HEAD",
                _ => "GET, HEAD",
            }),
            allows_get: get,
            allows_head: head,
            headers: headers.map(|name| name.to_ascii_lowercase()).collect(),
            exposed: HeaderValue::from_str(&exposed)
                .ok()
                .filter(|exposed| !exposed.is_empty())
                .unwrap_or(HeaderValue::from_static(EXPOSED)),
            max_age: HeaderValue::from(cors.max_age.as_secs()),
            credentials: cors.credentials,
        }
    }

    /// The fields of all responses: caches between client and proxy must know that other websites may
    /// get others.
    pub(super) fn always(&self) -> Vec<Field> {
        match self.origins {
            Some(_) => vec![(VARY, HeaderValue::from_static("Origin"))],
            None => Vec::new(),
        }
    }

    /// The fields of responses to each website, in the order of [`variant`](Self::variant).
    pub(super) fn variants(&self) -> Vec<FieldChanges> {
        let changes = |origin: &HeaderValue| FieldChanges {
            set: self.permission(origin),
            ..FieldChanges::default()
        };
        match &self.origins {
            Some(origins) => origins.iter().map(changes).collect(),
            None => vec![changes(&HeaderValue::from_static("*"))],
        }
    }

    /// The website that a request comes from, if its scripts may read.
    pub(super) fn variant(&self, headers: &HeaderMap) -> Option<u16> {
        let Some(origins) = &self.origins else {
            // The response is the same for every website, and for none.
            return Some(0);
        };
        let mut asked = headers.get_all(ORIGIN).iter();
        let (origin, None) = (asked.next()?, asked.next()) else {
            return None;
        };
        let index = origins.iter().position(|known| known == origin)?;
        u16::try_from(index).ok()
    }

    /// The permission for responses to a website.
    fn permission(&self, origin: &HeaderValue) -> Vec<Field> {
        let mut fields = vec![
            (ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()),
            (ACCESS_CONTROL_EXPOSE_HEADERS, self.exposed.clone()),
        ];
        fields.extend(self.allow_credentials());
        fields
    }

    fn allow_credentials(&self) -> Option<Field> {
        let value = HeaderValue::from_static("true");
        let field = (ACCESS_CONTROL_ALLOW_CREDENTIALS, value);
        self.credentials.then_some(field)
    }

    /// The fields of the answer to a preflight request. `None`: what it asks for is not permitted.
    pub(in crate::proxy) fn preflight(&self, headers: &HeaderMap) -> Option<Vec<Field>> {
        let origin = headers.get(ORIGIN)?;
        self.variant(headers)?;
        let origin = match &self.origins {
            Some(_) => origin.clone(),
            None => HeaderValue::from_static("*"),
        };
        let permits = match headers.get(ACCESS_CONTROL_REQUEST_METHOD)?.as_bytes() {
            b"GET" => self.allows_get,
            b"HEAD" => self.allows_head,
            _ => false,
        };
        let asked = headers.get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter();
        let asked = asked.map(HeaderValue::as_bytes).collect::<Vec<_>>();
        let asked = asked.join(&b", "[..]).to_ascii_lowercase();
        if !permits || !self.permits_fields(&asked) {
            return None;
        }
        let mut fields = vec![
            (ACCESS_CONTROL_ALLOW_ORIGIN, origin),
            (ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone()),
            (ACCESS_CONTROL_MAX_AGE, self.max_age.clone()),
        ];
        if !asked.is_empty() {
            // `*` would not include Authorization.
            let value = HeaderValue::from_bytes(&asked).ok()?;
            fields.push((ACCESS_CONTROL_ALLOW_HEADERS, value));
        }
        fields.extend(self.allow_credentials());
        Some(fields)
    }

    /// True if scripts may set the fields of a list in lower case.
    fn permits_fields(&self, asked: &[u8]) -> bool {
        let is_token = |name: &[u8]| HeaderName::from_bytes(name).is_ok();
        let mut names = asked.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        asked.len() <= MAX_ASKED
            && (asked.is_empty()
                || names.all(|name| {
                    let mut known = self.headers.iter();
                    let is_known = known.any(|known| known.as_bytes() == name);
                    is_token(name) && (self.headers.is_empty() || is_known)
                }))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn cors(section: &str) -> Cors {
        let text = format!(
            "server: {{address: '127.0.0.1:0'}}\nbuckets: [{{path_prefix: /a, bucket: abc, region: r, cors: {section}}}]"
        );
        let config = Config::parse(&text, Path::new("c"), &|_| None).unwrap();
        Cors::new(config.buckets[0].cors.as_ref().unwrap())
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn only_what_is_configured_is_permitted() {
        const A: (&str, &str) = ("origin", "https://a.example");
        const B: (&str, &str) = ("origin", "https://b.example");
        const GET: (&str, &str) = ("access-control-request-method", "GET");
        const HEAD: (&str, &str) = ("access-control-request-method", "HEAD");
        const ASKED: &str = "access-control-request-headers";
        let strict = "{origins: ['https://a.example'], methods: [get], headers: [Range, X-A]}";
        let open = "{origins: ['*']}";
        for (section, fields, permitted) in [
            (strict, &[A, GET][..], true),
            (strict, &[A, GET, (ASKED, "range,x-a")], true),
            (strict, &[A, GET, (ASKED, "Range"), (ASKED, "X-A")], true),
            (strict, &[A, GET, (ASKED, "range, x-b")], false),
            (strict, &[A, HEAD], false),
            (strict, &[B, GET], false),
            (strict, &[("origin", "HTTPS://a.example"), GET], false),
            (strict, &[("origin", "https://a.example.evil"), GET], false),
            (strict, &[("origin", "null"), GET], false),
            (strict, &[A, B, GET], false),
            (strict, &[GET], false),
            (strict, &[A], false),
            (open, &[B, HEAD, (ASKED, "authorization, x-any")], true),
            (open, &[("origin", "null"), GET], true),
            (open, &[B, ("access-control-request-method", "PUT")], false),
            (open, &[B, GET, (ASKED, "a b")], false),
            (open, &[B, GET, (ASKED, "a,,b")], false),
        ] {
            let fields = headers(fields);
            let answer = cors(section).preflight(&fields);
            assert_eq!(answer.is_some(), permitted, "{section} {fields:?}");
        }
    }
}
