//! The part of a bucket that a client may read.

/// The prefixes of the keys that a client may read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPrefixes(Option<Box<[String]>>);

// === impl KeyPrefixes ===

impl KeyPrefixes {
    /// The whole bucket.
    pub const ALL: KeyPrefixes = KeyPrefixes(None);

    /// The keys that begin with one of these prefixes; without prefixes, none.
    pub fn only(prefixes: impl IntoIterator<Item = String>) -> KeyPrefixes {
        KeyPrefixes(Some(prefixes.into_iter().collect()))
    }

    /// True if a key, or a prefix of keys to list, begins with one of the prefixes.
    pub fn allow(&self, key: &str) -> bool {
        match &self.0 {
            None => true,
            Some(prefixes) => prefixes.iter().any(|prefix| key.starts_with(&**prefix)),
        }
    }

    /// True if this is the whole bucket.
    pub fn is_all(&self) -> bool {
        self.0.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_begins_with_an_allowed_prefix() {
        let some = KeyPrefixes::only(["a/".to_owned(), "b".to_owned()]);
        for (key, allowed) in [
            ("a/", true),
            ("a/x", true),
            ("b", true),
            ("bc", true),
            ("a", false),
            ("", false),
            ("A/x", false),
            ("x/a/", false),
        ] {
            assert_eq!(some.allow(key), allowed, "{key}");
            assert!(KeyPrefixes::ALL.allow(key));
            assert!(!KeyPrefixes::only([]).allow(key));
        }
        assert!(KeyPrefixes::ALL.is_all() && !some.is_all());
    }
}
