//! One client of one member, signed in where etcd has users.
//!
//! etcd-client signs in while it connects, so it would fail while a member is down, and it asks for
//! another token after one error of several alone. So signing in is done here, with the first
//! request, and again whenever a member does not take the token.

use std::sync::Arc;

use etcd_client::{Client, ConnectOptions};
use tokio::sync::Mutex;

use super::members::Failure;
use super::{EtcdCredentials, EtcdUser};
use crate::causes::in_one_line;
use crate::store::StoreError;

pub(super) struct Link {
    credentials: Arc<EtcdCredentials>,
    client: Client,
    /// How often it signed in. The lock makes requests that need another token wait for one.
    sign_ins: Mutex<u64>,
}

impl Link {
    /// Does not wait for the connection: the first request opens it.
    pub(super) async fn new(
        endpoint: &str,
        options: ConnectOptions,
        credentials: &Arc<EtcdCredentials>,
    ) -> Result<Link, StoreError> {
        let options = match &credentials.tls {
            Some(tls) => options.with_tls(tls.options()),
            None => options,
        };
        let client = Client::connect([endpoint], Some(options)).await;
        let client = client.map_err(|error| {
            let error = in_one_line(&error);
            tracing::error!(endpoint, %error, "not the address of an etcd member, or unusable certificates");
            StoreError::Invalid {
                reason: "an etcd endpoint is not of the form http://host:port, or https://host:port with TLS, or the certificates for it cannot be used",
            }
        })?;
        Ok(Link {
            credentials: Arc::clone(credentials),
            client,
            sign_ins: Mutex::new(0),
        })
    }

    /// Whether it was made with these.
    pub(super) fn has(&self, credentials: &Arc<EtcdCredentials>) -> bool {
        Arc::ptr_eq(&self.credentials, credentials)
    }

    /// The client, which has a token if there is a user.
    pub(super) async fn signed_in(&self) -> Result<Client, Failure> {
        self.sign_in(0).await?;
        Ok(self.client.clone())
    }

    /// Sends a request, once more with another token if the member does not take the first one.
    pub(super) async fn call<T, R, F>(&self, request: R) -> Result<T, Failure>
    where
        R: Fn(Client) -> F,
        F: Future<Output = Result<T, Failure>>,
    {
        let sign_ins = self.sign_in(0).await?;
        match request(self.client.clone()).await {
            // It has done nothing, so that any request can be repeated.
            Err(Failure::SignedOut { .. }) if self.credentials.user.is_some() => {
                self.sign_in(sign_ins).await?;
                request(self.client.clone()).await
            }
            outcome => outcome,
        }
    }

    /// Signs in unless there is a newer token than `known`; returns how often it signed in.
    async fn sign_in(&self, known: u64) -> Result<u64, Failure> {
        let Some(EtcdUser { name, password }) = &self.credentials.user else {
            return Ok(0);
        };
        let mut sign_ins = self.sign_ins.lock().await;
        if *sign_ins > known {
            return Ok(*sign_ins);
        }
        let user = Some((name.clone(), password.clone()));
        match self.client.clone().update_user(user).await {
            // Authentication is switched off, and may be switched on later.
            Err(etcd_client::Error::GRpcStatus(status))
                if status.message().contains("authentication is not enabled") => {}
            signed_in => signed_in?,
        }
        *sign_ins += 1;
        Ok(*sign_ins)
    }
}
