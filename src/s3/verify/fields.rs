//! The header fields of a request.

use http::HeaderMap;

/// The number of fields from which on they are sorted.
const FEW: usize = 32;

/// The header fields of a request as a list. Most requests have few fields, for which comparing
/// names is faster than hashing. Many fields are searched by bisection: otherwise, an unidentified
/// client could cause a number of comparisons that is the square of theirs.
#[derive(Debug)]
pub(super) struct Fields<'a>(Vec<Field<'a>>);

/// A name, in lower case, and a value.
type Field<'a> = (&'a [u8], &'a [u8]);

// === impl Fields ===

impl<'a> Fields<'a> {
    pub(super) fn of(headers: &'a HeaderMap) -> Fields<'a> {
        let mut fields = Vec::with_capacity(headers.len());
        let of = |(name, value)| {
            let (name, value): (&'a http::HeaderName, &'a http::HeaderValue) = (name, value);
            (name.as_str().as_bytes(), value.as_bytes())
        };
        fields.extend(headers.iter().map(of));
        if fields.len() > FEW {
            // A stable sort keeps the order of values with one name.
            fields.sort_by_key(|(name, _)| *name);
        }
        Fields(fields)
    }

    /// The fields to compare with a name: if sorted, only those with this name.
    fn near(&self, name: &[u8]) -> &[Field<'a>] {
        if self.0.len() <= FEW {
            return &self.0;
        }
        let from = self.0.partition_point(|(of, _)| *of < name);
        let fields = &self.0[from..];
        &fields[..fields.partition_point(|(of, _)| *of == name)]
    }

    /// The values of the fields with this name, which must be in lower case.
    pub(super) fn all<'n>(&'n self, name: &'n [u8]) -> impl Iterator<Item = &'a [u8]> + 'n {
        let fields = self.near(name).iter().filter(move |(of, _)| *of == name);
        fields.map(|(_, value)| *value)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.0.iter().map(|(name, _)| *name)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn a_name_is_found_among_few_and_among_many() {
        for number in [3, FEW - 2, FEW, 250] {
            let mut headers = HeaderMap::new();
            for at in (0..number).rev() {
                let name = HeaderName::try_from(format!("x-{at:03}")).unwrap();
                headers.append(name, HeaderValue::from(at));
            }
            headers.append("x-001", HeaderValue::from_static("second"));
            headers.append("host", HeaderValue::from_static("a.example"));
            let fields = Fields::of(&headers);
            let all = |name: &str| fields.all(name.as_bytes()).collect::<Vec<_>>();
            assert_eq!(all("x-000"), [b"0"]);
            assert_eq!(all("x-001"), [&b"1"[..], b"second"], "in their order");
            assert_eq!(all("host"), [b"a.example"]);
            for absent in ["", "a", "x-", "x-0010", "x-999", "z"] {
                assert!(all(absent).is_empty(), "{absent}");
            }
            assert_eq!(fields.names().count(), number + 2);
            let looked_at = |name: &str| fields.near(name.as_bytes()).len();
            if number > FEW {
                assert_eq!([looked_at("x-001"), looked_at("x-002")], [2, 1]);
                assert_eq!(looked_at("x-999"), 0);
            }
        }
    }
}
