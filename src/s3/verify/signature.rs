//! The signature of a request, read from its `Authorization` header or its query.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use http::header::{AUTHORIZATION, DATE};

use super::canonical::{decoded, escaped, names, parameters, split_once, Part, SIGNATURE};
use super::refusal::{Reason, Refusal};
use super::timestamp::Timestamp;
use super::{Request, ALGORITHM, SERVICE, TERMINATOR};

/// The allowed difference between a client's clock and this one ("Authenticating Requests",
/// Amazon S3 API Reference).
const SKEW: Duration = Duration::from_secs(15 * 60);

/// The longest life of a presigned URL, in seconds: a week.
const LONGEST_LIFE: u64 = 7 * 86400;

/// The SHA-256 of nothing.
const EMPTY: &[u8] = b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const UNSIGNED_PAYLOAD: &[u8] = b"UNSIGNED-PAYLOAD";
/// The hashes of bodies that are signed in chunks. An empty body has no chunk.
const STREAMING: [&[u8]; 3] = [
    b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
    b"STREAMING-UNSIGNED-PAYLOAD-TRAILER",
];

const CONTENT_HASH: &[u8] = b"x-amz-content-sha256";

/// The header fields that may be unsigned with a presigned URL, because its user is not the client
/// that signed it. Neither affects which object is meant.
const UNSIGNED_IN_PRESIGNED: [&[u8]; 2] = [b"x-amz-checksum-mode", b"x-amz-user-agent"];

const BAD_CREDENTIAL: &str = "the Credential is mal-formed; expecting \
                              \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\".";

/// A signature for this region and time, ready for comparison.
#[derive(Debug)]
pub(super) struct Signature<'a> {
    pub(super) access_key: Cow<'a, str>,
    /// Names in ascending order, separated by semicolons.
    pub(super) signed_headers: Cow<'a, [u8]>,
    pub(super) time: Timestamp,
    /// The hash of the body, or its placeholder.
    pub(super) payload: Cow<'a, [u8]>,
    pub(super) token: Option<Cow<'a, [u8]>>,
    pub(super) bytes: [u8; 32],
}

/// The place of a signature.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Location {
    Header,
    Query,
}

/// The parameters of a presigned URL.
#[derive(Default)]
struct Presigned<'a> {
    algorithm: Option<&'a [u8]>,
    credential: Option<&'a [u8]>,
    date: Option<&'a [u8]>,
    expires: Option<&'a [u8]>,
    signed_headers: Option<&'a [u8]>,
    signature: Option<&'a [u8]>,
    token: Option<&'a [u8]>,
    content_hash: Option<&'a [u8]>,
    /// The access key of a signature of version 2.
    version_2: Option<&'a [u8]>,
}

// === impl Signature ===

impl<'a> Signature<'a> {
    pub(super) fn read(
        request: &Request<'a>,
        region: &str,
        now: SystemTime,
    ) -> Result<Self, Refusal> {
        let presigned = Presigned::read(request.query.unwrap_or_default())?;
        let mut values = request.fields.all(AUTHORIZATION.as_str().as_bytes());
        let authorization = values.next();
        if authorization.is_some() && (presigned.is_any() || values.next().is_some()) {
            return Err(Refusal::TWO_MECHANISMS);
        }
        let signature = match authorization {
            Some(authorization) => of_header(request, authorization, region, now)?,
            None if presigned.is_any() => presigned.check(request, region, now)?,
            None => return Err(Refusal::UNSIGNED),
        };
        Ok(signature)
    }

    /// Checks that all required headers are signed.
    fn check_headers(&self, request: &Request<'_>, location: Location) -> Result<(), Refusal> {
        let may_be_unsigned =
            |name: &[u8]| location == Location::Query && UNSIGNED_IN_PRESIGNED.contains(&name);
        let must_be_signed = |name: &&[u8]| name.starts_with(b"x-amz-") && !may_be_unsigned(name);
        // Counting avoids a search for each, which would take the square of their number.
        let mut unsigned = request.fields.names().filter(must_be_signed).count();
        let mut before: &[u8] = b"";
        let mut signs_host = false;
        for name in names(&self.signed_headers) {
            let is_name = !name.is_empty()
                && name
                    .iter()
                    .all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase() && *b != b',');
            if !is_name || name <= before {
                return Err(location.malformed(
                    "the SignedHeaders are mal-formed; expecting names in lower case, in \
                     ascending order, separated by semicolons.",
                ));
            }
            before = name;
            if name == b"host" {
                signs_host = true;
                continue;
            }
            let signed = request.fields.all(name).count();
            if signed == 0 {
                return Err(Refusal::MISMATCH);
            }
            if must_be_signed(&name) {
                unsigned -= signed;
            }
        }
        if !signs_host || unsigned > 0 {
            return Err(Refusal::UNSIGNED_HEADER);
        }
        Ok(())
    }
}

/// The signature in an `Authorization` header.
fn of_header<'a>(
    request: &Request<'a>,
    authorization: &'a [u8],
    region: &str,
    now: SystemTime,
) -> Result<Signature<'a>, Refusal> {
    let location = Location::Header;
    let elements = elements_of(authorization)?;
    let mut values = [None; 3];
    for element in elements.split(|byte| *byte == b',') {
        let (name, value) = split_once(element.trim_ascii(), b'=')
            .ok_or_else(|| location.malformed("an element has no value."))?;
        let at = match name {
            b"Credential" => 0,
            b"SignedHeaders" => 1,
            b"Signature" => 2,
            _ => return Err(location.malformed("an element is not known.")),
        };
        if values[at].replace(value).is_some() {
            return Err(location.malformed("an element stands there twice."));
        }
    }
    let [Some(credential), Some(signed_headers), Some(signature)] = values else {
        return Err(
            location.malformed("it needs the elements Credential, SignedHeaders and Signature.")
        );
    };
    let date = single(request, b"x-amz-date")?
        .or(single(request, DATE.as_str().as_bytes())?)
        .and_then(Timestamp::parse_header)
        .ok_or(Refusal::NO_DATE)?;
    let access_key = location.check_scope(credential, &date, region)?;
    let skew = match now.duration_since(date.time()) {
        Ok(behind) => behind,
        Err(ahead) => ahead.duration(),
    };
    if skew > SKEW {
        return Err(Refusal::SKEWED);
    }
    let payload = single(request, CONTENT_HASH)?.ok_or(Refusal::NO_CONTENT_HASH)?;
    check_payload(request.method, payload)?;
    let signature = Signature {
        access_key: access_key.into(),
        signed_headers: signed_headers.into(),
        time: date,
        payload: payload.into(),
        token: single(request, b"x-amz-security-token")?.map(Cow::Borrowed),
        bytes: signature_bytes(signature)?,
    };
    signature.check_headers(request, location)?;
    Ok(signature)
}

/// The text after the algorithm.
fn elements_of(authorization: &[u8]) -> Result<&[u8], Refusal> {
    let text = authorization.trim_ascii();
    let (mechanism, elements) = split_once(text, b' ').unwrap_or((text, b""));
    match mechanism {
        mechanism if mechanism == ALGORITHM.as_bytes() => Ok(elements),
        b"AWS" => Err(Refusal::VERSION_2),
        b"AWS4-ECDSA-P256-SHA256" => Err(Refusal::VERSION_4A),
        _ => Err(Refusal::OTHER_MECHANISM),
    }
}

/// The value of a header that may be given once.
fn single<'a>(request: &Request<'a>, name: &[u8]) -> Result<Option<&'a [u8]>, Refusal> {
    let mut values = request.fields.all(name);
    let value = values.next();
    match values.next() {
        Some(_) => Err(Location::Header.malformed("a header that it needs stands there twice.")),
        None => Ok(value.map(<[u8]>::trim_ascii)),
    }
}

fn signature_bytes(text: &[u8]) -> Result<[u8; 32], Refusal> {
    let text: &[u8; 64] = text.try_into().map_err(|_| Refusal::MISMATCH)?;
    let mut bytes = [0; 32];
    // S3 compares signatures as text, in lower case.
    let mut is_upper = false;
    for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        is_upper |= digits.iter().any(u8::is_ascii_uppercase);
        *byte = escaped(digits[0], digits[1]).ok_or(Refusal::MISMATCH)?;
    }
    if is_upper {
        return Err(Refusal::MISMATCH);
    }
    Ok(bytes)
}

/// Checks the hash of a body. A GET or HEAD has none, so the hash must be that of nothing. For other
/// methods, only the form is checked.
fn check_payload(method: &str, hash: &[u8]) -> Result<(), Refusal> {
    if hash == EMPTY || hash == UNSIGNED_PAYLOAD || STREAMING.contains(&hash) {
        return Ok(());
    }
    match hash.len() == EMPTY.len() && hash.iter().all(u8::is_ascii_hexdigit) {
        true if matches!(method, "GET" | "HEAD") => Err(Refusal::OTHER_CONTENT_HASH),
        true => Ok(()),
        false => Err(Refusal::BAD_CONTENT_HASH),
    }
}

// === impl Location ===

impl Location {
    fn refuse(self, what: &str, reason: Reason) -> Refusal {
        match self {
            Location::Header => Refusal::header(what, reason),
            Location::Query => Refusal::query(format!("Error parsing the query; {what}"), reason),
        }
    }

    fn malformed(self, what: &str) -> Refusal {
        self.refuse(what, Reason::Malformed)
    }

    /// The access key of a credential for this day, region and service.
    fn check_scope<'a>(
        self,
        credential: &'a [u8],
        date: &Timestamp,
        region: &str,
    ) -> Result<&'a str, Refusal> {
        // Access keys of services other than AWS may contain slashes.
        let mut parts = credential.rsplitn(5, |byte| *byte == b'/');
        let mut part = || parts.next().ok_or_else(|| self.malformed(BAD_CREDENTIAL));
        let (terminator, service, signed_for, day, access_key) =
            (part()?, part()?, part()?, part()?, part()?);
        let access_key = std::str::from_utf8(access_key).unwrap_or_default();
        if access_key.is_empty() {
            return Err(self.malformed(BAD_CREDENTIAL));
        }
        let wrong = |what: String| Err(self.refuse(&what, Reason::Scope));
        if terminator != TERMINATOR.as_bytes() {
            return wrong(format!(
                "incorrect terminal. This endpoint uses \"{TERMINATOR}\"."
            ));
        }
        if service != SERVICE.as_bytes() {
            return wrong(format!(
                "incorrect service. This endpoint belongs to \"{SERVICE}\"."
            ));
        }
        if day != date.day() {
            return wrong("the date of the Credential is not that of X-Amz-Date.".to_owned());
        }
        if signed_for != region.as_bytes() {
            return wrong(format!("the region is wrong; expecting '{region}'"));
        }
        Ok(access_key)
    }
}

// === impl Presigned ===

impl<'a> Presigned<'a> {
    fn read(query: &'a [u8]) -> Result<Self, Refusal> {
        let mut presigned = Presigned::default();
        for (name, value) in parameters(query) {
            let slot = match &*decoded(name, Part::Query) {
                b"X-Amz-Algorithm" => &mut presigned.algorithm,
                b"X-Amz-Credential" => &mut presigned.credential,
                b"X-Amz-Date" => &mut presigned.date,
                b"X-Amz-Expires" => &mut presigned.expires,
                b"X-Amz-SignedHeaders" => &mut presigned.signed_headers,
                SIGNATURE => &mut presigned.signature,
                b"X-Amz-Security-Token" => &mut presigned.token,
                b"X-Amz-Content-Sha256" => &mut presigned.content_hash,
                b"AWSAccessKeyId" => &mut presigned.version_2,
                _ => continue,
            };
            if slot.replace(value).is_some() {
                let message = "A parameter of query-string authentication stands there twice.";
                return Err(Refusal::query(message, Reason::Malformed));
            }
        }
        Ok(presigned)
    }

    /// True if the query has parameters of a signature.
    fn is_any(&self) -> bool {
        self.algorithm.is_some()
            || self.credential.is_some()
            || self.signature.is_some()
            || self.version_2.is_some()
    }

    fn check(
        self,
        request: &Request<'a>,
        region: &str,
        now: SystemTime,
    ) -> Result<Signature<'a>, Refusal> {
        let malformed = |message: &'static str| Refusal::query(message, Reason::Malformed);
        if self.version_2.is_some() {
            return Err(Refusal::VERSION_2);
        }
        let (
            Some(algorithm),
            Some(credential),
            Some(date),
            Some(expires),
            Some(signed_headers),
            Some(signature),
        ) = (
            self.algorithm,
            self.credential,
            self.date,
            self.expires,
            self.signed_headers,
            self.signature,
        )
        else {
            return Err(malformed(
                "Query-string authentication version 4 requires the X-Amz-Algorithm, \
                 X-Amz-Credential, X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and \
                 X-Amz-Expires parameters.",
            ));
        };
        match &*decoded(algorithm, Part::Query) {
            algorithm if algorithm == ALGORITHM.as_bytes() => {}
            b"AWS4-ECDSA-P256-SHA256" => return Err(Refusal::VERSION_4A),
            _ => {
                return Err(malformed(
                    "X-Amz-Algorithm only supports \"AWS4-HMAC-SHA256\"",
                ))
            }
        }
        let date = Timestamp::parse(&decoded(date, Part::Query)).ok_or_else(|| {
            malformed("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
        })?;
        let location = Location::Query;
        let access_key = match decoded(credential, Part::Query) {
            Cow::Borrowed(credential) => location.check_scope(credential, &date, region)?.into(),
            Cow::Owned(credential) => location
                .check_scope(&credential, &date, region)?
                .to_owned()
                .into(),
        };
        let life = life(&decoded(expires, Part::Query))?;
        match now.duration_since(date.time()) {
            Ok(age) if age > life => return Err(Refusal::EXPIRED),
            Err(ahead) if ahead.duration() > SKEW => return Err(Refusal::NOT_YET),
            _ => {}
        }
        let payload = match (self.content_hash, single(request, CONTENT_HASH)?) {
            (Some(hash), None) => decoded(hash, Part::Query),
            (None, Some(hash)) => hash.into(),
            (Some(_), Some(_)) => {
                return Err(malformed("X-Amz-Content-Sha256 stands there twice."))
            }
            (None, None) => UNSIGNED_PAYLOAD.into(),
        };
        check_payload(request.method, &payload)?;
        let signature = Signature {
            access_key,
            signed_headers: decoded(signed_headers, Part::Query),
            time: date,
            payload,
            token: self.token.map(|token| decoded(token, Part::Query)),
            bytes: signature_bytes(&decoded(signature, Part::Query))?,
        };
        signature.check_headers(request, location)?;
        Ok(signature)
    }
}

/// The time from the signature to the end of a presigned URL.
fn life(expires: &[u8]) -> Result<Duration, Refusal> {
    let refuse = |message: &'static str| Err(Refusal::query(message, Reason::Malformed));
    let (is_negative, digits) = match expires.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, expires),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return refuse("X-Amz-Expires should be a number");
    }
    // Only digits: a failure to parse means that there are too many.
    let secs = std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse::<u64>().ok());
    match secs {
        Some(0) => refuse("X-Amz-Expires must be at least 1 second"),
        _ if is_negative => refuse("X-Amz-Expires must be non-negative"),
        Some(secs) if secs <= LONGEST_LIFE => Ok(Duration::from_secs(secs)),
        _ => refuse(
            "X-Amz-Expires must be less than a week (in seconds); that is, the given \
             X-Amz-Expires must be less than 604800 seconds",
        ),
    }
}
