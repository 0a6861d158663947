//! The agreed terms: their creation, their use, and their changes.

use std::collections::BTreeMap;

use policy::fence::{
    Agreed, Agreement, Authority, AuthorityState, CellRules, Condition, Effect, HolderId, Input,
    Key, Layout, Listing, MoveRejected, Name, Replica, Revision, SessionId, Terms, TermsId,
    Transaction, TransactionOutcome, Unsettled, Withheld, Write,
};

const HOLDER: HolderId = HolderId(1);

fn name(text: &str) -> Name {
    Name::from(text)
}

fn terms(session_ttl: u64) -> Terms {
    Terms::new(session_ttl, 1_000, 1_000, 50, 100).unwrap()
}

fn layout(shards: [u32; 2], key: &str) -> Layout {
    Layout {
        cells: vec![(name("one"), shards[0]), (name("two"), shards[1])],
        keys: BTreeMap::from([(name("users"), name(key))]),
    }
}

fn agreed(session_ttl: u64) -> Agreed {
    Agreed::of(&terms(session_ttl), layout([4, 4], "header:x-user"))
}

/// The replica of zone a, which owns the cell, and the events of the store.
struct Desk {
    replica: Replica,
    now: u64,
    revision: u64,
    wanted: Vec<(u64, Transaction)>,
    grants: usize,
    withheld: Option<Withheld>,
}

/// Zone a owns the cell.
fn active(epoch: u64) -> Authority {
    Authority {
        store: 7,
        epoch,
        owners: vec![name("a")],
        standby: vec![name("b")],
        state: AuthorityState::Active,
        unsettled: Unsettled::none(),
        hold: 0,
    }
}

impl Desk {
    /// It has a session, and the store has these terms.
    fn new(own: &Agreed, in_store: Option<Agreement>) -> Desk {
        let id = SessionId {
            zone: name("a"),
            incarnation: name("a-1"),
        };
        let mut desk = Desk {
            replica: Replica::new(id, terms(own.session_ttl)),
            now: 1_000,
            revision: 20,
            wanted: Vec::new(),
            grants: 0,
            withheld: None,
        };
        let rules = CellRules {
            owners: vec![name("a")],
            standby: vec![name("b")],
            automatic: true,
            cool_down: 0,
            epoch_min: 1,
        };
        let authority = active(3);
        desk.tell(Input::Configured(own.clone()));
        desk.tell(Input::Cells(BTreeMap::from([(name("one"), rules)])));
        desk.tell(Input::Connected(HOLDER));
        desk.tell(Input::Listed(Listing {
            store: 7,
            revision: Revision(20),
            terms: in_store.map(|agreement| (Revision(15), agreement)),
            authorities: vec![(name("one"), Revision(10), authority)],
            ..Listing::default()
        }));
        desk.work();
        desk
    }

    fn tell(&mut self, input: Input) {
        let effects = self.replica.handle(input, self.now);
        self.take(effects);
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Ended => {
                    let next = format!("a-{}", self.now);
                    let (replica, effects) = self.replica.clone().reborn(name(&next), self.now);
                    self.replica = replica;
                    self.take(effects);
                }
                Effect::Commit {
                    number,
                    transaction,
                } => self.wanted.push((number, transaction)),
                Effect::Grant {
                    grants, withheld, ..
                } => {
                    self.grants = grants.len();
                    self.withheld = withheld;
                }
                _ => {}
            }
        }
    }

    /// The store commits every open transaction, and reports it. Returns the
    /// transactions.
    fn work(&mut self) -> Vec<Transaction> {
        let mut made = Vec::new();
        while let Some((number, transaction)) = self.wanted.pop() {
            self.revision += 1;
            let at = Revision(self.revision);
            for write in &transaction.writes {
                let told = match write.clone() {
                    Write::Session(id) => Input::Session { id, put: Some(at) },
                    Write::Grantor(cell, id, terms) => Input::Grantor {
                        cell,
                        id,
                        registered: Some(terms),
                    },
                    Write::Terms(agreement) => Input::Terms {
                        revision: at,
                        agreement: Some(agreement),
                    },
                    Write::Delete(Key::Grantor(cell, id)) => Input::Grantor {
                        cell,
                        id,
                        registered: None,
                    },
                    other => panic!("{other:?}"),
                };
                self.tell(told);
            }
            let outcome = TransactionOutcome::Committed(at);
            self.tell(Input::Answer { number, outcome });
            made.push(transaction);
        }
        made
    }

    fn pass(&mut self, span: u64) {
        let until = self.now + span;
        while self.now < until {
            self.now += 50;
            self.tell(Input::Tick);
            self.work();
        }
    }

    fn put_terms(&mut self, agreement: Agreement) {
        self.revision += 1;
        self.tell(Input::Terms {
            revision: Revision(self.revision),
            agreement: Some(agreement),
        });
        self.work();
    }

    fn agreement(&self) -> Agreement {
        self.replica.agreement().expect("terms").1.clone()
    }

    /// Whether a proxy with a policy of the present terms receives a grant.
    fn grants(&mut self) -> bool {
        let terms = Some(self.replica.terms().id);
        self.grants_by(terms).is_ok()
    }

    /// Whether a proxy with a policy of these terms receives a grant, or why not.
    fn grants_by(&mut self, terms: Option<TermsId>) -> Result<(), Option<Withheld>> {
        self.tell(Input::Asked {
            holder: HOLDER,
            nonce: 1,
            terms,
        });
        match self.grants {
            0 => Err(self.withheld),
            _ => Ok(()),
        }
    }

    fn is_registered(&self) -> bool {
        let mut cells = self.replica.cells();
        cells.any(|(.., grantors, _)| grantors.contains(self.replica.id()))
    }
}

#[test]
fn the_first_replica_creates_the_terms_and_grants_by_them() {
    let mut desk = Desk::new(&agreed(3_000), None);
    assert_eq!(desk.agreement(), Agreement::first(agreed(3_000)));
    assert!(desk.grants());
}

#[test]
fn a_replica_with_other_terms_grants_nothing_and_moves_nothing() {
    let mut desk = Desk::new(&agreed(10_000), Some(Agreement::first(agreed(3_000))));
    desk.pass(20_000);
    assert!(!desk.replica.acts() && !desk.grants() && !desk.is_registered());
    let next = policy::fence::Move {
        id: name("m"),
        to: vec![name("a")],
        cause: policy::fence::Cause::Operator,
        reason: name(""),
        epoch_min: 0,
        hold: 0,
    };
    let now = desk.now;
    let wished = desk.replica.request_move(&name("one"), next, false, now);
    assert_eq!(wished.unwrap_err(), MoveRejected::TermsDiffer);
    // It still acts by the agreed terms: others rely on them.
    assert_eq!(desk.replica.terms().session_ttl, 3_000);
    // Once it has the same configuration as the others, it grants.
    desk.tell(Input::Configured(agreed(3_000)));
    desk.pass(1_000);
    assert!(desk.grants());
}

#[test]
fn a_registration_compares_the_terms() {
    let own = agreed(3_000);
    let mut desk = Desk::new(&own, Some(Agreement::first(own.clone())));
    assert!(desk.is_registered());
    // After a change of the terms it registers again, under both, and continues to grant.
    let widened = desk.agreement().widened(agreed(10_000));
    desk.revision += 1;
    let at = Revision(desk.revision);
    desk.tell(Input::Terms {
        revision: at,
        agreement: Some(widened),
    });
    assert!(desk.grants());
    let made = desk.work();
    let again = made.iter().find(|transaction| {
        let own = |write: &Write| matches!(write, Write::Grantor(_, _, terms) if *terms == at);
        transaction.writes.iter().any(own)
    });
    let compares = &again.expect("a registration").conditions;
    assert!(
        compares.contains(&Condition::PutAt(Key::Terms, at)),
        "{compares:?}"
    );
    assert_eq!(desk.replica.terms().session_ttl, 3_000);
    assert_eq!(desk.replica.terms().session_ttl_waited, 10_000);
}

#[test]
fn a_change_ends_when_all_are_configured_and_what_was_granted_is_over() {
    let mut desk = Desk::new(&agreed(3_000), Some(Agreement::first(agreed(3_000))));
    let widened = desk.agreement().widened(agreed(10_000));
    desk.put_terms(widened.clone());
    desk.pass(60_000);
    assert_eq!(desk.agreement(), widened, "not all are configured with it");
    desk.tell(Input::Configured(agreed(10_000)));
    desk.tell(Input::Rolled(true));
    // (10,000 + 1,000) / 0.9, by the clock of the waiting replica.
    desk.pass(12_000);
    assert_eq!(desk.agreement(), widened);
    desk.pass(400);
    assert_eq!(desk.agreement(), widened.narrowed().unwrap());
    assert_eq!(desk.agreement().current, agreed(10_000));
    desk.pass(200);
    assert!(desk.grants());
    assert_eq!(desk.replica.terms().session_ttl, 10_000);
}

#[test]
fn no_incarnation_grants_while_writes_go_to_other_cells() {
    let own = agreed(3_000);
    let mut desk = Desk::new(&own, Some(Agreement::first(own.clone())));
    assert!(desk.grants());
    let next = Agreed {
        layout: layout([2, 6], "header:x-user"),
        ..own
    };
    let widened = desk.agreement().widened(next.clone());
    assert!(widened.is_stopped());
    desk.put_terms(widened);
    assert!(!desk.grants());
    desk.tell(Input::Configured(next.clone()));
    desk.tell(Input::Rolled(true));
    let before = desk.replica.terms().id;
    // Its grants expire, it leaves, and the grants of others are waited for.
    desk.pass(2_500);
    assert!(!desk.is_registered() && !desk.grants());
    desk.pass(4_600);
    let told = desk.agreement();
    assert_eq!((&told.current, told.is_stopped()), (&next, false));
    desk.pass(200);
    assert!(desk.grants());
    // A proxy with the old policy computes other cells.
    let withheld = Err(Some(Withheld::OtherTerms));
    assert_eq!(desk.grants_by(Some(before)), withheld);
}

#[test]
fn a_proxy_is_granted_nothing_before_its_policy_is_of_the_present_terms() {
    let own = agreed(3_000);
    let mut desk = Desk::new(&own, Some(Agreement::first(own.clone())));
    let first = desk.agreement();
    assert_eq!(desk.grants_by(Some(first.id())), Ok(()));
    let withheld = Err(Some(Withheld::OtherTerms));
    assert_eq!(desk.grants_by(Some(TermsId(1))), withheld);

    let widened = first.widened(agreed(10_000));
    desk.put_terms(widened.clone());
    assert_eq!(desk.grants_by(Some(first.id())), withheld);
    assert_eq!(desk.grants_by(Some(widened.id())), Ok(()));

    // The reverse change restores the same spans, but not the same terms: others have promised by
    // the terms in between.
    let back = widened.back();
    desk.put_terms(back.clone());
    assert_eq!(back.current, first.current);
    for older in [first.id(), widened.id()] {
        assert_eq!(desk.grants_by(Some(older)), withheld);
    }
    assert_eq!(desk.grants_by(Some(back.id())), Ok(()));
}

#[test]
fn an_added_service_costs_no_proxy_its_grants() {
    let own = agreed(3_000);
    let mut desk = Desk::new(&own, Some(Agreement::first(own.clone())));
    let before = desk.agreement();
    let mut with = own;
    with.layout.keys.insert(name("carts"), name("none"));
    desk.tell(Input::Configured(with.clone()));
    desk.work();
    assert_eq!(desk.agreement().current, with);
    assert_eq!(desk.grants_by(Some(before.id())), Ok(()));
}

#[test]
fn another_key_of_a_service_makes_other_terms() {
    let own = agreed(3_000);
    let first = Agreement::first(own.clone());
    let next = Agreed {
        layout: layout([4, 4], "header:x-account"),
        ..own
    };
    let ended = first.widened(next).narrowed().unwrap();
    assert_ne!(first.id(), ended.id());
}

#[test]
fn an_older_filter_is_granted_something_until_the_terms_are_changed() {
    let own = agreed(3_000);
    let mut desk = Desk::new(&own, Some(Agreement::first(own.clone())));
    assert_eq!(desk.grants_by(None), Ok(()));
    let widened = desk.agreement().widened(agreed(10_000));
    desk.put_terms(widened.clone());
    let withheld = Err(Some(Withheld::UnsaidTerms));
    assert_eq!(desk.grants_by(None), withheld);
    desk.tell(Input::Configured(agreed(10_000)));
    desk.put_terms(widened.narrowed().unwrap());
    assert_eq!(desk.grants_by(None), withheld);
}

/// A leave with an unknown outcome may be committed late. It compares an authority that has not
/// changed since, so it must not name the key of a grantor that grants again.
#[test]
fn a_grantor_that_stopped_comes_back_as_another_incarnation() {
    let own = agreed(3_000);
    let mut desk = Desk::new(&own, Some(Agreement::first(own.clone())));
    let first = desk.replica.id().clone();
    desk.tell(Input::Configured(agreed(6_000)));
    desk.pass(4_000);
    assert!(!desk.is_registered() && !desk.grants());
    desk.tell(Input::Configured(own));
    desk.pass(1_000);
    assert!(desk.grants());
    assert_ne!(*desk.replica.id(), first);
}

#[test]
fn a_registration_that_was_refused_for_old_terms_is_tried_under_the_new_ones() {
    let own = agreed(3_000);
    let mut desk = Desk::new(&own, Some(Agreement::first(own.clone())));
    desk.revision += 1;
    desk.tell(Input::Authority {
        cell: name("one"),
        revision: Revision(desk.revision),
        authority: Some(active(4)),
    });
    let (number, _) = desk.wanted.pop().expect("a registration");
    desk.tell(Input::Answer {
        number,
        outcome: TransactionOutcome::Refused,
    });
    desk.pass(200);
    assert!(!desk.grants());
    let agreement = desk.agreement();
    desk.put_terms(agreement);
    desk.pass(200);
    assert!(desk.grants());
}

#[test]
fn a_proxy_that_connects_while_its_grantor_has_stopped_gives_nothing_back() {
    let own = agreed(3_000);
    let mut desk = Desk::new(&own, Some(Agreement::first(own.clone())));
    assert!(desk.grants());
    desk.tell(Input::Configured(agreed(6_000)));
    let greeted = desk.replica.handle(Input::Connected(HolderId(2)), desk.now);
    let revokes = |effect: &Effect| matches!(effect, Effect::Revoke { .. });
    assert!(!greeted.iter().any(revokes), "{greeted:?}");
}

#[test]
fn a_service_is_added_once_and_its_key_stays() {
    let own = agreed(3_000);
    let mut with = own.clone();
    with.layout
        .keys
        .insert(name("carts"), name("path_segment:1"));
    let mut desk = Desk::new(&own, Some(Agreement::first(own.clone())));
    desk.tell(Input::Configured(with.clone()));
    desk.work();
    assert_eq!(desk.agreement(), Agreement::first(with.clone()));
    assert!(desk.grants());
    // Another key of the same service is no addition.
    let mut other = own;
    other.layout.keys.insert(name("carts"), name("none"));
    desk.tell(Input::Configured(other));
    desk.work();
    assert_eq!(desk.agreement(), Agreement::first(with));
    assert!(!desk.grants());
}

#[test]
fn terms_that_are_deleted_come_back_as_they_were() {
    let own = agreed(3_000);
    let widened = Agreement::first(own.clone()).widened(agreed(10_000));
    let mut desk = Desk::new(&own, Some(widened.clone()));
    desk.revision += 1;
    desk.tell(Input::Terms {
        revision: Revision(desk.revision),
        agreement: None,
    });
    assert!(!desk.grants());
    desk.work();
    assert_eq!(desk.agreement(), widened);
    desk.pass(4_000);
    assert!(desk.grants());
}

/// A replica of a version without histories writes the record without its history. Filters that
/// report no terms would get grants again.
#[test]
fn terms_whose_history_is_lost_get_it_back() {
    let own = agreed(3_000);
    let changed = Agreement::first(own.clone()).widened(own.clone());
    let changed = changed.narrowed().expect("a change");
    let mut desk = Desk::new(&own, Some(changed.clone()));
    let mut with = own.clone();
    with.layout.keys.insert(name("carts"), name("none"));
    let downgraded = Agreement::first(with.clone());
    desk.revision += 1;
    desk.tell(Input::Terms {
        revision: Revision(desk.revision),
        agreement: Some(downgraded.clone()),
    });
    // At once, whether the store has it yet or not.
    let withheld = Some(Withheld::UnsaidTerms);
    assert_eq!(desk.grants_by(None), Err(withheld));
    assert_eq!(
        desk.grants_by(Some(downgraded.id())),
        Err(Some(Withheld::OtherTerms))
    );
    let made = desk.work();
    let writes = made.iter().flat_map(|transaction| &transaction.writes);
    let mut written = writes.filter_map(|write| match write {
        Write::Terms(agreement) => Some(agreement),
        _ => None,
    });
    let mended = written.next().expect("the record is written again");
    assert_eq!(mended.current, with, "the other replica's additions stay");
    assert!(mended.was_changed() && mended.drains_said);
    assert_ne!(mended.id(), changed.id());
    assert_eq!(desk.grants_by(Some(mended.id())), Ok(()));
    // Without another transaction.
    desk.pass(4_000);
    assert_eq!(desk.agreement(), *mended);
}
