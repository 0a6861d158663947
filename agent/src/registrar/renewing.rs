//! A client whose certificates are renewed while it runs.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info};

use crate::http::Client;
use crate::https::{Contents, Files, HttpsError};

/// How long files are believed before they are looked at again.
const BELIEVED: Duration = Duration::from_secs(10);

/// A client, and the files that it is made of.
pub(super) struct Renewing {
    /// None: there are no files.
    files: Option<Files>,
    state: Mutex<State>,
}

struct State {
    client: Client,
    /// The files that were read last, good or bad, so that bad ones are reported once.
    considered: Option<Contents>,
    looked: Instant,
}

impl Renewing {
    pub(super) fn plain() -> Renewing {
        Renewing::new(None, Client::plain(), None)
    }

    pub(super) fn start(files: Files) -> Result<Renewing, HttpsError> {
        let contents = Contents::read(&files)?;
        let client = Client::over(contents.config(&files)?);
        Ok(Renewing::new(Some(files), client, Some(contents)))
    }

    fn new(files: Option<Files>, client: Client, considered: Option<Contents>) -> Renewing {
        let state = State {
            client,
            considered,
            looked: Instant::now(),
        };
        Renewing {
            files,
            state: Mutex::new(state),
        }
    }

    /// The client of the newest files that can be used.
    pub(super) fn current(&self) -> Client {
        // Every change leaves a usable client: a panic elsewhere cannot have left it half done.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = &self.files
            && state.looked.elapsed() >= BELIEVED
        {
            state.looked = Instant::now();
            state.look(files);
        }
        state.client.clone()
    }
}

impl State {
    fn look(&mut self, files: &Files) {
        let read = Contents::read(files);
        if read.as_ref().ok() == self.considered.as_ref() {
            return;
        }
        let made = read.and_then(|read| {
            let config = read.config(files);
            self.considered = Some(read);
            config
        });
        match made {
            Ok(config) => {
                info!("certificate and CA accepted");
                self.client = Client::over(config);
            }
            Err(error) => {
                error!(%error, "certificate and CA rejected; the last good ones stay in use");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn new_files_are_considered_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default()
            .self_signed(&key)
            .unwrap();
        std::fs::write(file("ca"), certificate.pem()).unwrap();
        std::fs::write(file("key"), key.serialize_pem()).unwrap();
        let client = Renewing::start(Files {
            ca: file("ca"),
            own: Some((file("ca"), file("key"))),
        });
        let client = client.unwrap();
        let considered = || client.state.lock().unwrap().considered.clone().unwrap();
        let first = considered();
        // Half of a change.
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(file("key"), key.serialize_pem()).unwrap();
        client.current();
        assert!(considered() == first, "they are believed for a while");
        tokio::time::advance(BELIEVED).await;
        client.current();
        assert!(considered() != first);
        std::fs::remove_file(file("ca")).unwrap();
        tokio::time::advance(BELIEVED).await;
        client.current();
    }
}
