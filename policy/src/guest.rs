//! Decisions of a guest: a filter in an Envoy whose listeners, routes and clusters somebody else
//! configures.
//!
//! A guest decides by the policy of its zone as any other filter does. Three things differ. Its
//! [`Mode`] may leave routing to the host. Without a policy it decides by lists of its own
//! configuration ([`Guest`]). And it stamps everything that the host's native filters would
//! otherwise take for a request that passed by the guest: see [`Guest::stamps`].

use alloc::{borrow::Cow, string::ToString, vec, vec::Vec};

use crate::{
    class::Class,
    decide::decide,
    decision::{Decision, Outcome, Routed},
    facts::{Facts, Headers, Presented},
    fence::Terms,
    fenced::{FencedRequest, Routes},
    headers,
    plan::{Plan, Plans},
    reason::Reason,
    refusal::Refusal,
    rules::{InvalidRules, Policy, Rules},
    service::{RegionRule, Route, Service, TraceRule, Writes},
    topology::{Topology, ZoneId},
};

/// How far a guest's decisions reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It admits and rejects writes of fenced services, and marks requests. It changes no route,
    /// and forwards nothing.
    Fence,
    /// It decides as the filter of an Envoy that Tidegate configures. The host's route table
    /// follows the marks.
    Route,
}

/// The part of a guest's decisions that its own configuration holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Guest {
    pub mode: Mode,
    /// The longest that the host's routes let an admitted write live, in milliseconds; none where
    /// the configuration does not say.
    pub drain_ms: Option<u64>,
    classes: Option<Policy>,
    unfenced: Option<Policy>,
}

impl Guest {
    /// A guest with these lists. `classes` override the class by method while there is no policy;
    /// `unfenced` routes take writes meanwhile. The classes of `unfenced` do not matter.
    ///
    /// # Errors
    ///
    /// [`InvalidRules`] names the first host, prefix or gRPC service that is not valid. The service
    /// in it is `classes` or `unfenced`.
    pub fn new(
        mode: Mode,
        drain_ms: Option<u64>,
        classes: Vec<Route>,
        unfenced: Vec<Route>,
    ) -> Result<Guest, InvalidRules> {
        Ok(Guest {
            mode,
            drain_ms,
            classes: list("classes", classes)?,
            unfenced: list("unfenced", unfenced)?,
        })
    }

    /// The guest of a configuration that is not valid: it fences, and has no lists.
    pub fn fallback() -> Guest {
        Guest {
            mode: Mode::Fence,
            drain_ms: None,
            classes: None,
            unfenced: None,
        }
    }

    /// The facts of a request: those of [`Facts::gather`], and without a policy the class by the
    /// lists.
    pub fn facts(&self, policy: &Policy, request: &impl Headers) -> Facts {
        let facts = Facts::gather(policy, request);
        match policy {
            Policy::Serving(_) => facts,
            Policy::Fallback => Facts {
                class: self.class(request),
                ..facts
            },
        }
    }

    /// By the lists; then by method, where an upgrade is a write: nothing else is known of it.
    fn class(&self, request: &impl Headers) -> Class {
        let listed = self.classes.as_ref().and_then(|classes| {
            let facts = Facts::gather(classes, request);
            facts.service.map(|_| facts.class)
        });
        listed.unwrap_or(match is_plain(request) {
            true => Class::Read,
            false => Class::Write,
        })
    }

    /// Whether the host's routes may let a write live longer than the fence waits for it.
    pub fn outlives(&self, terms: &Terms) -> bool {
        (self.drain_ms).is_some_and(|ms| ms.saturating_mul(1_000) > terms.write_drain)
    }

    /// Decides about a request. Pure and total.
    pub fn decide<'p>(
        &self,
        policy: &'p Policy,
        facts: &Facts,
        request: &impl Headers,
    ) -> Decision<'p> {
        match (policy, self.mode) {
            (Policy::Fallback, _) => self.decide_without_rules(facts, request),
            (Policy::Serving(rules), Mode::Fence) => decide_fence(rules, facts),
            (Policy::Serving(_), Mode::Route) => {
                let decision = decide(policy, facts);
                match decision.outcome {
                    Outcome::Pass => pass(facts.class, decision.reason),
                    Outcome::Route(_) | Outcome::Refuse(_) => decision,
                }
            }
        }
    }

    fn decide_without_rules<'p>(&self, facts: &Facts, request: &impl Headers) -> Decision<'p> {
        let is_unfenced = || {
            let listed = self.unfenced.as_ref();
            listed.is_some_and(|listed| Facts::gather(listed, request).service.is_some())
        };
        match facts.class {
            Class::Write if !is_unfenced() => Decision::refuse(Refusal::FENCED),
            class => pass(class, Reason::Fallback),
        }
    }

    /// The headers to set on a request that goes on. The host's native filters reject every request
    /// but plain safe ones unless it bears a mark of the guest, since it may have passed by the
    /// guest; and the host's routes know no defaults of ours. So the class stands on everything but
    /// plain reads in [`Mode::Fence`], and on everything in [`Mode::Route`].
    pub fn stamps<'p>(
        &self,
        routed: &Routed<'p>,
        request: &impl Headers,
    ) -> Vec<(&'static str, Cow<'p, str>)> {
        let is_marked = self.mode == Mode::Route || routed.class == Class::Write;
        let mut stamps = vec![];
        if is_marked || !is_plain(request) {
            stamps.push((headers::CLASS, Cow::Borrowed(routed.class.as_str())));
        }
        if let Some(write) = routed.write {
            let is_forwarded = routed.pin.is_some();
            let epoch = match is_forwarded {
                true => headers::PRESENTED_EPOCH,
                false => headers::EPOCH,
            };
            stamps.push((epoch, Cow::Owned(write.epoch.to_string())));
            stamps.push((headers::CELL, Cow::Borrowed(write.cell)));
            stamps.extend(write.hop.then_some((headers::HOP, Cow::Borrowed("1"))));
        }
        if self.mode == Mode::Route {
            let tier = routed.tier.map(|tier| tier.as_str());
            let reason = routed.tier.map(|tier| Reason::of_tier(tier).as_str());
            let texts = [
                (headers::HOME, routed.home),
                (headers::TO, routed.pin),
                (headers::TIER, tier),
                (headers::DECISION, reason),
            ];
            let present = texts.into_iter();
            stamps.extend(present.filter_map(|(name, text)| Some((name, Cow::Borrowed(text?)))));
        }
        stamps
    }
}

/// Whether a request is safe by its method (RFC 9110, 9.2.1) and asks for no other protocol.
fn is_plain(request: &impl Headers) -> bool {
    let Presented::Once(method) = request.get(":method") else {
        return false;
    };
    Class::of_method(method) == Class::Read && request.get("upgrade") == Presented::Absent
}

/// A request that goes where the host sends it.
fn pass<'p>(class: Class, reason: Reason) -> Decision<'p> {
    Decision {
        outcome: Outcome::Route(Routed {
            class,
            tier: None,
            home: None,
            foreign: false,
            pin: None,
            write: None,
        }),
        reason,
        owner: None,
    }
}

/// Writes of fenced services alone; everything else passes.
fn decide_fence<'p>(rules: &'p Rules, facts: &Facts) -> Decision<'p> {
    let service = facts.service.and_then(|id| rules.service(id));
    let fencing = rules.fencing();
    let (Some(service), Some(fencing), Some(cell)) = (service, fencing, facts.cell) else {
        let reason = match service {
            Some(_) => Reason::NotFenced,
            None => Reason::NoService,
        };
        return pass(facts.class, reason);
    };
    if facts.key_invalid {
        return Decision::refuse(Refusal::KEY_INVALID);
    }
    let Some(cell) = fencing.cell(cell) else {
        return Decision::refuse(Refusal::NO_GRANT);
    };
    let request = FencedRequest {
        rules,
        fencing,
        service,
        cell,
        home: rules.viewer(),
        facts,
        routes: Routes::Foreign,
    };
    request.decide(&mut |_| {}).unwrap_or_else(Decision::refuse)
}

/// Routes as those of a service with this name, so that hosts and paths compare as everywhere.
fn list(name: &str, routes: Vec<Route>) -> Result<Option<Policy>, InvalidRules> {
    if routes.is_empty() {
        return Ok(None);
    }
    let topology = Topology::of_one();
    let service = Service {
        name: name.into(),
        routes,
        region_missing: RegionRule::Local,
        region_unknown: RegionRule::Local,
        trace_missing: TraceRule::Generate,
        zone_affinity: None,
        writes: Writes::Free,
        plans: Plans::from_fn(&topology, |_, _| Plan::CLOSED),
    };
    let rules = Rules::new(topology, ZoneId::FIRST, vec![service], None)?;
    Ok(Some(Policy::Serving(rules.into())))
}
