//! The plugin's configuration.

use policy::Policy;
use protos::{Decoder, InvalidPolicy, PluginConfig};

/// Reads the plugin's configuration; `decoder` knows the one before. An empty one names a filter
/// that has to do without a control plane.
pub fn read(decoder: &mut Decoder, configuration: &[u8]) -> Result<PluginConfig, InvalidPolicy> {
    if configuration.is_empty() {
        return Ok(PluginConfig {
            version: 0,
            generation: 0,
            policy: Policy::Fallback,
            control_plane: String::new(),
        });
    }
    decoder.decode(configuration)
}

/// The log line about a configuration that is now applied.
pub fn describe(config: &PluginConfig) -> String {
    let PluginConfig {
        version,
        generation,
        policy,
        ..
    } = config;
    let what = match policy {
        Policy::Fallback => "fallback: reads stay local, writes are fenced".to_owned(),
        Policy::Serving(rules) => format!(
            "viewer {}, {} services",
            rules.topology().zone_name(rules.viewer()),
            rules.services().len(),
        ),
    };
    format!("policy {version:012x} generation {generation} applied, {what}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(configuration: &[u8]) -> Result<PluginConfig, InvalidPolicy> {
        super::read(&mut Decoder::default(), configuration)
    }
    use crate::testing::serving;

    #[test]
    fn no_configuration_is_the_fallback() {
        let config = read(b"").unwrap();
        assert_eq!(config.policy, Policy::Fallback);
        assert_eq!(
            describe(&config),
            "policy 000000000000 generation 0 applied, fallback: reads stay local, writes are fenced"
        );
    }

    #[test]
    fn a_policy_is_applied_as_it_was_sent() {
        let (bytes, version) = protos::encode(&serving(), 3, "tidegate");
        let config = read(&bytes).unwrap();
        assert_eq!(config.policy, serving());
        assert_eq!(
            describe(&config),
            format!(
                "policy {version:012x} generation 3 applied, viewer shanghai-a, {} services",
                2
            )
        );
    }

    #[test]
    fn a_refusal_names_the_field() {
        assert_eq!(read(b"\x08\x01").unwrap_err().to_string(), "mode: missing");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = read(&bytes);
        }

        #[test]
        fn no_damage_makes_it_panic(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let (mut bytes, _) = protos::encode(&serving(), 1, "tidegate");
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = read(&bytes);
            let _ = read(&bytes[..cut.index(bytes.len())]);
        }
    }
}
