//! The S3 protocol as clients and the origin speak it.

mod buckets;
mod objects;
mod requests;
