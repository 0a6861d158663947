//! How etcd is reached, for control plane and agent: its endpoints, TLS and a user, from files that
//! are followed while the process runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::Uri;
use registry::store::{EtcdCredentials, EtcdOptions, EtcdTls, EtcdUser};
use serde::Deserialize;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::file_watcher::{FileWatcher, Pace};
use crate::https::{Contents, Files, HttpsError};

/// The part `store.etcd` that control plane and agent have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdAccess {
    /// `http://host:port` of each member, or `https://host:port` with `tls`; the nearest first.
    pub endpoints: Vec<String>,
    /// None: plain text.
    pub tls: Option<EtcdTlsFiles>,
    /// None: etcd has no users, or takes the common name of the client's certificate.
    pub user: Option<EtcdUserFile>,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdTlsFiles {
    /// Whose certificates members must show. No other CA is trusted.
    pub ca: PathBuf,
    /// The client's certificate, with its key: both or none.
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// The name in the members' certificates; none: the host of each endpoint.
    pub server_name: Option<String>,
}

/// A user of etcd.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdUserFile {
    pub name: String,
    /// The password stands in it, with or without a line break behind it.
    pub password_file: PathBuf,
}

/// Why etcd cannot be accessed with these files.
#[derive(Debug, thiserror::Error)]
pub enum EtcdAccessError {
    #[error("store.etcd.tls: {0}")]
    Tls(#[from] HttpsError),
    #[error("store.etcd.user.password_file: {file} cannot be read: {error}")]
    Read { file: String, error: std::io::Error },
    #[error("store.etcd.user.password_file: {file} has no password in UTF-8 in its first line")]
    NoPassword { file: String },
}

impl EtcdAccess {
    /// What is wrong with it, whatever the files say: a field below `store.etcd`, and a message.
    ///
    /// # Errors
    ///
    /// No endpoint, one that is not an address, `https` without `tls` or the reverse, a certificate
    /// without its key or the reverse.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let scheme = match self.tls {
            Some(_) => "https",
            None => "http",
        };
        if self.endpoints.is_empty() {
            let message =
                format!("empty: name at least one member, like {scheme}://127.0.0.1:2379");
            return Err(("endpoints", message));
        }
        for endpoint in &self.endpoints {
            let message = match endpoint_scheme(endpoint) {
                Some(None) => continue,
                Some(Some(is)) if is == scheme => continue,
                Some(Some("https")) => format!(
                    "{endpoint:?}: TLS needs `store.etcd.tls: {{ca: FILE}}`, with `cert` and `key` where etcd asks for a certificate"
                ),
                Some(Some("http")) => format!(
                    "{endpoint:?}: plain text, though there is `store.etcd.tls`: write https://"
                ),
                _ => format!("{endpoint:?}: not of the form {scheme}://host:port"),
            };
            return Err(("endpoints", message));
        }
        let has_half = |tls: &EtcdTlsFiles| tls.cert.is_some() != tls.key.is_some();
        if self.tls.as_ref().is_some_and(has_half) {
            let message = "`cert` and `key` belong together: name both, or none".to_owned();
            return Err(("tls", message));
        }
        match &self.user {
            Some(user) if user.name.is_empty() => Err(("user.name", "empty".to_owned())),
            _ => Ok(()),
        }
    }

    /// Whether the files can be used now.
    ///
    /// # Errors
    ///
    /// Those that cannot.
    pub fn try_files(&self) -> Result<(), EtcdAccessError> {
        self.credentials(&self.read()?).map(drop)
    }

    /// The options to open etcd with, whose credentials follow the files for as long as a copy of
    /// the options lives. It is to be called on a runtime of tokio. Files that cannot be used later
    /// change nothing; `renewed` hears of them, and of good ones.
    ///
    /// # Errors
    ///
    /// Files that cannot be used.
    pub fn follow(
        &self,
        renewed: impl Fn(Result<(), &EtcdAccessError>) + Send + Sync + 'static,
    ) -> Result<EtcdOptions, EtcdAccessError> {
        let options = EtcdOptions::new(self.endpoints.clone());
        if self.tls.is_none() && self.user.is_none() {
            return Ok(options);
        }
        if self.tls.is_none() && !self.endpoints.iter().all(|endpoint| is_loopback(endpoint)) {
            warn!("the password for etcd crosses the network in plain text: set `store.etcd.tls`");
        }
        let contents = self.read()?;
        let (publisher, credentials) = watch::channel(Arc::new(self.credentials(&contents)?));
        let reader = {
            let this = self.clone();
            move || this.read()
        };
        let watcher = FileWatcher::new(reader, contents, Pace::CERTIFICATES);
        let this = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = publisher.closed() => {}
                () = this.renew(watcher, &publisher, renewed) => {}
            }
        });
        Ok(EtcdOptions {
            credentials,
            ..options
        })
    }

    async fn renew(
        &self,
        mut watcher: FileWatcher<AccessContents, EtcdAccessError>,
        publisher: &watch::Sender<Arc<EtcdCredentials>>,
        renewed: impl Fn(Result<(), &EtcdAccessError>),
    ) {
        loop {
            let read = watcher.changed().await;
            match read.and_then(|read| self.credentials(&read)) {
                Ok(credentials) => {
                    info!("the credentials for etcd are renewed; open watches go on");
                    publisher.send_replace(Arc::new(credentials));
                    renewed(Ok(()));
                }
                Err(error) => {
                    error!(%error, "the credentials for etcd are rejected; the last good ones stay in use");
                    renewed(Err(&error));
                }
            }
        }
    }

    fn files(&self) -> Option<Files> {
        let tls = self.tls.as_ref()?;
        Some(Files {
            ca: tls.ca.clone(),
            own: tls.cert.clone().zip(tls.key.clone()),
        })
    }

    fn read(&self) -> Result<AccessContents, EtcdAccessError> {
        let tls = self.files().as_ref().map(Contents::read).transpose()?;
        let user = self.user.as_ref();
        let password = user.map(|user| read_password(&user.password_file));
        Ok(AccessContents {
            tls,
            password: password.transpose()?,
        })
    }

    fn credentials(&self, contents: &AccessContents) -> Result<EtcdCredentials, EtcdAccessError> {
        let mut credentials = EtcdCredentials::default();
        if let (Some(tls), Some(files), Some(contents)) = (&self.tls, self.files(), &contents.tls) {
            // Names the file that cannot be used, which etcd's client would not.
            contents.config(&files)?;
            credentials.tls = Some(EtcdTls {
                ca: contents.ca().to_vec(),
                own: contents.own().cloned(),
                server_name: tls.server_name.clone(),
            });
        }
        if let (Some(user), Some(password)) = (&self.user, &contents.password) {
            credentials.user = Some(EtcdUser {
                name: user.name.clone(),
                password: password.clone(),
            });
        }
        Ok(credentials)
    }
}

/// What the files say.
#[derive(Clone, PartialEq, Eq)]
struct AccessContents {
    tls: Option<Contents>,
    password: Option<String>,
}

fn read_password(path: &Path) -> Result<String, EtcdAccessError> {
    let file = || path.display().to_string();
    let bytes = std::fs::read(path).map_err(|error| EtcdAccessError::Read {
        file: file(),
        error,
    })?;
    let text = String::from_utf8(bytes).ok();
    let line = text.as_deref().and_then(|text| text.lines().next());
    match line {
        Some(password) if !password.is_empty() => Ok(password.to_owned()),
        _ => Err(EtcdAccessError::NoPassword { file: file() }),
    }
}

/// The scheme of an endpoint, if it has one; none if it is not an address. Without a scheme it has a
/// port: etcd listens on none of the schemes' own.
fn endpoint_scheme(endpoint: &str) -> Option<Option<&str>> {
    let (scheme, address) = match endpoint.split_once("://") {
        Some((scheme, address)) => (Some(scheme), address),
        None => (None, endpoint),
    };
    let uri = format!("http://{address}").parse::<Uri>().ok()?;
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    let is_address = has_host && (scheme.is_some() || uri.port().is_some());
    is_address.then_some(scheme)
}

fn is_loopback(endpoint: &str) -> bool {
    let address = endpoint.split_once("://").map_or(endpoint, |(_, it)| it);
    let uri = format!("http://{address}").parse::<Uri>().ok();
    let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let address = address.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn access(endpoint: &str) -> EtcdAccess {
        EtcdAccess {
            endpoints: vec![endpoint.to_owned()],
            tls: None,
            user: None,
        }
    }

    fn tls(cert: Option<&str>, key: Option<&str>) -> Option<EtcdTlsFiles> {
        Some(EtcdTlsFiles {
            ca: "ca".into(),
            cert: cert.map(Into::into),
            key: key.map(Into::into),
            server_name: None,
        })
    }

    #[test]
    fn what_cannot_work_is_told_with_what_to_do() {
        let told = |access: &EtcdAccess| match access.check() {
            Ok(()) => String::new(),
            Err((field, message)) => format!("{field}: {message}"),
        };
        assert_eq!(told(&access("http://127.0.0.1:2379")), "");
        assert_eq!(
            told(&access("https://etcd:2379")),
            "endpoints: \"https://etcd:2379\": TLS needs `store.etcd.tls: {ca: FILE}`, with `cert` and `key` where etcd asks for a certificate"
        );
        let with_tls = |endpoint, cert, key| EtcdAccess {
            tls: tls(cert, key),
            ..access(endpoint)
        };
        assert_eq!(told(&with_tls("https://etcd:2379", None, None)), "");
        assert_eq!(
            told(&with_tls("http://etcd:2379", None, None)),
            "endpoints: \"http://etcd:2379\": plain text, though there is `store.etcd.tls`: write https://"
        );
        assert_eq!(
            told(&with_tls("https://etcd:2379", Some("cert"), None)),
            "tls: `cert` and `key` belong together: name both, or none"
        );
        assert_eq!(
            told(&access("unix:/etcd")),
            "endpoints: \"unix:/etcd\": not of the form http://host:port"
        );
        assert_eq!(told(&access("etcd:2379")), "");
        assert_eq!(
            told(&access("127.0.0.1")),
            "endpoints: \"127.0.0.1\": not of the form http://host:port"
        );
        let none = EtcdAccess {
            endpoints: Vec::new(),
            ..access("")
        };
        assert_eq!(
            told(&none),
            "endpoints: empty: name at least one member, like http://127.0.0.1:2379"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewed_password_is_used_and_a_lost_one_stays() {
        const LONG: Duration = Duration::from_secs(60);
        let directory = tempfile::tempdir().unwrap();
        let password_file = directory.path().join("password");
        std::fs::write(&password_file, "first\n").unwrap();
        let access = EtcdAccess {
            user: Some(EtcdUserFile {
                name: "tidegate".to_owned(),
                password_file: password_file.clone(),
            }),
            ..access("http://127.0.0.1:2379")
        };
        let mut credentials = access.follow(|_| {}).unwrap().credentials;
        let password =
            |credentials: &EtcdCredentials| credentials.user.clone().map(|user| user.password);
        assert_eq!(password(&credentials.borrow()).as_deref(), Some("first"));
        std::fs::write(&password_file, "second").unwrap();
        timeout(LONG, credentials.changed()).await.unwrap().unwrap();
        assert_eq!(password(&credentials.borrow()).as_deref(), Some("second"));
        std::fs::write(&password_file, "\n").unwrap();
        let changed = timeout(LONG, credentials.changed()).await;
        assert!(changed.is_err(), "an empty file is no password");
        assert_eq!(password(&credentials.borrow()).as_deref(), Some("second"));
    }
}
