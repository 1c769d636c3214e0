//! The header fields of a request.

use http::HeaderMap;

/// The header fields of a request, in a list. Requests have few fields, which are found sooner
/// by comparing names than by hashing them.
#[derive(Debug)]
pub(super) struct Fields<'a>(Vec<(&'a [u8], &'a [u8])>);

// === impl Fields ===

impl<'a> Fields<'a> {
    pub(super) fn of(headers: &'a HeaderMap) -> Fields<'a> {
        let mut fields = Vec::with_capacity(headers.len());
        let of = |(name, value)| {
            let (name, value): (&'a http::HeaderName, &'a http::HeaderValue) = (name, value);
            (name.as_str().as_bytes(), value.as_bytes())
        };
        fields.extend(headers.iter().map(of));
        Fields(fields)
    }

    /// The values of the fields with this name. The name is in lower case.
    pub(super) fn all<'n>(&'n self, name: &'n [u8]) -> impl Iterator<Item = &'a [u8]> + 'n {
        let fields = self.0.iter().filter(move |(of, _)| *of == name);
        fields.map(|(_, value)| *value)
    }

    pub(super) fn has(&self, name: &[u8]) -> bool {
        self.0.iter().any(|(of, _)| *of == name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.0.iter().map(|(name, _)| *name)
    }
}
