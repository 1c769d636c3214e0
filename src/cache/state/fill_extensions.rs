//! Extensions of the metadata of a response, which say why it is fetched.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

/// Marks a response that is fetched in the background. It will have no readers, and other
/// limits apply to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InBackground;

/// Marks a response that nobody waits for. Nothing is evicted for it that is requested more often, even
/// if it has readers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct YieldsRoom;

/// Marks a response of which parts can be requested later, of the same version. If its fill breaks
/// off, the blocks that have arrived are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resumable;

/// Marks a response that is fetched for requests for its parts. The fill continues as long as
/// these last, and beyond that if it is [kept](Self::keep).
#[derive(Debug, Clone, Default)]
pub(crate) struct ForParts(Arc<Parts>);

#[derive(Debug, Default)]
struct Parts {
    is_over: AtomicBool,
    kept: OnceLock<Box<dyn Any + Send + Sync>>,
    /// Notified when no request for a part is left.
    left: OnceLock<Arc<Notify>>,
}

impl ForParts {
    /// Complete the fill even without readers. `guard` lives as long as the fill.
    pub(crate) fn keep(&self, guard: Box<dyn Any + Send + Sync>) {
        let _ = self.0.kept.set(guard);
    }

    /// Note that no request for a part is left.
    pub(crate) fn end(&self) {
        self.0.is_over.store(true, Ordering::Release);
        if let Some(left) = self.0.left.get() {
            left.notify_one();
        }
    }

    /// Have the fill notified when no request for a part is left.
    pub(crate) fn notify_at_end(&self, left: &Arc<Notify>) {
        let _ = self.0.left.set(left.clone());
    }

    /// True if the fill continues even without readers.
    pub(crate) fn want_it(&self) -> bool {
        self.0.kept.get().is_some() || !self.0.is_over.load(Ordering::Acquire)
    }
}
