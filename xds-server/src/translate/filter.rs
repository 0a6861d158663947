//! The filter's configuration, for ECDS and as the listener's default: as a wasm filter, or as a
//! dynamic module.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            AsyncDataSource, BackoffStrategy, DataSource, TypedExtensionConfig, async_data_source,
            data_source,
        },
        extensions::{
            dynamic_modules::v3::DynamicModuleConfig,
            filters::http::{dynamic_modules::v3::DynamicModuleFilter, wasm::v3::Wasm},
            wasm::v3::{
                FailurePolicy, PluginConfig, ReloadConfig, SanitizationConfig, VmConfig,
                plugin_config::Vm,
            },
        },
    },
    google::protobuf::{Any, BytesValue},
};
use policy::Policy;
use prost::{
    Message, Name,
    encoding::{WireType, encode_key, encode_varint},
};
use protos::{Encoded, Encoder};

use super::{FILTER, millis};
use crate::config::{CONTROL_PLANE, FilterConfig};
use xds::resource::Resource;

/// The delay before a filter that trapped is rebuilt: below a second, since requests are rejected
/// meanwhile.
const RELOAD_BACKOFF_MS: i32 = 100;

/// The host calls and callbacks of the filter. Callbacks that are not listed are not called at all,
/// so a request is cheap: none for bodies, responses, logs and done. Without
/// `proxy_on_request_headers` Envoy would silently skip the filter. Without most of the others it
/// does not start, or rejects every request.
const CAPABILITIES: &[&str] = &[
    "proxy_on_context_create",
    "proxy_on_configure",
    "proxy_on_request_headers",
    // The filter ignores it, but without it the SDK never frees a request's context.
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
    // The write fence: the data that the workers share, and the tick on which they read it.
    "proxy_on_tick",
    "proxy_set_tick_period_milliseconds",
    "proxy_get_shared_data",
    "proxy_set_shared_data",
    "clock_time_get",
    "random_get",
    // Reports of the applied configuration to the control plane.
    "proxy_grpc_call",
    // Its stream to the control plane. The SDK sets the context before it passes on messages of the
    // stream.
    "proxy_grpc_stream",
    "proxy_grpc_send",
    "proxy_grpc_cancel",
    "proxy_on_grpc_receive",
    "proxy_on_grpc_close",
    "proxy_set_effective_context",
    // The node's name.
    "proxy_get_property",
];

/// The ECDS resource with `policy`, and the policy's version. Parts that `encoder` has encoded
/// before are not encoded again.
pub fn filter_config(
    filter: &FilterConfig,
    policy: &Policy,
    encoder: &mut Encoder,
) -> (Arc<Resource>, u64) {
    let Encoded { pieces, version } = encoder.encode(policy, filter.generation, CONTROL_PLANE);
    let policy: Vec<&[u8]> = pieces.iter().map(Bytes::as_ref).collect();
    (filter_config_of_bytes(filter, &policy), version)
}

/// The ECDS resource with arbitrary policy bytes, in pieces.
pub fn filter_config_of_bytes(filter: &FilterConfig, policy: &[&[u8]]) -> Arc<Resource> {
    let around = Around::filter(filter, policy.iter().map(|piece| piece.len()).sum());
    let around = around.within(field::ANY_VALUE).after(&Any {
        type_url: type_url(filter),
        value: Vec::new(),
    });
    let around = around.within(field::EXTENSION_CONFIG);
    let name = TypedExtensionConfig {
        name: FILTER.to_owned(),
        typed_config: None,
    };
    let around = around.after(&name);
    let pieces: Vec<&[u8]> = [&around.before[..]]
        .into_iter()
        .chain(policy.iter().copied())
        .chain([&around.behind[..]])
        .collect();
    Arc::new(Resource::of_bytes(
        FILTER,
        &TypedExtensionConfig::type_url(),
        &pieces,
    ))
}

/// The filter's policy until one has arrived. It is safe: reads stay local, writes are fenced.
pub(super) fn fallback(filter: &FilterConfig) -> Any {
    let (policy, _) = protos::encode(&Policy::Fallback, filter.generation, CONTROL_PLANE);
    let around = Around::filter(filter, policy.len());
    Any {
        type_url: type_url(filter),
        value: [around.before, policy, around.behind].concat(),
    }
}

/// The type of the filter: a dynamic module if the name of its file says so.
pub(super) fn type_url(filter: &FilterConfig) -> String {
    match is_module(filter) {
        true => DynamicModuleFilter::type_url(),
        false => Wasm::type_url(),
    }
}

fn is_module(filter: &FilterConfig) -> bool {
    filter.path.ends_with(".so")
}

/// The bytes around the policy in a message, so that the policy, which is long, is copied only
/// once.
struct Around {
    before: Vec<u8>,
    /// The length of the policy.
    len: usize,
    behind: Vec<u8>,
}

/// The field numbers on the path to the policy.
mod field {
    pub(super) const BYTES_VALUE: u32 = 1;
    pub(super) const ANY_VALUE: u32 = 2;
    pub(super) const PLUGIN_CONFIGURATION: u32 = 4;
    pub(super) const WASM_CONFIG: u32 = 1;
    pub(super) const MODULE_CONFIGURATION: u32 = 3;
    pub(super) const EXTENSION_CONFIG: u32 = 2;
}

impl Around {
    /// The filter with a policy of this length.
    fn filter(filter: &FilterConfig, len: usize) -> Around {
        let policy = Around {
            before: Vec::new(),
            len,
            behind: Vec::new(),
        };
        let configuration = policy
            .within(field::BYTES_VALUE)
            .within(field::ANY_VALUE)
            .after_type::<BytesValue>();
        match is_module(filter) {
            true => Around::module(filter, configuration),
            false => Around::wasm(filter, configuration),
        }
    }

    fn module(filter: &FilterConfig, configuration: Around) -> Around {
        configuration
            .within(field::MODULE_CONFIGURATION)
            .after(&module())
            .ahead_of(&located::DynamicModuleFilter::at(code(filter)))
    }

    fn wasm(filter: &FilterConfig, configuration: Around) -> Around {
        // Adjacent messages of one type are merged into one by every protobuf decoder.
        let (before, behind) = plugin(filter);
        let mut wasm = configuration
            .within(field::PLUGIN_CONFIGURATION)
            .after(&before)
            .ahead_of(&behind)
            .within(field::WASM_CONFIG);
        wasm.behind
            .extend(ordered::Wasm::allowing(CAPABILITIES).encode_to_vec());
        wasm
    }

    /// Wraps it as the message in a field.
    fn within(mut self, field: u32) -> Around {
        let mut before = Vec::new();
        encode_key(field, WireType::LengthDelimited, &mut before);
        let len = self.before.len() + self.len + self.behind.len();
        encode_varint(len as u64, &mut before);
        before.append(&mut self.before);
        Around { before, ..self }
    }

    /// Prepends other fields of the message.
    fn after(self, fields: &impl Message) -> Around {
        let mut before = fields.encode_to_vec();
        before.extend(&self.before);
        Around { before, ..self }
    }

    /// Wraps it in an `Any`, after the type of its content.
    fn after_type<M: Name>(self) -> Around {
        self.after(&Any {
            type_url: M::type_url(),
            value: Vec::new(),
        })
    }

    fn ahead_of(mut self, fields: &impl Message) -> Around {
        self.behind.extend(fields.encode_to_vec());
        self
    }
}

/// The file on the proxies' machines.
fn code(filter: &FilterConfig) -> AsyncDataSource {
    AsyncDataSource {
        specifier: Some(async_data_source::Specifier::Local(DataSource {
            specifier: Some(data_source::Specifier::Filename(filter.path.clone())),
            ..DataSource::default()
        })),
    }
}

/// The dynamic module without its file and its configuration.
fn module() -> DynamicModuleFilter {
    DynamicModuleFilter {
        dynamic_module_config: Some(DynamicModuleConfig {
            // Writes in flight outlive a configuration.
            do_not_close: true,
            // The names of metrics are those of the wasm filter.
            metrics_namespace: "wasmcustom".to_owned(),
            ..DynamicModuleConfig::default()
        }),
        filter_name: FILTER.to_owned(),
        ..DynamicModuleFilter::default()
    }
}

/// The plugin without its configuration: the bytes before and after it.
fn plugin(filter: &FilterConfig) -> (PluginConfig, PluginConfig) {
    let code = code(filter);
    let vm = VmConfig {
        // The same for every version of the policy, so that Envoy keeps its virtual machines.
        vm_id: FILTER.to_owned(),
        runtime: "envoy.wasm.runtime.v8".to_owned(),
        code: Some(code),
        ..VmConfig::default()
    };
    let before = PluginConfig {
        name: FILTER.to_owned(),
        root_id: FILTER.to_owned(),
        vm: Some(Vm::VmConfig(vm)),
        ..PluginConfig::default()
    };
    let behind = PluginConfig {
        // Not FAIL_OPEN: without the filter there is no fence.
        failure_policy: FailurePolicy::FailReload.into(),
        reload_config: Some(ReloadConfig {
            backoff: Some(BackoffStrategy {
                base_interval: millis(RELOAD_BACKOFF_MS),
                max_interval: millis(RELOAD_BACKOFF_MS),
            }),
        }),
        ..PluginConfig::default()
    };
    (before, behind)
}

/// The part of `envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter` with the file:
/// the generated types are older than Envoy 1.38, which knows it.
mod located {
    use super::AsyncDataSource;

    #[derive(PartialEq, prost::Message)]
    pub(super) struct DynamicModuleFilter {
        #[prost(message, optional, tag = "1")]
        dynamic_module_config: Option<DynamicModuleConfig>,
    }

    #[derive(PartialEq, prost::Message)]
    struct DynamicModuleConfig {
        #[prost(message, optional, tag = "6")]
        module: Option<AsyncDataSource>,
    }

    impl DynamicModuleFilter {
        pub(super) fn at(file: AsyncDataSource) -> DynamicModuleFilter {
            DynamicModuleFilter {
                dynamic_module_config: Some(DynamicModuleConfig { module: Some(file) }),
            }
        }
    }
}

/// The part of `envoy.extensions.filters.http.wasm.v3.Wasm` with the capabilities, with an ordered
/// map. The generated type has a hash map, whose encoding, and so its version, differs between
/// processes.
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
    use xds::resource::any;

    fn filter() -> FilterConfig {
        FilterConfig {
            path: "f.wasm".into(),
            generation: 1,
        }
    }

    #[test]
    fn capabilities_survive_the_merge_and_the_bytes_are_stable() {
        let config = || filter_config(&filter(), &Policy::Fallback, &mut Encoder::default()).0;
        assert_eq!(config().version, config().version);

        let wasm = Wasm::decode(&fallback(&filter()).value[..]).expect("a Wasm message");
        let plugin = wasm.config.expect("a plugin");
        assert_eq!(plugin.root_id, FILTER);
        let Some(Vm::VmConfig(vm)) = plugin.vm else {
            panic!("a vm");
        };
        assert_eq!(vm.vm_id, FILTER);
        let allowed = vm.capability_restriction_config.expect("capabilities");
        assert_eq!(allowed.allowed_capabilities.len(), CAPABILITIES.len());
    }

    #[test]
    fn a_shared_library_is_a_dynamic_module_with_the_policy() {
        let filter = FilterConfig {
            path: "/lib/f.so".into(),
            generation: 1,
        };
        let (policy, _) = protos::encode(&Policy::Fallback, 1, CONTROL_PLANE);
        let Any { type_url, value } = fallback(&filter);
        assert_eq!(type_url, DynamicModuleFilter::type_url());
        let module = DynamicModuleFilter::decode(&value[..]).expect("a module");
        let configuration = module.filter_config.expect("a configuration");
        let bytes = BytesValue::decode(&configuration.value[..]).expect("bytes");
        assert_eq!(bytes.value, policy);
        assert!(module.dynamic_module_config.expect("a module").do_not_close);
        let located = located::DynamicModuleFilter::decode(&value[..]).expect("a file");
        assert_eq!(located, located::DynamicModuleFilter::at(code(&filter)));
    }

    /// With any length, which precedes it six times.
    #[test]
    fn a_policy_in_pieces_makes_the_bytes_of_a_message_that_holds_it() {
        for pieces in [&[&b"x"[..]][..], &[&[7; 130], b"", &[8; 70_000]]] {
            let (before, behind) = plugin(&filter());
            let configuration = BytesValue {
                value: pieces.concat(),
            };
            let whole = PluginConfig {
                configuration: Some(any(&configuration)),
                failure_policy: behind.failure_policy,
                reload_config: behind.reload_config,
                ..before
            };
            let mut value = Wasm {
                config: Some(whole),
            }
            .encode_to_vec();
            value.extend(ordered::Wasm::allowing(CAPABILITIES).encode_to_vec());
            let plain = TypedExtensionConfig {
                name: FILTER.to_owned(),
                typed_config: Some(Any {
                    type_url: Wasm::type_url(),
                    value,
                }),
            };
            let resource = filter_config_of_bytes(&filter(), pieces);
            assert!(resource.message() == plain.encode_to_vec());
            assert_eq!(resource.version, Resource::encode(FILTER, &plain).version);
        }
    }
}
