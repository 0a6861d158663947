use serde_json::json;

use super::*;

fn zones() -> Value {
    let zone = |service: &str, zone: &str, share: u16, intent: Value| {
        json!({
            "service": service, "zone": zone, "state": "healthy", "share": share, "healthy": 2,
            "unhealthy": 1, "draining": 1, "flaps": 0, "held_for_ms": null, "intent": intent,
        })
    };
    let drain = json!({"intent": "drain", "reason": "power"});
    json!({
        "implausible": "most instances are gone", "kept": 9,
        "zones": [
            zone("orders", "sh-a", 1_000, Value::Null),
            zone("orders", "sh-b", 0, drain),
            zone("users", "sh-a", 55, Value::Null),
        ],
    })
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_table_has_the_remarks_of_the_whole_answer_above() {
    let table = show::<zones::Zone>(zones(), &[], Output::Table).unwrap();
    let expected = "\
IMPLAUSIBLE: most instances are gone (9 kept)
SERVICE  ZONE  STATE    SHARE    HEALTHY  FLAPS  INTENT
orders   sh-a  healthy  100.0 %  2/3 +1   0
orders   sh-b  healthy  0.0 %    2/3 +1   0      drain: power
users    sh-a  healthy  5.5 %    2/3 +1   0
";
    assert_eq!(table, expected);
}

#[test]
fn names_choose_items_in_every_output() {
    let chosen = names(&["sh-a"]);
    let as_names = show::<zones::Zone>(zones(), &chosen, Output::Name).unwrap();
    assert_eq!(as_names, "zone/sh-a\n");
    let as_json = show::<zones::Zone>(zones(), &chosen, Output::Json).unwrap();
    let items: Vec<Value> = serde_json::from_str(&as_json).unwrap();
    let services: Vec<&Value> = items.iter().map(|item| &item["service"]).collect();
    assert_eq!(services, ["orders", "users"]);
    let as_yaml = show::<zones::Zone>(zones(), &chosen, Output::Yaml).unwrap();
    let again: Vec<Value> = serde_saphyr::from_str(&as_yaml).unwrap();
    assert_eq!(again, items);
}

#[test]
fn an_unknown_name_is_an_error_with_those_that_there_are() {
    let error = show::<zones::Zone>(zones(), &names(&["sh-c"]), Output::Table).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no zone \"sh-c\"; there are: sh-a, sh-b, sh-a"
    );
}

#[test]
fn proxies_are_followed_by_what_they_refused() {
    let proxies = json!([
        {
            "node": "gw-1", "zone": "sh-a", "role": "gateway", "variant": "delta", "orphaned": false,
            "kinds": {"cds": {"acked": 3, "versions": {}, "nack": null}, "ecds": {"acked": 1, "versions": {}, "nack": {"resources": [], "message": "bad\u{1b}[2J"}}},
            "policy": {"state": "behind", "wanted": 66, "applied": {"age_s": 4, "editions": [{"version": 65, "generation": 1, "threads": 2}], "refused": null}},
        },
        {
            "node": "gw-2", "zone": "sh-a", "role": "gateway", "variant": "sotw", "orphaned": true,
            "kinds": {}, "policy": {"state": "unknown", "wanted": null, "applied": null},
        },
    ]);
    let table = show::<proxies::Proxy>(proxies, &[], Output::Table).unwrap();
    let lines: Vec<_> = table.lines().skip(1).collect();
    assert_eq!(
        lines,
        [
            "gw-1  sh-a  gateway  delta          4          behind 000000000041 x2 (wanted 000000000042), 4 s ago",
            "gw-2  sh-a  gateway  sotw orphaned  0          unknown",
            "gw-1: ecds rejected: bad\\u{1b}[2J",
        ]
    );
}

#[test]
fn a_description_ends_with_the_conditions_that_name_it() {
    let condition = |subject: &str, detail: &str| -> Condition {
        serde_json::from_value(json!({
            "code": "TG4001", "name": "resource_refused", "severity": "error",
            "subject": subject, "detail": detail, "since": "2026-01-01T00:00:00Z", "since_s": 5,
            "meaning": "m", "what_to_do": "mend it",
        }))
        .unwrap()
    };
    let held = [
        condition("lds gateway", "2 proxies (gw-1, gw-3): no such filter"),
        condition("gw-10", "another"),
    ];
    assert_eq!(
        about(&held, "gw-1"),
        "error TG4001 resource_refused lds gateway since 2026-01-01T00:00:00Z\n  2 proxies (gw-1, gw-3): no such filter\n  do: mend it\n"
    );
    assert_eq!(about(&held, "gw-2"), "no condition names it\n");
}
