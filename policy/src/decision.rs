//! The outcome of a decision, and the headers that carry it to the route table.

use alloc::{borrow::Cow, string::ToString};

use crate::{class::Class, headers, reason::Reason, refusal::Refusal, tier::Tier};

/// The decision about a request: its outcome and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'p> {
    pub outcome: Outcome<'p>,
    pub reason: Reason,
    /// For a write that this zone may not admit: the zone that owns its cell.
    pub owner: Option<&'p str>,
}

impl<'p> Decision<'p> {
    pub(crate) fn refuse(refusal: Refusal) -> Decision<'p> {
        Decision {
            outcome: Outcome::Refuse(refusal),
            reason: refusal.reason,
            owner: None,
        }
    }
}

/// The outcome of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'p> {
    /// Not a request that Tidegate routes: the filter changes nothing.
    Pass,
    /// The filter stamps the request and continues.
    Route(Routed<'p>),
    /// The filter sends a local reply.
    Refuse(Refusal),
}

/// A request that continues to the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed<'p> {
    pub class: Class,
    /// None under the fallback policy, which has no tiers.
    pub tier: Option<Tier>,
    /// The name of the home zone; none under the fallback policy, which has no zones.
    pub home: Option<&'p str>,
    /// The home is not the local zone.
    pub foreign: bool,
    /// The cluster of the request, chosen by its affinity key or its draw; or the gateways that it
    /// is forwarded to.
    pub pin: Option<&'p str>,
    /// Set for a fenced write.
    pub write: Option<FencedWrite<'p>>,
}

/// The stamps of a write to a fenced service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FencedWrite<'p> {
    pub cell: &'p str,
    /// The cell is one of several. A single one is known to the route.
    pub several_cells: bool,
    /// The epoch that it was admitted for, or by which it is forwarded.
    pub epoch: u64,
    /// Another zone's proxy has forwarded it.
    pub hop: bool,
    /// How long it may live, in milliseconds, if it has to carry that: [`headers::WRITE_DRAIN`].
    pub drain_ms: Option<u64>,
}

impl<'p> Routed<'p> {
    /// The headers to set. Only those that the route table needs, since each header costs a call
    /// into the proxy: for most requests two, the cluster and either the home or the class. A home
    /// alone means a read; a class alone means the local zone. The chosen route adds the other
    /// headers that upstreams see. It treats a request without a tier as served by its home.
    ///
    /// An epoch marks a fenced write; the cluster of gateways marks one that is forwarded. A fenced
    /// write with a home also carries its class: a route table that does not know (yet, or
    /// any more) that the service is fenced would take a home alone for a read.
    pub fn stamps(&self) -> impl Iterator<Item = (&'static str, Cow<'p, str>)> + use<'p> {
        let forwarded = self.write.is_some() && self.pin.is_some();
        let pinned = self.pin.is_some() && !forwarded;
        let write = self.class == Class::Write;
        let plain_write = write && self.write.is_none();
        let home = self.home.filter(|_| self.foreign || !write);
        let unclear = match self.write {
            Some(_) => home.is_some(),
            None => home.is_none(),
        };
        let class = (plain_write || unclear).then_some(self.class.as_str());
        let tier = self.tier.filter(|tier| pinned && *tier != Tier::Zone);
        let epoch = self.write.map(|write| write.epoch.to_string());
        let epoch_header = match forwarded {
            true => headers::PRESENTED_EPOCH,
            false => headers::EPOCH,
        };
        let cell = self.write.filter(|write| write.several_cells);
        let cell = cell.map(|write| write.cell);
        let drain = self.write.filter(|_| !forwarded);
        let drain = drain.and_then(|write| write.drain_ms);
        let drain = drain.map(|drain_ms| (headers::WRITE_DRAIN, drain_ms.to_string()));
        let hop = self.write.filter(|write| write.hop).map(|_| "1");
        let texts = [
            (headers::CLASS, class),
            (headers::HOME, home),
            (headers::TO, self.pin),
            (headers::TIER, tier.map(Tier::as_str)),
            (
                headers::DECISION,
                tier.map(|tier| Reason::of_tier(tier).as_str()),
            ),
            (headers::CELL, cell),
            (headers::HOP, hop),
        ];
        let texts = texts.into_iter();
        texts
            .filter_map(|(name, value)| Some((name, Cow::Borrowed(value?))))
            .chain(epoch.map(|epoch| (epoch_header, Cow::Owned(epoch))))
            .chain(drain.map(|(name, drain)| (name, Cow::Owned(drain))))
    }
}
