//! From a request's headers to the effects of the decision about it.

use std::borrow::Cow;

use policy::{
    Cell, Class, Decision, Facts, Fencing, Forward, Headers, Outcome, Policy, Presented, Reason,
    Refusal, Routed,
    guest::{Guest, Mode},
    headers,
    hop::HopKeys,
    refusal::PROBLEM_JSON,
};

use crate::{header_map::HeaderMap, metrics::Metric};

/// The proxy as the filter needs it for a request.
pub trait Host {
    /// Makes `value` the only value of a request header.
    fn set(&mut self, name: &str, value: &str) -> Result<(), HostFailed>;
    /// Removes every copy of a request header.
    fn remove(&mut self, name: &[u8]) -> Result<(), HostFailed>;
    /// Answers the request.
    fn reply(&mut self, reply: &Reply<'_>) -> Result<(), HostFailed>;
    /// Raises a counter. A count that fails is dropped: no request fails for it.
    fn count(&mut self, counter: Metric, by: u32);
    /// Counts a write of this cell as in flight, and only then looks whether a permission is held:
    /// its epoch. Without a [`release`](Host::release) the write stays in flight until the proxy
    /// has done with the request. `grpc` says how the write is answered if it lives too long.
    fn admit(&mut self, cell: &str, grpc: bool) -> Option<u64>;
    /// Takes the count of [`admit`](Host::admit) back: the write goes nowhere from here.
    fn release(&mut self, cell: &str);
    /// The keys by which hops between zones are signed and checked.
    fn hop_keys(&mut self) -> HopKeys;
    /// A number that no client can foresee well enough to choose its zone; evenly spread.
    fn draw(&mut self) -> u64;
}

/// The proxy rejected a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFailed;

/// An answer that the proxy gives by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// HTTP status.
    pub status: u16,
    /// The gRPC status that the proxy answers gRPC requests with instead.
    pub grpc_status: u8,
    /// The response code details of the access log.
    pub details: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
    /// For gRPC requests the status message.
    pub body: &'a str,
    /// How long the request's body is, in bytes, where it is worth waiting for: the proxy closes an
    /// HTTP/1.1 connection on which it answers before it has read everything.
    pub awaited_body: Option<u32>,
}

impl Reply<'_> {
    /// Whether it answers a gRPC request: other answers have a body, whose type they say.
    pub fn is_grpc(&self) -> bool {
        self.headers.iter().all(|(name, _)| *name != "content-type")
    }
}

/// The longest body of a refused request that is waited for, in bytes.
pub const AWAITED_BODY_MAX: u32 = 16 * 1024;

/// Envoy's next step with the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterHeadersStatus {
    Continue,
    /// Answered here, or held where even that failed. In no case does it reach an upstream.
    StopIteration,
}

/// For a request that could not be read or marked. Nothing is known of it then, so it may be a
/// write, or carry an internal header that would choose its route: the filter fences itself, as it
/// does where it has no policy.
const BLIND: Refusal = Refusal {
    detail: "this proxy cannot check the request, and rejects unchecked requests: try again",
    ..Refusal::FENCED
};

/// Decides about a request and applies the decision. `map` is its encoded header map; none where
/// the proxy gave none.
pub fn apply(policy: &Policy, map: Option<&[u8]>, host: &mut impl Host) -> FilterHeadersStatus {
    apply_as(None, policy, map, host)
}

/// The same as a guest, where somebody else configures the proxy.
pub fn apply_as(
    guest: Option<&Guest>,
    policy: &Policy,
    map: Option<&[u8]>,
    host: &mut impl Host,
) -> FilterHeadersStatus {
    let Some(request) = map.and_then(HeaderMap::parse) else {
        return refuse_blind(Class::Write, Form::default(), host);
    };
    let mut facts = match guest {
        Some(guest) => guest.facts(policy, &request),
        None => Facts::gather(policy, &request),
    };
    facts.draw = Some(host.draw());
    let cell = cell_of(policy, &facts);
    if let Some(cell) = cell.filter(|_| !outlives(policy, guest)) {
        facts.granted = host.admit(&cell.name, facts.grpc);
    }
    let keys = match cell.filter(|cell| hops_matter(policy, cell, &facts)) {
        Some(cell) => {
            let keys = host.hop_keys();
            facts.signer = keys.signer();
            let claim = facts.claim(&request, &cell.name);
            facts.forwarded = claim.is_some_and(|(claim, header)| keys.vouch(&claim, header));
            keys
        }
        None => HopKeys::Untold,
    };
    let form = Form {
        grpc: facts.grpc,
        explain: facts.explain,
        forwarded: facts.forwarded,
        awaited_body: awaited_body(&request),
        via: facts.via,
    };
    let decision = match guest {
        Some(guest) => guest.decide(policy, &facts, &request),
        None => policy::decide(policy, &facts),
    };
    let signed = match (cell, &decision.outcome) {
        (
            Some(cell),
            Outcome::Route(Routed {
                write: Some(write),
                pin: Some(_),
                ..
            }),
        ) => Signed::Hop(keys.sign(&policy::facts::claim(&request, &cell.name, write.epoch))),
        _ => Signed::Nothing,
    };
    let applied = apply_outcome(&decision, guest, &request, &signed, form, host);
    if let Some(cell) = cell {
        // Where an effect failed the request is stopped as well.
        if decision.reason != Reason::Admitted || applied.is_err() {
            host.release(&cell.name);
        }
    }
    match applied {
        Ok(status) => {
            host.count(metric_of(&decision, facts.class), 1);
            status
        }
        Err(HostFailed) => refuse_blind(facts.class, form, host),
    }
}

/// The signature of a request that goes on.
enum Signed {
    /// It goes to no other zone.
    Nothing,
    /// None where the keys are gone: then it does not go on.
    Hop(Option<String>),
}

/// The length of a body that is small, and on its way: none of a client that waits for leave to
/// send it.
fn awaited_body(request: &HeaderMap<'_>) -> Option<u32> {
    if request.get("expect") != Presented::Absent {
        return None;
    }
    let Presented::Once(length) = request.get("content-length") else {
        return None;
    };
    let length: u32 = std::str::from_utf8(length).ok()?.parse().ok()?;
    (1..=AWAITED_BODY_MAX).contains(&length).then_some(length)
}

/// The cell whose fence a request has to pass.
fn cell_of<'p>(policy: &'p Policy, facts: &Facts) -> Option<&'p Cell> {
    fencing_of(policy)?.cell(facts.cell?)
}

fn fencing_of(policy: &Policy) -> Option<&Fencing> {
    match policy {
        Policy::Serving(rules) => rules.fencing(),
        Policy::Fallback => None,
    }
}

/// Whether the keys are needed: for a request that claims to be a hop, and for one that may become
/// one.
fn hops_matter(policy: &Policy, cell: &Cell, facts: &Facts) -> bool {
    let forwarding = fencing_of(policy).is_some_and(|fencing| fencing.forwarding);
    let may_leave = !matches!(cell.forward, Forward::Never);
    forwarding && (facts.hop || may_leave && !cell.owners.is_empty() && facts.granted.is_none())
}

fn refuse_blind(class: Class, form: Form, host: &mut impl Host) -> FilterHeadersStatus {
    let metric = Metric::Decision {
        tier: None,
        class,
        reason: BLIND.reason,
    };
    host.count(metric, 1);
    refuse(&BLIND, None, form, host)
}

fn metric_of(decision: &Decision<'_>, class: Class) -> Metric {
    Metric::Decision {
        tier: match &decision.outcome {
            Outcome::Route(routed) => routed.tier,
            Outcome::Pass | Outcome::Refuse(_) => None,
        },
        class,
        reason: decision.reason,
    }
}

fn apply_outcome(
    decision: &Decision<'_>,
    guest: Option<&Guest>,
    request: &HeaderMap<'_>,
    signed: &Signed,
    form: Form,
    host: &mut impl Host,
) -> Result<FilterHeadersStatus, HostFailed> {
    match &decision.outcome {
        Outcome::Pass => strip(request, form, |_| false, host)?,
        Outcome::Route(routed) => {
            let explained = (headers::EXPLAIN, decision.reason.as_str().into());
            let explained = form.explain.then_some(explained);
            let signature = match signed {
                Signed::Nothing => None,
                Signed::Hop(Some(signature)) => Some((headers::FORWARDED, signature.into())),
                Signed::Hop(None) => return Err(HostFailed),
            };
            let via = via(guest, form.via);
            let via = via.map(|via| (headers::VIA, via.to_string().into()));
            let mut stamps: Vec<(&str, Cow<'_, str>)> = match guest {
                Some(guest) => guest.stamps(routed, request),
                None => routed.stamps().collect(),
            };
            stamps.extend([explained, signature, via].into_iter().flatten());
            let is_stamp = |name: &[u8]| stamps.iter().any(|(stamp, _)| stamp.as_bytes() == name);
            strip(request, form, is_stamp, host)?;
            for (name, value) in &stamps {
                host.set(name, value)?;
            }
        }
        Outcome::Refuse(refusal) => {
            strip(request, form, |_| false, host)?;
            return Ok(refuse(refusal, decision.owner, form, host));
        }
    }
    Ok(FilterHeadersStatus::Continue)
}

/// How many proxies will have sent the request on, where this one has to say so.
fn via(guest: Option<&Guest>, via: Option<u32>) -> Option<u32> {
    match guest.map(|guest| guest.mode) {
        // The first proxy's route says 1.
        None => via.map(|via| via.saturating_add(1)),
        Some(Mode::Route) => Some(via.unwrap_or_default().saturating_add(1)),
        // It sends nothing anywhere.
        Some(Mode::Fence) => None,
    }
}

/// Whether the guest's host may let a write live longer than the fence waits for it.
fn outlives(policy: &Policy, guest: Option<&Guest>) -> bool {
    let terms = fencing_of(policy).map(|fencing| &fencing.terms);
    guest
        .zip(terms)
        .is_some_and(|(guest, terms)| guest.outlives(terms))
}

/// Removes the internal headers that came from outside, but those that are `overwritten` anyway.
fn strip(
    request: &HeaderMap<'_>,
    form: Form,
    overwritten: impl Fn(&[u8]) -> bool,
    host: &mut impl Host,
) -> Result<(), HostFailed> {
    let mut internal: Vec<&[u8]> = request
        .names()
        .filter(|name| headers::is_internal(name))
        .collect();
    if internal.is_empty() {
        return Ok(());
    }
    internal.sort_unstable();
    internal.dedup();
    // Another zone's gateway, which has signed them, may say those.
    let expected = |name: &&&[u8]| form.forwarded && headers::is_between_zones(name);
    let spoofed = internal.iter().filter(|name| !expected(name)).count();
    if spoofed > 0 {
        let spoofed = u32::try_from(spoofed).unwrap_or(u32::MAX);
        host.count(Metric::SpoofedHeaders, spoofed);
    }
    for name in internal {
        if !overwritten(name) {
            host.remove(name)?;
        }
    }
    Ok(())
}

/// The caller, and the form of answers that it needs.
#[derive(Clone, Copy, Default)]
struct Form {
    grpc: bool,
    explain: bool,
    /// It is another zone's proxy.
    forwarded: bool,
    /// The length of a body that is worth waiting for.
    awaited_body: Option<u32>,
    /// How many proxies of this mesh have sent it on.
    via: Option<u32>,
}

fn refuse(
    refusal: &Refusal,
    owner: Option<&str>,
    form: Form,
    host: &mut impl Host,
) -> FilterHeadersStatus {
    let reason = refusal.reason.as_str();
    // For the access log alone, so the answer does not depend on it.
    let _ = host.set(headers::DECISION, reason);

    let retry_after = refusal.retry_after_s.map(|seconds| seconds.to_string());
    let http = !form.grpc;
    let headers: Vec<(&str, &str)> = [
        http.then_some(("content-type", PROBLEM_JSON)),
        retry_after
            .as_deref()
            .filter(|_| http)
            .map(|seconds| ("retry-after", seconds)),
        owner.map(|owner| (headers::OWNER, owner)),
        form.explain.then_some((headers::DECISION, reason)),
    ]
    .into_iter()
    .flatten()
    .collect();
    let body = match form.grpc {
        true => refusal.detail.to_owned(),
        false => refusal.problem(),
    };
    // Where even the answer fails the request is held until it times out: late, but not past the
    // fence.
    let _ = host.reply(&Reply {
        status: refusal.status,
        grpc_status: refusal.grpc_status,
        details: &format!("tidegate_{reason}"),
        headers: &headers,
        body: &body,
        awaited_body: form.awaited_body,
    });
    FilterHeadersStatus::StopIteration
}

#[cfg(test)]
mod fenced_tests;
#[cfg(test)]
mod tests;
