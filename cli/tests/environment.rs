//! The real `tidegate`: its environment does not lead requests elsewhere.

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::Command,
    thread,
};

#[test]
fn proxies_of_the_environment_are_not_asked() {
    let admin = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = admin.local_addr().unwrap();
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy_url = format!("http://{}", proxy.local_addr().unwrap());
    // Whichever of the two is asked tells its name, so that the command ends.
    let answer = |listener: TcpListener, detail: &'static str| {
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4_096];
            let _ = stream.read(&mut request).unwrap();
            let body = format!(r#"{{"detail": "asked: {detail}"}}"#);
            let length = body.len();
            let head = format!("HTTP/1.1 409 Conflict\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all((head + &body).as_bytes()).unwrap();
        })
    };
    answer(admin, "the admin port");
    answer(proxy, "the proxy");
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["confirm", "--admin", &format!("http://{address}")])
        .envs(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"].map(|name| (name, &proxy_url)))
        .env_remove("no_proxy")
        .env_remove("NO_PROXY")
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("asked: the admin port"), "{told}");
    assert_eq!(output.status.code(), Some(1));
}
