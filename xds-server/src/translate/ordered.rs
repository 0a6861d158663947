//! The parts of Envoy's messages with maps, as ordered maps. The generated types have hash maps,
//! whose encoding, and so a resource's version, differs between processes.
//!
//! Every protobuf decoder merges adjacent encodings of one message type, so these parts are
//! appended to the encodings of the generated types.

use std::collections::BTreeMap;

use envoy_types::pb::{
    envoy::config::accesslog::v3::AccessLogFilter,
    google::protobuf::{Value, value::Kind},
};

/// `envoy.config.core.v3.SubstitutionFormatString`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct JsonFormat {
    #[prost(message, optional, tag = "2")]
    json_format: Option<Struct>,
    #[prost(string, tag = "4")]
    content_type: String,
    #[prost(message, optional, tag = "5")]
    text_format_source: Option<DataSource>,
}

/// `envoy.config.core.v3.DataSource`.
#[derive(Clone, PartialEq, prost::Message)]
struct DataSource {
    #[prost(string, tag = "3")]
    inline_string: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Struct {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, Value>,
}

impl JsonFormat {
    /// An object with these fields.
    pub(super) fn new(fields: &[(&str, &str)], content_type: &str) -> JsonFormat {
        let value = |text: &str| Value {
            kind: Some(Kind::StringValue(text.to_owned())),
        };
        let fields = fields.iter();
        let fields = fields.map(|(name, text)| ((*name).to_owned(), value(text)));
        JsonFormat {
            json_format: Some(Struct {
                fields: fields.collect(),
            }),
            content_type: content_type.to_owned(),
            text_format_source: None,
        }
    }

    /// This text, without substitutions.
    pub(super) fn text(text: &str, content_type: &str) -> JsonFormat {
        JsonFormat {
            json_format: None,
            content_type: content_type.to_owned(),
            text_format_source: Some(DataSource {
                inline_string: text.replace('%', "%%"),
            }),
        }
    }
}

/// `envoy.extensions.access_loggers.file.v3.FileAccessLog`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct FileAccessLog {
    #[prost(message, optional, tag = "5")]
    pub(super) log_format: Option<JsonFormat>,
}

/// `envoy.extensions.access_loggers.stream.v3.StdoutAccessLog`, and `StderrAccessLog`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StreamAccessLog {
    #[prost(message, optional, tag = "1")]
    pub(super) log_format: Option<JsonFormat>,
}

/// `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HttpConnectionManager {
    #[prost(message, optional, tag = "38")]
    pub(super) local_reply_config: Option<LocalReplyConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LocalReplyConfig {
    #[prost(message, repeated, tag = "1")]
    pub(super) mappers: Vec<ResponseMapper>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ResponseMapper {
    #[prost(message, optional, tag = "1")]
    pub(super) filter: Option<AccessLogFilter>,
    #[prost(message, optional, tag = "4")]
    pub(super) body_format_override: Option<JsonFormat>,
}
