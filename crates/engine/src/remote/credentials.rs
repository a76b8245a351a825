//! Where a bucket is and who may use it, from where the tools of AWS look: the environment, then the files of the profile, then
//! the services of the machine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::{RemoteError, Result};
use crate::identity::regular_file;

/// What names keys, or a service that gives them.
const KEYS: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SKIP_SIGNATURE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The address of the server, where it is not Amazon's.
pub(super) fn endpoint() -> Option<String> {
    let named = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"].into_iter().find_map(variable);
    named.or_else(|| Profile::read().endpoint())
}

/// A bucket.
pub(super) fn bucket_of(address: &str, bucket: &str) -> Result<Arc<dyn ObjectStore>> {
    // The library for TLS, once for the process; it is an error to set it again, and harmless.
    _ = rustls::crypto::ring::default_provider().install_default();
    let refused = |error: String| RemoteError::Keys { address: address.to_owned(), error };
    let profile = Profile::read();
    let endpoint = endpoint();
    let http = endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let options = ClientOptions::new()
        .with_allow_http(http)
        .with_connect_timeout(Duration::from_secs(10))
        // No time limit: objects can be large.
        .with_timeout_disabled()
        .with_read_timeout(Duration::from_secs(60));
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(200), ..BackoffConfig::default() };
    let retry = RetryConfig { backoff, max_retries: 4, retry_timeout: Duration::from_secs(60) };
    let mut builder =
        AmazonS3Builder::from_env().with_bucket_name(bucket).with_client_options(options).with_retry(retry);
    if let Some(endpoint) = &endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")).is_none()
        && let Some(region) = profile.settings.get("region")
    {
        builder = builder.with_region(region);
    }
    if KEYS.iter().all(|name| variable(name).is_none()) {
        let setting = |name: &str| profile.settings.get(name);
        match (setting("aws_access_key_id"), setting("aws_secret_access_key")) {
            (Some(id), Some(secret)) => {
                builder = builder.with_access_key_id(id).with_secret_access_key(secret);
                if let Some(token) = setting("aws_session_token") {
                    builder = builder.with_token(token);
                }
            }
            // Without any, the library would query Amazon's metadata service, which other machines do not have.
            _ if endpoint.is_some() || profile.is_asked_for() => return Err(refused(profile.lacks())),
            _ => {}
        }
    }
    match builder.build() {
        Ok(bucket) => Ok(Arc::new(bucket)),
        Err(error) => Err(RemoteError::Failed { address: address.to_owned(), error: error.to_string() }),
    }
}

/// A profile of the files that `aws configure` writes.
struct Profile {
    name: String,
    settings: BTreeMap<String, String>,
}

impl Profile {
    /// The one that `AWS_PROFILE` names, else `default`; empty where there is none.
    fn read() -> Self {
        let name = variable("AWS_PROFILE").or_else(|| variable("AWS_DEFAULT_PROFILE"));
        let name = name.unwrap_or_else(|| "default".to_owned());
        let file = |name: &str, usual: &str| {
            let home = || Some(PathBuf::from(variable("HOME")?).join(".aws").join(usual));
            let path = variable(name).map(PathBuf::from).or_else(home)?;
            regular_file::read_to_string(path).ok()
        };
        let config = sections(&file("AWS_CONFIG_FILE", "config").unwrap_or_default());
        let keys = sections(&file("AWS_SHARED_CREDENTIALS_FILE", "credentials").unwrap_or_default());
        let mut settings = BTreeMap::new();
        if name == "default" {
            settings.extend(config.get("default").cloned().unwrap_or_default());
        }
        settings.extend(config.get(&format!("profile {name}")).cloned().unwrap_or_default());
        let services =
            settings.get("services").and_then(|services| config.get(&format!("services {services}")));
        if let Some(endpoint) = services.and_then(|services| services.get("s3.endpoint_url")) {
            settings.insert("endpoint_url".to_owned(), endpoint.clone());
        }
        settings.extend(keys.get(&name).cloned().unwrap_or_default());
        Self { name, settings }
    }

    fn endpoint(&self) -> Option<String> {
        self.settings.get("endpoint_url").cloned()
    }

    /// Whether the user named it, or it says where keys come from.
    fn is_asked_for(&self) -> bool {
        self.name != "default" || self.source().is_some()
    }

    /// A way to keys that this program does not go.
    fn source(&self) -> Option<&str> {
        let ways = ["sso_session", "sso_start_url", "credential_process", "role_arn", "credential_source"];
        ways.into_iter().find(|way| self.settings.contains_key(*way))
    }

    /// What the profile lacks, for people.
    fn lacks(&self) -> String {
        let name = &self.name;
        match self.source() {
            Some(source) => format!(
                "the profile `{name}` gets its keys by `{source}`, which attrflow does not support: set them with `eval \"$(aws configure export-credentials --format env)\"`"
            ),
            None => format!(
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set, and the profile `{name}` in ~/.aws has no keys"
            ),
        }
    }
}

/// The settings of such a file by section; an indented line belongs to the setting above it, as in `s3.endpoint_url`.
fn sections(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut sections: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let (mut section, mut above) = (String::new(), String::new());
    for line in text.lines() {
        let plain = line.trim();
        if plain.is_empty() || plain.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = plain.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = name.split_whitespace().collect::<Vec<_>>().join(" ");
            continue;
        }
        let Some((key, value)) = plain.split_once('=') else { continue };
        let (key, value) = (key.trim().to_lowercase(), value.split(" #").next().unwrap_or_default().trim());
        let key = if line.starts_with([' ', '\t']) {
            format!("{above}.{key}")
        } else {
            above.clone_from(&key);
            key
        };
        sections.entry(section.clone()).or_default().insert(key, value.to_owned());
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::sections;

    #[test]
    fn sections_and_nested_settings() {
        let text = "# of aws\n[default]\nregion = eu-west-1 # near\naws_access_key_id=A=B\n\n[ profile  lab ]\ns3 =\n  endpoint_url = http://a:1\n  max = 2\nRegion = x\n";
        let found = sections(text);
        let of = |section: &str, key: &str| found.get(section).and_then(|found| found.get(key)).cloned();
        assert_eq!(of("default", "region").as_deref(), Some("eu-west-1"));
        assert_eq!(of("default", "aws_access_key_id").as_deref(), Some("A=B"));
        assert_eq!(of("profile lab", "s3.endpoint_url").as_deref(), Some("http://a:1"));
        assert_eq!(of("profile lab", "region").as_deref(), Some("x"));
        assert_eq!(of("profile lab", "endpoint_url"), None);
    }
}
