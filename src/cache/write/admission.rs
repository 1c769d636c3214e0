//! The admission policy: which misses are stored.

use std::sync::OnceLock;

use pingora_cache::admission::{AdmissionPolicy, Decision};
use pingora_cache::key::CacheHashKey;
use pingora_cache::CacheKey;

use crate::cache::state::cores::Cores;
use crate::cache::state::miss_counts::MissCounts;
use crate::cache::state::Core;
use crate::cache::write::space::RECOVERY_PATIENCE;

/// The policy of a cache, which admits nothing while nothing can be stored.
pub(crate) struct Admission {
    min_uses: Option<MinUses>,
    cores: OnceLock<&'static Cores>,
}

impl Admission {
    /// A policy for objects from their n-th request on; 1: all.
    pub(crate) fn new(min_uses: u8) -> Self {
        Admission {
            min_uses: (min_uses > 1).then(|| MinUses::new(min_uses)),
            cores: OnceLock::new(),
        }
    }

    /// Set the folders that the policy is for.
    pub(crate) fn set_cores(&self, cores: &'static Cores) {
        let _ = self.cores.set(cores);
    }
}

impl AdmissionPolicy for Admission {
    fn observe(&self, key: &CacheKey) -> Decision {
        let cores = self.cores.get();
        let admits = cores.is_none_or(|cores| cores.of(key).is_some_and(admits));
        let decision = match &self.min_uses {
            Some(policy) => policy.observe(key),
            None => Decision::Ready { observed: 1 },
        };
        let decision = match decision {
            Decision::Ready { observed } if !admits => Decision::Defer { observed },
            decision => decision,
        };
        if decision.is_deferred() {
            if let Some(cores) = cores {
                cores.stats.not_admitted.inc();
            }
        }
        decision
    }
}

/// True if new entries may be written. During the recovery nothing can be evicted, so only
/// free space is used.
pub(crate) fn admits(core: &Core) -> bool {
    let has_space = || {
        core.recovery.elapsed() < RECOVERY_PATIENCE
            || (core.bytes_in_recovery()).is_some_and(|bytes| bytes < core.max_size_bytes)
    };
    core.is_writable() && !core.health.is_down() && (core.recovery.is_complete() || has_space())
}

/// Admits an object from its n-th request on, like nginx's `proxy_cache_min_uses`.
struct MinUses {
    min_uses: u8,
    misses: MissCounts,
}

impl MinUses {
    /// Admit from this request on; 1 admits at once.
    fn new(min_uses: u8) -> Self {
        MinUses {
            min_uses,
            misses: MissCounts::default(),
        }
    }
}

impl AdmissionPolicy for MinUses {
    fn observe(&self, key: &CacheKey) -> Decision {
        let uses = self.misses.count(&key.combined_bin());
        let observed = u32::from(uses);
        if uses >= self.min_uses {
            Decision::Ready { observed }
        } else {
            Decision::Defer { observed }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::state::miss_counts::CELLS;

    #[test]
    fn a_key_is_ready_at_its_nth_request() {
        let policy = MinUses::new(3);
        for key in ["a", "b"] {
            let key = CacheKey::new(key, "");
            assert!(policy.observe(&key).is_deferred());
            assert!(policy.observe(&key).is_deferred());
            assert!(!policy.observe(&key).is_deferred());
            assert!(!policy.observe(&key).is_deferred());
        }
        assert!(!MinUses::new(1)
            .observe(&CacheKey::new("c", ""))
            .is_deferred());
    }

    #[test]
    fn a_key_requested_once_is_forgotten() {
        let policy = MinUses::new(2);
        let key = CacheKey::new("once", "");
        assert!(policy.observe(&key).is_deferred());
        let other = CacheKey::new("other", "");
        for _ in 0..CELLS {
            policy.observe(&other);
        }
        assert!(policy.observe(&key).is_deferred());
    }
}
