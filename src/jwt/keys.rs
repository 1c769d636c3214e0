//! The keys that sign tokens.

use std::fmt;

use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Header};
use serde_json::Value;

use super::TokenError;

/// The most keys in a set.
const MAX_KEYS: usize = 64;

/// The shortest secret, in bytes (RFC 7518 §3.2).
const MIN_SECRET: usize = 32;

/// The shortest RSA modulus, in bytes (RFC 7518 §3.3).
const MIN_MODULUS: usize = 2048 / 8;

/// The beginning of a PEM block (RFC 7468).
const PEM: &str = "-----BEGIN ";

/// One key or several.
#[derive(Clone)]
pub struct Keys(Vec<Key>);

/// A key, for one algorithm.
#[derive(Clone)]
pub(super) struct Key {
    id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

// === impl Keys ===

impl Keys {
    /// The secret of HS256. Line ends at the end of the text are not part of it.
    ///
    /// # Errors
    /// The problem, in words that follow the name of a file: "is not JSON".
    pub fn from_secret(text: &[u8]) -> Result<Keys, &'static str> {
        let is_line_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let end = text.iter().rposition(|byte| !is_line_end(byte));
        let secret = end.map_or(&[][..], |end| &text[..=end]);
        let start = secret.trim_ascii_start();
        // Public keys are known, so anyone could sign with one.
        if start.starts_with(PEM.as_bytes()) || start.starts_with(b"{") {
            return Err("holds a PEM file or a key set, not a secret");
        }
        if secret.len() < MIN_SECRET {
            return Err("holds a secret of fewer than 32 bytes");
        }
        let key = DecodingKey::from_secret(secret).map_err(|_| "holds no secret")?;
        Ok(Keys(vec![Key {
            id: None,
            algorithm: Algorithm::HS256,
            key,
        }]))
    }

    /// A public key for RS256, ES256 or EdDSA, in PEM.
    ///
    /// # Errors
    /// As [`from_secret`](Self::from_secret).
    pub fn from_public_pem(text: &[u8]) -> Result<Keys, &'static str> {
        let text = std::str::from_utf8(text).map_err(|_| "is not a PEM file")?;
        let mut blocks = text.matches(PEM);
        if blocks.next().is_none() {
            return Err("is not a PEM file");
        }
        if blocks.next().is_some() {
            return Err("holds more than one key; use a key set for several");
        }
        if !text.contains("-----BEGIN PUBLIC KEY-----")
            && !text.contains("-----BEGIN RSA PUBLIC KEY-----")
        {
            return Err("holds something other than a public key");
        }
        let read = |algorithm| match algorithm {
            Algorithm::RS256 => DecodingKey::from_rsa_pem(text.as_bytes()),
            Algorithm::ES256 => DecodingKey::from_ec_pem(text.as_bytes()),
            _ => DecodingKey::from_ed_pem(text.as_bytes()),
        };
        let algorithms = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
        let key = algorithms.into_iter().find_map(|algorithm| {
            let key = read(algorithm).ok()?;
            is_usable(algorithm, &key).then_some(Key {
                id: None,
                algorithm,
                key,
            })
        });
        let key = key.ok_or("holds no public key of RSA, P-256 or Ed25519")?;
        Ok(Keys(vec![key]))
    }

    /// A set of keys (RFC 7517 §5). Keys that are not for signatures by RS256, ES256, EdDSA
    /// or HS256 are ignored.
    ///
    /// # Errors
    /// As [`from_secret`](Self::from_secret).
    pub fn from_jwks(text: &[u8]) -> Result<Keys, &'static str> {
        let set: Value = serde_json::from_slice(text).map_err(|_| "is not JSON")?;
        let Some(Value::Array(keys)) = set.get("keys") else {
            return Err("is not a key set: it has no list \"keys\"");
        };
        if keys.len() > MAX_KEYS {
            return Err("holds more than 64 keys");
        }
        let keys: Vec<_> = keys.iter().filter_map(Key::from_jwk).collect();
        if keys.is_empty() {
            return Err("holds no key for signatures by RS256, ES256, EdDSA or HS256");
        }
        Ok(Keys(keys))
    }

    /// The key that a token names.
    pub(super) fn of(&self, header: &Header) -> Result<&Key, TokenError> {
        let fits = |key: &&Key| key.algorithm == header.alg;
        let mut fitting = self.0.iter().filter(fits).peekable();
        if fitting.peek().is_none() {
            return Err(TokenError::Malformed);
        }
        let named: Vec<_> = match &header.kid {
            // A key without `kid` matches every `kid`.
            Some(id) => fitting
                .filter(|key| key.id.as_ref().is_none_or(|of| of == id))
                .collect(),
            None => fitting.collect(),
        };
        match (&named[..], &header.kid) {
            ([key], _) => Ok(key),
            (several, Some(id)) => several
                .iter()
                .find(|key| key.id.as_ref() == Some(id))
                .copied()
                .ok_or(TokenError::UnknownKey),
            _ => Err(TokenError::UnknownKey),
        }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.0.iter().map(|key| (key.algorithm, &key.id));
        f.debug_list().entries(keys).finish()
    }
}

// === impl Key ===

impl Key {
    /// A key of a set; `None`: it has another purpose, or an unknown form.
    fn from_jwk(value: &Value) -> Option<Key> {
        let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
        let (algorithm, name) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
            }
            AlgorithmParameters::OctetKey(_) => (Algorithm::HS256, KeyAlgorithm::HS256),
            _ => return None,
        };
        let common = &jwk.common;
        let is_for_signatures = match (&common.public_key_use, &common.key_operations) {
            (Some(purpose), _) => *purpose == PublicKeyUse::Signature,
            (None, Some(operations)) => operations.contains(&KeyOperations::Verify),
            (None, None) => true,
        };
        if !is_for_signatures || common.key_algorithm.is_some_and(|other| other != name) {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        is_usable(algorithm, &key).then(|| Key {
            id: common.key_id.clone(),
            algorithm,
            key,
        })
    }
}

/// True if the key has a length that its algorithm allows.
fn is_usable(algorithm: Algorithm, key: &DecodingKey) -> bool {
    match (algorithm, key.kind()) {
        (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, .. }) => n.len() >= MIN_MODULUS,
        // DER of a modulus and an exponent.
        (Algorithm::RS256, DecodingKeyKind::SecretOrDer(der)) => der.len() > MIN_MODULUS,
        (Algorithm::HS256, DecodingKeyKind::SecretOrDer(secret)) => secret.len() >= MIN_SECRET,
        // An uncompressed point (SEC 1, §2.3.3).
        (Algorithm::ES256, DecodingKeyKind::SecretOrDer(point)) => point.len() == 65,
        (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(point)) => point.len() == 32,
        _ => false,
    }
}
