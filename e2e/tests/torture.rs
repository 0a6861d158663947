//! A few rounds of the torture, with a seed that includes every kind of fault: cuts, kills, stops,
//! clocks, a restored etcd. And the same without the fence, which the judge has to detect. Needs
//! root and `ip`, and fails without them.

use std::process::Command;

/// Runs it to the end, and prints its output after a failure.
fn torture(arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torture"));
    let output = command.args(arguments).output().expect("torture starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "torture {}: {}\n{}\n{}",
        arguments.join(" "),
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
}

#[test]
fn whatever_fails_no_two_zones_write_at_once() {
    torture(&["--rounds", "12", "--seed", "3", "--rps", "120", "--attacks"]);
}

#[test]
fn with_guests_on_foreign_routes_no_two_zones_write_at_once() {
    torture(&["--rounds", "6", "--seed", "5", "--rps", "120", "--guests"]);
}

#[test]
fn without_the_fence_the_judge_sees_two_zones_write_at_once() {
    let cut = ["--only", "cut-zone,move"];
    let few = ["--rounds", "3", "--seed", "1", "--rps", "120", "--unfenced"];
    torture(&[&few[..], &cut].concat());
}
