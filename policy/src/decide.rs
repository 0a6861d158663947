//! The decision about a request, and its explanation by the same code.

use alloc::vec::Vec;

use crate::{
    class::Class,
    decision::{Decision, Outcome, Routed},
    explain::Step,
    facts::{Facts, Home, VIA_MAX},
    fenced::{FencedRequest, Routes},
    plan::Plan,
    reason::Reason,
    refusal::Refusal,
    rules::{Policy, Rules},
    service::{RegionRule, Service, ServiceId, TraceRule},
    topology::ZoneId,
};

/// Decides about a request. Pure and total.
pub fn decide<'p>(policy: &'p Policy, facts: &Facts) -> Decision<'p> {
    decide_noting(policy, facts, &mut |_| {})
}

/// Decides, and lists the steps.
pub fn explain<'p>(policy: &'p Policy, facts: &Facts) -> (Decision<'p>, Vec<Step>) {
    let mut steps = Vec::new();
    let decision = decide_noting(policy, facts, &mut |step| steps.push(step()));
    (decision, steps)
}

/// `note` receives each step as a closure, so that a decision without an explanation builds none.
fn decide_noting<'p>(
    policy: &'p Policy,
    facts: &Facts,
    note: &mut impl FnMut(&dyn Fn() -> Step),
) -> Decision<'p> {
    // A request that no service claims is not routed.
    let goes_on = matches!(policy, Policy::Fallback) || facts.service.is_some();
    if let Some(via) = facts.via.filter(|via| goes_on && *via >= VIA_MAX) {
        note(&|| Step::Loop(via));
        return Decision::refuse(Refusal::LOOP);
    }
    match policy {
        Policy::Fallback => {
            note(&|| Step::FallbackPolicy);
            note(&|| Step::Class(facts.class));
            decide_without_rules(facts)
        }
        Policy::Serving(rules) => match facts.service.and_then(|id| Some((id, rules.service(id)?)))
        {
            Some((id, service)) => {
                note(&|| Step::Service(service.name.clone()));
                note(&|| Step::Class(facts.class));
                decide_by_rules(rules, id, service, facts, note).unwrap_or_else(Decision::refuse)
            }
            None => {
                note(&|| Step::NoService);
                Decision {
                    outcome: Outcome::Pass,
                    reason: Reason::NoService,
                    owner: None,
                }
            }
        },
    }
}

/// The fallback without rules is safe: it admits no write.
fn decide_without_rules<'p>(facts: &Facts) -> Decision<'p> {
    match facts.class {
        Class::Write => Decision::refuse(Refusal::FENCED),
        Class::Read => Decision {
            outcome: Outcome::Route(Routed {
                class: Class::Read,
                tier: None,
                home: None,
                foreign: false,
                pin: None,
                write: None,
            }),
            reason: Reason::Fallback,
            owner: None,
        },
    }
}

fn decide_by_rules<'p>(
    rules: &'p Rules,
    id: ServiceId,
    service: &'p Service,
    facts: &Facts,
    note: &mut impl FnMut(&dyn Fn() -> Step),
) -> Result<Decision<'p>, Refusal> {
    let home = find_home(rules, service, facts.home, note)?;
    if !facts.traced && service.trace_missing == TraceRule::Reject {
        note(&|| Step::TraceDemanded);
        return Err(Refusal::TRACE_MISSING);
    }
    if facts.key_invalid {
        note(&|| Step::KeyInvalid);
        return Err(Refusal::KEY_INVALID);
    }
    if let (Some(cell), Some(fencing)) = (facts.cell, rules.fencing()) {
        let cell = fencing.cell(cell).ok_or(Refusal::NO_GRANT)?;
        let request = FencedRequest {
            rules,
            fencing,
            service,
            cell,
            home,
            facts,
            routes: Routes::Ours,
        };
        return request.decide(note);
    }
    let home_name = rules.topology().zone_name(home);
    let plan = service.plans.get(home, facts.class);
    let (tier, targets, shed) = match plan {
        Plan::Open {
            tier,
            targets,
            shed,
        } => (tier, targets, shed),
        Plan::Closed { drained } => {
            note(&|| Step::Closed {
                home: home_name.into(),
                class: facts.class,
                drained: *drained,
            });
            return Err(Refusal::closed(*drained));
        }
    };
    note(&|| Step::Tier {
        home: home_name.into(),
        tier: *tier,
    });
    note(&|| {
        let named = |zone| rules.topology().zone_name(zone).into();
        Step::Targets(targets.iter().map(|t| (named(t.zone), t.weight)).collect())
    });
    if *shed > 0 {
        note(&|| Step::Shed(*shed));
    }
    if facts.draw.is_some_and(|draw| plan.sheds(draw)) {
        return Err(Refusal::NO_CAPACITY);
    }
    let zone = match facts.key_digest {
        Some(digest) => plan.zone_of_key(rules.topology(), digest),
        None => facts.draw.and_then(|draw| plan.zone_of_draw(draw)),
    };
    let pinned = zone.and_then(|zone| {
        let cluster = rules.cluster(id, zone, facts.class)?;
        if facts.key_digest.is_some() {
            note(&|| Step::Pinned(cluster.into()));
        }
        Some((cluster, plan.tier_of(rules.topology(), home, zone)))
    });
    // Without a draw, the nearest tier.
    let tier = pinned.and_then(|(_, tier)| tier).unwrap_or(*tier);
    Ok(Decision {
        outcome: Outcome::Route(Routed {
            class: facts.class,
            tier: Some(tier),
            home: Some(home_name),
            foreign: home != rules.viewer(),
            pin: pinned.map(|(cluster, _)| cluster),
            write: None,
        }),
        reason: Reason::of_tier(tier),
        owner: None,
    })
}

fn find_home(
    rules: &Rules,
    service: &Service,
    home: Home,
    note: &mut impl FnMut(&dyn Fn() -> Step),
) -> Result<ZoneId, Refusal> {
    let name = |zone| rules.topology().zone_name(zone).into();
    let (rule, refusal, missing) = match home {
        Home::Zone(zone) => {
            note(&|| Step::Home(name(zone)));
            return Ok(zone);
        }
        Home::Region(region) => match rules.topology().home_in(region, rules.viewer()) {
            Some(zone) => {
                note(&|| Step::HomeInRegion {
                    region: rules.topology().region_name(region).into(),
                    zone: name(zone),
                });
                return Ok(zone);
            }
            None => (service.region_unknown, Refusal::REGION_UNKNOWN, false),
        },
        Home::Missing => (service.region_missing, Refusal::REGION_MISSING, true),
        Home::Unknown => (service.region_unknown, Refusal::REGION_UNKNOWN, false),
    };
    match rule {
        RegionRule::Local => {
            let zone = rules.viewer();
            note(&|| Step::LocalHome {
                zone: name(zone),
                missing,
            });
            Ok(zone)
        }
        RegionRule::Reject => {
            note(&|| Step::RegionDemanded { missing });
            Err(refusal)
        }
    }
}
