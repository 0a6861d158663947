//! The wasm filter's configuration, for ECDS and as the listener's default.

use std::{collections::BTreeMap, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            AsyncDataSource, BackoffStrategy, DataSource, TypedExtensionConfig, async_data_source,
            data_source,
        },
        extensions::{
            filters::http::wasm::v3::Wasm,
            wasm::v3::{
                FailurePolicy, PluginConfig, ReloadConfig, SanitizationConfig, VmConfig,
                plugin_config::Vm,
            },
        },
    },
    google::protobuf::{Any, BytesValue},
};
use policy::Policy;
use prost::{Message, Name};

use super::{FILTER, millis};
use crate::{
    config::{CONTROL_PLANE, FilterConfig},
    resource::{Resource, any},
};

/// How soon a filter that trapped is built again: below a second, or its requests would be refused for as long.
const RELOAD_BACKOFF_MS: i32 = 100;

/// What the filter may call and be called with. Callbacks that are not listed are not made at all, which is what makes a
/// request cheap: nothing for bodies, responses, logs and done. Without `proxy_on_request_headers` Envoy would skip the
/// filter in silence; without most of the others it does not start, or refuses every request.
const CAPABILITIES: &[&str] = &[
    "proxy_on_context_create",
    "proxy_on_configure",
    "proxy_on_request_headers",
    // Nothing is done in it, but without it the SDK never frees a request's context.
    "proxy_on_delete",
    "proxy_log",
    "proxy_get_buffer_bytes",
    "proxy_get_header_map_pairs",
    "proxy_replace_header_map_value",
    "proxy_remove_header_map_value",
    "proxy_send_local_response",
    "proxy_define_metric",
    "proxy_increment_metric",
    "proxy_record_metric",
    // The write fence: what the workers share, and how they look at it.
    "proxy_on_tick",
    "proxy_set_tick_period_milliseconds",
    "proxy_get_shared_data",
    "proxy_set_shared_data",
    "clock_time_get",
    "random_get",
    // What it has applied, told to the control plane.
    "proxy_grpc_call",
    // Its stream to the control plane. The SDK sets the context before it passes on what comes there.
    "proxy_grpc_stream",
    "proxy_grpc_send",
    "proxy_grpc_cancel",
    "proxy_on_grpc_receive",
    "proxy_on_grpc_close",
    "proxy_set_effective_context",
    // The node's name.
    "proxy_get_property",
];

/// The ECDS resource with `policy`, and the policy's version.
pub fn filter_config(filter: &FilterConfig, policy: &Policy) -> (Arc<Resource>, u64) {
    let (bytes, version) = protos::encode(policy, filter.generation, CONTROL_PLANE);
    (filter_config_of_bytes(filter, bytes), version)
}

/// The ECDS resource with a policy as bytes, whatever they are.
pub fn filter_config_of_bytes(filter: &FilterConfig, policy: Vec<u8>) -> Arc<Resource> {
    let config = TypedExtensionConfig {
        name: FILTER.to_owned(),
        typed_config: Some(wasm(filter, policy)),
    };
    Arc::new(Resource::encode(FILTER, &config))
}

/// What the filter does until a policy has arrived. Safe on its own: reads stay local, writes are fenced.
pub(super) fn fallback(filter: &FilterConfig) -> Any {
    let (bytes, _) = protos::encode(&Policy::Fallback, filter.generation, CONTROL_PLANE);
    wasm(filter, bytes)
}

fn wasm(filter: &FilterConfig, policy: Vec<u8>) -> Any {
    let code = AsyncDataSource {
        specifier: Some(async_data_source::Specifier::Local(DataSource {
            specifier: Some(data_source::Specifier::Filename(filter.path.clone())),
            ..DataSource::default()
        })),
    };
    let vm = VmConfig {
        // The same for every edition of the policy, so that Envoy keeps its virtual machines.
        vm_id: FILTER.to_owned(),
        runtime: "envoy.wasm.runtime.v8".to_owned(),
        code: Some(code),
        ..VmConfig::default()
    };
    let plugin = PluginConfig {
        name: FILTER.to_owned(),
        root_id: FILTER.to_owned(),
        configuration: Some(any(&BytesValue { value: policy })),
        // Not FAIL_OPEN: without the filter there is no fence.
        failure_policy: FailurePolicy::FailReload.into(),
        reload_config: Some(ReloadConfig {
            backoff: Some(BackoffStrategy {
                base_interval: millis(RELOAD_BACKOFF_MS),
                max_interval: millis(RELOAD_BACKOFF_MS),
            }),
        }),
        vm: Some(Vm::VmConfig(vm)),
        ..PluginConfig::default()
    };
    let wasm = Wasm {
        config: Some(plugin),
    };
    let mut value = wasm.encode_to_vec();
    // Encodings of one message type that stand side by side are merged by every reader of protobuf.
    value.extend(ordered::Wasm::allowing(CAPABILITIES).encode_to_vec());
    Any {
        type_url: Wasm::type_url(),
        value,
    }
}

/// The part of `envoy.extensions.filters.http.wasm.v3.Wasm` that holds the capabilities, with a map that is ordered: the
/// generated type has a hash map, whose encoding differs from process to process, and with it the version.
mod ordered {
    use super::{BTreeMap, SanitizationConfig};

    #[derive(prost::Message)]
    pub(super) struct Wasm {
        #[prost(message, optional, tag = "1")]
        config: Option<PluginConfig>,
    }

    #[derive(prost::Message)]
    struct PluginConfig {
        #[prost(message, optional, tag = "3")]
        vm_config: Option<VmConfig>,
    }

    #[derive(prost::Message)]
    struct VmConfig {
        #[prost(message, optional, tag = "8")]
        capability_restriction_config: Option<CapabilityRestrictionConfig>,
    }

    #[derive(prost::Message)]
    struct CapabilityRestrictionConfig {
        #[prost(btree_map = "string, message", tag = "1")]
        allowed_capabilities: BTreeMap<String, SanitizationConfig>,
    }

    impl Wasm {
        pub(super) fn allowing(names: &[&str]) -> Wasm {
            let allowed_capabilities = names
                .iter()
                .map(|name| ((*name).to_owned(), SanitizationConfig {}))
                .collect();
            Wasm {
                config: Some(PluginConfig {
                    vm_config: Some(VmConfig {
                        capability_restriction_config: Some(CapabilityRestrictionConfig {
                            allowed_capabilities,
                        }),
                    }),
                }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_survive_the_merge_and_the_bytes_are_stable() {
        let filter = FilterConfig {
            path: "f.wasm".into(),
            generation: 1,
        };
        let (first, _) = filter_config(&filter, &Policy::Fallback);
        let (second, _) = filter_config(&filter, &Policy::Fallback);
        assert_eq!(first.version, second.version);

        let wasm = Wasm::decode(&fallback(&filter).value[..]).expect("a Wasm message");
        let plugin = wasm.config.expect("a plugin");
        assert_eq!(plugin.root_id, FILTER);
        let Some(Vm::VmConfig(vm)) = plugin.vm else {
            panic!("a vm");
        };
        assert_eq!(vm.vm_id, FILTER);
        let allowed = vm.capability_restriction_config.expect("capabilities");
        assert_eq!(allowed.allowed_capabilities.len(), CAPABILITIES.len());
    }
}
