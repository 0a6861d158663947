//! `tidegate image`: the filter as an OCI image, for registries, `oci://` addresses and image
//! volumes.
//!
//! The image has one layer with one file, `plugin.wasm`, where Istio's agent and Envoy Gateway look
//! for it. It stands for each platform of [`ARCHITECTURES`], because a node asks for its own. The
//! same filter makes the same bytes.
//! Format: the OCI Image Layout Specification 1.0.0, and the OCI Image Format Specification 1.0.2.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use data_encoding::HEXLOWER;
use flate2::{Compression, GzBuilder};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use xds_server::admin::FilterModule;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Of nodes; the filter itself is the same on each.
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

const FILE: &str = "plugin.wasm";

/// The options of `tidegate image`.
#[derive(Args)]
pub(crate) struct ImageArgs {
    /// The filter: tidegate_filter.wasm.
    #[arg(long, value_name = "FILE")]
    filter: PathBuf,
    /// The directory of the OCI layout. It is created, and must be empty or missing.
    #[arg(long, value_name = "DIRECTORY")]
    to: PathBuf,
    /// The tag of the image.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
}

impl ImageArgs {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let filter = FilterModule::read(&self.filter)?;
        let layout = Layout::create(&self.to)?;
        let digest = layout.write(&filter, &self.tag)?;
        println!(
            "{}: image {} with {FILE} (sha256 {}), digest {digest}",
            self.to.display(),
            self.tag,
            filter.sha256()
        );
        Ok(())
    }
}

/// A directory in the OCI layout.
struct Layout<'d> {
    directory: &'d Path,
}

impl Layout<'_> {
    fn create(directory: &Path) -> anyhow::Result<Layout<'_>> {
        let name = || directory.display().to_string();
        fs::create_dir_all(directory).with_context(name)?;
        let is_empty = fs::read_dir(directory).with_context(name)?.next().is_none();
        anyhow::ensure!(
            is_empty,
            "{}: not empty; name a directory that is, or is not there",
            directory.display()
        );
        fs::create_dir_all(directory.join("blobs/sha256")).with_context(name)?;
        Ok(Layout { directory })
    }

    /// Writes the image; returns its digest.
    fn write(&self, filter: &FilterModule, tag: &str) -> anyhow::Result<String> {
        let tar = tar_of(filter.bytes())?;
        let layer = self.blob(LAYER, &gzip(&tar)?)?;
        let manifests = ARCHITECTURES.map(|architecture| {
            let config = json!({
                "architecture": architecture,
                "os": "linux",
                "config": {},
                "rootfs": { "type": "layers", "diff_ids": [sha256(&tar)] },
            });
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": self.blob(CONFIG, config.to_string().as_bytes())?,
                "layers": [layer],
            });
            let mut found = self.blob(MANIFEST, manifest.to_string().as_bytes())?;
            found["platform"] = json!({ "architecture": architecture, "os": "linux" });
            anyhow::Ok(found)
        });
        let manifests = manifests.into_iter().collect::<Result<Vec<_>, _>>()?;
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        let mut image = self.blob(INDEX, index.to_string().as_bytes())?;
        let digest = image["digest"].as_str().unwrap_or_default().to_owned();
        image["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [image] });
        self.file("index.json", index.to_string().as_bytes())?;
        self.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(digest)
    }

    /// Writes a blob under its digest; returns its descriptor.
    fn blob(&self, media_type: &str, bytes: &[u8]) -> anyhow::Result<Value> {
        let digest = sha256(bytes);
        self.file(&format!("blobs/{}", digest.replace(':', "/")), bytes)?;
        Ok(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
    }

    fn file(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, bytes).with_context(|| path.display().to_string())
    }
}

fn sha256(bytes: &[u8]) -> String {
    format!(
        "sha256:{}",
        HEXLOWER.encode(digest(&SHA256, bytes).as_ref())
    )
}

/// One file that everyone may read, without a time.
fn tar_of(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o444);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, FILE, bytes)?;
    tar.into_inner()
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
    io::Write::write_all(&mut gzip, bytes)?;
    gzip.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_holds_the_filter_for_each_platform() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("filter.wasm");
        fs::write(&file, b"\0asm\x01\0\0\0").unwrap();
        let filter = FilterModule::read(&file).unwrap();
        let to = directory.path().join("layout");
        let digest = Layout::create(&to).unwrap().write(&filter, "v1").unwrap();
        let read = |name: &str| fs::read(to.join(name)).unwrap();
        // Each blob is what its descriptor says.
        let blob = |of: &Value| {
            let digest = of["digest"].as_str().unwrap();
            let bytes = read(&format!("blobs/{}", digest.replace(':', "/")));
            assert_eq!(sha256(&bytes), digest);
            assert_eq!(of["size"], bytes.len());
            bytes
        };
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let top = json(&read("index.json"));
        let image = &top["manifests"][0];
        assert_eq!(image["digest"], digest);
        assert_eq!(
            image["annotations"]["org.opencontainers.image.ref.name"],
            "v1"
        );
        let index = json(&blob(image));
        for (at, architecture) in ARCHITECTURES.iter().enumerate() {
            let found = &index["manifests"][at];
            assert_eq!(found["platform"]["architecture"], *architecture);
            let manifest = json(&blob(found));
            let config = json(&blob(&manifest["config"]));
            let mut tar = vec![];
            let layer = blob(&manifest["layers"][0]);
            io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&layer[..]), &mut tar).unwrap();
            assert_eq!(config["rootfs"]["diff_ids"][0], sha256(&tar));
            let mut archive = tar::Archive::new(&tar[..]);
            let mut entries = archive.entries().unwrap();
            let mut entry = entries.next().unwrap().unwrap();
            assert_eq!(entry.path().unwrap(), Path::new(FILE));
            let mut bytes = vec![];
            io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            assert_eq!(bytes, filter.bytes());
        }
        // Never into files of others.
        assert!(Layout::create(&to).is_err());
    }
}
