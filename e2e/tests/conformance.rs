//! Conformance of the discovery port to HTTP/2, checked by h2spec: its sections `generic`, `http2`
//! and `hpack`.
//!
//! `docs/internals/testing.md` lists the cases that do not pass, with their reasons. Any other
//! failing case fails this test, and so does a listed case that passes. `cargo xtask test peers`
//! builds h2spec and runs this.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::paths;
use e2e::process::Process;

/// All cases of the three sections.
const CASES: usize = 145;
/// After this long an answer counts as missing. A busy machine needs it for answers that arrive.
const ANSWER_TIME_MAX_S: u32 = 5;
const RUN_TIME_MAX: Duration = Duration::from_secs(300);
const TESTING: &str = "docs/internals/testing.md";

/// A case, and h2spec's verdict on it.
#[derive(Debug, PartialEq)]
struct Case {
    section: String,
    name: String,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Passed,
    Skipped,
    Failed,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Skipped => "skipped",
            Outcome::Failed => "failed",
        }
    }
}

/// The cases of a report in JUnit's format.
fn cases(report: &str) -> Result<Vec<Case>> {
    let cases = report.split("<testcase ").skip(1);
    let cases = cases.map(|case| {
        let (case, _) = case.split_once("</testcase>").context("a case's end")?;
        let (head, body) = case.split_once('>').context("a case's head")?;
        let attribute = |name: &str| {
            let (_, rest) = head.split_once(&format!("{name}=\""))?;
            Some(unescaped(rest.split_once('"')?.0))
        };
        Ok(Case {
            section: attribute("package").context("a case's section")?,
            name: attribute("classname").context("a case's name")?,
            outcome: match body.trim_start().get(..4) {
                None => Outcome::Passed,
                Some("<ski") => Outcome::Skipped,
                Some(_) => Outcome::Failed,
            },
        })
    });
    cases.collect()
}

fn unescaped(text: &str) -> String {
    let escapes = [
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&amp;", "&"),
    ];
    escapes
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The cases that may fail, as `section: name, outcome`.
#[derive(Debug, Default, PartialEq)]
struct Deviations {
    always: BTreeSet<String>,
    /// Depends on timing.
    sometimes: BTreeSet<String>,
}

impl Deviations {
    /// The rows of the document's table for one kind of answer.
    fn listed(document: &str, answer: &str) -> Deviations {
        let mut listed = Deviations::default();
        for line in document.lines() {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, section, name, answers, outcome, reason, _] = cells[..] else {
                continue;
            };
            if reason.is_empty() || (answers != answer && answers != "any") {
                continue;
            }
            let (rows, outcome) = match outcome.split_once(" or passed") {
                Some((outcome, _)) => (&mut listed.sometimes, outcome),
                None => (&mut listed.always, outcome),
            };
            if ["failed", "skipped"].contains(&outcome) {
                rows.insert(format!("{section}: {name}, {outcome}"));
            }
        }
        listed
    }

    fn check(&self, cases: &[Case]) -> Result<()> {
        let seen = cases.iter().filter(|case| case.outcome != Outcome::Passed);
        let seen: BTreeSet<String> = seen
            .map(|it| format!("{}: {}, {}", it.section, it.name, it.outcome.word()))
            .collect();
        let known = &self.always | &self.sometimes;
        let unlisted: Vec<_> = seen.difference(&known).collect();
        ensure!(unlisted.is_empty(), "not in {TESTING}: {unlisted:#?}");
        let gone: Vec<_> = self.always.difference(&seen).collect();
        ensure!(gone.is_empty(), "in {TESTING}, but not so: {gone:#?}");
        Ok(())
    }
}

/// Runs h2spec, whose cases request `path`, and compares the failing cases with the table.
async fn check(directory: &Path, port: SocketAddr, path: &str, answer: &str) -> Result<()> {
    let report = directory.join("report.xml");
    let arguments = [
        "generic".to_owned(),
        "http2".to_owned(),
        "hpack".to_owned(),
        format!("--host={}", port.ip()),
        format!("--port={}", port.port()),
        format!("--path={path}"),
        format!("--timeout={ANSWER_TIME_MAX_S}"),
        format!("--junit-report={}", report.display()),
    ];
    let h2spec = Process::start(directory, "h2spec", &paths::h2spec()?, &arguments)?;
    // Its exit status says whether all have passed; the report says that too.
    h2spec.ended(RUN_TIME_MAX).await?;
    let text = fs::read_to_string(&report).with_context(|| h2spec.tail())?;
    let cases = cases(&text)?;
    let count = |outcome| cases.iter().filter(|case| case.outcome == outcome).count();
    println!(
        "h2spec, answers of {answer}: {} passed, {} skipped, {} failed",
        count(Outcome::Passed),
        count(Outcome::Skipped),
        count(Outcome::Failed)
    );
    ensure!(cases.len() == CASES, "{} cases of {CASES}", cases.len());
    let document = fs::read_to_string(paths::workspace().join(TESTING))?;
    let listed = Deviations::listed(&document, answer);
    listed
        .check(&cases)
        .with_context(|| fs::read_to_string(h2spec.log()).unwrap_or_default())
}

mod h2spec {
    use axum::Router;
    use axum::body::Bytes;
    use e2e::config::{Config, StoreConfig};
    use e2e::control_plane::ControlPlane;
    use e2e::workdir::Workdir;
    use serde_json::json;
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use xds::{Server, transport};

    use super::*;

    /// A method with one message, which waits for the end of the request. h2spec sends no message,
    /// and the answer consists of HEADERS only.
    const METHOD: &str = "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus";

    #[tokio::test]
    async fn the_discovery_port_conforms() -> Result<()> {
        let workdir = Workdir::kept("h2spec")?;
        let service = json!({ "name": "orders", "routes": [{ "prefix": "/orders" }] });
        let config = Config::new(StoreConfig::Embedded, vec![service]);
        let control_plane = ControlPlane::launch(workdir.path(), config).await?;
        check(workdir.path(), control_plane.xds(), METHOD, "HEADERS").await
    }

    /// Flow control needs an answer with a body, which the discovery port has for no request of
    /// h2spec's.
    #[tokio::test]
    async fn answers_with_a_body_conform() -> Result<()> {
        let workdir = Workdir::kept("h2spec-body")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?;
        let (_publisher, views) = watch::channel(None);
        // It answers at the end of a request, so that no stream ends before a case does.
        let answer = async |_: Bytes| "a body that fills a few small windows";
        let others = Router::new().fallback(answer);
        let services = transport::Services::new(Server::new(views, ()), others.into());
        tokio::select! {
            served = transport::listen(listener, services) => served.context("the server has ended"),
            checked = check(workdir.path(), port, "/", "DATA") => checked,
        }
    }
}

#[test]
fn a_report_is_read() {
    let report = r#"<testsuite name="2. Streams" package="generic/2">
    <testcase package="generic/2" classname="Sends &#34;one&#34;" time="0.0004"></testcase>
    <testcase package="generic/2" classname="Sends another" time="2.0055">
      <error>DATA frame</error>
    </testcase>
    <testcase package="http2/6.9.1" classname="Is left out" time="0">
      <skipped></skipped>
    </testcase>"#;
    let cases: Vec<_> = cases(report)
        .expect("a report")
        .into_iter()
        .map(|it| (it.section, it.name, it.outcome))
        .collect();
    let case = |section: &str, name: &str, outcome| (section.to_owned(), name.to_owned(), outcome);
    assert_eq!(
        cases,
        [
            case("generic/2", "Sends \"one\"", Outcome::Passed),
            case("generic/2", "Sends another", Outcome::Failed),
            case("http2/6.9.1", "Is left out", Outcome::Skipped),
        ]
    );
}

#[test]
fn a_case_passes_unless_it_is_listed_with_a_reason() {
    let document = "| section | case | answer | h2spec says | reason |\n\
                    | --- | --- | --- | --- | --- |\n\
                    | http2/3.5 | Sends this | any | failed | it is old |\n\
                    | http2/3.6 | Sends that | DATA | failed | |\n\
                    | http2/5.1 | Sends more | HEADERS | failed or passed | timing |\n";
    let case = |section: &str, name: &str, outcome| Case {
        section: section.to_owned(),
        name: name.to_owned(),
        outcome,
    };
    let old = |outcome| case("http2/3.5", "Sends this", outcome);
    let without_reason = case("http2/3.6", "Sends that", Outcome::Failed);
    let by_timing = |outcome| case("http2/5.1", "Sends more", outcome);
    let (passed, failed) = (Outcome::Passed, Outcome::Failed);

    let data = Deviations::listed(document, "DATA");
    assert!(data.check(&[old(failed)]).is_ok());
    assert!(data.check(&[old(passed)]).is_err());
    assert!(data.check(&[old(Outcome::Skipped)]).is_err());
    assert!(data.check(&[old(failed), without_reason]).is_err());
    assert!(data.check(&[old(failed), by_timing(failed)]).is_err());
    let headers = Deviations::listed(document, "HEADERS");
    for outcome in [passed, failed] {
        assert!(headers.check(&[old(failed), by_timing(outcome)]).is_ok());
    }
}
