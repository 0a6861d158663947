//! The distribution of hop keys: only to gateways that may be gateways of their zone, and to guests
//! that prove theirs.

use std::sync::Arc;

use policy::hop::Keys;
use tokio::sync::watch;

use crate::{
    access_rules::AccessRules,
    conditions::{Code, Conditions},
    config::{Mesh, PortConfig},
    net::access::Caller,
    snapshot::Role,
};

/// The keys of every future mesh.
#[derive(Clone)]
pub struct HopKeys {
    meshes: watch::Receiver<Arc<Mesh>>,
    rules: AccessRules,
}

/// The keys that were sent to one proxy.
pub(super) struct ToldKeys {
    keys: HopKeys,
    caller: Caller,
    zone: String,
    role: String,
    /// The last message to it; none before the first.
    told: Option<Option<Keys>>,
}

impl HopKeys {
    pub fn new(meshes: watch::Receiver<Arc<Mesh>>, rules: AccessRules) -> HopKeys {
        HopKeys { meshes, rules }
    }

    /// For a proxy with this claimed role.
    pub(super) fn told_to(&self, caller: &Caller, zone: &str, role: &str) -> ToldKeys {
        ToldKeys {
            keys: self.clone(),
            caller: caller.clone(),
            zone: zone.to_owned(),
            role: role.to_owned(),
            told: None,
        }
    }
}

impl ToldKeys {
    /// The next message to the proxy, if it differs from the previous one.
    pub(super) fn news(&mut self) -> Option<Option<Keys>> {
        let authority = self.keys.meshes.borrow_and_update().authority.clone();
        let keys = authority.and_then(|authority| authority.hop_keys);
        // The rules may have changed as well.
        let keys = keys.filter(|_| self.may_forward());
        if self.told.as_ref() == Some(&keys) {
            return None;
        }
        self.told = Some(keys.clone());
        Some(keys)
    }

    /// Ready when there may be an update; never if there cannot be one.
    pub(super) async fn changed(&mut self) {
        if self.keys.meshes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Gateways forward writes, and guests of a proven zone.
    fn may_forward(&self) -> bool {
        let rules = &self.keys.rules;
        let (caller, zone) = (&self.caller, self.zone.as_str());
        match Role::named(&self.role) {
            Some(Role::Gateway) => rules.rules().view(caller, zone, Role::Gateway).is_ok(),
            Some(Role::Guest) => rules.guest_grants(caller, zone).is_ok(),
            Some(Role::Sidecar | Role::Grpc) | None => false,
        }
    }
}

/// Sets a condition while any client may claim to be a gateway, and so receives the keys. It
/// receives them nevertheless, since such a client gets the policy and grants as well. Ends with
/// the meshes.
pub async fn watch_guard(
    mut meshes: watch::Receiver<Arc<Mesh>>,
    xds: PortConfig,
    conditions: Conditions,
) {
    loop {
        let detail = unguarded(&meshes.borrow_and_update(), xds);
        conditions.set(Code::HopKeysUnguarded, "", detail);
        if meshes.changed().await.is_err() {
            return;
        }
    }
}

/// The clients that may claim to be a gateway, if proxies are not authenticated.
fn unguarded(mesh: &Mesh, xds: PortConfig) -> Option<&'static str> {
    let authority = mesh.authority.as_ref();
    let signs = authority.is_some_and(|authority| authority.hop_keys.is_some());
    let is_local = xds.address.ip().to_canonical().is_loopback();
    if !signs || is_local || mesh.access.proxies.is_some() {
        return None;
    }
    Some(match xds.is_tls {
        true => "every client with a certificate of `listen.tls.client_ca`",
        false => "every client that reaches `listen.xds`, which is plaintext",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{net::access::Identity, testing};

    fn mesh(token: &str, rules: &str) -> Arc<Mesh> {
        let rest = format!(
            "listen: {{tls: {{cert: x, key: x, client_ca: x}}}}\nauthority: {{{token}}}\n{rules}\nservices: []"
        );
        Arc::new(testing::mesh("a/r", &rest))
    }

    fn named(uri: &str) -> Caller {
        Caller::Named(Arc::new(Identity {
            uris: vec![uri.to_owned()],
            ..Identity::default()
        }))
    }

    fn secrets(keys: Option<Option<Keys>>) -> Option<Vec<String>> {
        keys.map(|keys| {
            keys.iter()
                .flat_map(Keys::secrets)
                .map(str::to_owned)
                .collect()
        })
    }

    const ONE: &str = "forward_token: 0123456789abcdef";
    const TWO: &str = "forward_token: [abcdef0123456789, 0123456789abcdef]";
    const RULES: &str = "access: {proxies: [{match: 'spiffe://m/{zone}/gateway', roles: [gateway]}, {match: 'spiffe://m/{zone}/app', roles: [sidecar]}, {match: 'spiffe://shop/front', zones: [a], roles: [guest]}]}";

    #[test]
    fn only_a_gateway_that_may_be_one_is_told_and_again_when_they_change() {
        let (meshes, now) = watch::channel(mesh(ONE, RULES));
        let keys = HopKeys::new(now.clone(), AccessRules::new(now));
        let gateway = named("spiffe://m/a/gateway");
        let mut told = keys.told_to(&gateway, "a", "gateway");
        assert_eq!(secrets(told.news()), Some(vec!["0123456789abcdef".into()]));
        assert_eq!(secrets(told.news()), None);
        let front = named("spiffe://shop/front");
        let mut told = keys.told_to(&front, "a", "guest");
        assert_eq!(secrets(told.news()), Some(vec!["0123456789abcdef".into()]));
        let app = named("spiffe://m/a/app");
        for (caller, zone, role) in [
            // A sidecar, one that claims to be a gateway, gateways of other zones, and an unknown
            // one.
            (&app, "a", "sidecar"),
            (&app, "a", "gateway"),
            (&gateway, "b", "gateway"),
            (&gateway, "a", "sidecar"),
            (&gateway, "a", ""),
            (&gateway, "a", "guest"),
            (&front, "b", "guest"),
            (&front, "a", "gateway"),
            (&Caller::Plain, "a", "guest"),
            (&Caller::Plain, "a", "gateway"),
            (&Caller::Anonymous, "a", "gateway"),
        ] {
            let mut told = keys.told_to(caller, zone, role);
            assert_eq!(secrets(told.news()), Some(vec![]), "{caller} {zone} {role}");
            assert_eq!(secrets(told.news()), None);
        }
        meshes.send_replace(mesh(TWO, RULES));
        let both = ["abcdef0123456789", "0123456789abcdef"].map(String::from);
        assert_eq!(secrets(told.news()), Some(both.to_vec()));
        // A proxy that is no longer permitted receives an empty message.
        meshes.send_replace(mesh(
            TWO,
            "access: {proxies: [{match: 'spiffe://m/{zone}/other'}]}",
        ));
        assert_eq!(secrets(told.news()), Some(vec![]));
    }

    #[tokio::test]
    async fn keys_for_any_client_that_says_gateway_are_a_condition() {
        let port = |address: &str, is_tls| PortConfig {
            address: address.parse().unwrap(),
            is_tls,
        };
        let public = port("10.0.0.1:18000", true);
        let open = mesh(ONE, "");
        let detail = unguarded(&open, public).unwrap();
        assert!(detail.contains("client_ca"), "{detail}");
        let plain = unguarded(&open, port("[::]:18000", false)).unwrap();
        assert!(plain.contains("plaintext"), "{plain}");
        for loopback in ["127.0.0.1:18000", "[::1]:18000", "[::ffff:127.0.0.1]:18000"] {
            assert_eq!(unguarded(&open, port(loopback, false)), None, "{loopback}");
        }

        let (meshes, now) = watch::channel(open);
        let conditions = Conditions::new();
        tokio::spawn(watch_guard(now, public, conditions.clone()));
        conditions.until(Code::HopKeysUnguarded, true).await;
        meshes.send_replace(mesh(ONE, RULES));
        conditions.until(Code::HopKeysUnguarded, false).await;
        meshes.send_replace(mesh(ONE, ""));
        conditions.until(Code::HopKeysUnguarded, true).await;
        // No hop is signed.
        meshes.send_replace(mesh("", ""));
        conditions.until(Code::HopKeysUnguarded, false).await;
    }
}
