//! Drains, and the rule about the last zone of a region.

use super::{Fixture, RECORD};

const OTHER: &str = r#"{"address": "10.0.0.2", "port": 80}"#;

#[tokio::test]
async fn the_last_zone_of_a_region_is_drained_only_where_an_operator_accepts_that() {
    let fixture = Fixture::start("").await;
    fixture
        .registered(&[("orders/sh-a/1", RECORD), ("orders/sh-b/2", OTHER)])
        .await;
    let drain = r#"{"intent": "drain"}"#;
    fixture.ask("PUT", "/v1/intents/sh-a", drain).await.is(204);
    fixture
        .overview(|overview| {
            let status = overview.statuses.get(&("orders".into(), "sh-a".into()));
            status.is_some_and(|status| status.intent.is_some())
        })
        .await;
    // A repeated drain, and a drain of a zone without instances: neither loses anything.
    fixture.ask("PUT", "/v1/intents/sh-a", drain).await.is(204);
    fixture.ask("PUT", "/v1/intents/bj-c", drain).await.is(204);
    for path in ["/v1/intents/sh-b", "/v1/intents/sh-b?service=orders"] {
        let answer = fixture.ask("PUT", path, drain).await.is(409);
        let (reason, detail) = answer.problem();
        assert_eq!(reason, "drains_last_zone");
        assert!(
            detail.starts_with("TG7001 drains_last_zone: sh-b"),
            "{detail}"
        );
        assert!(detail.contains("instances of orders are"), "{detail}");
        assert!(detail.contains("--accept TG7001 --reason"), "{detail}");
    }
    fixture
        .ask("PUT", "/v1/intents/sh-b?service=web", drain)
        .await
        .is(204);
    let accepted = |reason: &str, code: &str| {
        format!(r#"{{"intent": "drain", "reason": "{reason}", "accept": ["{code}"]}}"#)
    };
    let path = "/v1/intents/sh-b";
    fixture
        .ask("PUT", path, &accepted("", "TG7001"))
        .await
        .is(400);
    fixture
        .ask("PUT", path, &accepted("moving", "TG7002"))
        .await
        .is(409);
    fixture
        .ask("PUT", path, &accepted("moving", "TG7001"))
        .await
        .is(204);
    let wanted = fixture.ask("GET", "/v1/intents", "").await.is(200).body;
    assert_eq!(wanted["sh-b"]["reason"], "moving", "{wanted}");
    // A pin is not a drain, and a misspelt field is reported.
    fixture
        .ask("PUT", path, r#"{"intent": "pin"}"#)
        .await
        .is(204);
    fixture
        .ask("PUT", path, r#"{"intent": "pin", "reson": "x"}"#)
        .await
        .is(400);
}
