//! Properties of a request's signature that need no secret: the signed fields, and the identity of
//! the request for a later comparison.

use std::time::{Duration, SystemTime};

use http::header::{AUTHORIZATION, DATE, HOST};
use http::{HeaderMap, HeaderName};
use sha2::{Digest, Sha256};

use super::request::decoded_value;
use super::verify::time_of;

const AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");

/// The time for which S3 accepts a signed request without a stated expiry ("Authenticating
/// Requests", Amazon S3 API Reference).
const SIGNATURE_LIFE: Duration = Duration::from_secs(15 * 60);

/// The fields that may differ between requests with the same proof: conditions and ranges, which
/// are judged separately.
const WITHOUT_MEANING: [&str; 8] = [
    "range",
    "if-match",
    "if-none-match",
    "if-modified-since",
    "if-unmodified-since",
    "connection",
    "keep-alive",
    "cache-control",
];

/// The fields of a request that its signature covers, which must not be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signed {
    /// No field, because there is no signature, or one without fields.
    Nothing,
    /// The fields with these names.
    Fields(Vec<String>),
    /// Possibly all fields.
    Anything,
}

// === impl Signed ===

impl Signed {
    /// Reads the names of the signed fields.
    pub fn of(query: Option<&[u8]>, headers: &HeaderMap) -> Signed {
        let mut authorizations = headers.get_all(AUTHORIZATION).iter();
        let query = query.unwrap_or_default();
        let signed = match (authorizations.next(), authorizations.next()) {
            (None, _) if !is_presigned(query) => return Signed::Nothing,
            (None, _) => parameter(query, "X-Amz-SignedHeaders"),
            (Some(authorization), None) if !is_presigned(query) => {
                let text = String::from_utf8_lossy(authorization.as_bytes()).into_owned();
                let after = text.split_once("SignedHeaders=").map(|(_, after)| after);
                after.map(|after| {
                    let end = after.find([',', ' ']).unwrap_or(after.len());
                    after[..end].to_owned()
                })
            }
            _ => None,
        };
        let is_list = |list: &String| !list.is_empty();
        match signed.filter(is_list) {
            Some(list) => Signed::Fields(list.split(';').map(str::to_ascii_lowercase).collect()),
            None => Signed::Anything,
        }
    }

    /// True if a field with this name may be signed.
    pub fn contains(&self, name: &HeaderName) -> bool {
        match self {
            Signed::Nothing => false,
            Signed::Fields(names) => names.iter().any(|signed| signed == name.as_str()),
            Signed::Anything => true,
        }
    }
}

/// Everything in a request that S3 may base its decision on, in a form that can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Equal for requests that S3 can tell apart only by their time and address.
    pub digest: [u8; 32],
    /// The time from which on S3 refuses the request; `None`: it has no signature.
    pub until: Option<SystemTime>,
}

impl Proof {
    /// The proof of a request `about` hosts and an object; `None`: its expiry cannot be
    /// determined.
    ///
    /// A stranger who knows a client's access key but no secret cannot make a request with the same
    /// proof: the signature is part of it, and so is everything that it covers. All other fields
    /// are part of it too, because policies may depend on any of them, such as `Referer` or
    /// `User-Agent`. Only unsigned conditions and ranges are left out.
    pub fn of(
        method: &str,
        target: &[u8],
        about: [Option<&[u8]>; 3],
        headers: &HeaderMap,
    ) -> Option<Proof> {
        let query = target.iter().position(|byte| *byte == b'?');
        let query = query.and_then(|at| target.get(at + 1..));
        let until = until(query.unwrap_or_default(), headers).ok()?;
        let signed = Signed::of(query, headers);
        let mut fields: Vec<_> = headers
            .iter()
            .filter(|(name, _)| signed.contains(name) || !WITHOUT_MEANING.contains(&name.as_str()))
            .filter(|(name, _)| **name != HOST)
            .collect();
        // A stable sort keeps the order of values with one name.
        fields.sort_by_key(|(name, _)| name.as_str());
        let mut digest = Sha256::new();
        let mut add = |part: &[u8]| {
            // Lengths separate the parts.
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        };
        add(method.as_bytes());
        add(target);
        for part in about {
            add(part.unwrap_or_default());
        }
        for (name, value) in fields {
            add(name.as_str().as_bytes());
            add(value.as_bytes());
        }
        Some(Proof {
            digest: digest.finalize().into(),
            until,
        })
    }
}

/// The time from which on S3 refuses a request.
///
/// # Errors
/// It cannot be determined.
fn until(query: &[u8], headers: &HeaderMap) -> Result<Option<SystemTime>, ()> {
    let seconds = |name| {
        let text = parameter(query, name).ok_or(())?;
        text.parse().map(Duration::from_secs).map_err(|_| ())
    };
    let presigned = is_presigned(query);
    let authorized = headers.contains_key(AUTHORIZATION);
    let until = match (presigned, authorized) {
        (false, false) => return Ok(None),
        (true, true) => None,
        (false, true) => {
            let date = headers
                .get(AMZ_DATE)
                .or_else(|| headers.get(DATE))
                .ok_or(())?;
            time_of(date.as_bytes()).and_then(|time| time.checked_add(SIGNATURE_LIFE))
        }
        (true, false) if parameter(query, "X-Amz-Signature").is_some() => {
            let date = parameter(query, "X-Amz-Date").ok_or(())?;
            let life = seconds("X-Amz-Expires")?;
            time_of(date.as_bytes()).and_then(|time| time.checked_add(life))
        }
        // Signature version 2.
        (true, false) => SystemTime::UNIX_EPOCH.checked_add(seconds("Expires")?),
    };
    until.map(Some).ok_or(())
}

fn is_presigned(query: &[u8]) -> bool {
    let is_signature = |name: &[u8]| {
        let name = name.to_ascii_lowercase();
        name.starts_with(b"x-amz-") || [&b"signature"[..], b"awsaccesskeyid"].contains(&&*name)
    };
    parameters(query).any(|(name, _)| is_signature(&decoded_value(name)))
}

fn parameters(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    query.split(|byte| *byte == b'&').map(|parameter| {
        let equals = parameter.iter().position(|byte| *byte == b'=');
        match equals {
            Some(at) => (&parameter[..at], &parameter[at + 1..]),
            None => (parameter, &[][..]),
        }
    })
}

/// The value of a parameter; `None`: it is missing, or given more than once.
fn parameter(query: &[u8], name: &str) -> Option<String> {
    let mut values =
        parameters(query).filter(|(other, _)| *decoded_value(other) == *name.as_bytes());
    let (_, value) = values.next()?;
    if values.next().is_some() {
        return None;
    }
    String::from_utf8(decoded_value(value).into_owned()).ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const V4: &str = "AWS4-HMAC-SHA256 Credential=AK/20261128/us-east-1/s3/aws4_request, \
                      SignedHeaders=host;range;x-amz-date, Signature=00";

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let fields = fields.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        fields.collect()
    }

    #[test]
    fn signed_fields_are_told_from_others() {
        let range = HeaderName::from_static("range");
        let if_match = HeaderName::from_static("if-match");
        for (query, fields, signs_range, signs_condition) in [
            ("", &[][..], false, false),
            ("", &[("authorization", V4)], true, false),
            ("", &[("authorization", "AWS AK:xyz")], true, true),
            ("", &[("authorization", "Bearer x")], true, true),
            (
                "X-Amz-Signature=0&X-Amz-SignedHeaders=host",
                &[],
                false,
                false,
            ),
            (
                "X-Amz-Signature=0&X-Amz-SignedHeaders=host%3Brange",
                &[],
                true,
                false,
            ),
            (
                "X-Amz-Signature=0&X-Amz-SignedHeaders=host&X-Amz-SignedHeaders=range",
                &[],
                true,
                true,
            ),
            ("X-Amz-Signature=0", &[("authorization", V4)], true, true),
            ("Signature=x&Expires=1&AWSAccessKeyId=a", &[], true, true),
        ] {
            let signed = Signed::of(Some(query.as_bytes()), &headers(fields));
            assert_eq!(signed.contains(&range), signs_range, "{query}");
            assert_eq!(signed.contains(&if_match), signs_condition, "{query}");
        }
    }

    const HOST_NAME: [Option<&[u8]>; 3] = [Some(b"host"), None, None];

    fn proof(target: &str, fields: &[(&'static str, &'static str)]) -> Option<Proof> {
        Proof::of("GET", target.as_bytes(), HOST_NAME, &headers(fields))
    }

    #[test]
    fn a_proof_ends_when_the_signature_does() {
        let end = |target, fields: &[_]| proof(target, fields).map(|proof| proof.until);
        let at = |text: &[u8], secs| time_of(text).map(|time| time + Duration::from_secs(secs));
        assert_eq!(end("/b/k", &[]), Some(None));
        let query = "/b/k?X-Amz-Date=20261128T210000Z&X-Amz-Expires=60&X-Amz-Signature=0";
        assert_eq!(end(query, &[]), Some(at(b"20261128T210000Z", 60)));
        let fields = [("authorization", V4), ("x-amz-date", "20261128T210000Z")];
        assert_eq!(end("/b/k", &fields), Some(at(b"20261128T210000Z", 900)));
        assert_eq!(
            end("/b/k?AWSAccessKeyId=a&Signature=s&Expires=1000", &[]),
            Some(Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)))
        );
        for (target, fields) in [
            ("/b/k", &[("authorization", V4)][..]),
            ("/b/k?X-Amz-Signature=0&X-Amz-Date=20261128T210000Z", &[]),
            ("/b/k?X-Amz-Signature=0&X-Amz-Expires=60", &[]),
            ("/b/k?X-Amz-Signature=0&X-Amz-Date=1&X-Amz-Expires=60", &[]),
            ("/b/k?x-amz-security-token=t", &[]),
            ("/b/k?X-Amz-Signature=0&X-Amz-Date=20261128T210000Z&X-Amz-Expires=1&X-Amz-Expires=99", &[]),
            ("/b/k?Signature=s", &[]),
        ] {
            assert_eq!(end(target, fields), None, "{target}");
        }
    }

    #[test]
    fn only_the_same_request_has_the_same_proof() {
        let fields = [
            ("authorization", V4),
            ("x-amz-date", "20261128T210000Z"),
            ("range", "bytes=0-1"),
        ];
        let known = proof("/b/k", &fields).unwrap();
        assert_eq!(proof("/b/k", &fields), Some(known));
        let other = |target, fields: &[_]| {
            proof(target, fields).is_none_or(|other| other.digest != known.digest)
        };
        assert!(other("/b/l", &fields));
        assert!(other("/b/k?versionId=1", &fields));
        assert!(
            other("/b/k", &[fields[0], fields[1], ("range", "bytes=0-2")]),
            "signed"
        );
        assert!(other("/b/k", &[fields[0], fields[1]]));
        assert!(other("/b/k", &[fields[1], fields[2]]));
        assert!(other("/b/k", &[]));
        assert!(other(
            "/b/k",
            &[fields[0], ("x-amz-date", "20261128T210001Z"), fields[2]]
        ));
        let head = Proof::of("HEAD", b"/b/k", HOST_NAME, &headers(&fields)).unwrap();
        assert_ne!(head.digest, known.digest);
        let host = Proof::of(
            "GET",
            b"/b/k",
            [Some(b"other"), None, None],
            &headers(&fields),
        )
        .unwrap();
        assert_ne!(host.digest, known.digest);

        // A presigned URL signs no range.
        let url = "/b/k?X-Amz-Date=20261128T210000Z&X-Amz-Expires=60&X-Amz-Signature=0&X-Amz-SignedHeaders=host";
        let whole = proof(url, &[]).unwrap();
        assert_eq!(proof(url, &[("range", "bytes=0-1")]), Some(whole));
        assert_ne!(proof(url, &[("referer", "a")]), Some(whole));
    }
}
