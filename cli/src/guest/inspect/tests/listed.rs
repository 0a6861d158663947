//! The page with all findings, generated from the code.

use std::{collections::BTreeSet, fs};

use super::super::finding::{Problem, Problem::*, Way};

/// One of each kind, in the order of the page.
fn samples() -> Vec<Problem> {
    let text = |text: &str| text.to_owned();
    let cluster = || text("CLUSTER");
    let filter = || text("FILTER");
    vec![
        NoGuest,
        Incomplete { kind: "listeners" },
        RoutesUnread {
            what: text("TABLE"),
        },
        GuestConfiguration {
            error: text("ERROR"),
        },
        GuestsDiffer,
        GuestOptional,
        FailOpen { has_net: true },
        FailClosed,
        FetchedModule,
        ZoneUnknown { zone: text("ZONE") },
        ZoneMissing,
        UnfencedListsFenced {
            listed: text("ROUTE"),
            fenced: text("ROUTE"),
        },
        ClassesListFenced {
            listed: text("ROUTE"),
            fenced: text("ROUTE"),
        },
        DrainUnsaid,
        DrainAboveTerms {
            drain_ms: 2_000,
            terms_ms: 1_500,
        },
        StripMissing,
        StripOrder,
        MarkBeforeStrip { filter: filter() },
        MarkForged {
            header: text("x-tidegate-epoch"),
        },
        FilterBetween { filter: filter() },
        NetMissing,
        NetOrder,
        NetShadow,
        NetOpen {
            policy: text("POLICY"),
        },
        NetDisabled,
        NormalizePath,
        MergeSlashes,
        EscapedSlashes,
        HostDot,
        CaseInsensitive,
        ControlPlaneMissing { cluster: cluster() },
        ControlPlaneHttp1 { cluster: cluster() },
        ControlPlaneKeepalive { cluster: cluster() },
        UnboundedWrite,
        LongWrite {
            ms: 2_000,
            max_ms: 1_500,
        },
        Retries { on: text("reset") },
        Hedging,
        Mirror,
        RoutesIgnoreGuest,
        ClusterHeaderUnset,
        ClusterUnknown { cluster: cluster() },
        WayPast {
            way: Way::Manager,
            cluster: cluster(),
        },
        OpenDestination { cluster: cluster() },
    ]
}

#[test]
fn the_page_of_findings_is_that_of_the_code() {
    let head = "\
# Findings about guests

The findings of [`tidegate check --guest`](cli.md), generated from the code. The names are stable.
An `error` means that the fence is open somewhere, or that requests fail: exit code 6. With warnings
alone the exit code is 7.

| name | severity | finding | what to do |
| --- | --- | --- | --- |
";
    let cell = |text: &str| text.replace('|', r"\|");
    let row = |problem: Problem| {
        let (name, severity) = (problem.name(), problem.severity().as_str());
        let (told, remedy) = (cell(&problem.to_string()), cell(problem.remedy()));
        format!("| `{name}` | {severity} | {told} | {remedy} |\n")
    };
    let rows: Vec<_> = samples().into_iter().map(row).collect();
    let page = head.to_owned() + &rows.concat();
    let path = format!(
        "{}/../docs/reference/guest-findings.md",
        env!("CARGO_MANIFEST_DIR")
    );
    if std::env::var_os("TIDEGATE_BLESS").is_some() {
        fs::write(&path, page).unwrap();
        return;
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == page,
        "docs/reference/guest-findings.md is stale: TIDEGATE_BLESS=1 cargo test -p tidegate findings"
    );
}

#[test]
fn every_finding_is_on_the_page() {
    let code = include_str!("../finding.rs");
    let (_, code) = code.split_once("const fn name").unwrap();
    let (code, _) = code.split_once("const fn remedy").unwrap();
    let quoted: BTreeSet<&str> = code.split('"').skip(1).step_by(2).collect();
    let listed: BTreeSet<&str> = samples().iter().map(Problem::name).collect();
    assert_eq!(listed, quoted);
}
