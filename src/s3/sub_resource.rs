//! Queries that ask S3 for something other than an object as it is.

use std::borrow::Cow;

/// The parameters of GetObject and HeadObject that change the answer, and the
/// sub-resources of objects and buckets, in alphabetical order.
///
/// Source: the operations of the Amazon S3 API Reference; the list that signature
/// version 2 puts under the signature ("Constructing the CanonicalizedResource
/// Element", Amazon S3 User Guide).
const SUB_RESOURCES: [&str; 47] = [
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
    "list-type",
    "location",
    "logging",
    "metadataConfiguration",
    "metadataTable",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "partNumber",
    "policy",
    "policyStatus",
    "publicAccessBlock",
    "renameObject",
    "replication",
    "requestPayment",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "restore",
    "retention",
    "select",
    "select-type",
    "session",
    "tagging",
    "torrent",
    "uploadId",
    "uploads",
    "versionId",
    "versioning",
    "versions",
    "website",
];

/// The first parameter of a raw query that would change S3's answer. Others, such as
/// `x-id` or the signature of a presigned URL, do not.
pub fn sub_resource_of(query: &[u8]) -> Option<&'static str> {
    query.split(|byte| *byte == b'&').find_map(|parameter| {
        let name = parameter.split(|byte| *byte == b'=').next()?;
        let name = decoded(name);
        let at = SUB_RESOURCES.binary_search_by(|known| known.as_bytes().cmp(&name));
        at.ok().map(|at| SUB_RESOURCES[at])
    })
}

/// A name without percent-encoding. An incomplete escape stands for itself.
fn decoded(name: &[u8]) -> Cow<'_, [u8]> {
    if !name.contains(&b'%') {
        return name.into();
    }
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
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
                decoded.push(*byte);
                rest = after;
            }
        }
    }
    decoded.into()
}

fn hex(digit: u8) -> Option<u8> {
    let digit = char::from(digit).to_digit(16)?;
    u8::try_from(digit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_order() {
        assert!(SUB_RESOURCES.is_sorted());
    }

    #[test]
    fn what_changes_the_answer_is_found() {
        for (query, expected) in [
            ("versionId=abc", Some("versionId")),
            ("partNumber=1", Some("partNumber")),
            ("acl", Some("acl")),
            ("acl=", Some("acl")),
            ("x-id=GetObject&acl", Some("acl")),
            ("&&tagging", Some("tagging")),
            (
                "response-content-type=text%2Fhtml",
                Some("response-content-type"),
            ),
            ("%61cl", Some("acl")),
            ("version%49d=1", Some("versionId")),
            ("", None),
            ("x-id=GetObject", None),
            ("ACL", None),
            ("acl2", None),
            ("a=acl", None),
            ("%", None),
            ("acl%", None),
            ("%2", None),
            ("v=1&utm_source=acl", None),
            ("X-Amz-Signature=abc&X-Amz-Date=20261128T000000Z", None),
        ] {
            assert_eq!(sub_resource_of(query.as_bytes()), expected, "{query}");
        }
    }
}
