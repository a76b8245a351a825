//! Where a bucket is and who may use it, from where the tools of AWS look.

use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::{RemoteError, Result};

pub(super) fn endpoint() -> Option<String> {
    ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

/// A bucket, with keys and endpoint from the environment.
pub(super) fn bucket_of(address: &str, bucket: &str) -> Result<object_store::aws::AmazonS3> {
    const KEYS: [&str; 5] = [
        "AWS_ACCESS_KEY_ID",
        "AWS_SKIP_SIGNATURE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    let address = address.to_owned();
    let endpoint = endpoint();
    // Without any, the library would query Amazon's metadata service, which other machines do not have.
    if endpoint.is_some() && KEYS.iter().all(|name| std::env::var_os(name).is_none()) {
        let error = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set".to_owned();
        return Err(RemoteError::Keys { address, error });
    }
    let http = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let options = ClientOptions::new()
        .with_allow_http(http)
        .with_connect_timeout(Duration::from_secs(10))
        // No time limit: objects can be large.
        .with_timeout_disabled()
        .with_read_timeout(Duration::from_secs(60));
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(200), ..BackoffConfig::default() };
    let retry = RetryConfig { backoff, max_retries: 4, retry_timeout: Duration::from_secs(60) };
    AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(options)
        .with_retry(retry)
        .build()
        .map_err(|error| RemoteError::Failed { address, error: error.to_string() })
}
