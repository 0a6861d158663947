//! The configuration as YAML and its types go: shapes, defaults and places, but no meaning.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use crate::etcd_access::{EtcdTlsFiles, EtcdUserFile};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) zone: Spanned<String>,
    pub(super) store: Option<RawStore>,
    pub(super) registry: Option<RawRegistry>,
    pub(super) listen: Option<Spanned<RawListen>>,
    pub(super) lease_ttl_s: Option<Spanned<u64>>,
    pub(super) drain_s: Option<Spanned<u64>>,
    pub(super) report_every_s: Option<Spanned<u64>>,
    pub(super) instances: Spanned<Vec<Spanned<RawInstance>>>,
}

/// An address, or more.
pub(super) struct RawListen {
    pub(super) address: Option<SocketAddr>,
    pub(super) tls: Option<RawServerTls>,
    pub(super) plaintext: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawServerTls {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) client_ca: PathBuf,
}

impl<'de> Deserialize<'de> for RawListen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawListen, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            address: Option<SocketAddr>,
            tls: Option<RawServerTls>,
            #[serde(default)]
            plaintext: bool,
        }

        struct ListenVisitor;

        impl<'de> Visitor<'de> for ListenVisitor {
            type Value = RawListen;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an address like 127.0.0.1:18010, or {address, tls, plaintext}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawListen, E> {
                let address = text.parse();
                let address = address.map_err(|error| E::custom(format!("{text:?}: {error}")))?;
                Ok(RawListen {
                    address: Some(address),
                    tls: None,
                    plaintext: false,
                })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<RawListen, A::Error> {
                let map = de::value::MapAccessDeserializer::new(map);
                let Fields {
                    address,
                    tls,
                    plaintext,
                } = Fields::deserialize(map)?;
                Ok(RawListen {
                    address,
                    tls,
                    plaintext,
                })
            }
        }

        deserializer.deserialize_any(ListenVisitor)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub(super) enum RawStore {
    Etcd {
        endpoints: Spanned<Vec<String>>,
        tls: Option<EtcdTlsFiles>,
        user: Option<EtcdUserFile>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRegistry {
    pub(super) http: Spanned<Vec<String>>,
    pub(super) tls: Option<Spanned<RawTls>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTls {
    pub(super) ca: PathBuf,
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawInstance {
    pub(super) service: String,
    pub(super) instance: String,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    #[serde(default = "default_weight")]
    pub(super) weight: u32,
    pub(super) capacity_rps: Option<f64>,
    #[serde(default = "plain_role")]
    pub(super) role: String,
    pub(super) probe: Spanned<RawProbe>,
    pub(super) load: Option<RawLoad>,
}

fn default_weight() -> u32 {
    1
}

fn plain_role() -> String {
    "instance".to_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProbe {
    pub(super) http: Option<RawHttp>,
    pub(super) grpc: Option<RawGrpc>,
    pub(super) tcp: Option<RawTcp>,
    pub(super) interval_ms: Option<Spanned<u64>>,
    pub(super) timeout_ms: Option<Spanned<u64>>,
    pub(super) retry_ms: Option<Spanned<u64>>,
    pub(super) failures: Option<Spanned<u32>>,
    pub(super) successes: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHttp {
    pub(super) path: Option<Spanned<String>>,
    pub(super) port: Option<Spanned<u16>>,
    pub(super) host: Option<Spanned<String>>,
    pub(super) expect: Option<Spanned<RawExpect>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGrpc {
    #[serde(default)]
    pub(super) service: String,
    pub(super) port: Option<Spanned<u16>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTcp {
    pub(super) port: Option<Spanned<u16>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLoad {
    pub(super) url: Spanned<String>,
}

/// `200`, or `200-399, 404`.
pub(super) struct RawExpect(pub(super) String);

/// By hand: a single status is a number to YAML.
impl<'de> Deserialize<'de> for RawExpect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ExpectVisitor;
        impl Visitor<'_> for ExpectVisitor {
            type Value = RawExpect;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status like 200, or ranges like 200-399, 404")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawExpect, E> {
                Ok(RawExpect(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, status: u64) -> Result<RawExpect, E> {
                Ok(RawExpect(status.to_string()))
            }

            fn visit_i64<E: de::Error>(self, status: i64) -> Result<RawExpect, E> {
                Ok(RawExpect(status.to_string()))
            }
        }
        deserializer.deserialize_any(ExpectVisitor)
    }
}
