//! Answers about buckets.
//!
//! A client needs HeadBucket and GetBucketLocation before it asks for objects: to see that a
//! bucket is there, and in which region requests are signed. The configuration says both, and
//! a client that may read objects knows both anyway.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderName, StatusCode};
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::errors;
use super::route::Route;
use crate::s3::{Code, Operation, S3Error, S3Request};

const BUCKET_REGION: HeaderName = HeaderName::from_static("x-amz-bucket-region");

/// The region whose buckets have no location.
const NO_LOCATION: &str = "us-east-1";

/// Answer a request that is not for an object as it is. Always `true`, for `request_filter`.
pub(super) async fn answer(session: &mut Session, route: &Route) -> Result<bool> {
    let region = route.site.region();
    match route.request.operation {
        Operation::HeadBucket => {
            let mut header = ResponseHeader::build(StatusCode::OK, Some(3))?;
            header.insert_header(BUCKET_REGION, region)?;
            header.insert_header(CONTENT_LENGTH, 0)?;
            errors::send(session, header, Bytes::new()).await?;
        }
        Operation::GetBucketLocation => {
            let location = if region == NO_LOCATION { "" } else { region };
            let document = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
                 <LocationConstraint xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{location}\
                 </LocationConstraint>"
            );
            let mut header = ResponseHeader::build(StatusCode::OK, Some(3))?;
            header.insert_header(CONTENT_TYPE, "application/xml")?;
            header.insert_header(CONTENT_LENGTH, document.len())?;
            errors::send(session, header, document.into()).await?;
        }
        Operation::ListObjects | Operation::ListObjectsV2 => {
            errors::respond(session, &Code::AccessDenied.into()).await?;
        }
        _ => errors::respond(session, &not_implemented(&route.request)).await?,
    }
    Ok(true)
}

/// The answer to a request that is for no bucket.
pub(super) fn of_service(request: &S3Request) -> S3Error {
    match request.operation {
        Operation::ListBuckets => Code::AccessDenied.into(),
        _ => not_implemented(request),
    }
}

fn not_implemented(request: &S3Request) -> S3Error {
    let why = match request.operation {
        Operation::Other => "This proxy does not implement the requested operation.".to_owned(),
        operation => format!("This proxy does not implement {operation:?}."),
    };
    S3Error::new(Code::NotImplemented, why)
}
