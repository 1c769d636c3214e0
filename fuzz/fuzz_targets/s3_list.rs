//! The document of a list is rewritten the same however it is cut, and what is passed on has
//! no key that is outside the prefix.

#![no_main]

mod seeds;

use http::{HeaderMap, Method};
use libfuzzer_sys::fuzz_target;
use pingora_sendfile::s3::{
    Bucket, Endpoint, ListError, ListRewriter, Origin, S3Request, Target,
};

fuzz_target!(init: seeds::write(&examples()), |data: &[u8]| {
    let [size, document @ ..] = data else {
        return;
    };
    let origin = origin();
    for query in ["", "encoding-type=url"] {
        let request = S3Request::read(
            &Method::GET,
            Target::Bucket,
            Some(query.as_bytes()),
            &HeaderMap::new(),
        );
        let request = request.expect("a request");
        let rewrite = |size: usize| -> Result<Vec<u8>, ListError> {
            let mut rewriter = ListRewriter::new(&origin, &request);
            let mut sent = Vec::new();
            for piece in document.chunks(size.max(1)) {
                sent.extend(rewriter.write(piece)?);
            }
            sent.extend(rewriter.finish()?);
            Ok(sent)
        };
        let whole = rewrite(document.len());
        let pieces = rewrite(usize::from(*size));
        match (whole, pieces) {
            (Ok(whole), Ok(pieces)) => assert_eq!(whole, pieces),
            (Err(_), Err(_)) => {}
            (whole, pieces) => panic!("{whole:?} {pieces:?}"),
        }
    }
});

fn origin() -> Origin {
    Origin::new(Bucket {
        path_prefix: Some("/assets".into()),
        hosts: Vec::new(),
        name: "bucket".into(),
        key_prefix: "t/".into(),
        principal: None,
        region: "us-east-1".into(),
        endpoint: Endpoint::parse("http://s3:9000").ok(),
        credentials: None,
        passthrough: false,
    })
}

fn examples() -> Vec<Vec<u8>> {
    [
        "\x01<?xml version=\"1.0\"?><L><Name>b</Name><Contents><Key>t/a</Key></Contents></L>",
        "\x03<L a=\"b\"><Prefix>t&#47;</Prefix><CommonPrefixes><Prefix>t/a&amp;/</Prefix></CommonPrefixes></L>",
        "\x07<L><Marker/><NextMarker>t%2Fa+b</NextMarker><Contents><Key>u/a</Key></Contents></L>",
        "\x02<L><!-- > --><Name><![CDATA[>]]></Name></L>",
        "\x05<L>a > b &gt; <A></A></L>\n",
    ]
    .map(|example| example.as_bytes().to_vec())
    .to_vec()
}
