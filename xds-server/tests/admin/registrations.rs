//! Registering instances: rejections, and warnings.

use registry::record::INSTANCES_PREFIX;

use super::{Fixture, RECORD};

#[tokio::test]
async fn unknown_services_and_zones_are_not_found_and_the_known_are_named() {
    let fixture = Fixture::start("").await;
    let answer = fixture
        .ask("PUT", "/v1/instances/ordes/sh-a/1", RECORD)
        .await;
    let answer = answer.is(404);
    let (reason, detail) = answer.problem();
    assert_eq!(reason, "unknown_service");
    assert!(
        detail.ends_with("configured services: orders, web"),
        "{detail}"
    );
    let answer = fixture
        .ask("PUT", "/v1/instances/orders/sh-c/1", RECORD)
        .await;
    let answer = answer.is(404);
    let (reason, detail) = answer.problem();
    assert_eq!(reason, "unknown_zone");
    assert!(
        detail.ends_with("configured zones: sh-a, sh-b, bj-c"),
        "{detail}"
    );
    assert_eq!(
        fixture.store.list(INSTANCES_PREFIX).await.unwrap().entries,
        []
    );
}

#[tokio::test]
async fn unknown_fields_are_warned_of_and_rejected_where_the_client_is_strict() {
    let fixture = Fixture::start("").await;
    let odd = r#"{"address": "10.0.0.1", "port": 80, "helth": "unhealthy"}"#;
    let at = "/v1/instances/orders/sh-a/1";
    let answer = fixture.ask("PUT", at, odd).await.is(200);
    let warning = answer.body["warnings"][0].as_str().unwrap();
    assert!(warning.contains("helth; known are address"), "{warning}");
    for strict in ["strict", "strict=true", "strict="] {
        let answer = fixture.ask("PUT", &format!("{at}?{strict}"), odd).await;
        let answer = answer.is(400);
        assert!(answer.problem().1.contains("helth"));
        fixture
            .ask("PUT", &format!("{at}?{strict}"), RECORD)
            .await
            .is(204);
    }
    fixture
        .ask("PUT", &format!("{at}?strict=false"), odd)
        .await
        .is(200);
    // A misspelt option would create a record that never expires.
    fixture
        .ask("PUT", &format!("{at}?leese=1"), RECORD)
        .await
        .is(400);
    let misspelt = r#"{"address": "10.0.0.1", "port": 80, "health": "unhealty"}"#;
    let answer = fixture.ask("PUT", at, misspelt).await.is(400);
    assert!(answer.problem().1.contains("unhealty"));

    // Records that were written to the store directly are listed as well.
    let key = format!("{INSTANCES_PREFIX}orders/sh-b/2");
    let written = odd.replace("10.0.0.1", "10.0.0.2");
    fixture.store.put(&key, written.into(), None).await.unwrap();
    fixture
        .overview(|overview| overview.warnings.contains_key(&key))
        .await;
    let listed = fixture.listed("orders/sh-b/2").await;
    assert!(
        listed["warnings"][0].as_str().unwrap().contains("helth"),
        "{listed}"
    );
    assert!(listed["error"].is_null(), "{listed}");
}

#[tokio::test]
async fn addresses_that_are_no_destination_are_rejected_and_shown() {
    let fixture = Fixture::start("guard: {loopback_instances: false}").await;
    for address in [
        "0.0.0.0",
        "::",
        "::ffff:0.0.0.0",
        "224.0.0.1",
        "127.0.0.1",
        "fe80::1",
    ] {
        let record = format!(r#"{{"address": "{address}", "port": 80}}"#);
        let answer = fixture
            .ask("PUT", "/v1/instances/orders/sh-a/1", &record)
            .await;
        let answer = answer.is(400);
        assert!(answer.problem().1.contains("register"), "{}", answer.body);
        let key = format!("{INSTANCES_PREFIX}orders/sh-a/1");
        fixture.store.put(&key, record.into(), None).await.unwrap();
        fixture
            .overview(|overview| overview.rejected.contains_key(&key))
            .await;
        let listed = fixture.listed("orders/sh-a/1").await;
        let error = listed["error"].as_str().unwrap_or_default();
        assert!(error.contains("address"), "{listed}");
        fixture.store.delete(&key).await.unwrap();
        fixture
            .overview(|overview| overview.rejected.is_empty())
            .await;
    }
}

#[tokio::test]
async fn an_address_of_another_zone_is_refused_and_both_records_are_shown() {
    let fixture = Fixture::start("").await;
    fixture.registered(&[("orders/sh-a/1", RECORD)]).await;
    let evil = "/v1/instances/orders/sh-b/evil";
    let mapped = r#"{"address": "::ffff:10.0.0.1", "port": 80}"#;
    for record in [RECORD, mapped] {
        let answer = fixture.ask("PUT", evil, record).await.is(409);
        let (reason, detail) = answer.problem();
        assert_eq!(reason, "address_of_another_zone");
        assert!(detail.contains("orders/sh-a/1"), "{detail}");
    }
    // Nor by a record that existed before: its age is not that of the claim.
    let own = r#"{"address": "10.0.0.2", "port": 80}"#;
    fixture.ask("PUT", evil, own).await.is(204);
    fixture.ask("PUT", evil, RECORD).await.is(409);
    // Within the zone, and for another service, it is no conflict.
    fixture
        .ask("PUT", "/v1/instances/orders/sh-a/2", RECORD)
        .await
        .is(204);
    fixture
        .ask("PUT", "/v1/instances/web/sh-b/1", RECORD)
        .await
        .is(204);

    // Directly in the store: both are listed, the older one is used.
    let key = |at: &str| format!("{INSTANCES_PREFIX}{at}");
    fixture
        .store
        .put(&key("orders/bj-c/evil"), RECORD.into(), None)
        .await
        .unwrap();
    let evil = key("orders/bj-c/evil");
    fixture
        .overview(|overview| overview.rejected.contains_key(&evil))
        .await;
    let listed = fixture.listed("orders/bj-c/evil").await;
    assert!(
        listed["error"].as_str().unwrap().contains("orders/sh-a/2"),
        "{listed}"
    );
    let listed = fixture.listed("orders/sh-a/2").await;
    assert!(
        listed["warnings"][0]
            .as_str()
            .unwrap()
            .contains("bj-c/evil"),
        "{listed}"
    );
    assert!(listed["error"].is_null(), "{listed}");
    // The instance learns of it when it writes again.
    let answer = fixture
        .ask("PUT", "/v1/instances/orders/bj-c/evil", RECORD)
        .await;
    let answer = answer.is(200);
    let warning = answer.body["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("the record is rejected"), "{warning}");
}

#[tokio::test]
async fn a_record_is_as_old_as_its_claim_of_an_address() {
    let fixture = Fixture::start("").await;
    let at = "orders/sh-a/1";
    let key = format!("{INSTANCES_PREFIX}{at}");
    let created = async || {
        let entry = fixture.store.get(&key).await.unwrap();
        entry.expect("a record").create_revision
    };
    fixture.registered(&[(at, RECORD)]).await;
    let first = created().await;
    let unhealthy = r#"{"address": "10.0.0.1", "port": 80, "health": "unhealthy"}"#;
    fixture
        .ask("PUT", "/v1/instances/orders/sh-a/1", unhealthy)
        .await
        .is(204);
    assert_eq!(created().await, first);
    let moved = r#"{"address": "10.0.0.1", "port": 81}"#;
    fixture
        .ask("PUT", "/v1/instances/orders/sh-a/1", moved)
        .await
        .is(204);
    assert!(created().await > first);
}
