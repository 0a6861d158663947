//! A client whose certificates are renewed while it runs.

use tokio::sync::watch;
use tracing::{error, info};

use crate::file_watcher::{FileWatcher, Pace};
use crate::http::Client;
use crate::https::{Contents, Files, HttpsError};

/// The client of the newest files that can be used.
pub(super) struct Renewing {
    clients: watch::Receiver<Client>,
}

impl Renewing {
    pub(super) fn plain() -> Renewing {
        let (_, clients) = watch::channel(Client::plain());
        Renewing { clients }
    }

    /// Reads the files, and follows them for as long as this lives.
    pub(super) fn start(files: Files) -> Result<Renewing, HttpsError> {
        let contents = Contents::read(&files)?;
        let (publisher, clients) = watch::channel(Client::over(contents.config(&files)?));
        let reader = {
            let files = files.clone();
            move || Contents::read(&files)
        };
        let watcher = FileWatcher::new(reader, contents, Pace::CERTIFICATES);
        tokio::spawn(async move {
            tokio::select! {
                () = publisher.closed() => {}
                () = follow(&files, watcher, &publisher) => {}
            }
        });
        Ok(Renewing { clients })
    }

    pub(super) fn current(&self) -> Client {
        self.clients.borrow().clone()
    }
}

async fn follow(
    files: &Files,
    mut watcher: FileWatcher<Contents, HttpsError>,
    publisher: &watch::Sender<Client>,
) {
    loop {
        let read = watcher.changed().await;
        match read.and_then(|read| read.config(files)) {
            Ok(config) => {
                info!("certificate and CA accepted");
                publisher.send_replace(Client::over(config));
            }
            Err(error) => {
                error!(%error, "certificate and CA rejected; the last good ones stay in use");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn files_that_belong_together_make_a_new_client_and_others_none() {
        const LONG: Duration = Duration::from_secs(60);
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let key = || rcgen::KeyPair::generate().unwrap();
        let write = |certified: &rcgen::KeyPair, key: &rcgen::KeyPair| {
            let certificate = rcgen::CertificateParams::default().self_signed(certified);
            std::fs::write(file("ca"), certificate.unwrap().pem()).unwrap();
            std::fs::write(file("key"), key.serialize_pem()).unwrap();
        };
        let first = key();
        write(&first, &first);
        let renewing = Renewing::start(Files {
            ca: file("ca"),
            own: Some((file("ca"), file("key"))),
        });
        let mut clients = renewing.unwrap().clients;
        let second = key();
        // Half of a change.
        write(&first, &second);
        let changed = timeout(LONG, clients.changed()).await;
        assert!(changed.is_err(), "a key that is not the certificate's");
        write(&second, &second);
        timeout(LONG, clients.changed()).await.unwrap().unwrap();
        std::fs::remove_file(file("ca")).unwrap();
        let changed = timeout(LONG, clients.changed()).await;
        assert!(changed.is_err(), "the last good one stays in use");
    }
}
