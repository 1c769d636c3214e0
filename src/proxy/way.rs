//! The ways of a body to the client.

use pingora_proxy::Session;

use crate::http::CachingCtx;

/// The way that most of a body took to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By sendfile(2).
    Sendfile,
    /// By sendfile(2), encrypted by the kernel.
    KernelTls,
    /// Copied from the memory tier.
    Memory,
    /// Copied from a disk or an origin.
    Copied,
}

// === impl Way ===

impl Way {
    /// All ways, in the order of their numbers.
    pub(crate) const ALL: [Way; 4] = [Way::Sendfile, Way::KernelTls, Way::Memory, Way::Copied];

    /// The way of the body of a response.
    pub(super) fn of(session: &Session, ctx: &CachingCtx) -> Way {
        let downstream = session.as_downstream();
        if downstream.body_bytes_zero_copy() > 0 {
            let digest = downstream.digest();
            return match digest.is_some_and(|digest| digest.ssl_digest.is_some()) {
                true => Way::KernelTls,
                false => Way::Sendfile,
            };
        }
        Way::copied(ctx)
    }

    /// The way of the bytes of a body that were copied.
    pub(super) fn copied(ctx: &CachingCtx) -> Way {
        match ctx.in_memory() {
            true => Way::Memory,
            false => Way::Copied,
        }
    }

    /// The name in the access log and in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Way::Sendfile => "sendfile",
            Way::KernelTls => "ktls",
            Way::Memory => "memory",
            Way::Copied => "copied",
        }
    }
}
