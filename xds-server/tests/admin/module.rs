//! The filter that a control plane serves.

use xds_server::{admin::FilterModule, net::access::Caller};

use super::Fixture;

/// An empty module.
const MODULE: &[u8] = b"\0asm\x01\0\0\0";

#[tokio::test]
async fn everyone_gets_the_filter_and_its_checksum() {
    let mut fixture = Fixture::start("").await;
    for path in ["/filter.wasm", "/filter.wasm.sha256"] {
        let told = fixture.ask("GET", path, "").await.is(404);
        assert!(told.problem().1.contains("--filter FILE"), "{}", told.body);
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), MODULE).expect("a module");
    let filter = FilterModule::read(file.path()).expect("a module");
    let sum = format!("{}  filter.wasm\n", filter.sha256());
    fixture.admin.filter = Some(filter);
    // Without a certificate, too.
    let get = |path| fixture.send(Caller::Anonymous, "GET", path, &[], "");
    let served = get("/filter.wasm").await.is(200);
    assert_eq!(served.body, String::from_utf8_lossy(MODULE).as_ref());
    assert_eq!(get("/filter.wasm.sha256").await.is(200).body, sum.as_str());
}
