//! A line in the access log for each request.

use envoy_types::pb::{
    envoy::{
        config::accesslog::v3::{AccessLog, access_log},
        extensions::access_loggers::{
            file::v3::FileAccessLog,
            stream::v3::{StderrAccessLog, StdoutAccessLog},
        },
    },
    google::protobuf::Any,
};
use prost::{Message, Name};

use super::ordered::{self, JsonFormat};

/// One JSON object for each request, by field. `decision` is the reason code, set by the route or,
/// for a rejection, by the filter. JSON because Envoy escapes values in it: a client's value cannot
/// pass for another field.
const FIELDS: &[(&str, &str)] = &[
    ("authority", "%REQ(:AUTHORITY)%"),
    ("cell", "%REQ(X-TIDEGATE-CELL)%"),
    ("class", "%REQ(X-TIDEGATE-CLASS)%"),
    ("cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("decision", "%REQ(X-TIDEGATE-DECISION)%"),
    ("details", "%RESPONSE_CODE_DETAILS%"),
    ("duration_ms", "%DURATION%"),
    ("epoch", "%REQ(X-TIDEGATE-EPOCH)%"),
    ("home", "%REQ(X-TIDEGATE-HOME)%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("status", "%RESPONSE_CODE%"),
    ("tier", "%REQ(X-TIDEGATE-TIER)%"),
    ("time", "%START_TIME%"),
    ("trace_id", "%REQ(X-TRACE-ID)%"),
    ("upstream", "%UPSTREAM_HOST%"),
];

/// Writes to the file at this path. The standard streams have loggers of their own: opened by path,
/// like a file, they fail if they are sockets, as below systemd.
pub(super) fn access_log(path: &str) -> AccessLog {
    let format = Some(JsonFormat::new(FIELDS, ""));
    let stream = || ordered::StreamAccessLog {
        log_format: format.clone(),
    };
    let (name, type_url, value) = match path {
        "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1" => (
            "envoy.access_loggers.stdout",
            StdoutAccessLog::type_url(),
            stream().encode_to_vec(),
        ),
        "/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2" => (
            "envoy.access_loggers.stderr",
            StderrAccessLog::type_url(),
            stream().encode_to_vec(),
        ),
        path => {
            let file = FileAccessLog {
                path: path.to_owned(),
                ..FileAccessLog::default()
            };
            let log = ordered::FileAccessLog { log_format: format };
            let value = [file.encode_to_vec(), log.encode_to_vec()].concat();
            (
                "envoy.access_loggers.file",
                FileAccessLog::type_url(),
                value,
            )
        }
    };
    AccessLog {
        name: name.to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(Any { type_url, value })),
        ..AccessLog::default()
    }
}
