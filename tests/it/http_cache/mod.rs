//! The caching rules of HTTP, with the proxy of `examples/http_cache.rs`.

mod attacks;
mod collapse;
mod compression;
mod freshness;
mod http2;
mod invalidation;
mod messages;
mod ranges;
mod relay;
mod requests;
mod storing;
mod upgrade;
mod validation;
mod vary;
