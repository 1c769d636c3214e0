//! S3 requests: operation, target and parameters.
//!
//! Source: the operations of the Amazon S3 API Reference.

use std::borrow::Cow;

use http::header::{HeaderMap, HeaderName, HeaderValue, RANGE};
use http::Method;

use super::error::{Code, S3Error};
use super::key::{KeyError, ObjectKey};

/// The target of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All buckets.
    Service,
    /// The bucket itself.
    Bucket,
    /// An object of the bucket.
    Object(ObjectKey),
}

/// A request as S3 reads it, without its bucket, which routing determines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Request {
    /// The target.
    pub target: Target,
    /// The operation.
    pub operation: Operation,
    /// Everything that modifies the operation; most requests have nothing.
    parameters: Option<Box<Parameters>>,
}

/// Parameters of the query and fields of the header that change what S3 does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Parameters {
    /// Query parameters that S3 knows, decoded.
    query: Vec<(&'static str, String)>,
    part_number: Option<u16>,
    overrides: Vec<(HeaderName, HeaderValue)>,
    passed: Vec<(HeaderName, HeaderValue)>,
    wants_checksums: bool,
}

/// Query parameters that name a sub-resource, and so determine the operation.
const SUB_RESOURCES: [&str; 42] = [
    "abac",
    "accelerate",
    "acl",
    "analytics",
    "attributes",
    "cors",
    "delete",
    "encryption",
    "intelligent-tiering",
    "inventory",
    "legal-hold",
    "lifecycle",
    "location",
    "logging",
    "metadataConfiguration",
    "metadataInventoryTable",
    "metadataJournalTable",
    "metadataTable",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "policy",
    "policyStatus",
    "publicAccessBlock",
    "renameObject",
    "replication",
    "requestPayment",
    "restore",
    "retention",
    "select",
    "session",
    "tagging",
    "torrent",
    "uploadId",
    "uploads",
    "versioning",
    "versions",
    "website",
    // MinIO's: events of a bucket, and an object through a function.
    "events",
    "lambdaArn",
    "replication-metrics",
];

/// Query parameters of operations. S3 compares names byte by byte.
const PARAMETERS: [&str; 25] = [
    "continuation-token",
    "delimiter",
    "encoding-type",
    "fetch-owner",
    "id",
    "key-marker",
    "list-type",
    "marker",
    "max-keys",
    "max-parts",
    "max-uploads",
    "part-number-marker",
    "partNumber",
    "prefix",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "select-type",
    "start-after",
    "upload-id-marker",
    "version-id-marker",
    "versionId",
];

/// The prefix of parameters that set a response field.
const OVERRIDE: &str = "response-";

/// Request fields by which S3 decides: keys of an object that the client encrypts, the consent to
/// pay of a requester, and the expected owner of a bucket.
const PASSED: [&str; 5] = [
    "x-amz-expected-bucket-owner",
    "x-amz-request-payer",
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-server-side-encryption-customer-key",
    "x-amz-server-side-encryption-customer-key-md5",
];

const CHECKSUM_MODE: HeaderName = HeaderName::from_static("x-amz-checksum-mode");
const COPY_SOURCE: HeaderName = HeaderName::from_static("x-amz-copy-source");

/// The prefix of S3's field names.
const AMZ: &str = "x-amz-";

/// Fields that accompany a signature. They do not modify the operation.
const SIGNING: [&str; 4] = [
    "x-amz-content-sha256",
    "x-amz-date",
    "x-amz-security-token",
    "x-amz-user-agent",
];

/// The longest value of a parameter, in bytes: a key, or a token that is made from one.
const MAX_VALUE: usize = 4096;

/// The most parts that an object has ("Amazon S3 multipart upload limits").
const MAX_PARTS: u16 = 10_000;

macro_rules! operations {
    ([$($method:ident $target:ident $sub_resource:literal $operation:ident;)*]
     $($other:ident,)*) => {
        /// An operation of S3, by its name in the API Reference.
        #[allow(missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Operation {
            $($operation,)*
            $($other,)*
            /// A combination of method and sub-resource that S3 does not have.
            Other,
        }

        impl Operation {
            /// The operation of a method on a target or its sub-resource.
            fn of(method: &Method, kind: Kind, sub_resource: &str) -> Option<Operation> {
                match (method, kind, sub_resource) {
                    $((&Method::$method, Kind::$target, $sub_resource) => {
                        Some(Operation::$operation)
                    })*
                    _ => None,
                }
            }
        }
    };
}

operations! {
    [
    GET Service "" ListBuckets;

    GET Bucket "" ListObjects;
    GET Bucket "abac" GetBucketAbac;
    GET Bucket "accelerate" GetBucketAccelerateConfiguration;
    GET Bucket "acl" GetBucketAcl;
    GET Bucket "analytics" ListBucketAnalyticsConfigurations;
    GET Bucket "cors" GetBucketCors;
    GET Bucket "encryption" GetBucketEncryption;
    GET Bucket "intelligent-tiering" ListBucketIntelligentTieringConfigurations;
    GET Bucket "inventory" ListBucketInventoryConfigurations;
    GET Bucket "lifecycle" GetBucketLifecycleConfiguration;
    GET Bucket "location" GetBucketLocation;
    GET Bucket "logging" GetBucketLogging;
    GET Bucket "metadataConfiguration" GetBucketMetadataConfiguration;
    GET Bucket "metadataTable" GetBucketMetadataTableConfiguration;
    GET Bucket "metrics" ListBucketMetricsConfigurations;
    GET Bucket "notification" GetBucketNotificationConfiguration;
    GET Bucket "object-lock" GetObjectLockConfiguration;
    GET Bucket "ownershipControls" GetBucketOwnershipControls;
    GET Bucket "policy" GetBucketPolicy;
    GET Bucket "policyStatus" GetBucketPolicyStatus;
    GET Bucket "publicAccessBlock" GetPublicAccessBlock;
    GET Bucket "replication" GetBucketReplication;
    GET Bucket "requestPayment" GetBucketRequestPayment;
    GET Bucket "session" CreateSession;
    GET Bucket "tagging" GetBucketTagging;
    GET Bucket "uploads" ListMultipartUploads;
    GET Bucket "versioning" GetBucketVersioning;
    GET Bucket "versions" ListObjectVersions;
    GET Bucket "website" GetBucketWebsite;
    HEAD Bucket "" HeadBucket;
    PUT Bucket "" CreateBucket;
    PUT Bucket "abac" PutBucketAbac;
    PUT Bucket "accelerate" PutBucketAccelerateConfiguration;
    PUT Bucket "acl" PutBucketAcl;
    PUT Bucket "analytics" PutBucketAnalyticsConfiguration;
    PUT Bucket "cors" PutBucketCors;
    PUT Bucket "encryption" PutBucketEncryption;
    PUT Bucket "intelligent-tiering" PutBucketIntelligentTieringConfiguration;
    PUT Bucket "inventory" PutBucketInventoryConfiguration;
    PUT Bucket "lifecycle" PutBucketLifecycleConfiguration;
    PUT Bucket "logging" PutBucketLogging;
    PUT Bucket "metadataInventoryTable" UpdateBucketMetadataInventoryTableConfiguration;
    PUT Bucket "metadataJournalTable" UpdateBucketMetadataJournalTableConfiguration;
    PUT Bucket "metrics" PutBucketMetricsConfiguration;
    PUT Bucket "notification" PutBucketNotificationConfiguration;
    PUT Bucket "object-lock" PutObjectLockConfiguration;
    PUT Bucket "ownershipControls" PutBucketOwnershipControls;
    PUT Bucket "policy" PutBucketPolicy;
    PUT Bucket "publicAccessBlock" PutPublicAccessBlock;
    PUT Bucket "replication" PutBucketReplication;
    PUT Bucket "requestPayment" PutBucketRequestPayment;
    PUT Bucket "tagging" PutBucketTagging;
    PUT Bucket "versioning" PutBucketVersioning;
    PUT Bucket "website" PutBucketWebsite;
    POST Bucket "" PostObject;
    POST Bucket "delete" DeleteObjects;
    POST Bucket "metadataConfiguration" CreateBucketMetadataConfiguration;
    POST Bucket "metadataTable" CreateBucketMetadataTableConfiguration;
    DELETE Bucket "" DeleteBucket;
    DELETE Bucket "analytics" DeleteBucketAnalyticsConfiguration;
    DELETE Bucket "cors" DeleteBucketCors;
    DELETE Bucket "encryption" DeleteBucketEncryption;
    DELETE Bucket "intelligent-tiering" DeleteBucketIntelligentTieringConfiguration;
    DELETE Bucket "inventory" DeleteBucketInventoryConfiguration;
    DELETE Bucket "lifecycle" DeleteBucketLifecycle;
    DELETE Bucket "metadataConfiguration" DeleteBucketMetadataConfiguration;
    DELETE Bucket "metadataTable" DeleteBucketMetadataTableConfiguration;
    DELETE Bucket "metrics" DeleteBucketMetricsConfiguration;
    DELETE Bucket "ownershipControls" DeleteBucketOwnershipControls;
    DELETE Bucket "policy" DeleteBucketPolicy;
    DELETE Bucket "publicAccessBlock" DeletePublicAccessBlock;
    DELETE Bucket "replication" DeleteBucketReplication;
    DELETE Bucket "tagging" DeleteBucketTagging;
    DELETE Bucket "website" DeleteBucketWebsite;

    GET Object "" GetObject;
    GET Object "acl" GetObjectAcl;
    GET Object "attributes" GetObjectAttributes;
    GET Object "legal-hold" GetObjectLegalHold;
    GET Object "retention" GetObjectRetention;
    GET Object "tagging" GetObjectTagging;
    GET Object "torrent" GetObjectTorrent;
    GET Object "uploadId" ListParts;
    HEAD Object "" HeadObject;
    PUT Object "" PutObject;
    PUT Object "acl" PutObjectAcl;
    PUT Object "encryption" UpdateObjectEncryption;
    PUT Object "legal-hold" PutObjectLegalHold;
    PUT Object "renameObject" RenameObject;
    PUT Object "retention" PutObjectRetention;
    PUT Object "tagging" PutObjectTagging;
    PUT Object "uploadId" UploadPart;
    POST Object "restore" RestoreObject;
    POST Object "select" SelectObjectContent;
    POST Object "uploadId" CompleteMultipartUpload;
    POST Object "uploads" CreateMultipartUpload;
    DELETE Object "" DeleteObject;
    DELETE Object "tagging" DeleteObjectTagging;
    DELETE Object "uploadId" AbortMultipartUpload;
    ]

    CopyObject,
    GetBucketAnalyticsConfiguration,
    GetBucketIntelligentTieringConfiguration,
    GetBucketInventoryConfiguration,
    GetBucketMetricsConfiguration,
    ListObjectsV2,
    PreflightRequest,
    UploadPartCopy,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Service,
    Bucket,
    Object,
}

// === impl Target ===

impl Target {
    /// Reads the raw path after the prefix of a bucket and its slash: nothing, or the key of an
    /// object.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn in_bucket(rest: &str) -> Result<Target, KeyError> {
        match rest {
            "" => Ok(Target::Bucket),
            key => ObjectKey::from_request_path(key).map(Target::Object),
        }
    }

    /// The key, if the target is an object.
    pub fn key(&self) -> Option<&ObjectKey> {
        match self {
            Target::Object(key) => Some(key),
            Target::Service | Target::Bucket => None,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Target::Service => Kind::Service,
            Target::Bucket => Kind::Bucket,
            Target::Object(_) => Kind::Object,
        }
    }
}

// === impl S3Request ===

impl S3Request {
    /// Reads a request with its raw `query`, if it has one.
    ///
    /// Parameters and fields that no operation knows, such as `x-id` or the signature of a presigned
    /// URL, are ignored, as by S3.
    ///
    /// # Errors
    /// S3 does not have the method, a known parameter is malformed or given twice, or two of them
    /// exclude each other.
    pub fn read(
        method: &Method,
        target: Target,
        query: Option<&[u8]>,
        headers: &HeaderMap,
    ) -> Result<S3Request, S3Error> {
        let has_fields = headers.keys().any(|name| {
            let name = name.as_str();
            name.starts_with(AMZ) && !SIGNING.contains(&name)
        });
        // The common request.
        if let (None, false, Target::Object(_)) = (query, has_fields, &target) {
            let operation = match *method {
                Method::GET => Some(Operation::GetObject),
                Method::HEAD => Some(Operation::HeadObject),
                _ => None,
            };
            if let Some(operation) = operation {
                return Ok(S3Request {
                    target,
                    operation,
                    parameters: None,
                });
            }
        }
        read_parameters(method, target, query.unwrap_or_default(), headers)
    }

    /// The value of a parameter of the query, decoded.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let query = &self.parameters.as_ref()?.query;
        let (_, value) = query.iter().find(|(known, _)| *known == name)?;
        Some(value)
    }

    /// True if the query has a parameter that S3 knows.
    pub fn has_parameters(&self) -> bool {
        let all = self.parameters.as_ref();
        all.is_some_and(|all| !all.query.is_empty())
    }

    /// The version of the object; `None`: the current one.
    pub fn version_id(&self) -> Option<&str> {
        self.parameter("versionId")
    }

    /// The part number of an object from a multipart upload.
    pub fn part_number(&self) -> Option<u16> {
        self.parameters.as_ref()?.part_number
    }

    /// Response fields that the client sets by `response-content-type` and the like. S3 allows them
    /// for authenticated requests only.
    pub fn overrides(&self) -> &[(HeaderName, HeaderValue)] {
        self.parameters.as_ref().map_or(&[], |all| &all.overrides)
    }

    /// Fields by which S3 decides on this request. S3 must see them, and its response is for this
    /// client only.
    pub fn passed_fields(&self) -> &[(HeaderName, HeaderValue)] {
        self.parameters.as_ref().map_or(&[], |all| &all.passed)
    }

    /// True if the response includes the checksum of the object.
    pub fn wants_checksums(&self) -> bool {
        self.parameters
            .as_ref()
            .is_some_and(|all| all.wants_checksums)
    }

    /// True if the response is neither the stored object nor a range of it.
    pub fn passes_the_cache(&self) -> bool {
        self.part_number().is_some() || !self.passed_fields().is_empty()
    }

    /// True if only the choice of the object depends on the request's parameters.
    pub fn is_plain(&self) -> bool {
        self.overrides().is_empty() && !self.wants_checksums() && !self.passes_the_cache()
    }

    /// True for a GET or HEAD of an object as it is.
    pub fn reads_object(&self) -> bool {
        matches!(self.operation, Operation::GetObject | Operation::HeadObject)
    }
}

// Few requests of a busy cache get here.
#[cold]
fn read_parameters(
    method: &Method,
    target: Target,
    query: &[u8],
    headers: &HeaderMap,
) -> Result<S3Request, S3Error> {
    let mut parameters = Parameters::default();
    let mut sub_resource = "";
    for parameter in query.split(|byte| *byte == b'&') {
        let mut halves = parameter.splitn(2, |byte| *byte == b'=');
        let name = decoded(halves.next().unwrap_or_default(), Plus::IsPlus);
        let Some(name) = known(&name) else {
            continue;
        };
        if parameters.query.iter().any(|(other, _)| *other == name) {
            return Err(invalid(format!("{name} is given twice")));
        }
        if SUB_RESOURCES.contains(&name) {
            if !sub_resource.is_empty() {
                let why = format!("{sub_resource} and {name} exclude each other");
                return Err(invalid(why));
            }
            sub_resource = name;
        }
        let value = value(name, halves.next().unwrap_or_default())?;
        parameters.query.push((name, value));
    }
    let operation = operation(method, target.kind(), sub_resource, &parameters, headers)?;
    let mut request = S3Request {
        target,
        operation,
        parameters: None,
    };
    if request.reads_object() {
        parameters.read_object(headers)?;
    } else {
        parameters.passed = passed(headers);
    }
    if parameters != Parameters::default() {
        request.parameters = Some(Box::new(parameters));
    }
    Ok(request)
}

fn operation(
    method: &Method,
    kind: Kind,
    sub_resource: &str,
    parameters: &Parameters,
    headers: &HeaderMap,
) -> Result<Operation, S3Error> {
    use Operation::*;
    let has = |name| parameters.get(name).is_some();
    let is_known = [
        Method::GET,
        Method::HEAD,
        Method::PUT,
        Method::POST,
        Method::DELETE,
        Method::OPTIONS,
    ]
    .contains(method);
    if !is_known {
        return Err(Code::MethodNotAllowed.into());
    }
    if *method == Method::OPTIONS {
        return Ok(PreflightRequest);
    }
    let operation = Operation::of(method, kind, sub_resource).unwrap_or(Other);
    Ok(match operation {
        ListObjects => match parameters.get("list-type") {
            None => ListObjects,
            Some("2") => ListObjectsV2,
            Some(_) => return Err(invalid("list-type can only be 2".into())),
        },
        ListBucketAnalyticsConfigurations if has("id") => GetBucketAnalyticsConfiguration,
        ListBucketIntelligentTieringConfigurations if has("id") => {
            GetBucketIntelligentTieringConfiguration
        }
        ListBucketInventoryConfigurations if has("id") => GetBucketInventoryConfiguration,
        ListBucketMetricsConfigurations if has("id") => GetBucketMetricsConfiguration,
        PutObject if headers.contains_key(COPY_SOURCE) => CopyObject,
        UploadPart if headers.contains_key(COPY_SOURCE) => UploadPartCopy,
        // It belongs to another operation: S3 would do something else.
        GetObject | HeadObject if has("select-type") || has("list-type") => Other,
        operation => operation,
    })
}

// === impl Parameters ===

impl Parameters {
    fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.query.iter().find(|(known, _)| *known == name)?;
        Some(value)
    }

    /// Reads the parameters of GetObject and HeadObject.
    fn read_object(&mut self, headers: &HeaderMap) -> Result<(), S3Error> {
        if self.get("versionId") == Some("") {
            let why = "Version id cannot be the empty string";
            return Err(S3Error::new(Code::InvalidArgument, why));
        }
        self.part_number = self.get("partNumber").map(part_number).transpose()?;
        if self.part_number.is_some() && headers.contains_key(RANGE) {
            let why = "Cannot specify both Range header and partNumber query parameter";
            return Err(S3Error::new(Code::InvalidRequest, why));
        }
        for (name, value) in &self.query {
            if let Some(field) = name.strip_prefix(OVERRIDE) {
                let invalid = || invalid(format!("{name} is not a valid field value"));
                let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| invalid())?;
                self.overrides.push((HeaderName::from_static(field), value));
            }
        }
        self.passed = passed(headers);
        self.wants_checksums = headers
            .get(CHECKSUM_MODE)
            .is_some_and(|mode| mode.as_bytes().eq_ignore_ascii_case(b"ENABLED"));
        Ok(())
    }
}

fn passed(headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let all = PASSED.iter().flat_map(|name| {
        let values = headers.get_all(*name).iter();
        values.map(|value| (HeaderName::from_static(name), value.clone()))
    });
    all.collect()
}

fn part_number(value: &str) -> Result<u16, S3Error> {
    let number = value
        .parse()
        .ok()
        .filter(|number| (1..=MAX_PARTS).contains(number));
    number.ok_or_else(|| {
        let why = "Part number must be an integer between 1 and 10000, inclusive";
        S3Error::new(Code::InvalidArgument, why)
    })
}

fn known(name: &[u8]) -> Option<&'static str> {
    let found = SUB_RESOURCES.iter().chain(&PARAMETERS);
    found.copied().find(|known| known.as_bytes() == name)
}

fn value(name: &str, raw: &[u8]) -> Result<String, S3Error> {
    let value = decoded(raw, Plus::IsSpace).into_owned();
    match String::from_utf8(value) {
        Ok(value) if value.len() <= MAX_VALUE => Ok(value),
        Ok(_) => Err(invalid(format!("{name} is too long"))),
        Err(_) => Err(invalid(format!("{name} is not UTF-8"))),
    }
}

fn invalid(why: String) -> S3Error {
    S3Error::new(Code::InvalidArgument, why)
}

#[derive(PartialEq, Eq)]
enum Plus {
    IsPlus,
    /// Decoding as in HTML forms.
    IsSpace,
}

/// A name or value without percent-encoding. An incomplete escape stands for itself.
fn decoded(text: &[u8], plus: Plus) -> Cow<'_, [u8]> {
    if !text.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return text.into();
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        let escaped = match rest {
            [b'%', high, low, ..] => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                decoded.push(high << 4 | low);
                rest = &rest[3..];
            }
            None => {
                let is_space = *byte == b'+' && plus == Plus::IsSpace;
                decoded.push(if is_space { b' ' } else { *byte });
                rest = after;
            }
        }
    }
    decoded.into()
}

/// The value of a parameter without percent-encoding.
pub(super) fn decoded_value(value: &[u8]) -> Cow<'_, [u8]> {
    decoded(value, Plus::IsSpace)
}

fn hex(digit: u8) -> Option<u8> {
    let digit = char::from(digit).to_digit(16)?;
    u8::try_from(digit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str) -> Target {
        match path {
            "service" => Target::Service,
            path => Target::in_bucket(path).unwrap(),
        }
    }

    fn read(method: &str, path: &str, query: &str) -> Result<S3Request, S3Error> {
        read_with(method, path, query, &[])
    }

    fn read_with(
        method: &str,
        path: &str,
        query: &str,
        fields: &[(&'static str, &'static str)],
    ) -> Result<S3Request, S3Error> {
        let headers = fields
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect();
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let query = (!query.is_empty()).then_some(query.as_bytes());
        S3Request::read(&method, target(path), query, &headers)
    }

    #[test]
    fn operations_are_told_by_method_target_and_sub_resource() {
        use Operation::*;
        for (method, path, query, expected) in [
            ("GET", "a", "", GetObject),
            ("HEAD", "a", "", HeadObject),
            ("GET", "a", "x-id=GetObject", GetObject),
            ("GET", "a", "acl", GetObjectAcl),
            ("GET", "a", "acl=", GetObjectAcl),
            ("GET", "a", "x-id=GetObject&acl", GetObjectAcl),
            ("GET", "a", "%61cl", GetObjectAcl),
            ("GET", "a", "&&tagging", GetObjectTagging),
            ("GET", "a", "versionId=1&tagging", GetObjectTagging),
            ("GET", "a", "uploadId=1", ListParts),
            ("GET", "a", "prefix=b", GetObject),
            ("GET", "a", "cors", Other),
            ("GET", "a", "select-type=2", Other),
            ("GET", "a", "lambdaArn=x", Other),
            ("HEAD", "a", "acl", Other),
            ("PUT", "a", "", PutObject),
            ("PUT", "a", "partNumber=1&uploadId=2", UploadPart),
            ("POST", "a", "uploads", CreateMultipartUpload),
            ("POST", "a", "uploadId=1", CompleteMultipartUpload),
            ("POST", "a", "select&select-type=2", SelectObjectContent),
            ("POST", "a", "", Other),
            ("DELETE", "a", "", DeleteObject),
            ("DELETE", "a", "uploadId=1", AbortMultipartUpload),
            ("GET", "", "", ListObjects),
            ("GET", "", "prefix=a", ListObjects),
            ("GET", "", "list-type=2&prefix=", ListObjectsV2),
            ("GET", "", "versions&prefix=a", ListObjectVersions),
            ("GET", "", "uploads", ListMultipartUploads),
            ("GET", "", "location", GetBucketLocation),
            ("GET", "", "metrics", ListBucketMetricsConfigurations),
            ("GET", "", "metrics&id=1", GetBucketMetricsConfiguration),
            ("HEAD", "", "", HeadBucket),
            ("PUT", "", "", CreateBucket),
            ("DELETE", "", "", DeleteBucket),
            ("POST", "", "delete", DeleteObjects),
            ("POST", "", "", PostObject),
            ("OPTIONS", "a", "", PreflightRequest),
            ("GET", "service", "", ListBuckets),
            ("HEAD", "service", "", Other),
            // Case counts, and so does the whole name.
            ("GET", "a", "ACL", GetObject),
            ("GET", "a", "acl2", GetObject),
            ("GET", "a", "a=acl", GetObject),
            ("GET", "a", "acl%", GetObject),
            ("GET", "a", "%", GetObject),
        ] {
            let request = read(method, path, query).unwrap();
            assert_eq!(request.operation, expected, "{method} {path} {query}");
        }
        for (query, expected) in [
            ("", CopyObject),
            ("partNumber=1&uploadId=2", UploadPartCopy),
        ] {
            let fields = [("x-amz-copy-source", "/b/k")];
            let request = read_with("PUT", "a", query, &fields).unwrap();
            assert_eq!(request.operation, expected);
        }
        for method in ["PATCH", "TRACE", "PURGE", "get"] {
            let refused = read(method, "a", "").unwrap_err();
            assert_eq!(refused.code, "MethodNotAllowed", "{method}");
        }
    }

    #[test]
    fn noise_makes_no_difference() {
        let plain = read("GET", "a", "").unwrap();
        for query in [
            "x-id=GetObject",
            "X-Amz-Signature=abc&X-Amz-Date=20261128T000000Z",
            "v=1&v=2&utm_source=acl",
            "response-x-frame-options=DENY",
            "=&=&&",
            "%=%zz",
        ] {
            let request = read("GET", "a", query).unwrap();
            assert_eq!(request, plain, "{query}");
        }
        let fields = [
            ("x-amz-date", "20261128T000000Z"),
            ("x-amz-user-agent", "x"),
            ("x-amz-checksum-mode", "disabled"),
        ];
        assert_eq!(read_with("GET", "a", "", &fields).unwrap(), plain);
        assert!(plain.is_plain());
    }

    #[test]
    fn parameters_are_decoded() {
        let request = read("GET", "a", "versionId=a%2Bb%3D+c").unwrap();
        assert_eq!(request.version_id(), Some("a+b= c"));
        assert!(request.is_plain());
        let request = read("GET", "a", "version%49d=null").unwrap();
        assert_eq!(request.version_id(), Some("null"));
        let request = read("GET", "", "list-type=2&prefix=gr%C3%BC%2F&delimiter=%2F").unwrap();
        assert_eq!(request.parameter("prefix"), Some("grü/"));
        assert_eq!(request.parameter("delimiter"), Some("/"));
        assert_eq!(request.parameter("marker"), None);
        let request = read("GET", "a", "partNumber=10000").unwrap();
        assert_eq!(request.part_number(), Some(10_000));
        assert!(!request.is_plain() && request.passes_the_cache());
    }

    #[test]
    fn overrides_are_fields_of_the_response() {
        let query = "response-content-type=text%2Fhtml%3B+a&response-expires=0&x-id=GetObject";
        let request = read("GET", "a", query).unwrap();
        let fields: Vec<_> = request
            .overrides()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(fields, [("content-type", "text/html; a"), ("expires", "0")]);
        assert!(!request.is_plain() && !request.passes_the_cache());
    }

    #[test]
    fn fields_by_which_s3_decides_are_passed() {
        let fields = [
            ("x-amz-server-side-encryption-customer-key", "k"),
            ("x-amz-request-payer", "requester"),
            ("x-amz-security-token", "t"),
        ];
        let request = read_with("GET", "a", "", &fields).unwrap();
        let names: Vec<_> = request
            .passed_fields()
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        let expected = [
            "x-amz-request-payer",
            "x-amz-server-side-encryption-customer-key",
        ];
        assert_eq!(names, expected);
        assert!(request.passes_the_cache());
        let request = read_with("GET", "a", "", &[("x-amz-checksum-mode", "ENABLED")]).unwrap();
        assert!(request.wants_checksums() && !request.passes_the_cache() && !request.is_plain());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (path, query, code) in [
            ("a", "versionId=", Code::InvalidArgument),
            ("a", "versionId", Code::InvalidArgument),
            ("a", "versionId=%ff", Code::InvalidArgument),
            ("a", "versionId=a&versionId=b", Code::InvalidArgument),
            ("a", "versionId=a&version%49d=b", Code::InvalidArgument),
            ("a", "partNumber=0", Code::InvalidArgument),
            ("a", "partNumber=10001", Code::InvalidArgument),
            ("a", "partNumber=x", Code::InvalidArgument),
            ("a", "acl&tagging", Code::InvalidArgument),
            ("a", "acl&acl", Code::InvalidArgument),
            ("a", "response-content-type=a%0d%0ab", Code::InvalidArgument),
            ("a", "response-expires=%00", Code::InvalidArgument),
            ("", "list-type=3", Code::InvalidArgument),
            ("", "prefix=a&prefix=b", Code::InvalidArgument),
        ] {
            let refused = read("GET", path, query).unwrap_err();
            assert_eq!(refused.code, code.as_str(), "{query}");
        }
        let long = format!("versionId={}", "a".repeat(MAX_VALUE + 1));
        assert_eq!(read("GET", "a", &long).unwrap_err().code, "InvalidArgument");
        let fields = [("range", "bytes=0-1")];
        let refused = read_with("GET", "a", "partNumber=1", &fields).unwrap_err();
        assert_eq!(refused.code, "InvalidRequest");
    }
}
