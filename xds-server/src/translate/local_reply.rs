//! Local replies of Envoy itself give a reason, like those of the filter: problem details (RFC
//! 9457) whose `reason` is Envoy's response code detail.

use envoy_types::pb::envoy::config::{
    accesslog::v3::{
        AccessLogFilter, AndFilter, ComparisonFilter, HeaderFilter, OrFilter, ResponseFlagFilter,
        StatusCodeFilter, access_log_filter::FilterSpecifier, comparison_filter::Op,
    },
    core::v3::RuntimeUInt32,
    route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
};
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use policy::{Reason, Refusal, headers, refusal::PROBLEM_JSON};

use super::ordered::{self, JsonFormat, ResponseMapper};

/// The fields of a connection manager that add reasons to Envoy's own local replies. The first
/// mapper that matches applies.
pub(super) fn reasons() -> ordered::HttpConnectionManager {
    let refused_upgrade = [
        ("type", "about:blank"),
        ("status", "%RESPONSE_CODE%"),
        ("reason", "upgrade_refused"),
        (
            "detail",
            "no upgrade to this protocol is configured for the service: see `upgrades`",
        ),
    ];
    let any = [
        ("type", "about:blank"),
        ("status", "%RESPONSE_CODE%"),
        ("reason", "%RESPONSE_CODE_DETAILS%"),
        ("detail", "%LOCAL_REPLY_BODY%"),
    ];
    let mapper = |filter, fields: &[(&str, &str)]| ResponseMapper {
        filter: Some(filter),
        body_format_override: Some(JsonFormat::new(fields, PROBLEM_JSON)),
    };
    let late = Refusal::WRITE_TIMEOUT;
    let text = |filter, text: &str, content_type: &str| ResponseMapper {
        filter: Some(filter),
        body_format_override: Some(JsonFormat::text(text, content_type)),
    };
    ordered::HttpConnectionManager {
        local_reply_config: Some(ordered::LocalReplyConfig {
            mappers: vec![
                text(
                    and(vec![is_late_write(), grpc(true)]),
                    late.detail,
                    "text/plain",
                ),
                text(is_late_write(), &late.problem(), PROBLEM_JSON),
                mapper(is_refused_upgrade(), &refused_upgrade),
                mapper(is_envoys_own(), &any),
            ],
        }),
    }
}

fn is_refused_upgrade() -> AccessLogFilter {
    let upgrade = header(HeaderMatcher {
        name: "upgrade".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
        ..HeaderMatcher::default()
    });
    and(vec![status(Op::Eq, 403), upgrade])
}

/// A write that a fence admitted, here or in another zone, and that has exceeded its lifetime.
fn is_late_write() -> AccessLogFilter {
    // Envoy sets no response flag for it.
    let late = status(Op::Eq, 408);
    let fenced = [headers::EPOCH, headers::PRESENTED_EPOCH].map(|name| {
        header(HeaderMatcher {
            name: name.to_owned(),
            header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
            ..HeaderMatcher::default()
        })
    });
    let fenced = filter(FilterSpecifier::OrFilter(OrFilter {
        filters: fenced.into(),
    }));
    and(vec![late, fenced])
}

/// Whether the request is one of gRPC.
fn grpc(is: bool) -> AccessLogFilter {
    header(HeaderMatcher {
        name: "content-type".to_owned(),
        invert_match: !is,
        treat_missing_header_as_empty: true,
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(MatchPattern::Prefix("application/grpc".to_owned())),
            ..StringMatcher::default()
        })),
    })
}

/// The decisions of forwarded requests. Any other value in a request is the reason of a rejection.
const GOES_ON: [Reason; 8] = [
    Reason::HomeZone,
    Reason::HomeRegion,
    Reason::RemoteRead,
    Reason::Fallback,
    Reason::NoService,
    Reason::Admitted,
    Reason::Forwarded,
    Reason::Observed,
];

/// Matches neither our own replies nor gRPC requests, which carry text only. The filter's replies
/// are identified by the reason that it sets in the request. The route table's replies, all of them
/// 503, are identified by a missing response flag.
fn is_envoys_own() -> AccessLogFilter {
    let goes_on = GOES_ON.map(Reason::as_str).join("|");
    let not_refused = header(HeaderMatcher {
        name: headers::DECISION.to_owned(),
        treat_missing_header_as_empty: true,
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(MatchPattern::SafeRegex(RegexMatcher {
                regex: format!("(?:{goes_on})?"),
                ..RegexMatcher::default()
            })),
            ..StringMatcher::default()
        })),
        ..HeaderMatcher::default()
    });
    // Any flag.
    let flagged = filter(FilterSpecifier::ResponseFlagFilter(
        ResponseFlagFilter::default(),
    ));
    let not_from_the_table = filter(FilterSpecifier::OrFilter(OrFilter {
        filters: vec![status(Op::Le, 502), status(Op::Ge, 504), flagged],
    }));
    // Not the direct responses of a route, which are intended.
    let failed = status(Op::Ge, 400);
    and(vec![not_refused, grpc(false), failed, not_from_the_table])
}

fn filter(specifier: FilterSpecifier) -> AccessLogFilter {
    AccessLogFilter {
        filter_specifier: Some(specifier),
    }
}

fn and(filters: Vec<AccessLogFilter>) -> AccessLogFilter {
    filter(FilterSpecifier::AndFilter(AndFilter { filters }))
}

fn header(matcher: HeaderMatcher) -> AccessLogFilter {
    filter(FilterSpecifier::HeaderFilter(HeaderFilter {
        header: Some(matcher),
    }))
}

fn status(op: Op, status: u32) -> AccessLogFilter {
    let comparison = ComparisonFilter {
        op: op.into(),
        value: Some(RuntimeUInt32 {
            default_value: status,
            runtime_key: "tidegate.local_reply".to_owned(),
        }),
    };
    filter(FilterSpecifier::StatusCodeFilter(StatusCodeFilter {
        comparison: Some(comparison),
    }))
}
