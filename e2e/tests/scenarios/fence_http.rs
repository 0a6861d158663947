//! Rejections of fenced writes on the wire, and the state of a connection after them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::mesh::{Mesh, Store};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::fence::{mesh, one_cell, service, until_refused, until_taken};
use crate::support::{on, run};

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection on which the test writes bytes directly.
struct Wire {
    stream: TcpStream,
    /// The bytes after the last answer.
    rest: Vec<u8>,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Wire {
    async fn to(address: SocketAddr) -> Result<Wire> {
        Ok(Wire {
            stream: TcpStream::connect(address).await?,
            rest: vec![],
        })
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }

    /// A write to `/orders` with a body.
    async fn write(&mut self, body: usize) -> Result<Answer> {
        self.send(&head(body, "")).await?;
        self.send(&vec![b'x'; body]).await?;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<Answer> {
        let read = timeout(PATIENCE, self.read_answer());
        read.await.context("no answer in time")?
    }

    async fn read_answer(&mut self) -> Result<Answer> {
        loop {
            let text = String::from_utf8_lossy(&self.rest).into_owned();
            if let Some((head, behind)) = text.split_once("\r\n\r\n") {
                let head = head.to_ascii_lowercase();
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "));
                let length: usize = length.unwrap_or("0").parse()?;
                if behind.len() >= length {
                    let status = head.split(' ').nth(1).context("no status")?.parse()?;
                    let body = behind[..length].to_owned();
                    self.rest.drain(..head.len() + 4 + length);
                    return Ok(Answer { status, head, body });
                }
            }
            if self.stream.read_buf(&mut self.rest).await? == 0 {
                bail!("the connection has ended: {text:?}");
            }
        }
    }
}

fn head(length: usize, more: &str) -> Vec<u8> {
    format!("POST /orders HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n{more}\r\n").into()
}

fn check_refusal(answer: &Answer, status: u16, reason: &str) -> Result<()> {
    ensure!(answer.status == status, "{}", answer.head);
    let typed = answer
        .head
        .contains("content-type: application/problem+json");
    ensure!(typed, "{}", answer.head);
    let problem: Value = serde_json::from_str(&answer.body)?;
    assert_eq!(problem["reason"], reason);
    assert_eq!(problem["status"], status);
    assert_eq!(problem["type"], format!("urn:tidegate:problem:{reason}"));
    Ok(())
}

#[test]
fn a_refused_write_with_a_small_body_leaves_its_connection() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        until_refused(mesh, "beijing-c", "not_owner").await?;
        let mut wire = Wire::to(mesh.address("beijing-c")?).await?;
        for body in [2, 0, 5_000, 16_384, 2] {
            let answer = wire.write(body).await;
            let answer = answer.with_context(|| format!("{body} bytes"))?;
            check_refusal(&answer, 421, "not_owner")?;
            let closes = answer.head.contains("connection: close");
            ensure!(!closes, "{body}: {}", answer.head);
        }
        // A late body is waited for.
        wire.send(&head(4, "")).await?;
        wire.send(b"xx").await?;
        tokio::task::yield_now().await;
        wire.send(b"xx").await?;
        check_refusal(&wire.answer().await?, 421, "not_owner")?;
        check_refusal(&wire.write(2).await?, 421, "not_owner")?;
        // A missing body is not waited for long, and a large one not at all.
        wire.send(&head(4, "")).await?;
        check_refusal(&wire.answer().await?, 421, "not_owner")?;
        let mut wire = Wire::to(mesh.address("beijing-c")?).await?;
        wire.send(&head(70_000, "")).await?;
        check_refusal(&wire.answer().await?, 421, "not_owner")
    }
    run(async {
        let mesh = mesh("fence-connections", Store::Embedded, one_cell(), service()).await?;
        on(&mesh, scenario).await
    });
}

#[test]
fn a_write_that_waits_for_leave_is_refused_before_it_gets_it() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        until_taken(mesh, "shanghai-a", "shanghai-a").await?;
        until_refused(mesh, "beijing-c", "not_owner").await?;
        let expect = head(4, "expect: 100-continue\r\n");
        let mut wire = Wire::to(mesh.address("beijing-c")?).await?;
        wire.send(&expect).await?;
        check_refusal(&wire.answer().await?, 421, "not_owner")?;
        // If the write is admitted, the instance sends 100 Continue.
        let mut wire = Wire::to(mesh.address("shanghai-a")?).await?;
        wire.send(&expect).await?;
        assert_eq!(wire.answer().await?.status, 100);
        wire.send(b"body").await?;
        assert_eq!(wire.answer().await?.status, 200);
        Ok(())
    }
    run(async {
        let mesh = mesh("fence-expect", Store::Embedded, one_cell(), service()).await?;
        on(&mesh, scenario).await
    });
}

#[test]
fn an_upload_that_takes_longer_than_writes_may_is_ended_with_the_reason() {
    async fn scenario(mesh: &Mesh) -> Result<()> {
        until_taken(mesh, "shanghai-a", "shanghai-a").await?;
        until_taken(mesh, "shanghai-b", "shanghai-a").await?;
        // By the owner, and forwarded to it.
        for gateway in ["shanghai-a", "shanghai-b"] {
            let mut wire = Wire::to(mesh.address(gateway)?).await?;
            wire.send(&head(100_000, "")).await?;
            wire.send(b"and no more").await?;
            check_refusal(&wire.answer().await?, 408, "write_timeout").context(gateway)?;
        }
        let grpc = "content-type: application/grpc\r\nte: trailers\r\n";
        let mut wire = Wire::to(mesh.address("shanghai-a")?).await?;
        wire.send(&head(100_000, grpc)).await?;
        let answer = wire.answer().await?;
        ensure!(answer.head.contains("grpc-status: 4"), "{}", answer.head);
        ensure!(answer.head.contains("write_drain_ms"), "{}", answer.head);
        Ok(())
    }
    run(async {
        let mesh = mesh("fence-late", Store::Embedded, one_cell(), service()).await?;
        on(&mesh, scenario).await
    });
}
