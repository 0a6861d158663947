//! Safety rules: rejections of commands that an operator can override.
//!
//! A command with a safety rule calls [`Accepted::check`] with the rule's code. The rejection
//! contains the code; the operator repeats the command with `--accept CODE --reason TEXT` (over
//! HTTP: `"accept": ["CODE"], "reason": "TEXT"`).

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{Code, Kind};

/// The rules that a command overrides, in the body of a request: flattened into it, beside
/// `reason`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct AcceptBody {
    #[serde(default)]
    pub accept: Vec<Code>,
}

/// Rules that an operator overrides, with a reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    rules: BTreeSet<Code>,
}

/// The code is not a rule, or the reason is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAcceptable {
    #[error("accept: {0} is a condition, not a safety rule: only the codes TG7... can be accepted")]
    NoRule(Code),
    #[error("reason: state the reason for overriding a safety rule")]
    NoReason,
}

/// A command that a rule rejects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{rule} {}: {detail}. {} To override the rule: --accept {rule} --reason TEXT",
    rule.name(),
    rule.entry().what_to_do
)]
pub struct RuleRefusal {
    pub rule: Code,
    pub detail: String,
}

impl Accepted {
    /// Only codes of rules, and never without a reason.
    pub fn new(codes: &[Code], reason: &str) -> Result<Accepted, NotAcceptable> {
        if let Some(other) = codes.iter().find(|code| code.kind() != Kind::Rule) {
            return Err(NotAcceptable::NoRule(*other));
        }
        if !codes.is_empty() && reason.trim().is_empty() {
            return Err(NotAcceptable::NoReason);
        }
        let rules = codes.iter().copied().collect();
        Ok(Accepted { rules })
    }

    /// Rejects, unless the operator overrides the rule.
    pub fn check(&self, rule: Code, detail: impl Into<String>) -> Result<(), RuleRefusal> {
        debug_assert_eq!(rule.kind(), Kind::Rule, "{rule}");
        match self.rules.contains(&rule) {
            true => Ok(()),
            false => Err(RuleRefusal {
                rule,
                detail: detail.into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_refuses_until_it_is_named_back_with_a_reason() {
        let rule = Code::DrainsLastZone;
        let refused = Accepted::default().check(rule, "orders has no other zone");
        let text = refused.unwrap_err().to_string();
        assert!(
            text.starts_with("TG7001 drains_last_zone: orders has no other zone."),
            "{text}"
        );
        assert!(text.ends_with("--accept TG7001 --reason TEXT"), "{text}");
        assert_eq!(Accepted::new(&[rule], " "), Err(NotAcceptable::NoReason));
        let accepted = Accepted::new(&[rule], "the room burns").unwrap();
        assert_eq!(accepted.check(rule, ""), Ok(()));
        assert!(accepted.check(Code::AlreadyOwner, "").is_err());
    }

    #[test]
    fn a_condition_cannot_be_accepted() {
        let refused = Accepted::new(&[Code::StoreFull], "because");
        assert_eq!(refused, Err(NotAcceptable::NoRule(Code::StoreFull)));
    }
}
