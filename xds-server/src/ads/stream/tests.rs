//! The protocol, rule by rule, as "xDS REST and gRPC protocol" in Envoy's documentation has it. What a run of many rules together
//! must keep is in [`super::model`].
//!
//! | rule | test |
//! | --- | --- |
//! | Who has never named anything and asks for nothing gets all clusters and listeners | [`subscriptions::a_wildcard_subscriber_gets_everything_once_and_then_what_changes`], [`subscriptions::only_clusters_and_listeners_can_be_had_without_naming_them`] |
//! | Naming something ends that for good (SotW) | [`subscriptions::a_wildcard_ends_where_it_is_no_longer_named_in_the_state_of_the_world`] |
//! | Naming something adds to it, until `*` is given up (delta) | [`subscriptions::a_wildcard_stays_beside_names_until_it_is_given_up_in_delta`] |
//! | `*` can be asked for at any time | [`subscriptions::everything_can_be_asked_for_later`] |
//! | Who asks (again) for what it has is sent it | [`subscriptions::who_unsubscribes_hears_nothing_and_who_asks_again_is_sent_again`], [`subscriptions::who_asks_again_is_sent_again_in_the_state_of_the_world`] |
//! | Giving up a name below a wildcard is answered | [`subscriptions::a_name_given_up_below_a_wildcard_is_answered`] |
//! | Giving up what was never asked for is no error | [`subscriptions::giving_up_what_was_never_asked_for_changes_nothing`] |
//! | A name that does not exist: told in delta, and sent when it appears | [`subscriptions::a_name_that_does_not_exist_is_told_once_and_sent_when_it_appears`] |
//! | ... not told in SotW, and sent when it appears | [`subscriptions::a_name_that_does_not_exist_is_sent_when_it_appears_in_the_state_of_the_world`] |
//! | What is gone: `removed_resources` in delta | [`subscriptions::a_wildcard_subscriber_gets_everything_once_and_then_what_changes`] |
//! | ... absence in SotW for clusters and listeners, nothing for others | [`subscriptions::the_state_of_the_world_is_whole_for_clusters_and_listeners_alone`] |
//! | After a reconnect only the difference is sent | [`subscriptions::who_comes_back_with_everything_is_sent_nothing`], [`subscriptions::who_comes_back_with_less_or_older_is_sent_the_difference`], [`subscriptions::who_comes_back_with_names_is_sent_the_difference`] |
//! | Only what changed is sent, and nothing where nothing changed | [`subscriptions::nothing_is_sent_where_nothing_changed`] |
//! | A node may have several streams, each with its own state | [`subscriptions::streams_of_one_node_know_nothing_of_each_other`] |
//! | A stale nonce answers nothing | [`answers::stale_nonces_change_nothing`] |
//! | ... and its request is ignored in SotW | [`answers::a_stale_request_is_ignored_in_the_state_of_the_world`] |
//! | ... but may change the subscription in delta | [`answers::a_stale_request_may_change_the_subscription_in_delta`] |
//! | A subscription may change without a new response (SotW: with the last nonce) | [`answers::a_subscription_changes_with_the_last_nonce_in_the_state_of_the_world`] |
//! | What was refused is not sent again until it changes, and the last good one stays | [`answers::a_refused_resource_is_not_sent_again_until_it_changes`], [`answers::a_refused_cluster_stays_as_it_was_in_the_state_of_the_world`] |
//! | ... but a listener can be tried again | [`answers::a_refused_listener_can_be_tried_again_and_is_refused_until_it_is_taken`] |
//! | A refusal in part | [`answers::a_refused_resource_is_not_sent_again_until_it_changes`], [`answers::a_refusal_that_names_nothing_counts_for_the_whole_response`] |
//! | Kinds go in order: clusters, endpoints, listeners, routes, virtual hosts | [`order::kinds_that_are_due_together_go_in_order`] |
//! | Make before break | the rest of [`order`] |
//! | Equal state has equal versions, whatever the history | [`order::equal_state_has_equal_versions_whatever_the_history`] |
//! | No response has a name twice | [`super::model`] |
//! | Aliases, and virtual hosts on demand | [`hosts`] |
//! | Times to live and heartbeats | [`renewals`] |

mod answers;
mod hosts;
mod order;
mod renewals;
mod subscriptions;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use policy::Policy;

use super::*;
use crate::resource::Resources;

/// A view from lines of `kind name content`; routes and filter need the clusters `needed`.
pub(super) fn view(lines: &[(Kind, &str, &str)], needed: &[&str]) -> Arc<View> {
    let mut resources: [Resources; Kind::ALL.len()] = Default::default();
    for (kind, name, content) in lines {
        // The kind of message does not matter to the protocol.
        let message = Cluster {
            name: (*name).to_owned(),
            alt_stat_name: (*content).to_owned(),
            ..Cluster::default()
        };
        let resource = match *content {
            "nobody healthy" => Resource::encode(name, &message).into_dead_end(),
            _ => Resource::encode(name, &message),
        };
        let resource = Arc::new(resource);
        resources[kind.index()].insert(Arc::clone(&resource.name), resource);
    }
    let needed = needed.iter().copied().map(Arc::from).collect();
    Arc::new(View::new(resources, needed, Arc::new(Policy::Fallback), 0))
}

fn cluster<'a>(name: &'a str, content: &'a str) -> [(Kind, &'a str, &'a str); 2] {
    [
        (Kind::Cluster, name, content),
        (Kind::Endpoints, name, content),
    ]
}

fn delta(view: &Arc<View>) -> Stream {
    Stream::new(Variant::Delta, Arc::clone(view))
}

fn subscribe(stream: &mut Stream, kind: Kind, names: &[&str]) {
    let names = names.iter().copied();
    stream.subscribe_delta(kind, names, [].into_iter(), [].into_iter());
}

fn unsubscribe(stream: &mut Stream, kind: Kind, names: &[&str]) {
    let names = names.iter().copied();
    stream.subscribe_delta(kind, [].into_iter(), names, [].into_iter());
}

fn sotw(view: &Arc<View>) -> Stream {
    Stream::new(Variant::StateOfTheWorld, Arc::clone(view))
}

/// What a client has asked for altogether.
fn want(stream: &mut Stream, kind: Kind, names: &[&str]) {
    stream.subscribe_sotw(kind, names.iter().copied(), "");
}

fn names(outgoing: &Outgoing) -> Vec<&str> {
    outgoing.resources.iter().map(|r| &*r.name).collect()
}

#[track_caller]
fn sent(stream: &mut Stream, kind: Kind, resources: &[&str], removed: &[&str]) -> String {
    let outgoing = stream.next_due().expect("a response is due");
    assert_eq!(outgoing.kind, kind);
    assert_eq!(names(&outgoing), resources);
    let gone: Vec<&str> = outgoing.removed.iter().map(|name| &**name).collect();
    assert_eq!(gone, removed);
    outgoing.nonce.to_string()
}

/// As [`sent`], and acknowledged.
#[track_caller]
fn taken(stream: &mut Stream, kind: Kind, resources: &[&str], removed: &[&str]) {
    let nonce = sent(stream, kind, resources, removed);
    ack(stream, kind, &nonce);
}

#[track_caller]
fn quiet(stream: &mut Stream) {
    assert_eq!(stream.next_due(), None);
}

#[track_caller]
fn ack(stream: &mut Stream, kind: Kind, nonce: &str) {
    assert_eq!(
        stream.settle(kind, &Verdict::Ack { nonce }),
        Ok(Answer::Accepted)
    );
}

fn nack(stream: &mut Stream, kind: Kind, nonce: &str, message: &str) -> Vec<String> {
    match stream.settle(kind, &Verdict::Nack { nonce, message }) {
        Ok(Answer::Refused(refused)) => refused.resources.iter().map(|r| r.to_string()).collect(),
        other => panic!("a refusal, not {other:?}"),
    }
}
