//! The real `tidegate check --guest`: sources, outputs and exit codes.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::{Command, Output},
    thread,
};

use serde_json::Value;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/envoy/fence.yaml");

fn check(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.arg("check").args(arguments).output().unwrap()
}

fn told(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]]
        .map(String::from_utf8_lossy)
        .concat()
}

/// The example with a text replaced.
fn changed(directory: &Path, from: &str, to: &str) -> String {
    let text = fs::read_to_string(EXAMPLE).unwrap();
    assert!(text.contains(from), "{from}");
    let file = directory.join("envoy.yaml");
    fs::write(&file, text.replace(from, to)).unwrap();
    file.display().to_string()
}

#[test]
fn the_exit_code_tells_the_worst_finding() {
    let directory = tempfile::tempdir().unwrap();
    for (from, to, code, name) in [
        ("RELOAD", "RELOAD", 0, "good: nothing stands in the way"),
        ("FAIL_RELOAD", "FAIL_CLOSED", 7, "warning [fail_closed]"),
        (
            "merge_slashes: true",
            "merge_slashes: false",
            6,
            "error [merge_slashes]",
        ),
        ("static_resources:", "statics:\n  a: [", 1, "envoy.yaml:"),
    ] {
        let output = check(&["--guest", &changed(directory.path(), from, to)]);
        let told = told(&output);
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains(name), "{told}");
    }
    let output = check(&["--guest", "/nowhere/envoy.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        told(&output).contains("cannot read /nowhere/envoy.yaml"),
        "{}",
        told(&output)
    );
    let output = check(&[
        "--guest",
        concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
    ]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert_eq!(check(&[]).status.code(), Some(2));
}

#[test]
fn findings_are_json_for_scripts() {
    let directory = tempfile::tempdir().unwrap();
    let file = changed(directory.path(), "prefix: x-tidegate,", "prefix: x-other,");
    let output = check(&["--guest", &file, "-o", "json"]);
    assert_eq!(output.status.code(), Some(6));
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [finding] = &findings.as_array().unwrap()[..] else {
        panic!("{findings}");
    };
    assert_eq!(finding["name"], "strip_missing");
    assert_eq!(finding["severity"], "error");
    assert_eq!(
        finding["place"],
        "listeners[ingress].filter_chains[0].filters[0]"
    );
    assert!(finding["message"].is_string() && finding["remedy"].is_string());
    let names = check(&["--guest", &file, "-o", "name"]);
    assert_eq!(names.stdout, b"strip_missing\n");
}

#[test]
fn a_live_envoy_is_asked_by_its_address() {
    let answers = [
        ("200 OK", "{\"configs\": []}", 6, "error [no_guest]"),
        (
            "404 Not Found",
            "invalid path",
            1,
            "answered 404 Not Found: the path is /config_dump",
        ),
        ("200 OK", "<html>", 1, "no JSON: the path is /config_dump"),
    ];
    for (status, body, code, expected) in answers {
        let admin = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/config_dump", admin.local_addr().unwrap());
        let served = thread::spawn(move || {
            let (mut stream, _) = admin.accept().unwrap();
            let mut request = [0; 4_096];
            let _ = stream.read(&mut request).unwrap();
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all((head + body).as_bytes()).unwrap();
        });
        let output = check(&["--guest", &url]);
        served.join().unwrap();
        let told = told(&output);
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains(expected), "{told}");
    }
}
