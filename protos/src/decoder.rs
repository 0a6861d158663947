//! Policies one after the other, as a proxy gets them: of one with thousands of services mostly one
//! service's plans are new.
//!
//! A proxy's worker decodes a policy while its requests wait. So a service whose bytes are those of
//! the policy before is taken from there, and so is the index of hosts and routes where nothing but
//! plans and the fence differ. The result is that of [`decode`](crate::decode), for any bytes.

use alloc::{boxed::Box, vec::Vec};

use policy::{Plans, Policy, Rules, Service, ServiceId};
use prost::{
    Message,
    bytes::Buf,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};

use crate::{
    InvalidPolicy, PluginConfig,
    decode::{decode_fencing, decode_service, decode_topology},
    wire,
};

/// The numbers of the fields in `tidegate/v1/policy.proto` that are told apart here.
mod field {
    pub(super) const FALLBACK: u32 = 3;
    pub(super) const RULES: u32 = 4;
    /// Of `Rules`.
    pub(super) const SERVICES: u32 = 4;
}

/// Decodes policies and remembers the last one.
#[derive(Debug, Default)]
pub struct Decoder {
    known: Option<Known>,
}

/// The last rules, and the bytes of each of their services.
#[derive(Debug)]
struct Known {
    rules: Rules,
    services: Vec<Box<[u8]>>,
}

impl Decoder {
    /// Decodes and checks a policy. One that is refused leaves nothing behind.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<PluginConfig, InvalidPolicy> {
        match self.follow(bytes) {
            Some(edition) => Ok(edition),
            None => self.anew(bytes),
        }
    }

    /// None for bytes that are to be decoded as a whole, or are refused there.
    fn follow(&mut self, bytes: &[u8]) -> Option<PluginConfig> {
        let known = self.known.as_mut()?;
        let outline = Outline::of(bytes)?;
        let message = wire::Policy::decode(&*outline.rest).ok()?;
        let rules = known.follow(&outline)?;
        Some(PluginConfig {
            version: message.version,
            generation: message.generation,
            policy: Policy::Serving(Box::new(rules)),
            control_plane: message.control_plane,
        })
    }

    fn anew(&mut self, bytes: &[u8]) -> Result<PluginConfig, InvalidPolicy> {
        let edition = crate::decode(bytes)?;
        self.known = match (&edition.policy, Outline::of(bytes)) {
            (Policy::Serving(rules), Some(outline)) => Some(Known {
                rules: (**rules).clone(),
                services: outline.services.into_iter().map(Box::from).collect(),
            }),
            _ => None,
        };
        Ok(edition)
    }
}

impl Known {
    /// The rules of these bytes, if they differ from those that are known in plans and the fence
    /// alone.
    fn follow(&mut self, outline: &Outline<'_>) -> Option<Rules> {
        if outline.services.len() != self.services.len() {
            return None;
        }
        let rest = wire::Rules::decode(&*outline.rules).ok()?;
        let mut rules = self.rules.clone();
        let topology = decode_topology(&rest).ok()?;
        // An addition to the rules has to be looked at here.
        let wire::Rules {
            viewer,
            zones: _,
            links: _,
            services: _,
            explain,
            fencing,
        } = rest;
        let explain = explain.as_ref();
        let explain = explain.map(|explain| (&*explain.header, &*explain.token));
        let known = rules.explain().map(|known| (&*known.header, &*known.token));
        if topology != *rules.topology()
            || viewer != topology.zone_name(rules.viewer())
            || explain != known
            || fencing.is_some() != rules.fencing().is_some()
        {
            return None;
        }
        let mut fresh = Vec::new();
        for (at, (bytes, known)) in outline.services.iter().zip(&self.services).enumerate() {
            if **bytes == **known {
                continue;
            }
            let id = ServiceId::new(at);
            let service = wire::Service::decode(*bytes).ok()?;
            let service = decode_service(&topology, service).ok()?;
            let plans = replanned(rules.service(id)?, service)?;
            rules.replan(id, plans);
            fresh.push((at, *bytes));
        }
        if let Some(fencing) = fencing {
            rules = rules.fenced(decode_fencing(&topology, fencing).ok()?);
        }
        self.rules = rules.clone();
        for (at, bytes) in fresh {
            if let Some(slot) = self.services.get_mut(at) {
                *slot = Box::from(bytes);
            }
        }
        Some(rules)
    }
}

/// The plans of `service`, if nothing else of it is new.
fn replanned(known: &Service, service: Service) -> Option<Plans> {
    let Service {
        name,
        routes,
        region_missing,
        region_unknown,
        trace_missing,
        zone_affinity,
        writes,
        plans,
    } = service;
    let same = name == known.name
        && routes == known.routes
        && region_missing == known.region_missing
        && region_unknown == known.region_unknown
        && trace_missing == known.trace_missing
        && zone_affinity == known.zone_affinity
        && writes == known.writes;
    same.then_some(plans)
}

/// A policy's bytes, cut where its services are.
struct Outline<'b> {
    /// The policy but for the rules.
    rest: Vec<u8>,
    /// The rules but for the services.
    rules: Vec<u8>,
    services: Vec<&'b [u8]>,
}

impl<'b> Outline<'b> {
    /// None for bytes other than a single set of rules: they are decoded as a whole, or refused
    /// there.
    fn of(bytes: &'b [u8]) -> Option<Outline<'b>> {
        let mut rest = Vec::new();
        let mut rules = None;
        each_field(bytes, |tag, whole, content| match (tag, content) {
            (field::RULES, Some(content)) if rules.is_none() => {
                rules = Some(content);
                Some(())
            }
            (field::RULES | field::FALLBACK, _) => None,
            _ => {
                rest.extend_from_slice(whole);
                Some(())
            }
        })?;
        let (mut of_rules, mut services) = (Vec::new(), Vec::new());
        each_field(rules?, |tag, whole, content| {
            match (tag, content) {
                (field::SERVICES, Some(content)) => services.push(content),
                (field::SERVICES, None) => return None,
                _ => of_rules.extend_from_slice(whole),
            }
            Some(())
        })?;
        Some(Outline {
            rest,
            rules: of_rules,
            services,
        })
    }
}

/// Gives each field of a message to `see`: its number, all its bytes, and of one with a length the
/// content. None where the bytes are no message, or `see` gives none.
fn each_field<'b>(
    bytes: &'b [u8],
    mut see: impl FnMut(u32, &'b [u8], Option<&'b [u8]>) -> Option<()>,
) -> Option<()> {
    let mut left = bytes;
    while left.has_remaining() {
        let begin = left;
        let (tag, wire_type) = decode_key(&mut left).ok()?;
        let content = match wire_type {
            WireType::LengthDelimited => {
                let len = usize::try_from(decode_varint(&mut left).ok()?).ok()?;
                let content = left.get(..len)?;
                left = left.get(len..)?;
                Some(content)
            }
            _ => {
                skip_field(wire_type, tag, &mut left, DecodeContext::default()).ok()?;
                None
            }
        };
        let whole = begin.get(..begin.len() - left.len())?;
        see(tag, whole, content)?;
    }
    Some(())
}
