//! Request ids, by which clients and operators refer to a request.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

/// A request id that is unlikely to be repeated in any process: 16 upper-case hexadecimal digits,
/// as in S3.
pub(super) fn next() -> String {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let keys = KEYS.get_or_init(RandomState::new);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:016X}", keys.hash_one(number))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::next;

    #[test]
    fn names_differ() {
        let names: HashSet<_> = (0..10_000).map(|_| next()).collect();
        assert_eq!(names.len(), 10_000);
        let is_name =
            |name: &String| name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit());
        assert!(names.iter().all(is_name));
    }
}
