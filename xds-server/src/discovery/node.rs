//! The identity that a proxy claims.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::config::core::v3::Node,
    google::protobuf::{Value, value},
};
use tonic::Status;

use xds::stream::Variant;

use crate::{
    net::access::NotPermitted,
    snapshot::{Role, Snapshot, View, ViewKey},
};

/// How much of a proxy's text is repeated in messages.
const TEXT_CHARS_MAX: usize = 128;

/// The prefix of the user agents of all gRPC libraries: `gRPC C-core ...`, `gRPC Node Pure JS`,
/// `gRPC Go`, `gRPC Java`.
const GRPC_USER_AGENT: &str = "gRPC ";

fn clip(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// A proxy, by its first request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) id: String,
    pub(crate) view: ViewKey,
}

/// Why a proxy is rejected. The text names the change to make in its bootstrap.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidNode {
    #[error(
        "the first request carries no node: set node.id and node.locality.zone in the proxy's bootstrap"
    )]
    Missing,
    #[error(
        "node.locality.zone {zone:?} of node {id:?} is not configured; configured zones: {known}"
    )]
    UnknownZone {
        id: String,
        zone: String,
        known: String,
    },
    #[error(
        "node.metadata.tidegate.role {role:?} of node {id:?} is unknown: use gateway, sidecar or grpc"
    )]
    UnknownRole { id: String, role: String },
    #[error(
        "node {id:?} uses the state-of-the-world variant, and virtual hosts on demand need the delta variant: set api_type: DELTA_GRPC in the proxy's bootstrap, or on_demand: false for listeners.{role}"
    )]
    OnDemand { id: String, role: &'static str },
    #[error(
        "node {id:?} is a gRPC client, and gRPC clients are not served: set listeners.grpc to true in the control plane's configuration"
    )]
    GrpcNotServed { id: String },
    #[error(
        "node {id:?} says that it is a guest, and guests get no resources: its filter follows the policy by a stream of its own"
    )]
    Guest { id: String },
    #[error("node {id:?}: {error}")]
    NotPermitted { id: String, error: NotPermitted },
}

impl Proxy {
    /// Reads the node of a stream's first request. Without a role it is a gRPC client if its user
    /// agent says so, and otherwise a gateway. `permits` checks whether it may have the requested
    /// view. A client without permission does not learn which views exist.
    pub(crate) fn introduce(
        node: Option<&Node>,
        snapshot: &Snapshot,
        permits: impl FnOnce(&str, Role) -> Result<(), NotPermitted>,
    ) -> Result<Proxy, InvalidNode> {
        let node = node.ok_or(InvalidNode::Missing)?;
        let role = match role_name(node) {
            None if node.user_agent_name.starts_with(GRPC_USER_AGENT) => Role::Grpc,
            None => Role::default(),
            Some(name) => Role::named(name).ok_or_else(|| InvalidNode::UnknownRole {
                id: clip(&node.id),
                role: clip(name),
            })?,
        };
        if role == Role::Guest {
            return Err(InvalidNode::Guest { id: clip(&node.id) });
        }
        let zone = node.locality.as_ref().map_or("", |l| l.zone.as_str());
        permits(zone, role).map_err(|error| InvalidNode::NotPermitted {
            id: clip(&node.id),
            error,
        })?;
        let view = ViewKey {
            zone: Arc::from(zone),
            role,
        };
        if snapshot.view(&view).is_none() {
            if role == Role::Grpc && snapshot.zones().any(|known| known == zone) {
                return Err(InvalidNode::GrpcNotServed { id: clip(&node.id) });
            }
            return Err(InvalidNode::UnknownZone {
                id: clip(&node.id),
                zone: clip(zone),
                known: snapshot.zones().collect::<Vec<_>>().join(", "),
            });
        }
        Ok(Proxy {
            id: clip(&node.id),
            view,
        })
    }

    /// Whether it can use the resources of its role, in this variant of the protocol.
    pub(super) fn can_use(&self, view: &View, variant: Variant) -> Result<(), InvalidNode> {
        match variant {
            Variant::StateOfTheWorld if view.is_on_demand() => Err(InvalidNode::OnDemand {
                id: self.id.clone(),
                role: self.view.role.as_str(),
            }),
            Variant::StateOfTheWorld | Variant::Delta => Ok(()),
        }
    }
}

impl InvalidNode {
    /// The label of the metric.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            InvalidNode::Missing => "no_node",
            InvalidNode::UnknownZone { .. } => "unknown_zone",
            InvalidNode::UnknownRole { .. } => "unknown_role",
            InvalidNode::OnDemand { .. } => "on_demand",
            InvalidNode::NotPermitted { .. } => "not_permitted",
            InvalidNode::GrpcNotServed { .. } => "grpc_not_served",
            InvalidNode::Guest { .. } => "guest",
        }
    }
}

impl From<InvalidNode> for Status {
    fn from(error: InvalidNode) -> Status {
        match error {
            InvalidNode::NotPermitted { .. } => Status::permission_denied(error.to_string()),
            InvalidNode::Missing
            | InvalidNode::UnknownZone { .. }
            | InvalidNode::UnknownRole { .. }
            | InvalidNode::OnDemand { .. }
            | InvalidNode::GrpcNotServed { .. }
            | InvalidNode::Guest { .. } => Status::invalid_argument(error.to_string()),
        }
    }
}

fn role_name(node: &Node) -> Option<&str> {
    let tidegate = node.metadata.as_ref()?.fields.get("tidegate")?;
    let Some(value::Kind::StructValue(tidegate)) = &tidegate.kind else {
        return None;
    };
    match tidegate.fields.get("role") {
        Some(Value {
            kind: Some(value::Kind::StringValue(role)),
        }) => Some(role),
        _ => None,
    }
}
