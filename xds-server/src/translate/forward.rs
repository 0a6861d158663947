//! A route's action for a request that is forwarded: time-outs, retries and hedging.

use std::{collections::HashMap, time};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::TypedExtensionConfig,
            route::v3::{
                HedgePolicy, RetryPolicy, RouteAction,
                retry_policy::{
                    RetryBackOff, RetryHostPredicate, RetryPriority, retry_host_predicate,
                    retry_priority,
                },
                route_action::{
                    ClusterSpecifier, HashPolicy, MaxStreamDuration,
                    hash_policy::{self, PolicySpecifier},
                },
            },
        },
        extensions::{
            filters::http::stateful_session::v3::{
                StatefulSession, StatefulSessionPerRoute, stateful_session_per_route::Override,
            },
            http::stateful_session::cookie::v3::CookieBasedSessionState,
            retry::{
                host::previous_hosts::v3::PreviousHostsPredicate,
                priority::previous_priorities::v3::PreviousPrioritiesConfig,
            },
        },
        r#type::{
            http::v3::Cookie,
            matcher::v3::{RegexMatchAndSubstitute, RegexMatcher},
        },
    },
    google::protobuf::{Any, Duration},
};
use policy::{Class, KeySource};

use super::{SESSIONS, duration_ms, millis, uint32};
use crate::config::{Resilience, RouteOptions, Strategy};
use xds::resource::any;

/// Forwards to `to`.
pub(super) fn action(
    resilience: &Resilience,
    options: RouteOptions,
    to: ClusterSpecifier,
    class: Class,
    grpc: bool,
) -> RouteAction {
    // A write that was sent is never retried.
    let hedge_after_ms = match class {
        Class::Read => options.hedge_after_ms,
        Class::Write => 0,
    };
    let retries = retry_policy(class, &resilience.strategy, hedge_after_ms);
    RouteAction {
        cluster_specifier: Some(to),
        retry_policy: (retries != usual_retries()).then_some(retries),
        // The first attempt continues: slow is not dead. The first response wins.
        hedge_policy: (hedge_after_ms > 0).then(|| HedgePolicy {
            hedge_on_per_try_timeout: true,
            ..HedgePolicy::default()
        }),
        hash_policy: hash_policy(&resilience.strategy).into_iter().collect(),
        // Set even if it is 0: Envoy's defaults, 15 s and 5 min, would cut streams and long polls.
        timeout: duration_ms(options.timeout_ms),
        idle_timeout: duration_ms(options.idle_timeout_ms),
        max_stream_duration: match grpc {
            true => Some(grpc_duration(options)),
            false => stream_duration(options),
        },
        ..RouteAction::default()
    }
}

/// Only if configured: Envoy then ignores the route's time-out.
fn stream_duration(options: RouteOptions) -> Option<MaxStreamDuration> {
    (options.max_stream_duration_ms > 0).then(|| MaxStreamDuration {
        max_stream_duration: duration_ms(options.max_stream_duration_ms),
        ..MaxStreamDuration::default()
    })
}

/// gRPC calls carry their own deadline. The configured time bounds it, and applies to calls without
/// one.
pub(super) fn grpc_duration(options: RouteOptions) -> MaxStreamDuration {
    let bound = options.shortest_ms();
    MaxStreamDuration {
        max_stream_duration: bound.and_then(duration_ms),
        grpc_timeout_header_max: duration_ms(bound.unwrap_or(0)),
        ..MaxStreamDuration::default()
    }
}

/// Forwards a write that the fence admitted to `to`, which has a single place. It lives no longer
/// than `drain`, including all retries and a slow body: afterwards no part of it is under way. A
/// shorter time-out of its route applies as well, from the beginning of the request.
pub(super) fn fenced_write(
    to: ClusterSpecifier,
    drain: time::Duration,
    options: RouteOptions,
    grpc: bool,
) -> RouteAction {
    let bound = options.shortest_ms().map(u64::from);
    let bound = bound.map(time::Duration::from_millis);
    let drain = bound.map_or(drain, |bound| bound.min(drain));
    let drain = Duration {
        // At most a minute.
        seconds: drain.as_secs() as i64,
        nanos: drain.subsec_nanos() as i32,
    };
    let strategy = Strategy::Weighted;
    RouteAction {
        cluster_specifier: Some(to),
        retry_policy: Some(RetryPolicy {
            retry_priority: None,
            ..retry_policy(Class::Write, &strategy, 0)
        }),
        timeout: Some(drain),
        idle_timeout: duration_ms(options.idle_timeout_ms),
        max_stream_duration: Some(MaxStreamDuration {
            max_stream_duration: Some(drain),
            grpc_timeout_header_max: grpc.then_some(drain),
            ..MaxStreamDuration::default()
        }),
        ..RouteAction::default()
    }
}

/// The retries of reads without other configuration, once in each virtual host. A route with
/// another policy has all of it.
pub(super) fn usual_retries() -> RetryPolicy {
    let hedge_after_ms = RouteOptions::default().hedge_after_ms;
    retry_policy(Class::Read, &Strategy::Weighted, hedge_after_ms)
}

/// Reads are retried at every fallback. Writes are retried only if nothing was sent, so that none
/// is executed twice. Each attempt avoids the previous failed place: a zone, or first the instance
/// if all zones of a region share the keys.
fn retry_policy(class: Class, strategy: &Strategy, hedge_after_ms: u32) -> RetryPolicy {
    let previous_hosts = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(any(
            &PreviousHostsPredicate::default(),
        ))),
    };
    let previous_priorities = PreviousPrioritiesConfig {
        // Attempts in one place.
        update_frequency: match strategy {
            Strategy::Weighted => 1,
            Strategy::RegionFirstHash { .. } => 2,
        },
    };
    let retry_on = match class {
        Class::Read => "connect-failure,refused-stream,reset",
        Class::Write => "connect-failure,refused-stream,reset-before-request",
    };
    RetryPolicy {
        retry_on: retry_on.to_owned(),
        num_retries: uint32(2),
        retry_priority: Some(RetryPriority {
            name: "envoy.retry_priorities.previous_priorities".to_owned(),
            config_type: Some(retry_priority::ConfigType::TypedConfig(any(
                &previous_priorities,
            ))),
        }),
        retry_host_predicate: vec![previous_hosts],
        // A dead instance fails fast, looks idle, and is picked repeatedly. Enough attempts find
        // another one.
        host_selection_retry_max_attempts: 32,
        per_try_timeout: match hedge_after_ms {
            0 => None,
            after_ms => duration_ms(after_ms),
        },
        // The next attempt goes to another instance, so there is no need to wait.
        retry_back_off: Some(RetryBackOff {
            base_interval: millis(1),
            max_interval: millis(10),
        }),
        ..RetryPolicy::default()
    }
}

/// A request without the key goes to any instance.
pub(super) fn hash_policy(strategy: &Strategy) -> Option<HashPolicy> {
    let Strategy::RegionFirstHash { key, .. } = strategy else {
        return None;
    };
    let header = |name: &str, rewrite| {
        PolicySpecifier::Header(hash_policy::Header {
            header_name: name.to_owned(),
            regex_rewrite: rewrite,
        })
    };
    let specifier = match key {
        KeySource::Header(name) => header(name, None),
        KeySource::Cookie(name) => PolicySpecifier::Cookie(hash_policy::Cookie {
            name: name.clone(),
            ..hash_policy::Cookie::default()
        }),
        KeySource::PathSegment(at) => {
            let segment = RegexMatchAndSubstitute {
                pattern: Some(RegexMatcher {
                    regex: format!("^(?:/[^/?#]*){{{at}}}/([^/?#]*).*$"),
                    ..RegexMatcher::default()
                }),
                substitution: r"\1".to_owned(),
            };
            header(":path", Some(segment))
        }
    };
    Some(HashPolicy {
        policy_specifier: Some(specifier),
        ..HashPolicy::default()
    })
}

/// The configuration that enables sessions on a route; at most one entry.
pub(super) fn sessions(strategy: &Strategy) -> HashMap<String, Any> {
    let Strategy::RegionFirstHash {
        sessions: Some(sessions),
        ..
    } = strategy
    else {
        return HashMap::new();
    };
    let state = CookieBasedSessionState {
        cookie: Some(Cookie {
            name: sessions.cookie.clone(),
            path: "/".to_owned(),
            ttl: (sessions.ttl_s > 0).then(|| Duration {
                seconds: i64::from(sessions.ttl_s),
                nanos: 0,
            }),
            ..Cookie::default()
        }),
    };
    let session = StatefulSession {
        session_state: Some(TypedExtensionConfig {
            name: "envoy.http.stateful_session.cookie".to_owned(),
            typed_config: Some(any(&state)),
        }),
        ..StatefulSession::default()
    };
    let on = StatefulSessionPerRoute {
        r#override: Some(Override::StatefulSession(session)),
    };
    HashMap::from([(SESSIONS.to_owned(), any(&on))])
}
