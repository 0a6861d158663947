//! The message and the exit code of a command without an answer.

use std::{net::SocketAddr, path::Path};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::*;
use crate::failure::{FAILED, OUTCOME_UNKNOWN, exit_code};

/// Answers the first bytes of every connection with these, and closes it; none: never answers.
async fn server(answer: Option<Vec<u8>>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async move {
        let mut open: Vec<TcpStream> = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4_096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            match &answer {
                Some(answer) => stream.write_all(answer).await.unwrap(),
                None => open.push(stream),
            }
        }
    };
    (address, tokio::spawn(serve))
}

fn http(status: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

fn operator(admin: String, ca: Option<&Path>) -> OperatorArgs {
    OperatorArgs {
        admin,
        ca: ca.map(Path::to_owned),
        cert: None,
        key: None,
        timeout: Duration::from_millis(200),
    }
}

/// The result of a request: exit code and message.
async fn asked(operator: &OperatorArgs, method: Method, path: &str) -> (u8, String) {
    let error = operator.ask(method, path, Bytes::new()).await.unwrap_err();
    (exit_code(&error), format!("{error:#}"))
}

#[tokio::test]
async fn a_change_without_an_answer_has_an_unknown_outcome_and_says_how_to_find_out() {
    let silent = server(None).await;
    let hasty = server(Some(Vec::new())).await;
    let late = http("504 Gateway Timeout", r#"{"detail": "the store is late"}"#);
    let late = server(Some(late)).await;
    let gateway = server(Some(http("502 Bad Gateway", "<html>"))).await;
    for (address, task) in [silent, hasty, late, gateway] {
        let operator = operator(format!("http://{address}"), None);
        for (method, path, hint) in [
            (Method::PUT, "/v1/intents/sh-a", "tidegate get zones"),
            (Method::DELETE, "/v1/intents/sh-a", "tidegate get zones"),
            (Method::POST, "/v1/failback/sh-a", "tidegate get zones"),
            (Method::POST, "/v1/cells/main/move", "tidegate get cells"),
            (
                Method::POST,
                "/v1/cells/main/override",
                "tidegate get cells",
            ),
            (Method::POST, "/v1/confirm", "tidegate status"),
        ] {
            let (code, told) = asked(&operator, method, path).await;
            assert_eq!(code, OUTCOME_UNKNOWN, "{told}");
            assert!(
                told.contains("outcome unknown") && told.contains(hint),
                "{told}"
            );
        }
        let (code, told) = asked(&operator, Method::GET, "/v1/zones").await;
        assert_eq!(code, FAILED, "a read has no outcome: {told}");
        task.abort();
    }
}

#[tokio::test]
async fn a_change_that_was_never_sent_or_was_refused_has_failed() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let unreached = operator(format!("http://{closed}"), None);
    let (code, told) = asked(&unreached, Method::POST, "/v1/confirm").await;
    assert_eq!(code, FAILED);
    assert!(told.contains("is --admin the admin address?"), "{told}");
    let refusal = http("409 Conflict", r#"{"detail": "nothing waits"}"#);
    let (address, task) = server(Some(refusal)).await;
    let refused = operator(format!("http://{address}"), None);
    let answer = asked(&refused, Method::POST, "/v1/confirm").await;
    assert_eq!(answer, (FAILED, "nothing waits".to_owned()));
    task.abort();
}

#[tokio::test]
async fn an_address_without_a_scheme_is_refused_with_the_two_that_there_are() {
    for admin in ["127.0.0.1:18001", "localhost", "control-plane:18001/"] {
        let (code, told) = asked(&operator(admin.to_owned(), None), Method::GET, "/x").await;
        assert_eq!(code, FAILED);
        assert!(
            told.contains("http://") && told.contains("https://"),
            "{told}"
        );
    }
}

#[tokio::test]
async fn a_port_that_speaks_tls_or_does_not_is_named_as_the_cause() {
    // The alert with which a TLS server answers bytes that are not a handshake.
    let (address, tls) = server(Some(vec![21, 3, 3, 0, 2, 2, 10])).await;
    let plain = operator(format!("http://{address}"), None);
    for method in [Method::GET, Method::POST] {
        let (code, told) = asked(&plain, method, "/v1/zones").await;
        assert_eq!(code, FAILED);
        assert!(told.contains("https://") && told.contains("--ca"), "{told}");
    }
    tls.abort();

    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&ca, certificate.cert.pem()).unwrap();
    let bad = http("400 Bad Request", "");
    let (address, plain) = server(Some(bad)).await;
    let tls = operator(format!("https://localhost:{}", address.port()), Some(&ca));
    for method in [Method::GET, Method::POST] {
        let (code, told) = asked(&tls, method, "/v1/zones").await;
        assert_eq!(code, FAILED);
        assert!(
            told.contains("is plaintext") && told.contains("http://"),
            "{told}"
        );
    }
    plain.abort();
}
