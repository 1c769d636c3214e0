//! JSON Web Tokens (RFC 7519), signed by keys of the test's own.

use base64::{
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
    Engine,
};
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{
        EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair, RsaPublicKeyComponents,
        ECDSA_P256_SHA256_FIXED_SIGNING, RSA_PKCS1_SHA256,
    },
};

/// A private key of 2048 bits that protects nothing: ring makes none.
pub const RSA_KEY: &str =
    "MIIEpAIBAAKCAQEAuQmpQUYEKJLb5a9yqbWDpehS+02qSOPQOvznvwNiPVMs2nfNzsUgf8MaN0K6CVMSP2gqBobr\
     CxqVzeXXoMipncZiuxAa6O2akuVSmIDuy9aAL+MPMsjzW8C9eBjjGbE04/0lMbDcMGMI7ymeLXrAs1xOxEWUgtD/\
     h42VlkluXvJuaUsIAla6/M+DsEOz3IzAJkrf+fRcQ3RTa32ynnUKy91LjZtF1IQ2HUpzgxWfmzD0NLacyJoVyAxv\
     f+Rd/FU4jH/JqUUKdG7uU3iboPt+30Y982exwieQZprfcwYAx9/Pc7u/iiUOqZLrufkPZ4eS2xV/VA9N3LbN34bT\
     X5t3JQIDAQABAoIBAChG0VPvMuAHCXzvKekFZNzD224um1qG1hBE9QfHq4ZYOLrsGX0AvSB6PhZZvKdjcOUi3gTy\
     MK7H0GRTO5KYowz//gUkTgs2Du+bIZWm+POfIuNpi+kcwxYNd+BwoFw7DZ1zwHkWu3L/15XBbBgPsGrKNK31zEwG\
     RJzDpZQjMzZQtQc0+bDP+VAP1AyyhfMYcrj9m4nJ9St99x4PRnFVc6tyC6KetUeS7yuSLMVOSGCEgSU4iKr6rvb1\
     u/ouqQhWpuI9G7AqpZWVoApgBlyp+NB6d1UKUt3l0khB7EKu19yt2LHMq139YN9y//6OBJkQQhmFzSatAR0JD25b\
     nlIzWckCgYEA8prH0/4PyGcqnYnXTEWLDvhfT/xzWdwPDN/Ismh57ThHIXp9RXH6htiKQefWLjZT+M/diyfAjIyx\
     FQO7xCblEwPk9e+WABkMnRjApBrwlJOcH8ag95EnDi1ZxMcbzEvl0tYM7FwoCMAvn+7PKKeIdxPC4kwvFlCbDMeG\
     VySvUE0CgYEAw0EsDBY6lviYH8lo2CJdp1ZWQhXWoQyg1wNBGTLEG33+eOqKT2URnnZZ2izgU9GNsw4j2Jwumq1Q\
     ISnVrc2HmQCzvKxygCcmOU7H3xrmmRVJ2f11qepIlsCLFutC58U9mFLg8Jb9IPV9c/SCp1LrrMQSYxfs7SOiZaOw\
     vYUX7jkCgYEAiwsMxkJRV2FRelL7Exq0dVMChXxBvFm0QoOrqhzY7I2ZruVeEMQfetN2gglWpsu6Wtr/tXaGE8e6\
     4jlujyBfoANWYWH8TXgN06fRGPzbr7vd+hREQz9s6+IwFeir1O4W/Txy0bCLvWAwq3AaSMmkG+M2ia5yOk7eXneo\
     Vh+PXu0CgYEAmLOBdTp1O9jTcBieTFokEFivQSO/JViw+TbsVH6lbDLPL1WOMaWDcABzKPPrxOGgBibK1f7fW8yr\
     XCRRnomcwIYSCz56lcsIU81O9yccrSA/D6LvwKEff/a5UIVRX92b3GME1GPhN0OGh4b0H1P0SLtW/fSaMKOrv/2S\
     ncVW/9ECgYAPcBW9vnidQvx8Yo+w3GrJm8N+Cd1X00agy7HtDk4Vu/+TWhiQAbttvVJ2JUoehmTgACAflMVORKTJ\
     C9XrqetvJ0ET1tSWc88tAaLjqPruDq2FyZepA+Qfe8Q9hwyFLoiW3vhl2lkPpz9D49JW3TEIJVPQtkl+1TDBfx3w\
     VoNNIw==";

/// The bytes before the public key in a SubjectPublicKeyInfo (RFC 5280, section 4.1).
const P256_INFO: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const ED25519_INFO: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// A key that signs tokens.
pub enum TokenKey {
    Hs256(Vec<u8>),
    Rs256(RsaKeyPair),
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
}

// === impl TokenKey ===

impl TokenKey {
    pub fn hs256(secret: &[u8]) -> Self {
        Self::Hs256(secret.to_vec())
    }

    pub fn rs256() -> Self {
        let der = STANDARD.decode(RSA_KEY).expect("base64");
        Self::Rs256(RsaKeyPair::from_der(&der).expect("an RSA key"))
    }

    pub fn es256() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let der = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        let key = EcdsaKeyPair::from_pkcs8(algorithm, der.as_ref(), &random);
        Self::Es256(key.expect("a key"))
    }

    pub fn eddsa() -> Self {
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        Self::EdDsa(Ed25519KeyPair::from_pkcs8(der.as_ref()).expect("a key"))
    }

    /// The name of its algorithm (RFC 7518, section 3.1).
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Hs256(_) => "HS256",
            Self::Rs256(_) => "RS256",
            Self::Es256(_) => "ES256",
            Self::EdDsa(_) => "EdDSA",
        }
    }

    /// A token with these claims, in JSON.
    pub fn token(&self, claims: &str) -> String {
        self.token_with(&format!("{{\"alg\":\"{}\"}}", self.algorithm()), claims)
    }

    /// A token with the key's name.
    pub fn token_of(&self, kid: &str, claims: &str) -> String {
        let header = format!("{{\"alg\":\"{}\",\"kid\":\"{kid}\"}}", self.algorithm());
        self.token_with(&header, claims)
    }

    /// A token with any header.
    pub fn token_with(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", url_safe(header), url_safe(claims));
        let signature = self.sign(message.as_bytes());
        format!("{message}.{}", url_safe(signature))
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Hs256(secret) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                hmac::sign(&key, message).as_ref().to_vec()
            }
            Self::Rs256(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .expect("sign");
                signature
            }
            Self::Es256(key) => key.sign(&random, message).expect("sign").as_ref().to_vec(),
            Self::EdDsa(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// The public key; panics for a secret.
    pub fn public_pem(&self) -> String {
        let (label, der) = match self {
            Self::Hs256(_) => panic!("a secret has no public key"),
            Self::Rs256(key) => ("RSA PUBLIC KEY", key.public_key().as_ref().to_vec()),
            Self::Es256(key) => {
                let key = key.public_key().as_ref();
                ("PUBLIC KEY", [&P256_INFO[..], key].concat())
            }
            Self::EdDsa(key) => {
                let key = key.public_key().as_ref();
                ("PUBLIC KEY", [&ED25519_INFO[..], key].concat())
            }
        };
        let text = STANDARD.encode(der);
        let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
        let lines: Vec<_> = lines.collect();
        format!(
            "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
            lines.join("\n")
        )
    }

    /// The key in a set (RFC 7517), with a name.
    pub fn jwk(&self, kid: &str) -> String {
        let parameters = match self {
            Self::Hs256(secret) => format!("\"kty\":\"oct\",\"k\":\"{}\"", url_safe(secret)),
            Self::Rs256(key) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(key.public());
                let (n, e) = (url_safe(public.n), url_safe(public.e));
                format!("\"kty\":\"RSA\",\"n\":\"{n}\",\"e\":\"{e}\"")
            }
            Self::Es256(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                let (x, y) = (url_safe(x), url_safe(y));
                format!("\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"{x}\",\"y\":\"{y}\"")
            }
            Self::EdDsa(key) => {
                let x = url_safe(key.public_key());
                format!("\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"{x}\"")
            }
        };
        format!("{{\"kid\":\"{kid}\",{parameters}}}")
    }
}

fn url_safe(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
