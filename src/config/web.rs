//! The model of web serving.

use serde::{Deserialize, Serialize};

use super::list;
use super::values::{
    DocumentKey, DocumentName, ErrorStatus, FieldName, FieldPattern, FieldText, Map, Megabytes,
    Pattern, Period, ResponseField, WebOrigin, Whole,
};
use crate::http::rules::accept_encoding;

/// Serving of objects as a website, see [Web serving](web.md). Not with `auth: passthrough`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Web {
    /// Name of the document that answers a GET or HEAD of a path with a slash at its end: with
    /// `index.html`, `/docs/` is the object `docs/index.html`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<DocumentName>,
    /// `true`: a path without an object is redirected to the same path with a slash, if there is an
    /// index document or, with `listing`, any object. Only with `index` or `listing`.
    pub slash_redirect: bool,
    /// Documents in place of the proxy's own errors, by status. The status stays. Default: none.
    #[serde(skip_serializing_if = "no_entries")]
    pub error_documents: Map<ErrorStatus, DocumentKey>,
    /// `true`: a GET of a path with a slash at its end is answered with a page that lists the objects
    /// there, unless there is an index document. Everyone who may read them all may list them.
    pub listing: bool,
    /// Forms in which texts are stored beside the object, in the order of preference: `a.js.br`,
    /// `a.js.zst` and `a.js.gz` beside `a.js`. Clients that accept one get it.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub precompressed: Vec<Coding>,
    /// Compression of texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compress: Option<Compress>,
    /// `true`: an object whose `Content-Type` is missing, `binary/octet-stream` or
    /// `application/octet-stream` is sent with the type that the ending of its key stands for.
    pub content_types: bool,
}

/// Compression of texts that have no [compressed form](web.md#compressed-forms) beside them. Without the
/// section, nothing is compressed.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compress {
    /// Codings, in the order of preference. Default: all.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub codings: Vec<Coding>,
    /// Smallest text that is compressed, in bytes.
    pub min_bytes: Whole<u32, 1, 1_048_576>,
    /// Largest text that is compressed, in KiB.
    pub max_kib: Whole<u32, 1, 16_384>,
    /// Memory for compressed texts of the bucket.
    pub memory_mb: Megabytes,
}

impl Default for Compress {
    fn default() -> Self {
        Compress {
            codings: vec![Coding::Br, Coding::Zstd, Coding::Gzip],
            min_bytes: Whole(1024),
            max_kib: Whole(1024),
            memory_mb: Megabytes::from_bytes(64_000_000),
        }
    }
}

/// The values of `buckets[].web.precompressed` and `buckets[].web.compress.codings`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename = "precompressed", rename_all = "lowercase")]
pub enum Coding {
    /// Brotli, with the ending `.br`.
    Br,
    /// Zstandard, with the ending `.zst`.
    Zstd,
    /// The format of gzip, with the ending `.gz`.
    Gzip,
}

impl Coding {
    /// The coding in HTTP.
    pub fn coding(self) -> accept_encoding::Coding {
        match self {
            Coding::Br => accept_encoding::Coding::Brotli,
            Coding::Zstd => accept_encoding::Coding::Zstd,
            Coding::Gzip => accept_encoding::Coding::Gzip,
        }
    }
}

/// Changes of the header of responses, see [Response fields](web.md#response-fields), at most 64. All
/// that match apply, in their order. Not with `auth: passthrough`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderRule {
    /// Objects whose responses are changed, by their keys as clients write them.
    pub key: Pattern,
    /// Fields that are removed, before others are set or added.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<FieldPattern>,
    /// Fields that replace those of the same name. Default: none.
    #[serde(skip_serializing_if = "no_entries")]
    pub set: Map<ResponseField, FieldText>,
    /// Fields that are added to those of the same name. Default: none.
    #[serde(skip_serializing_if = "no_entries")]
    pub add: Map<ResponseField, FieldText>,
    /// `true`: errors (status 400 and higher) are changed too.
    pub errors: bool,
}

impl Default for HeaderRule {
    fn default() -> Self {
        HeaderRule {
            key: Pattern::any(),
            remove: Vec::new(),
            set: Map::default(),
            add: Map::default(),
            errors: false,
        }
    }
}

fn no_entries<K, V>(map: &Map<K, V>) -> bool {
    map.is_empty()
}

/// Permission for scripts of other websites to read the bucket (CORS), see [CORS](web.md#cors). Not
/// with `auth: passthrough`, where S3 answers.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Cors {
    /// Websites whose scripts may read: `https://www.example.com`, at most 256, or `*` for all.
    #[serde(deserialize_with = "list")]
    pub origins: Vec<WebOrigin>,
    /// Methods that scripts may use. Default: both.
    #[serde(
        default = "all_methods",
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub methods: Vec<CorsMethod>,
    /// Request fields that scripts may set, besides those that need no permission. Default: any.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub headers: Vec<FieldName>,
    /// Response fields that scripts may read, besides those that need no permission. Default:
    /// `Accept-Ranges`, `Content-Encoding`, `Content-Range` and `ETag`.
    #[serde(
        default,
        deserialize_with = "list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub expose_headers: Vec<FieldName>,
    /// Time for which browsers may remember a permission.
    #[serde(default = "max_age")]
    pub max_age: Period,
    /// `true`: scripts may send cookies and client certificates. Not with `*` in `origins`.
    #[serde(default)]
    pub credentials: bool,
}

/// The values of `buckets[].cors.methods`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename = "methods", rename_all = "lowercase")]
pub enum CorsMethod {
    /// Reading objects.
    Get,
    /// Reading their header.
    Head,
}

fn all_methods() -> Vec<CorsMethod> {
    vec![CorsMethod::Get, CorsMethod::Head]
}

fn max_age() -> Period {
    Period::from_secs(3600)
}
