//! A token is accepted only if the right key signed it, and if its claims hold as another
//! parser reads them. A token with one byte changed is refused. Keys can be read from any text
//! without a panic, and their debug output shows no secret.

#![no_main]

mod seeds;

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::prelude::{Engine, BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use libfuzzer_sys::fuzz_target;
use pingora_sendfile::jwt::{Keys, Rules, TokenError, Verifier, LEEWAY, MAX_TOKEN};
use pingora_sendfile::s3::KeyPrefixes;
use serde_json::{Map, Value};
use sha2::Sha256;

const SECRET: &[u8] = b"a secret that is long enough for HS256";
const ISSUER: &str = "https://issuer";
const AUDIENCE: &str = "s3";

/// The keys of other algorithms: the public keys of RFC 7515, appendix A.3, and RFC 8037,
/// appendix A.2.
const PUBLIC: &str = r#"{"keys":[
    {"kty":"EC","crv":"P-256","kid":"ec",
     "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
     "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
    {"kty":"OKP","crv":"Ed25519","kid":"ed",
     "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// Seconds that may pass between the verification of a token and this target's check.
const LATE: f64 = 5.0;

// Input: the position of a byte and its change, one byte each; the header, a line feed, and the
// claims. `$` stands for the present time, `^` for an hour later, `~` for an hour earlier.
fuzz_target!(init: seeds::write(&examples()), |data: &[u8]| {
    read_keys(data);
    let verifiers = verifiers();
    let _ = verifiers.each_ref().map(|verifier| verifier.verify(data).map(drop));
    let [at, change, text @ ..] = data else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let now = now();
    let text = text
        .replace('$', &now.to_string())
        .replace('^', &(now + 3600).to_string())
        .replace('~', &(now - 3600).to_string());
    let (header, claims) = text.split_once('\n').unwrap_or((&text, ""));
    let token = signed(header, claims, SECRET);
    let [secret, public] = verifiers;
    // A public key must not serve as an HMAC secret.
    let confused = signed(header, claims, PUBLIC.as_bytes());
    assert!(public.verify(confused.as_bytes()).is_err());
    assert!(public.verify(token.as_bytes()).is_err());
    let verdict = secret.verify(token.as_bytes());
    assert!(token.len() <= MAX_TOKEN || matches!(verdict, Err(TokenError::TooLong)));
    if let Ok(grant) = verdict {
        check(header, claims, &grant.prefixes);
        assert!(secret.verify(token.as_bytes()).is_ok(), "twice");
    }
    let mut other = token.clone().into_bytes();
    let at = usize::from(*at) * 7 % other.len();
    other[at] ^= change;
    if other != token.as_bytes() {
        assert!(secret.verify(&other).is_err(), "{at}");
    }
});

/// A verifier that knows a secret, and one that knows public keys.
fn verifiers() -> &'static [Verifier; 2] {
    static VERIFIERS: OnceLock<[Verifier; 2]> = OnceLock::new();
    let rules = Rules {
        issuers: vec![ISSUER.to_owned()],
        audiences: vec![AUDIENCE.to_owned()],
        prefix_claim: Some("prefixes".to_owned()),
    };
    VERIFIERS.get_or_init(|| {
        [
            Keys::from_secret(SECRET).expect("a secret"),
            Keys::from_jwks(PUBLIC.as_bytes()).expect("keys"),
        ]
        .map(|keys| Verifier::new(keys, rules.clone()))
    })
}

fn read_keys(text: &[u8]) {
    let all = [
        Keys::from_secret(text),
        Keys::from_jwks(text),
        Keys::from_public_pem(text),
    ];
    for keys in all.into_iter().flatten() {
        let shown = format!("{keys:?}");
        let secret = std::str::from_utf8(text).unwrap_or_default();
        let secret = secret.trim_end_matches(['\r', '\n']);
        assert!(secret.is_empty() || !shown.contains(secret));
    }
}

fn check(header: &str, claims: &str, prefixes: &KeyPrefixes) {
    let object =
        |text: &str| -> Map<String, Value> { serde_json::from_str(text).expect("a JSON object") };
    let (header, claims) = (object(header), object(claims));
    assert_eq!(header.get("alg"), Some(&Value::from("HS256")));
    assert!(!header.contains_key("crit"));
    let now = now() as f64;
    let leeway = LEEWAY as f64;
    let time = |name: &str| {
        claims
            .get(name)
            .map(|value| value.as_f64().expect("a time"))
    };
    assert!(time("exp").expect("an end") + leeway + LATE >= now);
    assert!(time("nbf").is_none_or(|begin| begin <= now + leeway + LATE));
    let any_is = |name: &str, allowed: &str| match &claims[name] {
        Value::Array(list) => list.iter().any(|value| value == allowed),
        value => value == allowed,
    };
    assert!(any_is("iss", ISSUER) && any_is("aud", AUDIENCE));
    let list = match &claims["prefixes"] {
        Value::Array(list) => list.clone(),
        value => vec![value.clone()],
    };
    let list = list
        .iter()
        .map(|prefix| prefix.as_str().expect("a prefix").to_owned());
    assert_eq!(*prefixes, KeyPrefixes::only(list));
}

fn signed(header: &str, claims: &str, secret: &[u8]) -> String {
    let [header, claims] = [header, claims].map(|text| BASE64_URL_SAFE_NO_PAD.encode(text));
    let message = format!("{header}.{claims}");
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length");
    mac.update(message.as_bytes());
    let signature = BASE64_URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
    format!("{message}.{signature}")
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("a time after 1970").as_secs()
}

fn examples() -> Vec<Vec<u8>> {
    let base = "\"iss\":\"https://issuer\",\"aud\":\"s3\",\"prefixes\":\"a/\"";
    [
        format!("\x01\x01{{\"alg\":\"HS256\"}}\n{{\"exp\":^,{base}}}"),
        format!("\x02\x20{{\"typ\":\"JWT\",\"alg\":\"HS256\",\"kid\":\"k\"}}\n{{\"exp\":$.5,\"nbf\":~,\"iat\":$,{base}}}"),
        format!("\x09\x01{{\"alg\":\"none\"}}\n{{\"exp\":^,{base}}}"),
        format!("\x09\x01{{\"alg\":\"ES256\",\"kid\":\"ec\"}}\n{{\"exp\":^,{base}}}"),
        format!("\x09\x01{{\"alg\":\"EdDSA\",\"kid\":\"ed\",\"jwk\":{{\"kty\":\"oct\",\"k\":\"AQAB\"}}}}\n{{\"exp\":~,{base}}}"),
        "\x03\x01{\"alg\":\"HS256\",\"crit\":[\"b64\"],\"b64\":false}\n{\"exp\":^}".to_owned(),
        "\x04\x01{\"alg\":\"HS256\"}\n{\"exp\":1e300,\"nbf\":-1,\"iss\":[\"https://issuer\"],\"aud\":[\"x\",\"s3\"],\"prefixes\":[\"a/\",\"b\"]}".to_owned(),
        PUBLIC.to_owned(),
        "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vub9tLe1gHMzV7\n6e8Tus9uPHvRVEXH8UTNG72bfocs3+257rn0s2ldbqkLJK2KRiMohYjlrQ==\n-----END PUBLIC KEY-----\n".to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}
