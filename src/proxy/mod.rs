//! The S3 caching proxy as a Pingora application.

mod errors;
mod s3_proxy;
pub mod serve;
pub mod server;

pub use s3_proxy::S3ProxyHttp;
pub use serve::serve_with_sendfile;
