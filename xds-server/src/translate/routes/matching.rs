//! The header matchers of routes, and the headers that they set.

use envoy_types::pb::envoy::{
    config::{
        core::v3::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction},
        route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
    },
    r#type::{
        matcher::v3::{StringMatcher, string_matcher::MatchPattern},
        v3::Int64Range,
    },
};

pub(in crate::translate) fn is(name: &str, value: &str) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(value.to_owned())),
            ..StringMatcher::default()
        })),
        ..HeaderMatcher::default()
    }
}

pub(super) fn is_any_case(name: &str, value: &str) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(value.to_owned())),
            ignore_case: true,
        })),
        ..HeaderMatcher::default()
    }
}

pub(super) fn present(name: &str) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
        ..HeaderMatcher::default()
    }
}

pub(super) fn absent(name: &str) -> HeaderMatcher {
    HeaderMatcher {
        invert_match: true,
        ..present(name)
    }
}

/// An integer of at least this value.
pub(super) fn at_least(name: &str, least: i64) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::RangeMatch(Int64Range {
            start: least,
            // Exclusive.
            end: i64::MAX,
        })),
        ..HeaderMatcher::default()
    }
}

fn header(name: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            ..HeaderValue::default()
        }),
        append_action: action.into(),
        ..HeaderValueOption::default()
    }
}

pub(super) fn set(name: &str, value: &str) -> HeaderValueOption {
    header(name, value, HeaderAppendAction::OverwriteIfExistsOrAdd)
}

/// Replaces a header if it exists, and adds none.
pub(super) fn replace(name: &str, value: &str) -> HeaderValueOption {
    header(name, value, HeaderAppendAction::OverwriteIfExists)
}

pub(super) fn add_if_absent(name: &str, value: &str) -> HeaderValueOption {
    header(name, value, HeaderAppendAction::AddIfAbsent)
}
