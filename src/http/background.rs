//! Limits of fills that no client waits for.

use std::time::Duration;

/// Limits for fetching whole objects of which clients have asked for parts.
#[derive(Debug, Clone, Copy)]
pub struct BackgroundFills {
    /// The most objects in flight; 0: none, which switches them off.
    pub in_flight: usize,
    /// The longest body that is fetched, in bytes.
    pub max_bytes: u64,
    /// The total size of the objects in flight, in bytes. A larger object is fetched alone,
    /// once clients have received as many bytes of it as it has.
    pub bytes_in_flight: u64,
    /// Bytes that may be fetched in a minute for one client address, beyond those of the
    /// object that clients have received; `None`: no limit.
    pub client_bytes_per_minute: Option<u64>,
    /// The longest time that a part waits for a fill that has not come to it, before it is
    /// fetched by itself; zero: only the beginning of a fill is waited for.
    pub max_wait: Duration,
}

impl Default for BackgroundFills {
    fn default() -> Self {
        BackgroundFills {
            in_flight: 32,
            max_bytes: u64::MAX,
            bytes_in_flight: 2_000_000_000,
            client_bytes_per_minute: Some(1_000_000_000),
            max_wait: Duration::from_secs(5),
        }
    }
}
