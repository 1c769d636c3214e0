//! Tokens that are accepted, and tokens that are refused.

use test_support::TokenKey;

use super::*;

const SECRET: &[u8; 40] = b"a secret that is long enough for HS256..";

/// The time in seconds since 1970, relative to now.
fn after(secs: i64) -> i64 {
    now() as i64 + secs
}

fn claims(more: &str) -> String {
    format!("{{\"exp\":{}{more}}}", after(300))
}

fn verifier(keys: Keys) -> Verifier {
    Verifier::new(keys, Rules::default())
}

fn secret() -> Keys {
    Keys::from_secret(SECRET).unwrap()
}

fn set(keys: &[String]) -> Result<Keys, &'static str> {
    Keys::from_jwks(format!("{{\"keys\":[{}]}}", keys.join(",")).as_bytes())
}

fn public_keys() -> [TokenKey; 3] {
    [TokenKey::rs256(), TokenKey::es256(), TokenKey::eddsa()]
}

#[track_caller]
fn refused(verifier: &Verifier, token: &str, error: TokenError) {
    assert_eq!(verifier.verify(token.as_bytes()), Err(error), "{token}");
}

#[test]
fn tokens_of_each_algorithm_are_accepted() {
    let hs256 = TokenKey::hs256(SECRET);
    let token = hs256.token(&claims(""));
    assert!(verifier(secret()).verify(token.as_bytes()).is_ok());
    assert!(verifier(set(&[hs256.jwk("a")]).unwrap())
        .verify(token.as_bytes())
        .is_ok());
    for key in public_keys() {
        let token = key.token(&claims(""));
        let pem = Keys::from_public_pem(key.public_pem().as_bytes()).unwrap();
        for keys in [pem, set(&[key.jwk("a")]).unwrap()] {
            let verifier = verifier(keys);
            // By its signature, and from memory.
            for _ in 0..2 {
                let grant = verifier.verify(token.as_bytes());
                assert_eq!(
                    grant.unwrap().prefixes,
                    KeyPrefixes::ALL,
                    "{}",
                    key.algorithm()
                );
            }
            let other = match &key {
                TokenKey::Rs256(_) => continue,
                TokenKey::Es256(_) => TokenKey::es256(),
                _ => TokenKey::eddsa(),
            };
            refused(&verifier, &other.token(&claims("")), TokenError::Signature);
        }
    }
}

#[test]
fn the_tampered_is_refused() {
    let keys = [TokenKey::hs256(SECRET)].into_iter().chain(public_keys());
    for key in keys {
        let verifier = verifier(set(&[key.jwk("a")]).unwrap());
        let token = key.token(&claims(",\"sub\":\"me\""));
        assert!(verifier.verify(token.as_bytes()).is_ok());
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'Q' } else { b'A' };
            assert!(verifier.verify(&changed).is_err(), "{at}");
            assert!(verifier.verify(&token.as_bytes()[..at]).is_err(), "{at}");
        }
        let (message, _) = token.rsplit_once('.').unwrap();
        refused(&verifier, &format!("{message}."), TokenError::Signature);
        assert!(verifier.verify(format!("{token}.").as_bytes()).is_err());
        assert!(verifier.verify(format!("{token}=").as_bytes()).is_err());
    }
}

#[test]
fn no_algorithm_but_that_of_the_key_is_accepted() {
    let hs256 = TokenKey::hs256(SECRET);
    for header in [
        "{\"alg\":\"none\"}",
        "{\"alg\":\"None\"}",
        "{\"alg\":\"HS384\"}",
        "{\"alg\":\"RS256\"}",
        "{\"alg\":\"\"}",
        "{}",
    ] {
        let token = hs256.token_with(header, &claims(""));
        refused(&verifier(secret()), &token, TokenError::Malformed);
        let (message, _) = token.rsplit_once('.').unwrap();
        refused(
            &verifier(secret()),
            &format!("{message}."),
            TokenError::Malformed,
        );
    }
    for key in public_keys() {
        let pem = key.public_pem();
        let keys = Keys::from_public_pem(pem.as_bytes()).unwrap();
        let verifier = verifier(keys);
        // Anyone can sign with the known public key, in each of its forms.
        let der = pem
            .lines()
            .filter(|line| !line.starts_with("--"))
            .collect::<String>();
        for secret in [pem.as_bytes(), pem.trim_end().as_bytes(), der.as_bytes()] {
            let token = TokenKey::hs256(secret).token(&claims(""));
            refused(&verifier, &token, TokenError::Malformed);
            let header = format!("{{\"alg\":\"{}\"}}", key.algorithm());
            let token = TokenKey::hs256(secret).token_with(&header, &claims(""));
            refused(&verifier, &token, TokenError::Signature);
        }
        // The key in a token is not used either.
        let other = TokenKey::es256();
        let header = format!("{{\"alg\":\"ES256\",\"jwk\":{}}}", other.jwk("a"));
        assert!(verifier
            .verify(other.token_with(&header, &claims("")).as_bytes())
            .is_err());
        assert_eq!(
            Keys::from_secret(pem.as_bytes()).map(drop),
            Err("holds a PEM file or a key set, not a secret")
        );
    }
}

#[test]
fn times_are_judged_with_a_leeway() {
    let key = TokenKey::hs256(SECRET);
    let verifier = verifier(secret());
    let verify = |claims: String| verifier.verify(key.token(&claims).as_bytes()).map(drop);
    for (exp, nbf, expected) in [
        (after(1), after(0), Ok(())),
        (after(-50), after(-100), Ok(())),
        (after(-70), after(-100), Err(TokenError::Expired)),
        (after(300), after(50), Ok(())),
        (after(300), after(70), Err(TokenError::NotYet)),
    ] {
        let claims = format!("{{\"exp\":{exp},\"nbf\":{nbf}}}");
        assert_eq!(verify(claims.clone()), expected, "{claims}");
    }
    for claims in [
        "{}",
        "{\"exp\":null}",
        "{\"exp\":\"4102444800\"}",
        "{\"exp\":-1}",
        "{\"exp\":[]}",
        "{\"exp\":1e40}",
    ] {
        assert_eq!(
            verify(claims.to_owned()),
            Err(TokenError::Claim),
            "{claims}"
        );
    }
    let nbf = format!("{{\"exp\":{},\"nbf\":\"x\"}}", after(300));
    assert_eq!(verify(nbf), Err(TokenError::Claim));
    let twice = format!("{{\"exp\":1,\"exp\":{}}}", after(300));
    assert!(verify(twice).is_err());
}

#[test]
fn what_is_remembered_expires() {
    let key = TokenKey::hs256(SECRET);
    let verifier = verifier(secret());
    let token = key.token(&claims(""));
    let grant = verifier.verify(token.as_bytes()).unwrap();
    assert_eq!(grant.expires, after(300 + LEEWAY as i64) as u64);
    let hash: [u8; 32] = Sha256::digest(&token).into();
    let expired = Grant {
        prefixes: KeyPrefixes::ALL,
        expires: now() - 1,
    };
    verifier.verified.insert(hash, Arc::new(expired));
    refused(&verifier, &token, TokenError::Expired);
}

#[test]
fn verified_tokens_take_bounded_memory() {
    let key = TokenKey::hs256(SECRET);
    let verifier = verifier(secret());
    for number in 0..3 * REMEMBERED {
        let token = key.token(&claims(&format!(",\"jti\":{number}")));
        assert!(verifier.verify(token.as_bytes()).is_ok());
    }
    assert!(verifier.verified.len() <= REMEMBERED);
    let long = claims(&format!(",\"a\":\"{}\"", "a".repeat(MAX_TOKEN)));
    refused(&verifier, &key.token(&long), TokenError::TooLong);
}

#[test]
fn issuers_and_audiences_are_those_of_the_rules() {
    let key = TokenKey::hs256(SECRET);
    let rules = Rules {
        issuers: vec!["one".to_owned(), "two".to_owned()],
        audiences: vec!["s3".to_owned()],
        ..Rules::default()
    };
    let strict = Verifier::new(secret(), rules);
    let lax = verifier(secret());
    for (more, by_strict, by_lax) in [
        (
            ",\"iss\":\"one\",\"aud\":\"s3\"",
            Ok(()),
            Err(TokenError::Audience),
        ),
        (
            ",\"iss\":\"two\",\"aud\":[\"a\",\"s3\"]",
            Ok(()),
            Err(TokenError::Audience),
        ),
        (
            ",\"iss\":\"One\",\"aud\":\"s3\"",
            Err(TokenError::Issuer),
            Err(TokenError::Audience),
        ),
        (
            ",\"iss\":\"one\",\"aud\":\"s\"",
            Err(TokenError::Audience),
            Err(TokenError::Audience),
        ),
        (
            ",\"iss\":\"one\",\"aud\":[]",
            Err(TokenError::Audience),
            Err(TokenError::Audience),
        ),
        (
            ",\"iss\":\"one\",\"aud\":1",
            Err(TokenError::Claim),
            Err(TokenError::Claim),
        ),
        (",\"iss\":\"one\"", Err(TokenError::Claim), Ok(())),
        (
            ",\"aud\":\"s3\"",
            Err(TokenError::Claim),
            Err(TokenError::Audience),
        ),
        ("", Err(TokenError::Claim), Ok(())),
    ] {
        let token = key.token(&claims(more));
        assert_eq!(
            strict.verify(token.as_bytes()).map(drop),
            by_strict,
            "{more}"
        );
        assert_eq!(lax.verify(token.as_bytes()).map(drop), by_lax, "{more}");
    }
}

#[test]
fn a_claim_limits_the_keys() {
    let key = TokenKey::hs256(SECRET);
    let rules = Rules {
        prefix_claim: Some("prefixes".to_owned()),
        ..Rules::default()
    };
    let verifier = Verifier::new(secret(), rules);
    let prefixes = |more: &str| {
        let token = key.token(&claims(more));
        verifier
            .verify(token.as_bytes())
            .map(|grant| grant.prefixes.clone())
    };
    let only = |prefixes: &[&str]| Ok(KeyPrefixes::only(prefixes.iter().map(|p| p.to_string())));
    assert_eq!(prefixes(",\"prefixes\":\"a/\""), only(&["a/"]));
    assert_eq!(
        prefixes(",\"prefixes\":[\"a/\",\"b/\"]"),
        only(&["a/", "b/"])
    );
    assert_eq!(prefixes(",\"prefixes\":[]"), only(&[]));
    for more in [
        "",
        ",\"prefixes\":null",
        ",\"prefixes\":1",
        ",\"prefixes\":[\"a\",1]",
        ",\"prefixes\":{}",
    ] {
        assert_eq!(prefixes(more), Err(TokenError::Claim), "{more}");
    }
}

#[test]
fn a_token_names_its_key() {
    let [one, two, three] = [TokenKey::es256(), TokenKey::es256(), TokenKey::eddsa()];
    let verifier = verifier(set(&[one.jwk("one"), two.jwk("two"), three.jwk("three")]).unwrap());
    let claims = claims("");
    for (token, expected) in [
        (one.token_of("one", &claims), Ok(())),
        (two.token_of("two", &claims), Ok(())),
        (three.token_of("three", &claims), Ok(())),
        (one.token_of("two", &claims), Err(TokenError::Signature)),
        (one.token_of("three", &claims), Err(TokenError::UnknownKey)),
        (one.token_of("four", &claims), Err(TokenError::UnknownKey)),
        // Several keys match, or one.
        (one.token(&claims), Err(TokenError::UnknownKey)),
        (three.token(&claims), Ok(())),
    ] {
        assert_eq!(
            verifier.verify(token.as_bytes()).map(drop),
            expected,
            "{token}"
        );
    }
}

#[test]
fn extensions_that_must_be_understood_are_refused() {
    let key = TokenKey::hs256(SECRET);
    for header in [
        "{\"alg\":\"HS256\",\"crit\":[\"exp\"]}",
        "{\"alg\":\"HS256\",\"b64\":false,\"crit\":[\"b64\"]}",
        "{\"alg\":\"HS256\",\"crit\":[]}",
    ] {
        refused(
            &verifier(secret()),
            &key.token_with(header, &claims("")),
            TokenError::Malformed,
        );
    }
}

#[test]
fn what_is_no_token_is_refused() {
    let verifier = verifier(secret());
    for token in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "a.b.c.d.e",
        "\u{e9}.\u{e9}.\u{e9}",
        "eyJhbGciOiJIUzI1NiJ9",
        "e30.e30.e30",
    ] {
        refused(&verifier, token, TokenError::Malformed);
    }
    let key = TokenKey::hs256(SECRET);
    for claims in ["", "1", "[]", "null", "{", "\"a\"", &"[".repeat(4000)] {
        let token = key.token(claims);
        assert!(verifier.verify(token.as_bytes()).is_err(), "{claims}");
    }
    assert!(verifier.verify(b"\xff\xfe.\x00.a").is_err());
}

#[test]
fn files_without_a_usable_key_are_refused() {
    assert_eq!(
        Keys::from_secret(b"short").map(drop),
        Err("holds a secret of fewer than 32 bytes")
    );
    assert!(Keys::from_secret(b"").is_err());
    assert!(Keys::from_secret(&[b'\n'; 40]).is_err());
    assert!(Keys::from_secret(b"{\"keys\": [       ]                     }").is_err());
    // A line end is not part of a secret.
    let with_end = Keys::from_secret(&[SECRET, &b"\r\n"[..]].concat()).unwrap();
    let token = TokenKey::hs256(SECRET).token(&claims(""));
    assert!(verifier(with_end).verify(token.as_bytes()).is_ok());

    let es256 = TokenKey::es256().public_pem();
    for text in [
        "",
        "-----BEGIN ",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        &es256.replace("PUBLIC KEY", "CERTIFICATE"),
        &es256.replace("PUBLIC KEY", "PRIVATE KEY"),
        &es256.repeat(2),
        &es256.replace("MFkw", "MFkx"),
    ] {
        assert!(Keys::from_public_pem(text.as_bytes()).is_err(), "{text}");
    }

    let es256 = TokenKey::es256().jwk("a");
    assert!(set(std::slice::from_ref(&es256)).is_ok());
    for unusable in [
        es256.replace("P-256", "P-384"),
        es256.replace("{", "{\"use\":\"enc\","),
        es256.replace("{", "{\"key_ops\":[\"sign\"],"),
        es256.replace("{", "{\"alg\":\"ES384\","),
        es256.replace("\"x\":\"", "\"x\":\"AAAA"),
        TokenKey::hs256(b"short").jwk("a"),
        "{\"kty\":\"RSA\",\"n\":\"AQAB\",\"e\":\"AQAB\"}".to_owned(),
        "{\"kty\":\"new\"}".to_owned(),
        "1".to_owned(),
    ] {
        assert!(set(std::slice::from_ref(&unusable)).is_err(), "{unusable}");
        // Beside others, it is ignored.
        assert!(set(&[unusable, es256.clone()]).is_ok());
    }
    assert!(set(&[]).is_err());
    assert!(set(&vec![es256; 65]).is_err());
    for text in ["", "[]", "{}", "{\"keys\":{}}", "x"] {
        assert!(Keys::from_jwks(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn no_secret_is_printed() {
    let debug = format!("{:?}", verifier(secret()));
    assert!(debug.contains("HS256"), "{debug}");
    assert!(
        !debug.contains("secret that") && !debug.contains("97, 32"),
        "{debug}"
    );
}
