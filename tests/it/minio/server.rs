//! A MinIO that testcontainers starts.

use std::{
    env,
    io::{stderr, Write},
    sync::Once,
    time::Duration,
};

use aws_sdk_s3::{
    config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation},
    Client, Config,
};
use testcontainers::{
    core::{client::docker_client_instance, IntoContainerPort, WaitFor},
    runners::SyncRunner,
    Container, GenericImage, ImageExt,
};
use tokio::{runtime::Runtime, time::timeout};

const OFFICIAL_IMAGE: &str = "minio/minio:RELEASE.2025-09-07T16-13-09Z";
pub const ACCESS_KEY: &str = "minio-test";
pub const SECRET_KEY: &str = "minio-test-secret";

/// A MinIO with one bucket, gone when dropped.
pub struct Server {
    pub endpoint: String,
    pub client: Client,
    pub runtime: Runtime,
    _container: Container<GenericImage>,
}

// === impl Server ===

impl Server {
    /// None: there is no Docker, and none is required.
    pub fn start(bucket: &str) -> Option<Self> {
        let runtime = Runtime::new().expect("start a runtime");
        if !runtime.block_on(docker_answers()) {
            assert!(
                env::var("REQUIRE_DOCKER").as_deref() != Ok("1"),
                "Docker does not answer, and REQUIRE_DOCKER=1"
            );
            static SAY: Once = Once::new();
            // Past libtest, which would keep what println says to itself.
            SAY.call_once(|| {
                let line = b"skipped: Docker does not answer\n";
                stderr().write_all(line).expect("write to stderr");
            });
            return None;
        }

        let image = env::var("MINIO_IMAGE").unwrap_or_else(|_| OFFICIAL_IMAGE.to_owned());
        let (name, tag) = image.rsplit_once(':').expect("MINIO_IMAGE is NAME:TAG");
        let container = GenericImage::new(name, tag)
            .with_exposed_port(9000.tcp())
            .with_wait_for(WaitFor::message_on_either_std("API: "))
            .with_env_var("MINIO_ROOT_USER", ACCESS_KEY)
            .with_env_var("MINIO_ROOT_PASSWORD", SECRET_KEY)
            .with_cmd(["server", "/data"])
            .start()
            .unwrap_or_else(|e| {
                panic!("start {image} (tests/minio/build-image makes one to be named by MINIO_IMAGE): {e}")
            });
        let port = container
            .get_host_port_ipv4(9000)
            .expect("MinIO's port on this machine");
        let endpoint = format!("http://127.0.0.1:{port}");

        let client = client(&endpoint, ACCESS_KEY, SECRET_KEY);
        runtime
            .block_on(client.create_bucket().bucket(bucket).send())
            .expect("create a bucket");
        Some(Self {
            endpoint,
            client,
            runtime,
            _container: container,
        })
    }
}

/// Asks whatever testcontainers would use.
async fn docker_answers() -> bool {
    let ping = async { docker_client_instance().await.ok()?.ping().await.ok() };
    matches!(timeout(Duration::from_secs(10), ping).await, Ok(Some(_)))
}

/// A client of an S3 service that is asked in path style.
pub fn client(endpoint: &str, access_key: &str, secret_key: &str) -> Client {
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .credentials_provider(Credentials::new(access_key, secret_key, None, None, "test"))
        // The service is asked in plain HTTP, so no TLS is built in.
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .build();
    Client::from_conf(config)
}
