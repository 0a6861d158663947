//! Conversions to and from the store's keys and values.

use std::collections::BTreeMap;

use policy::fence::{
    Agreement, Authority, Condition, Input, Key, Listing, Name, Revision, SessionId, Transaction,
    Write, move_id,
};
use policy::fence::{AuthorityState, Cause};
use registry::{
    authority::{
        AuthorityRecord, GrantorRecord, OPERATIONS_PREFIX, OperationRecord, OperationStep,
        PeerRecord, SESSIONS_PREFIX, SessionRecord, parse_key, store_key,
    },
    record::InvalidRecord,
    store::{self, ClusterId, Compare, Entry, Op},
    terms::TermsRecord,
};
use tracing::warn;

/// The most operations that are remembered.
const OPERATIONS_MAX: usize = 100;

/// Operations by id.
pub(super) type Operations = BTreeMap<String, OperationRecord>;

pub(super) fn revision(revision: store::Revision) -> Revision {
    // The store's revisions are positive.
    Revision(u64::try_from(revision.0).unwrap_or(0))
}

fn to_store(revision: Revision) -> store::Revision {
    store::Revision(i64::try_from(revision.0).unwrap_or(i64::MAX))
}

/// The listing of the store, and the operations in it.
pub(super) fn listing(
    cluster: ClusterId,
    at: store::Revision,
    entries: &[Entry],
) -> (Listing, Operations) {
    let mut listing = Listing {
        store: cluster.0,
        revision: revision(at),
        ..Listing::default()
    };
    let mut operations = Operations::new();
    for entry in entries {
        if let Some(id) = entry.key.strip_prefix(OPERATIONS_PREFIX) {
            take_operation(&mut operations, id, &entry.value);
            continue;
        }
        match read(entry) {
            None => {}
            Some(Ok((Key::Authority(cell), Some(authority)))) => {
                let at = revision(entry.mod_revision);
                listing.authorities.push((cell, at, authority));
            }
            Some(Ok((Key::Session(id), _))) => {
                listing.sessions.insert(id, revision(entry.mod_revision));
            }
            Some(Ok((Key::Grantor(cell, id), _))) => {
                listing.grantors.insert((cell, id), grantor_terms(entry));
            }
            Some(Ok((Key::Terms, _))) => {
                let at = revision(entry.mod_revision);
                listing.terms = agreement(entry).map(|agreement| (at, agreement));
            }
            Some(Ok((Key::Authority(_), None))) => {}
            Some(Err(error)) => warn!(key = entry.key, %error, "record not used"),
        }
    }
    (listing, operations)
}

fn read(entry: &Entry) -> Option<Result<(Key, Option<Authority>), InvalidRecord>> {
    let read = parse_key(&entry.key)?.and_then(|key| match key {
        Key::Authority(_) => Ok((key, Some(AuthorityRecord::parse(&entry.value)?))),
        Key::Session(_) | Key::Grantor(..) | Key::Terms => Ok((key, None)),
    });
    Some(read)
}

/// The terms under which a grantor registered.
fn grantor_terms(entry: &Entry) -> Revision {
    Revision(GrantorRecord::parse(&entry.value).terms)
}

/// Unreadable terms count as none: no replica acts by them.
fn agreement(entry: &Entry) -> Option<Agreement> {
    let read = TermsRecord::parse(&entry.value);
    read.inspect_err(|error| warn!(key = entry.key, %error, "record not used"))
        .ok()
}

pub(super) fn take_operation(operations: &mut Operations, id: &str, value: &[u8]) {
    match OperationRecord::parse(value) {
        Ok(record) => drop(operations.insert(id.to_owned(), record)),
        Err(error) => warn!(id, %error, "record of an operation ignored"),
    }
}

/// A session and its address; none for every other key, and for a session that cannot be reached.
pub(super) fn peer(entry: &Entry) -> Option<(SessionId, PeerRecord)> {
    let id = session_of(&entry.key)?;
    Some((id, SessionRecord::parse(&entry.value).peer?))
}

/// The session of a key.
pub(super) fn session_of(key: &str) -> Option<SessionId> {
    match parse_key(key)?.ok()? {
        Key::Session(id) => Some(id),
        _ => None,
    }
}

/// A put as the input of a replica. An unreadable authority counts as none: no replica grants under
/// it.
pub(super) fn put(entry: &Entry) -> Option<Input> {
    let at = revision(entry.mod_revision);
    Some(match read(entry)? {
        Ok((Key::Authority(cell), authority)) => Input::Authority {
            cell,
            revision: at,
            authority,
        },
        Ok((Key::Session(id), _)) => Input::Session { id, put: Some(at) },
        Ok((Key::Grantor(cell, id), _)) => Input::Grantor {
            cell,
            id,
            registered: Some(grantor_terms(entry)),
        },
        Ok((Key::Terms, _)) => Input::Terms {
            revision: at,
            agreement: agreement(entry),
        },
        Err(error) => {
            warn!(key = entry.key, %error, "record not used");
            let Some(Ok(Key::Authority(cell))) = parse_key(&entry.key) else {
                return None;
            };
            Input::Authority {
                cell,
                revision: at,
                authority: None,
            }
        }
    })
}

/// The number of proxies that a session reports; none if this is not a session, or it does not
/// report.
pub(super) fn proxies(entry: &Entry) -> Option<(SessionId, u32)> {
    match parse_key(&entry.key)? {
        Ok(Key::Session(id)) => Some((id, SessionRecord::parse(&entry.value).proxies?)),
        _ => None,
    }
}

/// A delete as the input of a replica.
pub(super) fn deleted(key: &str, at: store::Revision) -> Option<Input> {
    Some(match parse_key(key)?.ok()? {
        Key::Authority(cell) => Input::Authority {
            cell,
            revision: revision(at),
            authority: None,
        },
        Key::Session(id) => Input::Session { id, put: None },
        Key::Grantor(cell, id) => Input::Grantor {
            cell,
            id,
            registered: None,
        },
        Key::Terms => Input::Terms {
            revision: revision(at),
            agreement: None,
        },
    })
}

/// A transaction in the store's form.
pub(super) fn transaction(
    transaction: &Transaction,
    said: &SessionRecord,
    operation: Vec<Op>,
) -> (Vec<Compare>, Vec<Op>) {
    let compares = transaction
        .conditions
        .iter()
        .map(|condition| match condition {
            Condition::PutAt(key, at) => Compare::ModRevision {
                key: store_key(key),
                is: to_store(*at),
            },
            Condition::CreatedAt(key, at) => Compare::CreateRevision {
                key: store_key(key),
                is: to_store(*at),
            },
            Condition::NoSessionSince(seen) => Compare::NoneCreatedAfter {
                prefix: SESSIONS_PREFIX.to_owned(),
                after: to_store(*seen),
            },
        });
    let ops = transaction.writes.iter().map(|write| match write {
        Write::Authority(cell, authority) => Op::put(
            store_key(&Key::Authority(cell.clone())),
            AuthorityRecord::from(authority).to_json(),
        ),
        Write::Session(id) => Op::put(store_key(&Key::Session(id.clone())), said.to_json()),
        Write::Grantor(cell, id, Revision(terms)) => {
            let record = GrantorRecord { terms: *terms };
            let key = store_key(&Key::Grantor(cell.clone(), id.clone()));
            Op::put(key, record.to_json())
        }
        Write::Terms(agreement) => Op::put(
            store_key(&Key::Terms),
            TermsRecord::from(agreement).to_json(),
        ),
        Write::Delete(key) => Op::delete(store_key(key)),
    });
    (compares.collect(), ops.chain(operation).collect())
}

/// The operation record of a transaction's change to a cell's authority, which was `before`;
/// written in the same transaction.
pub(super) fn operation(
    operations: &Operations,
    cell: &Name,
    before: Option<&Authority>,
    after: &Authority,
    by: &SessionId,
    at_unix_ms: u64,
) -> Vec<Op> {
    let Some(before) = before else {
        return Vec::new();
    };
    let texts = |names: &[Name]| names.iter().map(|name| name.to_string()).collect();
    let begun = |id: String, cause: Cause, to: &[Name], reason: &str| {
        let record = OperationRecord {
            cell: cell.to_string(),
            from: texts(&before.owners),
            to: texts(to),
            cause,
            reason: reason.to_owned(),
            epoch: None,
            steps: Vec::new(),
        };
        (id, record)
    };
    let known = |id: &str| Some((id.to_owned(), operations.get(id)?.clone()));
    let (found, step) = match (&before.state, &after.state) {
        (_, AuthorityState::Fencing(next)) => {
            let record = begun(next.id.to_string(), next.cause, &next.to, &next.reason);
            (Some(record), "begun")
        }
        (AuthorityState::Fencing(next), _) => {
            // The begin of the operation may not have been seen yet, or another operation may have
            // begun under the same name.
            let fresh = begun(next.id.to_string(), next.cause, &next.to, &next.reason);
            let same = |(_, record): &(String, OperationRecord)| {
                (record.cause, &record.reason) == (fresh.1.cause, &fresh.1.reason)
            };
            let found = known(&next.id).filter(same).unwrap_or(fresh);
            let moved = after.epoch > before.epoch;
            (Some(found), if moved { "moved" } else { "aborted" })
        }
        (_, AuthorityState::Settling) => {
            let id = move_id(cell, before).to_string();
            (Some(begun(id, Cause::Override, &after.owners, "")), "moved")
        }
        (AuthorityState::Settling, AuthorityState::Active) => {
            let of_epoch = |record: &OperationRecord| {
                record.cell == **cell && record.epoch == Some(after.epoch)
            };
            let mut all = operations.iter();
            let found = all.find(|(_, record)| of_epoch(record));
            (
                found.map(|(id, record)| (id.clone(), record.clone())),
                "settled",
            )
        }
        _ => (None, ""),
    };
    let Some((id, mut record)) = found else {
        return Vec::new();
    };
    if step == "moved" {
        record.epoch = Some(after.epoch);
    }
    record.steps.push(OperationStep {
        step: step.to_owned(),
        by: by.incarnation.to_string(),
        at_unix_ms,
    });
    let put = Op::put(format!("{OPERATIONS_PREFIX}{id}"), record.to_json());
    let begun_at = |record: &OperationRecord| record.steps.first().map_or(0, |s| s.at_unix_ms);
    let oldest = (operations.iter().filter(|(other, _)| **other != id))
        .min_by_key(|(_, record)| begun_at(record))
        .filter(|_| operations.len() >= OPERATIONS_MAX);
    let prune = oldest.map(|(id, _)| Op::delete(format!("{OPERATIONS_PREFIX}{id}")));
    [put].into_iter().chain(prune).collect()
}
