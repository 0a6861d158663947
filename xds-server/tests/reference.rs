//! The references in `docs/reference` are complete.

use std::{fs, path::Path};

use regex::Regex;

fn page(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

#[test]
fn every_route_of_the_admin_port_is_in_the_reference() {
    let reference = page("reference/admin-api.md") + &page("reference/records.md");
    let routes = Regex::new(r#""(/[a-z0-9/{}_-]+)""#).expect("a pattern");
    let parameter = Regex::new(r"\{(\w+)\}").expect("a pattern");
    let source = include_str!("../src/admin.rs");
    let routes = routes
        .captures_iter(source)
        .map(|found| found[1].to_owned());
    let routes: Vec<String> = routes
        .map(|route| parameter.replace_all(&route, "<$1>").into_owned())
        .collect();
    assert!(routes.len() > 20, "{routes:?}");
    for route in routes {
        assert!(reference.contains(&route), "no page names {route}");
    }
}

#[test]
fn every_field_of_the_configuration_is_in_the_reference() {
    let reference = [
        "reference/configuration.md",
        "guides/envoy-tls.md",
        "guides/mtls.md",
    ];
    let reference: String = reference.iter().map(|name| page(name)).collect();
    // Attributes and comments may stand between the two.
    let structs = Regex::new(
        r"derive\([^)]*Deserialize[^)]*\)\]\n(?:(?:#|///).*\n)*(?:pub(?:\([^)]*\))? )?struct \w+[^{;]*\{((?s:.*?))\n\}",
    );
    let structs = structs.expect("a pattern");
    let fields = Regex::new(
        r#"(?m)(?:#\[serde\(rename = "(?P<renamed>\w+)"\)\]\n)?^    (?:pub(?:\([^)]*\))? )?(?P<name>\w+):"#,
    );
    let fields = fields.expect("a pattern");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config");
    let mut count = 0;
    for entry in fs::read_dir(sources).expect("the sources are there") {
        let path = entry.expect("an entry").path();
        let Ok(source) = fs::read_to_string(&path) else {
            continue;
        };
        for found in structs.captures_iter(&source) {
            for field in fields.captures_iter(&found[1]) {
                let name = field.name("renamed").or(field.name("name"));
                let name = name.expect("one of the two").as_str();
                let named = Regex::new(&format!(r"\b{name}\b")).expect("a pattern");
                let told = named.is_match(&reference);
                assert!(told, "no page names {name} ({})", path.display());
                count += 1;
            }
        }
    }
    assert!(count > 80, "{count} fields");
}
