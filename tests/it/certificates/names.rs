//! The choice of the certificate.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::SignatureScheme;
use tempfile::TempDir;
use test_support::{pem, rsa_key, Authority, Issued, RSA_KEY};

use super::client::{Choices, Client};
use super::{certificates, https, origin};

#[test]
fn a_client_receives_the_certificate_for_the_name_that_it_sends() {
    let dir = TempDir::new().expect("make a directory");
    let authority = Authority::new("of servers");
    let default = authority.issue(&["default.example", "*.wild.example"]);
    let exact = authority.issue(&["exact.example", "a.wild.example", "127.0.0.1"]);
    let wild = authority.issue(&["*.Apps.example", "apps.example"]);
    let (certificate, key) = default.write_to(dir.path(), "default");
    let all = certificates(dir.path(), &[("exact", &exact), ("wild", &wild)]);
    let origin = origin();
    let proxy = https(&origin)
        .tls_with(&certificate, &key)
        .tls_key("certificates", all)
        .start();
    let addr = proxy.https_addr();
    for (name, expected) in [
        ("default.example", &default),
        ("exact.example", &exact),
        ("EXACT.example", &exact),
        ("b.wild.example", &default),
        // The exact name comes before the wildcard.
        ("a.wild.example", &exact),
        ("apps.example", &wild),
        ("one.apps.example", &wild),
        // An asterisk is one label.
        ("two.one.apps.example", &default),
        ("unknown.example", &default),
        // No name is sent with an address.
        ("127.0.0.1", &default),
    ] {
        assert!(
            Client::any().certificate(addr, name) == expected.der,
            "{name}"
        );
    }
    assert!(Client::nameless().certificate(addr, "exact.example") == default.der);
    let verifies = Client::new(Choices {
        trusts: Some(&authority),
        ..Choices::default()
    });
    assert_eq!(verifies.status(addr, "exact.example").expect("a name"), 200);
    verifies
        .connect(addr, "unknown.example")
        .err()
        .expect("a certificate for another name");
}

#[test]
fn of_two_certificates_for_a_name_the_client_receives_one_that_it_supports() {
    let dir = TempDir::new().expect("make a directory");
    let authority = Authority::new("of servers");
    let names = &["localhost"];
    let (ecdsa, rsa) = (
        authority.issue(names),
        authority.issue_for(names, &rsa_key()),
    );
    let (certificate, key) = ecdsa.write_to(dir.path(), "ecdsa");
    let origin = origin();
    let proxy = https(&origin)
        .tls_with(&certificate, &key)
        .tls_key("certificates", certificates(dir.path(), &[("rsa", &rsa)]))
        .start();
    for (schemes, expected) in [
        (vec![], &ecdsa),
        (vec![SignatureScheme::ECDSA_NISTP256_SHA256], &ecdsa),
        (vec![SignatureScheme::RSA_PSS_SHA256], &rsa),
    ] {
        let client = Client::new(Choices {
            schemes: schemes.clone(),
            ..Choices::default()
        });
        let shown = client.certificate(proxy.https_addr(), "localhost");
        assert!(shown == expected.der, "{schemes:?}");
    }
}

/// A P-256 key as SEC 1, which PKCS #8 encloses (RFC 5915, RFC 5958).
fn sec1(issued: &Issued) -> String {
    let der = PrivatePkcs8KeyDer::from_pem_slice(issued.key.as_bytes()).expect("a key");
    let der = der.secret_pkcs8_der();
    // ECPrivateKey begins with version 1 and a key of 32 bytes.
    let begin = [0x02, 1, 1, 0x04, 32];
    let at = der.windows(begin.len()).position(|part| part == begin);
    let at = at.expect("an EC key") - 2;
    let (header, content) = (&der[at..at + 2], usize::from(der[at + 1]));
    assert_eq!(header[0], 0x30);
    pem("EC PRIVATE KEY", &der[at..at + 2 + content])
}

#[test]
fn a_chain_is_sent_whole_whatever_the_kind_of_the_key() {
    let root = Authority::new("root");
    let between = root.intermediate("intermediate");
    let names = &["localhost"];
    let (ecdsa, rsa) = (between.issue(names), between.issue_for(names, &rsa_key()));
    let pkcs1 =
        format!("-----BEGIN RSA PRIVATE KEY-----\n{RSA_KEY}\n-----END RSA PRIVATE KEY-----\n");
    let parameters =
        "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    let origin = origin();
    for (issued, key) in [
        (&ecdsa, ecdsa.key.clone()),
        (&ecdsa, sec1(&ecdsa)),
        // As `openssl ecparam -genkey` writes it.
        (&ecdsa, parameters.to_owned() + &sec1(&ecdsa)),
        (&rsa, rsa.key.clone()),
        (&rsa, pkcs1),
    ] {
        let dir = TempDir::new().expect("make a directory");
        let written = Issued {
            chain: issued.chain.clone(),
            der: issued.der.clone(),
            key: key.clone(),
        };
        let (certificate, key_file) = written.write_to(dir.path(), "server");
        let proxy = https(&origin).tls_with(&certificate, &key_file).start();
        let client = Client::new(Choices {
            trusts: Some(&root),
            ..Choices::default()
        });
        let status = client.status(proxy.https_addr(), "localhost");
        assert_eq!(status.expect("a chain"), 200, "{key}");
    }
}
