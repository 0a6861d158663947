//! Where the configuration of an Envoy comes from: a file, or the admin interface of a live one.

use std::{path::Path, time::Duration};

use agent::http::Client;
use anyhow::{Context, bail};
use bytes::Bytes;
use http::Method;
use serde_json::Value;

/// How long a live Envoy may take: thousands of clusters take seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest configuration that is read, in bytes.
const BYTES_MAX: usize = 256 << 20;

/// Reads JSON or YAML from a file or an `http://` address.
///
/// # Errors
///
/// The source, and why it cannot be read.
pub(super) async fn read(source: &str) -> anyhow::Result<Value> {
    if source.contains("://") {
        return ask(source).await;
    }
    let text = std::fs::read_to_string(Path::new(source))
        .with_context(|| format!("cannot read {source}"))?;
    parse(source, &text)
}

async fn ask(url: &str) -> anyhow::Result<Value> {
    if !url.starts_with("http://") {
        bail!("{url}: an Envoy's admin interface is plaintext: begin with http://");
    }
    let client = Client::plain();
    let answer = client.send(Method::GET, url, Bytes::new(), PATIENCE, BYTES_MAX);
    let (status, body) = answer
        .await
        .with_context(|| format!("no answer from {url}"))?;
    if !status.is_success() {
        bail!("{url} answered {status}: the path is /config_dump");
    }
    serde_json::from_slice(&body)
        .with_context(|| format!("{url}: no JSON: the path is /config_dump"))
}

/// JSON is read as such: YAML is slower by far, and a configuration may have megabytes.
fn parse(file: &str, text: &str) -> anyhow::Result<Value> {
    match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text).with_context(|| format!("{file}: no JSON")),
        false => Ok(agent::yaml::read(file, text)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_yaml_are_the_same() {
        assert_eq!(
            parse("a", "{\"a\": 1}").unwrap(),
            parse("a", "a: 1\n").unwrap()
        );
        let flow = parse("a", "{\"a\": 1").unwrap_err();
        assert!(
            format!("{flow:#}").starts_with("a: no JSON: EOF"),
            "{flow:#}"
        );
        let yaml = parse("a", "a: [\n").unwrap_err().to_string();
        assert!(yaml.starts_with("a:"), "{yaml}");
        assert!(
            parse("a", "")
                .unwrap_err()
                .to_string()
                .contains("the file is empty")
        );
    }

    #[tokio::test]
    async fn an_address_must_be_plaintext_http() {
        let told = read("https://127.0.0.1:1/config_dump")
            .await
            .unwrap_err()
            .to_string();
        assert!(told.contains("begin with http://"), "{told}");
    }
}
