//! The printed examples in `examples/`: each file is the output of a command.

use std::{fs, path::Path};

use clap::Parser;

use super::GuestArgs;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    guest: GuestArgs,
}

/// The output of `tidegate guest` with these arguments, in the root of the repository.
pub(super) fn output(arguments: &str) -> anyhow::Result<String> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../");
    let arguments = arguments.replace("--config ", &format!("--config {root}"));
    let words = ["guest"].into_iter().chain(arguments.split_whitespace());
    Line::try_parse_from(words)?.guest.text()
}

/// The files with the arguments that print them.
const FILES: [(&str, &str); 10] = [
    (
        "istio/gateway.yaml",
        "--kind istio --config examples/tidegate.yaml",
    ),
    (
        "istio/wasm-plugin.yaml",
        "--kind istio --delivery plugin --config examples/tidegate.yaml",
    ),
    (
        "istio/traffic-extension.yaml",
        "--kind istio --delivery traffic-extension --config examples/tidegate.yaml",
    ),
    (
        "istio/sidecar.yaml",
        "--kind istio --context sidecar-outbound --namespace shop --selector app=front --config examples/tidegate.yaml",
    ),
    (
        "istio/waypoint.yaml",
        "--kind istio --context waypoint --namespace shop --config examples/tidegate.yaml",
    ),
    (
        "istio/remove.txt",
        "--kind istio --remove --config examples/tidegate.yaml",
    ),
    (
        "envoy-gateway/guest.yaml",
        "--kind envoy-gateway --config examples/tidegate.yaml",
    ),
    (
        "envoy-gateway/remove.txt",
        "--kind envoy-gateway --remove --config examples/tidegate.yaml",
    ),
    (
        "higress/guest.yaml",
        "--kind higress --config examples/tidegate.yaml",
    ),
    (
        "higress/remove.txt",
        "--kind higress --remove --config examples/tidegate.yaml",
    ),
];

#[test]
fn the_examples_are_those_that_the_command_prints() {
    for (name, arguments) in FILES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../examples")
            .join(name);
        let head = format!("# tidegate guest {arguments}\n");
        let printed = head + &output(arguments).unwrap();
        if std::env::var_os("TIDEGATE_BLESS").is_some() {
            fs::write(&path, printed).unwrap();
            continue;
        }
        let present = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            present == printed,
            "examples/{name} is stale: TIDEGATE_BLESS=1 cargo test -p tidegate examples"
        );
    }
}

#[test]
fn each_example_has_a_readme_with_its_files() {
    for (name, _) in FILES {
        let (directory, file) = name.split_once('/').unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../examples")
            .join(directory);
        let page = fs::read_to_string(path.join("README.md")).unwrap();
        assert!(
            page.contains(&format!("`{file}`")),
            "{directory}/README.md has no {file}"
        );
    }
}
