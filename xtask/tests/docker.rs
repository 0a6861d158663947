//! Docker's build includes every package of the workspace: cargo needs the manifests of all of
//! them.

use std::fs;
use std::path::Path;

#[test]
fn docker_sees_every_package() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |name: &str| fs::read_to_string(root.join(name)).expect(name);
    let manifest = read("Cargo.toml");
    let members = manifest
        .lines()
        .find_map(|line| line.strip_prefix("members = ["))
        .expect("the workspace's members on one line");
    let seen = read(".dockerignore");
    for member in members.split('"').skip(1).step_by(2) {
        let folder = member.split('/').next().unwrap_or(member);
        let line = format!("!{folder}");
        assert!(seen.lines().any(|it| it == line), "{line} is missing");
    }
}
