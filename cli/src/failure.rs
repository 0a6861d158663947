//! The result of a failed command: its exit code, and its message.

use agent::http::Failure;
use http::Uri;
use xds_server::conditions::Severity;

/// Rejected, or failed without an effect; the message says why.
pub(crate) const FAILED: u8 = 1;
// 2 is clap's own: an invalid command line.
/// The outcome is unknown: the command may have taken effect.
pub(crate) const OUTCOME_UNKNOWN: u8 = 3;
/// `status`: a condition of severity error holds.
pub(crate) const ERRORS_HOLD: u8 = 4;
/// `status`: conditions hold, all of severity warning.
pub(crate) const WARNINGS_HOLD: u8 = 5;
/// `check --guest`: a finding of severity error.
pub(crate) const ERRORS_FOUND: u8 = 6;
/// `check --guest`: findings, all of severity warning.
pub(crate) const WARNINGS_FOUND: u8 = 7;

/// The last part of `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  rejected, or failed without an effect: the message says why
  2  the command line is invalid
  3  the outcome is unknown: the message says how to find out
  4  status: a condition of severity error holds
  5  status: conditions hold, all of severity warning
  6  check --guest: a finding of severity error
  7  check --guest: findings, all of severity warning";

/// A change was sent, but its outcome is unknown without an answer.
#[derive(Debug, thiserror::Error)]
#[error("outcome unknown: {why}. It may still take effect. {how}")]
pub(crate) struct OutcomeUnknown {
    pub(crate) why: String,
    /// How to find out.
    pub(crate) how: &'static str,
}

/// Conditions hold.
#[derive(Debug, thiserror::Error)]
#[error(
    "{count} condition{} of severity {}",
    if *count == 1 { " holds," } else { "s hold, the worst" },
    worst.as_str()
)]
pub(crate) struct Unwell {
    pub(crate) count: usize,
    pub(crate) worst: Severity,
}

/// The configuration of a guest has findings.
#[derive(Debug, thiserror::Error)]
#[error("{count} finding{}", if *count == 1 { "" } else { "s" })]
pub(crate) struct Found {
    pub(crate) count: usize,
    pub(crate) has_errors: bool,
}

/// The exit code of the process for this error.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(found) = error.downcast_ref::<Found>() {
        return match found.has_errors {
            true => ERRORS_FOUND,
            false => WARNINGS_FOUND,
        };
    }
    if error.is::<OutcomeUnknown>() {
        return OUTCOME_UNKNOWN;
    }
    match error.downcast_ref::<Unwell>().map(|unwell| unwell.worst) {
        Some(Severity::Error) => ERRORS_HOLD,
        Some(Severity::Warning) => WARNINGS_HOLD,
        None => FAILED,
    }
}

/// How an operator finds out the outcome of a request to this path.
pub(crate) fn how_to_find_out(path: &str) -> &'static str {
    let about = |prefix: &str| path.starts_with(prefix);
    if about("/v1/intents/") {
        "`tidegate get zones` shows it under INTENT; a retry is safe"
    } else if about("/v1/failback/") {
        "`tidegate get zones` shows it under STATE; a retry is safe"
    } else if about("/v1/cells/") {
        "`tidegate get cells` shows whether the cell has moved: check that before a retry"
    } else {
        "`tidegate status` shows the open questions; a retry is safe"
    }
}

/// The error of a request without an answer.
pub(crate) fn no_answer(failure: &Failure, uri: &Uri, is_change: bool) -> anyhow::Error {
    let why = match failure {
        Failure::Timeout(_) => format!("{failure} (--timeout)"),
        Failure::TooLong(_) | Failure::Broken(_) => failure.to_string(),
    };
    if let Some(hint) = other_protocol(failure, uri) {
        return anyhow::Error::msg(why).context(format!("no answer from {uri}: {hint}"));
    }
    if failure.is_unsent() || !is_change {
        let hint = "is --admin the admin address?";
        return anyhow::Error::msg(why).context(format!("no answer from {uri}: {hint}"));
    }
    let why = format!("no answer from {uri}: {why}");
    let how = how_to_find_out(uri.path());
    OutcomeUnknown { why, how }.into()
}

/// The remedy if the port uses TLS and the request was plaintext, or the reverse.
fn other_protocol(failure: &Failure, uri: &Uri) -> Option<&'static str> {
    match uri.scheme_str() {
        Some("https") => (failure.is_plain_text())
            .then_some("the port is plaintext: begin --admin with http://"),
        _ => (failure.is_no_http())
            .then_some("the answer is not HTTP. If the port uses TLS, begin --admin with https:// and give --ca"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_condition_is_one() {
        let told = |count| {
            let worst = Severity::Error;
            Unwell { count, worst }.to_string()
        };
        assert_eq!(told(1), "1 condition holds, of severity error");
        assert_eq!(told(2), "2 conditions hold, the worst of severity error");
    }
}
