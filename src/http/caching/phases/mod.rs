//! The work of [`HttpCaching`](super::HttpCaching), one file per phase of the request.

pub(super) mod errors;
pub(super) mod fast_hit;
pub(super) mod form;
pub(super) mod head;
pub(super) mod lookup;
pub(super) mod origin;
pub(super) mod parts;
pub(super) mod relay;
pub(super) mod request;
pub(super) mod respond;
pub(super) mod store;
