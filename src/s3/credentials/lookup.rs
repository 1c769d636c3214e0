//! Lookup of credentials in the environment of the process, and of those of assumed roles.

use std::error::Error;

use aws_config::sts::AssumeRoleProvider;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::Credentials;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::{tls, Builder};

/// A source of credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Lookup {
    /// The region of the Security Token Service.
    pub region: String,
    /// The keys with which the role is assumed; `None`: the credentials of the chain.
    pub keys: Option<Credentials>,
    /// The role to assume; `None`: the credentials of the chain are used.
    pub role: Option<Role>,
}

/// A role, and the parameters with which it is assumed ("AssumeRole", AWS Security Token Service API Reference).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// The ARN of the role.
    pub arn: String,
    /// The external ID that the owner of the role requires.
    pub external_id: Option<String>,
    /// The name of the session in the records of the role's owner.
    pub session_name: String,
}

// === impl Lookup ===

impl Lookup {
    /// Looks the credentials up by the chain of the AWS SDK: environment variables, the profile, a
    /// web identity, the container (ECS, EKS), the instance (IMDSv2).
    ///
    /// Everything is read anew, so files may change while the process runs.
    ///
    /// # Errors
    /// One line without secrets.
    pub(super) async fn credentials(&self) -> Result<Credentials, String> {
        let http = Builder::new()
            .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let config = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .region(Region::new(self.region.clone()))
            .load()
            .await;
        let found = match (&self.role, &self.keys) {
            (Some(role), keys) => {
                let mut provider = AssumeRoleProvider::builder(&role.arn)
                    .configure(&config)
                    .session_name(&role.session_name);
                if let Some(external_id) = &role.external_id {
                    provider = provider.external_id(external_id);
                }
                let provider = match keys {
                    Some(keys) => provider.build_from_provider(keys.clone()).await,
                    None => provider.build().await,
                };
                provider.provide_credentials().await
            }
            (None, Some(keys)) => Ok(keys.clone()),
            (None, None) => match config.credentials_provider() {
                Some(chain) => chain.provide_credentials().await,
                None => Err(CredentialsError::not_loaded("there is no chain")),
            },
        };
        found.map_err(|e| in_words(&e))
    }
}

/// An error and its causes, without their `Debug` output, which repeats what a server sent.
fn in_words(error: &CredentialsError) -> String {
    let mut words = match error {
        CredentialsError::CredentialsNotLoaded(_) => {
            "no environment variable, profile, web identity, container or instance has any"
                .to_owned()
        }
        error => error.to_string(),
    };
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.ends_with(&cause_words) {
            words.push_str(": ");
            words.push_str(&cause_words);
        }
        source = cause.source();
    }
    words
}
