//! Follows certificate, key and CA. New handshakes use the present files; connections that are open
//! go on. Files that cannot be used change nothing, and are reported.

use std::{sync::Arc, time::Duration};

use agent::file_watcher::{FileWatcher, Pace};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tracing::{error, info};

use super::{
    Acceptor, Dialer, Port,
    files::{Contents, Credentials, TlsError},
    identity::{End, Ending},
};
use crate::{
    conditions::{Code, Found, Lasting},
    metrics::{FileLabel, Metrics, ResultLabel},
    net::tls::TlsFiles,
    wall_clock::unix_ms,
};

/// How often the ends of certificates are looked at.
pub(crate) const ENDS_EVERY: Duration = Duration::from_secs(1);

/// The conditions about the ends of certificates.
const ENDS: &[Code] = &[Code::CertificateEndsSoon, Code::CertificateEnded];

/// The files in use, and those that follow.
pub struct Tls {
    credentials: watch::Receiver<Arc<Credentials>>,
}

impl Tls {
    /// Reads the files, and follows them from now on.
    pub fn start(files: TlsFiles, metrics: Metrics) -> Result<Tls, TlsError> {
        let contents = Contents::read(&files)?;
        let first = Arc::new(contents.credentials(&files)?);
        show(&metrics, &first);
        let (publisher, credentials) = watch::channel(first);
        let reader = {
            let files = files.clone();
            move || Contents::read(&files)
        };
        let watcher = FileWatcher::new(reader, contents, Pace::CERTIFICATES);
        let follower = Follower {
            files,
            publisher,
            metrics,
        };
        tokio::spawn(follower.run(watcher));
        Ok(Tls { credentials })
    }

    /// The dialer for connections to other replicas.
    pub fn dialer(&self) -> Dialer {
        Dialer {
            tls: Some(self.credentials.clone()),
        }
    }

    /// The acceptor of this port's handshakes.
    pub fn acceptor(&self, port: Port) -> Acceptor {
        Acceptor {
            tls: Some((self.credentials.clone(), port)),
        }
    }
}

struct Follower {
    files: TlsFiles,
    publisher: watch::Sender<Arc<Credentials>>,
    metrics: Metrics,
}

impl Follower {
    async fn run(self, watcher: FileWatcher<Contents, TlsError>) {
        tokio::select! {
            () = self.publisher.closed() => {}
            () = self.follow(watcher) => {}
            () = self.look_at_ends() => {}
        }
    }

    async fn follow(&self, mut watcher: FileWatcher<Contents, TlsError>) {
        loop {
            let read = watcher.changed().await;
            self.consider(read.and_then(|contents| contents.credentials(&self.files)));
        }
    }

    async fn look_at_ends(&self) {
        let mut lasting = Lasting::new(self.metrics.conditions.clone(), ENDS);
        let mut ticks = tokio::time::interval(ENDS_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let ends = judge_ends(&self.publisher.borrow(), unix_ms() / 1_000);
            lasting.look(ends, Instant::now());
        }
    }

    fn consider(&self, credentials: Result<Credentials, TlsError>) {
        let result = if credentials.is_ok() { "ok" } else { "error" };
        let label = ResultLabel { result };
        self.metrics.tls_reloads.get_or_create(&label).inc();
        match credentials {
            Ok(credentials) => {
                info!("certificate, key and CA accepted; open connections go on");
                show(&self.metrics, &credentials);
                self.metrics.conditions.clear(Code::TlsFilesUnusable, "");
                self.publisher.send_replace(Arc::new(credentials));
            }
            Err(error) => {
                self.metrics.tls_current.set(0);
                self.metrics
                    .conditions
                    .raise(Code::TlsFilesUnusable, "", error.to_string());
                error!(%error, "certificate, key and CA rejected; the last good ones stay in force");
            }
        }
    }
}

/// The certificates in force that have ended, or end soon.
fn judge_ends(credentials: &Credentials, now_s: u64) -> Vec<Found> {
    let guest_ca = credentials
        .guest_ca_end
        .map(|end| ("listen.tls.guest_ca", end));
    let ends = [
        ("listen.tls.cert", credentials.cert_end),
        ("listen.tls.client_ca", credentials.client_ca_end),
    ];
    let ends = ends.into_iter().chain(guest_ca);
    let judge = |(file, end): (&str, End)| match end.ending(now_s)? {
        Ending::Ended => Some(Found::new(Code::CertificateEnded, file, "")),
        Ending::Soon(left) => Some(Found::new(Code::CertificateEndsSoon, file, left)),
    };
    ends.filter_map(judge).collect()
}

fn show(metrics: &Metrics, credentials: &Credentials) {
    metrics.tls_current.set(1);
    let guest_ca = credentials.guest_ca_end.map(|end| ("guest_ca", end));
    let ends = [
        ("cert", credentials.cert_end),
        ("client_ca", credentials.client_ca_end),
    ];
    for (file, End { not_after_s, .. }) in ends.into_iter().chain(guest_ca) {
        let end = metrics.tls_not_after.get_or_create(&FileLabel { file });
        end.set(i64::try_from(not_after_s).unwrap_or(i64::MAX));
    }
}
