//! Index documents, and redirects to them.

use http::header::HeaderValue;
use http::HeaderMap;

use crate::s3::{Operation, S3Request, Target};

/// A field of requests that S3 clients sign.
const SIGNING_DATE: &str = "x-amz-date";

/// The key of the folder that a request is for as a page: empty, or with a slash at its end. `None`: it
/// asks for something else.
///
/// S3 clients send HEAD to the bucket to check that it exists, and GET with parameters to list it. Those
/// requests stay what they are.
pub(in crate::proxy) fn folder_of<'r>(
    request: &'r S3Request,
    headers: &HeaderMap,
) -> Option<&'r str> {
    if request.has_parameters() {
        return None;
    }
    match (&request.target, request.operation) {
        (Target::Bucket, Operation::ListObjects) => Some(""),
        (Target::Bucket, Operation::HeadBucket) if !headers.contains_key(SIGNING_DATE) => Some(""),
        (Target::Object(key), _) if request.reads_object() && key.as_str().ends_with('/') => {
            Some(key.as_str())
        }
        _ => None,
    }
}

/// The same path with a slash at its end, relative to the path itself, so that it leads to no other
/// server: `./docs/?query` for `/a/docs?query`. `None`: the path has a slash there, or ends with dots.
pub(in crate::proxy) fn slash_location(path: &[u8], query: Option<&[u8]>) -> Option<HeaderValue> {
    let start = path.iter().rposition(|byte| *byte == b'/')? + 1;
    let segment = &path[start..];
    let decoded = String::from_utf8_lossy(segment)
        .replace("%2e", ".")
        .replace("%2E", ".");
    if matches!(&*decoded, "" | "." | "..") {
        return None;
    }
    let mut location = b"./".to_vec();
    push(&mut location, segment);
    location.push(b'/');
    if let Some(query) = query {
        location.push(b'?');
        push(&mut location, query);
    }
    HeaderValue::from_bytes(&location).ok()
}

/// Append a part of a URL as the client sent it, with everything encoded that a URL does not have
/// (RFC 3986 §2). Browsers take a backslash for a slash.
fn push(location: &mut Vec<u8>, part: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in part {
        let stays = byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(byte);
        match stays {
            true => location.push(*byte),
            false => location.extend([
                b'%',
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            ]),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn folder(
        method: Method,
        target: Target,
        query: &str,
        fields: &[&'static str],
    ) -> Option<String> {
        let fields = fields
            .iter()
            .map(|name| (name.parse().unwrap(), HeaderValue::from_static("a")));
        let headers: HeaderMap = fields.collect();
        let query = Some(query.as_bytes());
        let request = S3Request::read(&method, target, query, &headers).unwrap();
        folder_of(&request, &headers).map(str::to_owned)
    }

    #[test]
    fn a_folder_is_a_page_unless_an_s3_client_asks() {
        let object = |key: &str| Target::in_bucket(key).unwrap();
        for (method, target, query, fields, expected) in [
            (Method::GET, Target::Bucket, "", &[][..], Some("")),
            (Method::HEAD, Target::Bucket, "", &[], Some("")),
            (Method::GET, Target::Bucket, "utm=1", &[], Some("")),
            (Method::GET, object("docs/"), "", &[], Some("docs/")),
            (
                Method::HEAD,
                object("docs/"),
                "a=b",
                &["x-amz-date"],
                Some("docs/"),
            ),
            (Method::HEAD, Target::Bucket, "", &["x-amz-date"], None),
            (Method::GET, Target::Bucket, "list-type=2", &[], None),
            (Method::GET, Target::Bucket, "prefix=", &[], None),
            (Method::GET, Target::Bucket, "location", &[], None),
            (Method::GET, object("docs"), "", &[], None),
            (Method::GET, object("docs/"), "versionId=1", &[], None),
            (Method::PUT, object("docs/"), "", &[], None),
        ] {
            let found = folder(method.clone(), target, query, fields);
            assert_eq!(found.as_deref(), expected, "{method} {query} {fields:?}");
        }
    }

    #[test]
    fn a_redirect_stays_on_the_server() {
        for (path, query, expected) in [
            ("/docs", None, Some("./docs/")),
            ("/a/b", Some("c=d&e"), Some("./b/?c=d&e")),
            ("//evil.example", None, Some("./evil.example/")),
            ("/https:", None, Some("./https:/")),
            ("/javascript:alert(1)", None, Some("./javascript:alert(1)/")),
            ("/a\\\\evil", None, Some("./a%5C%5Cevil/")),
            ("/\\evil", None, Some("./%5Cevil/")),
            ("/a%2Fb", None, Some("./a%2Fb/")),
            ("/a%0d%0ab", None, Some("./a%0d%0ab/")),
            ("/a\r\nb", Some("\r\nc"), Some("./a%0D%0Ab/?%0D%0Ac")),
            ("/grün", None, Some("./gr%C3%BCn/")),
            ("/docs/", None, None),
            ("/a/..", None, None),
            ("/a/%2e.", None, None),
        ] {
            let found = slash_location(path.as_bytes(), query.map(str::as_bytes));
            let found = found.map(|location| location.to_str().unwrap().to_owned());
            assert_eq!(found.as_deref(), expected, "{path}");
        }
    }
}
