//! JSON Web Tokens of clients (RFC 7519).
//!
//! - this module: the rules, and the rights that a valid token gives
//! - [`keys`]: the keys that sign tokens, read from files
//! - `provider`: the cryptography of jsonwebtoken, by ring
//!
//! The key determines the algorithm, not the token: `none` is not an algorithm here, and a public
//! key verifies no HMAC.

pub mod keys;
mod provider;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{decode, decode_header, Validation};
use quick_cache::sync::Cache;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::s3::KeyPrefixes;
use keys::Key;
pub use keys::Keys;

/// The longest token, in bytes.
pub const MAX_TOKEN: usize = 8 * 1024;

/// The allowed difference between an issuer's clock and this one, in seconds.
pub const LEEWAY: u64 = 60;

/// The number of verified tokens that are remembered.
const REMEMBERED: usize = 1024;

/// The rules for tokens.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The accepted values of `iss`; none: any.
    pub issuers: Vec<String>,
    /// The accepted values of `aud`; none: tokens with `aud` are refused (RFC 7519 §4.1.3).
    pub audiences: Vec<String>,
    /// The claim with the prefixes of the keys that the client may read, a string or a list of
    /// strings. `None`: all keys.
    pub prefix_claim: Option<String>,
}

/// A verifier of tokens.
pub struct Verifier {
    keys: Keys,
    rules: Rules,
    /// By the hash of the token.
    verified: Cache<[u8; 32], Arc<Grant>>,
}

/// The rights that a token gives.
#[derive(Debug, PartialEq, Eq)]
pub struct Grant {
    /// The keys that the client may read.
    pub prefixes: KeyPrefixes,
    /// The expiry of the token with the leeway, in seconds since 1970.
    expires: u64,
}

/// The reason that a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// The token is longer than [`MAX_TOKEN`].
    TooLong,
    /// The token is malformed, or no key has its algorithm.
    Malformed,
    /// No key has its `kid`, or it has none and several keys match.
    UnknownKey,
    /// No key verifies the signature.
    Signature,
    /// `exp` has passed.
    Expired,
    /// `nbf` has not come yet.
    NotYet,
    /// The rules do not accept the issuer.
    Issuer,
    /// The rules do not accept the audience.
    Audience,
    /// A required claim is missing, or a claim is malformed.
    Claim,
}

// === impl Verifier ===

impl Verifier {
    /// A verifier of tokens that are signed with one of these keys.
    pub fn new(keys: Keys, rules: Rules) -> Verifier {
        provider::install();
        Verifier {
            keys,
            rules,
            verified: Cache::new(REMEMBERED),
        }
    }

    /// The rights that a token gives now.
    ///
    /// # Errors
    /// [`TokenError`], of which the client is told the [`description`](TokenError::description).
    pub fn verify(&self, token: &[u8]) -> Result<Arc<Grant>, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        let hash: [u8; 32] = Sha256::digest(token).into();
        if let Some(grant) = self.verified.get(&hash) {
            if grant.expires >= now() {
                return Ok(grant);
            }
            self.verified.remove(&hash);
            return Err(TokenError::Expired);
        }
        let grant = Arc::new(self.check(token)?);
        self.verified.insert(hash, grant.clone());
        Ok(grant)
    }

    fn check(&self, token: &[u8]) -> Result<Grant, TokenError> {
        let header = decode_header(token)?;
        let key = self.keys.of(&header)?;
        let claims: Map<String, Value> = decode(token, &key.key, &self.validation(key))?.claims;
        let expires = claims.get("exp").and_then(Value::as_f64);
        let expires = expires.ok_or(TokenError::Claim)?;
        Ok(Grant {
            prefixes: self.prefixes(&claims)?,
            // The cast saturates; `decode` has checked that it is a number of seconds.
            expires: (expires.round() as u64).saturating_add(LEEWAY),
        })
    }

    fn validation(&self, key: &Key) -> Validation {
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        for (name, allowed) in [("iss", &self.rules.issuers), ("aud", &self.rules.audiences)] {
            if allowed.is_empty() {
                continue;
            }
            validation.required_spec_claims.insert(name.to_owned());
            match name {
                "iss" => validation.set_issuer(allowed),
                _ => validation.set_audience(allowed),
            }
        }
        validation
    }

    fn prefixes(&self, claims: &Map<String, Value>) -> Result<KeyPrefixes, TokenError> {
        let Some(name) = &self.rules.prefix_claim else {
            return Ok(KeyPrefixes::ALL);
        };
        let prefixes = match claims.get(name) {
            Some(Value::String(prefix)) => Some(vec![prefix.clone()]),
            Some(Value::Array(list)) => list
                .iter()
                .map(|prefix| prefix.as_str().map(str::to_owned))
                .collect(),
            _ => None,
        };
        prefixes.map(KeyPrefixes::only).ok_or(TokenError::Claim)
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("keys", &self.keys)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

// === impl TokenError ===

impl TokenError {
    /// The reason in words, for `error_description` (RFC 6750 §3).
    pub fn description(self) -> &'static str {
        match self {
            TokenError::TooLong => "The token is too long",
            TokenError::Malformed => "The token is malformed, or its algorithm is not accepted",
            TokenError::UnknownKey => "The key of the token is unknown",
            TokenError::Signature => "The signature of the token is not valid",
            TokenError::Expired => "The token has expired",
            TokenError::NotYet => "The token is not valid yet",
            TokenError::Issuer => "The issuer of the token is not accepted",
            TokenError::Audience => "The token is for another audience",
            TokenError::Claim => "A claim of the token is missing or malformed",
        }
    }
}

impl From<Error> for TokenError {
    fn from(error: Error) -> TokenError {
        match error.kind() {
            ErrorKind::InvalidSignature => TokenError::Signature,
            ErrorKind::ExpiredSignature => TokenError::Expired,
            ErrorKind::ImmatureSignature => TokenError::NotYet,
            ErrorKind::InvalidIssuer => TokenError::Issuer,
            ErrorKind::InvalidAudience => TokenError::Audience,
            ErrorKind::MissingRequiredClaim(_)
            | ErrorKind::InvalidClaimFormat(_)
            | ErrorKind::InvalidSubject => TokenError::Claim,
            _ => TokenError::Malformed,
        }
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description())
    }
}

impl std::error::Error for TokenError {}
