//! Credentials towards etcd, which are renewed while the control plane runs.

use std::sync::Arc;

use agent::etcd_access::{EtcdAccess, EtcdAccessError};
use registry::store::{EtcdCredentials, EtcdOptions};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    conditions::{Code, Found, Lasting},
    metrics::Metrics,
    net::tls::{ENDS_EVERY, End, Ending},
    wall_clock::unix_ms,
};

/// The conditions about the ends of certificates.
const ENDS: &[Code] = &[Code::StoreCertificateEnds];

/// The options to open etcd with; renewed files, and certificates that end, become conditions.
pub(crate) fn follow(
    access: &EtcdAccess,
    metrics: &Metrics,
) -> Result<EtcdOptions, EtcdAccessError> {
    let conditions = metrics.conditions.clone();
    let renewed = move |outcome: Result<(), &EtcdAccessError>| match outcome {
        Ok(()) => conditions.clear(Code::StoreCredentialsUnusable, ""),
        Err(error) => conditions.raise(Code::StoreCredentialsUnusable, "", error.to_string()),
    };
    let options = access.follow(renewed)?;
    if access.tls.is_some() {
        tokio::spawn(look_at_ends(options.credentials.clone(), metrics.clone()));
    }
    Ok(options)
}

async fn look_at_ends(mut credentials: watch::Receiver<Arc<EtcdCredentials>>, metrics: Metrics) {
    let mut lasting = Lasting::new(metrics.conditions.clone(), ENDS);
    let mut ticks = tokio::time::interval(ENDS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Ends with the store.
    while credentials.has_changed().is_ok() {
        ticks.tick().await;
        let present = Arc::clone(&credentials.borrow_and_update());
        lasting.look(judge_ends(&present, unix_ms() / 1_000), Instant::now());
    }
}

/// The certificates in use that have ended, or end soon.
fn judge_ends(credentials: &EtcdCredentials, now_s: u64) -> Vec<Found> {
    let tls = credentials.tls.iter();
    let files = tls.flat_map(|tls| {
        let own = tls
            .own
            .as_ref()
            .map(|(cert, _)| ("store.etcd.tls.cert", cert));
        own.into_iter().chain([("store.etcd.tls.ca", &tls.ca)])
    });
    let judge = |(file, pem): (&str, &Vec<u8>)| {
        let end = End::first_of(pem)?;
        let detail = match end.ending(now_s)? {
            Ending::Soon(left) => left,
            Ending::Ended => "has ended".to_owned(),
        };
        Some(Found::new(Code::StoreCertificateEnds, file, detail))
    };
    files.filter_map(judge).collect()
}

#[cfg(test)]
mod tests {
    use registry::store::EtcdTls;

    use super::*;

    #[test]
    fn a_certificate_towards_etcd_that_ends_is_found() {
        let key = rcgen::KeyPair::generate().unwrap();
        let until = |year| {
            let mut parameters = rcgen::CertificateParams::default();
            parameters.not_before = rcgen::date_time_ymd(2026, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
            parameters.self_signed(&key).unwrap().pem().into_bytes()
        };
        let credentials = EtcdCredentials {
            tls: Some(EtcdTls {
                ca: until(2036),
                own: Some((until(2027), key.serialize_pem().into_bytes())),
                server_name: None,
            }),
            user: None,
        };
        let found = |now_s| judge_ends(&credentials, now_s);
        let named = |now_s| -> Vec<(String, String)> {
            let all = found(now_s).into_iter();
            all.map(|found| (found.subject, found.detail)).collect()
        };
        const END_2026_S: u64 = 1_798_761_600;
        const DAY_S: u64 = 86_400;
        assert_eq!(named(END_2026_S - 20 * DAY_S), []);
        let cert = |detail: &str| [("store.etcd.tls.cert".to_owned(), detail.to_owned())];
        assert_eq!(named(END_2026_S - 2 * DAY_S), cert("in 2 d 0 h"));
        assert_eq!(named(END_2026_S + DAY_S), cert("has ended"));
    }
}
