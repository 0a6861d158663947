//! Answers of clients: ACK, NACK and nonces.

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use super::*;
use crate::{delta::Delta, request::Wire, sotw::Sotw};

#[test]
fn changes_during_an_unanswered_response_collapse_into_one() {
    let mut stream = delta(&view(&cluster("a", "1"), &[]));
    subscribe(&mut stream, Kind::Cluster, &["*"]);
    let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    for content in ["2", "3", "4"] {
        stream.set_view(view(&cluster("a", content), &[]));
        quiet(&mut stream);
    }
    ack(&mut stream, Kind::Cluster, &nonce);
    sent(&mut stream, Kind::Cluster, &["a"], &[]);
    quiet(&mut stream);
}

#[test]
fn a_refused_resource_is_not_sent_again_until_it_changes() {
    let mut stream = delta(&view(&cluster("a", "1"), &[]));
    subscribe(&mut stream, Kind::Cluster, &["*"]);
    let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    ack(&mut stream, Kind::Cluster, &nonce);
    stream.set_view(view(
        &[cluster("a", "bad"), cluster("b", "1")].concat(),
        &[],
    ));
    let nonce = sent(&mut stream, Kind::Cluster, &["a", "b"], &[]);
    let refused = nack(&mut stream, Kind::Cluster, &nonce, "cluster(s) a: bad");
    assert_eq!(refused, ["a"]);
    quiet(&mut stream);
    let acked = stream.held(Kind::Cluster).filter(|(_, _, acked)| *acked);
    let acked: Vec<&str> = acked.map(|(name, ..)| name).collect();
    assert_eq!(acked, ["a", "b"], "the last good one stays");
    stream.set_view(view(
        &[cluster("a", "mended"), cluster("b", "1")].concat(),
        &[],
    ));
    sent(&mut stream, Kind::Cluster, &["a"], &[]);
}

/// If Envoy gets rejected bytes again, it treats them as its present resource: it acknowledges
/// them, but does not apply them.
#[test]
fn a_refused_resource_that_is_offered_again_stays_refused_until_another_is_accepted() {
    for mut stream in [delta(&view(&cluster("a", "1"), &[])), {
        let view = view(&cluster("a", "1"), &[]);
        Stream::new(Variant::StateOfTheWorld, view)
    }] {
        match stream.variant {
            Variant::Delta => subscribe(&mut stream, Kind::Cluster, &["*"]),
            Variant::StateOfTheWorld => stream.subscribe_sotw(Kind::Cluster, [].into_iter(), ""),
        };
        let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
        ack(&mut stream, Kind::Cluster, &nonce);
        stream.set_view(view(&cluster("a", "bad"), &[]));
        let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
        nack(&mut stream, Kind::Cluster, &nonce, "a: bad");
        // The client has this one: there is nothing to send, and nothing is rejected.
        stream.set_view(view(&cluster("a", "1"), &[]));
        quiet(&mut stream);
        assert_eq!(stream.refusal(Kind::Cluster), None);
        stream.set_view(view(&cluster("a", "bad"), &[]));
        quiet(&mut stream);
        let refusal = stream.refusal(Kind::Cluster);
        assert_eq!(refusal.map(|r| r.message.as_str()), Some("a: bad"));
        // After another version the client checks it anew.
        stream.set_view(view(&cluster("a", "2"), &[]));
        let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
        ack(&mut stream, Kind::Cluster, &nonce);
        assert_eq!(stream.refusal(Kind::Cluster), None);
        stream.set_view(view(&cluster("a", "bad"), &[]));
        sent(&mut stream, Kind::Cluster, &["a"], &[]);
    }
}

/// A port may be free later.
#[test]
fn a_refused_listener_can_be_tried_again_and_is_refused_until_it_is_taken() {
    for mut stream in [
        delta(&view(&[(Kind::Listener, "l", "1")], &[])),
        sotw(&view(&[(Kind::Listener, "l", "1")], &[])),
    ] {
        match stream.variant {
            Variant::Delta => subscribe(&mut stream, Kind::Listener, &["*"]),
            Variant::StateOfTheWorld => want(&mut stream, Kind::Listener, &[]),
        }
        for _ in 0..2 {
            let nonce = sent(&mut stream, Kind::Listener, &["l"], &[]);
            let refused = nack(&mut stream, Kind::Listener, &nonce, "l: cannot bind");
            assert_eq!(refused, ["l"]);
            quiet(&mut stream);
            stream.retry(Kind::Listener);
            assert!(stream.refusal(Kind::Listener).is_some(), "it is in force");
        }
        taken(&mut stream, Kind::Listener, &["l"], &[]);
        assert_eq!(stream.refusal(Kind::Listener), None);
        stream.retry(Kind::Listener);
        quiet(&mut stream);
    }
}

/// Envoy checks a listener against its present policy. If the policy cannot be used, the listener
/// is not at fault.
#[test]
fn a_refused_listener_is_sent_again_once_the_policy_is_mended() {
    let at = |filter| {
        view(
            &[
                (Kind::Listener, "l", "1"),
                (Kind::FilterConfig, "f", filter),
            ],
            &[],
        )
    };
    let mut stream = delta(&at("bad"));
    subscribe(&mut stream, Kind::Listener, &["*"]);
    subscribe(&mut stream, Kind::FilterConfig, &["f"]);
    let listener = sent(&mut stream, Kind::Listener, &["l"], &[]);
    let filter = sent(&mut stream, Kind::FilterConfig, &["f"], &[]);
    nack(&mut stream, Kind::FilterConfig, &filter, "no such file");
    nack(&mut stream, Kind::Listener, &listener, "no such file");
    quiet(&mut stream);
    stream.set_view(at("good"));
    taken(&mut stream, Kind::FilterConfig, &["f"], &[]);
    taken(&mut stream, Kind::Listener, &["l"], &[]);
    assert_eq!(stream.refusal(Kind::Listener), None);
    quiet(&mut stream);
}

#[test]
fn a_refusal_that_names_nothing_counts_for_the_whole_response() {
    let mut stream = delta(&view(&[cluster("a", "1"), cluster("b", "1")].concat(), &[]));
    subscribe(&mut stream, Kind::Cluster, &["*"]);
    let nonce = sent(&mut stream, Kind::Cluster, &["a", "b"], &[]);
    assert_eq!(nack(&mut stream, Kind::Cluster, &nonce, "no!").len(), 2);
    quiet(&mut stream);
}

#[test]
fn a_refused_cluster_stays_as_it_was_in_the_state_of_the_world() {
    let mut stream = Stream::new(Variant::StateOfTheWorld, view(&cluster("a", "1"), &[]));
    stream.subscribe_sotw(Kind::Cluster, [].into_iter(), "");
    let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    ack(&mut stream, Kind::Cluster, &nonce);
    stream.set_view(view(&cluster("a", "bad"), &[]));
    let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    nack(&mut stream, Kind::Cluster, &nonce, "a");
    stream.set_view(view(
        &[cluster("a", "bad"), cluster("b", "1")].concat(),
        &[],
    ));
    let outgoing = stream.next_due().expect("b is new");
    let a = outgoing.resources.iter().find(|r| &*r.name == "a");
    let good = view(&cluster("a", "1"), &[]);
    assert_eq!(
        a.map(|a| a.version),
        good.of(Kind::Cluster).get("a").map(|a| a.version),
        "leaving it out would remove it from the proxy"
    );
}

#[test]
fn stale_nonces_change_nothing() {
    let mut stream = delta(&view(&cluster("a", "1"), &[]));
    subscribe(&mut stream, Kind::Cluster, &["*"]);
    let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    for stale in ["0", "99", "nonsense"] {
        let verdict = Verdict::Ack { nonce: stale };
        assert_eq!(stream.settle(Kind::Cluster, &verdict), Err(StaleNonce));
    }
    ack(&mut stream, Kind::Cluster, &nonce);
    let again = Verdict::Ack { nonce: &nonce };
    assert_eq!(stream.settle(Kind::Cluster, &again), Err(StaleNonce));
}

fn request(names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    }
}

/// The client subscribed to more before it saw the response: its next request is complete.
#[test]
fn a_stale_request_is_ignored_in_the_state_of_the_world() {
    let mut stream = sotw(&view(&[cluster("a", "1"), cluster("b", "1")].concat(), &[]));
    let asked = Sotw::take(&mut stream, Kind::Endpoints, &request(&["a"], ""));
    assert_eq!(asked, Ok(Answer::None));
    taken(&mut stream, Kind::Endpoints, &["a"], &[]);
    stream.set_view(view(&[cluster("a", "2"), cluster("b", "1")].concat(), &[]));
    let nonce = sent(&mut stream, Kind::Endpoints, &["a"], &[]);
    let stale = Sotw::take(&mut stream, Kind::Endpoints, &request(&["a", "b"], "1"));
    assert_eq!(stale, Err(StaleNonce));
    quiet(&mut stream);
    let answered = Sotw::take(&mut stream, Kind::Endpoints, &request(&["a", "b"], &nonce));
    assert_eq!(answered, Ok(Answer::Accepted));
    taken(&mut stream, Kind::Endpoints, &["b"], &[]);
}

#[test]
fn a_subscription_changes_with_the_last_nonce_in_the_state_of_the_world() {
    let mut stream = sotw(&view(&[cluster("a", "1"), cluster("b", "1")].concat(), &[]));
    assert!(Sotw::take(&mut stream, Kind::Endpoints, &request(&["a"], "")).is_ok());
    let nonce = sent(&mut stream, Kind::Endpoints, &["a"], &[]);
    let answered = Sotw::take(&mut stream, Kind::Endpoints, &request(&["a"], &nonce));
    assert_eq!(answered, Ok(Answer::Accepted));
    let more = Sotw::take(&mut stream, Kind::Endpoints, &request(&["a", "b"], &nonce));
    assert_eq!(more, Ok(Answer::None));
    taken(&mut stream, Kind::Endpoints, &["b"], &[]);
}

#[test]
fn a_stale_request_may_change_the_subscription_in_delta() {
    let mut stream = delta(&view(&[cluster("a", "1"), cluster("b", "1")].concat(), &[]));
    subscribe(&mut stream, Kind::Endpoints, &["a"]);
    let nonce = sent(&mut stream, Kind::Endpoints, &["a"], &[]);
    let stale = DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["b".to_owned()],
        resource_names_unsubscribe: vec!["a".to_owned()],
        response_nonce: "99".to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(
        Delta::take(&mut stream, Kind::Endpoints, &stale),
        Err(StaleNonce)
    );
    // The response is still unanswered.
    quiet(&mut stream);
    ack(&mut stream, Kind::Endpoints, &nonce);
    taken(&mut stream, Kind::Endpoints, &["b"], &[]);
    stream.set_view(view(&[cluster("a", "2"), cluster("b", "1")].concat(), &[]));
    quiet(&mut stream);
}

/// A resource of which the client never accepted a version does not exist after its rejection.
#[test]
fn a_refused_newcomer_is_not_held() {
    let mut stream = delta(&view(&cluster("a", "bad"), &[]));
    subscribe(&mut stream, Kind::Cluster, &["*"]);
    let nonce = sent(&mut stream, Kind::Cluster, &["a"], &[]);
    nack(&mut stream, Kind::Cluster, &nonce, "a is bad");
    assert_eq!(stream.held(Kind::Cluster).count(), 0);
    assert_eq!(stream.rejected(Kind::Cluster).count(), 1);
    quiet(&mut stream);
    // The client does not have it, so there is nothing to remove.
    stream.set_view(view(&[], &[]));
    quiet(&mut stream);
    assert_eq!(stream.refusal(Kind::Cluster), None);
    stream.set_view(view(&cluster("a", "bad"), &[]));
    sent(&mut stream, Kind::Cluster, &["a"], &[]);
}
