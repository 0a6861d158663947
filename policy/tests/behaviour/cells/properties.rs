//! Properties of every fence, with arbitrary cells, policies and requests.

use std::num::NonZeroU32;

use policy::{
    Enforcement, Facts, Fencing, Forward, Outcome, Policy, Rules, ZoneId, decide, hop::Signer,
    shard,
};
use proptest::prelude::*;

use super::{cell, terms};
use crate::{any, support::Request};

/// The rules' services, all fenced or not, seen by one request.
fn gathered(
    rules: Rules,
    request: Vec<(&'static str, String)>,
    granted: Option<u64>,
) -> (Policy, Facts) {
    let policy = Policy::Serving(Box::new(rules));
    let facts = Facts::gather(&policy, &Request(request));
    // Roughly as the filter fills them in.
    let facts = Facts {
        granted,
        forwarded: facts.hop && facts.presented.is_some(),
        signer: Signer::Holds,
        ..facts
    };
    (policy, facts)
}

proptest! {
    #[test]
    fn every_shard_has_one_cell_and_cells_stand_in_their_order(
        sizes in prop::collection::vec(1..200_u32, 1..8),
        digest in any::<u64>(),
    ) {
        let mut first = 0;
        let mut cells = Vec::new();
        for (at, size) in sizes.iter().enumerate() {
            cells.push(cell(&format!("c{at}"), first, &[], Forward::Region));
            first += size;
        }
        let shards = NonZeroU32::new(first).expect("shards");
        let fence = Fencing::new(cells, shards, Enforcement::Enforce, terms(), false, "t".into())
            .expect("a fence");
        let shard = shard::jump_hash(digest, first);
        let found = fence.cell_of(Some(digest)).index();
        let begins = fence.cells()[found].first_shard;
        prop_assert!((begins..begins + sizes[found]).contains(&shard));
    }

    /// For any policy and any request: without a grant no write is admitted, and with one it is by
    /// its epoch.
    #[test]
    fn no_write_is_admitted_without_a_grant(
        rules in any::rules(),
        request in any::request(),
        granted in any::granted(),
    ) {
        let (policy, facts) = gathered(rules, request, granted);
        let Policy::Serving(rules) = &policy else {
            unreachable!("a serving policy");
        };
        let (Some(fence), Some(_)) = (rules.fencing(), facts.cell) else {
            return Ok(());
        };
        let Outcome::Route(routed) = decide(&policy, &facts).outcome else {
            return Ok(());
        };
        let write = routed.write.expect("a fenced write");
        let forwarded = routed.pin.is_some();
        if !forwarded && fence.enforcement == Enforcement::Enforce {
            prop_assert_eq!(Some(write.epoch), granted);
        }
        if let Some(presented) = facts.presented.filter(|_| facts.forwarded) {
            prop_assert_eq!(presented, write.epoch, "a write of another epoch goes on");
        }
        let stamps = routed.stamps().count();
        let more = 2 * usize::from(routed.foreign) + usize::from(write.several_cells);
        let more = more + usize::from(fence.terms.changed && !forwarded);
        let expected = 1 + usize::from(forwarded) + usize::from(write.hop) + more;
        prop_assert_eq!(stamps, expected);
        let viewer: ZoneId = rules.viewer();
        prop_assert_eq!(routed.foreign, routed.home != Some(rules.topology().zone_name(viewer)));
    }
}
