//! The filter's module, for meshes that fetch it by HTTP.

use std::{io, path::Path, sync::Arc};

use axum::{
    body::Bytes,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};

use super::{Admin, Problem};

/// The first bytes of a WebAssembly module.
const MAGIC: &[u8] = b"\0asm";

/// The filter as a WebAssembly module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FilterModule {
    bytes: Bytes,
    /// In hexadecimal digits.
    sha256: Arc<str>,
}

/// A file that is no filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterModuleError {
    #[error("{file} cannot be read: {error}")]
    Read { file: String, error: io::Error },
    #[error("{file} is no WebAssembly module: name `tidegate_filter.wasm`")]
    NotAModule { file: String },
}

impl FilterModule {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is no WebAssembly module.
    pub fn read(path: &Path) -> Result<FilterModule, FilterModuleError> {
        let file = || path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| FilterModuleError::Read {
            file: file(),
            error,
        })?;
        if !bytes.starts_with(MAGIC) {
            return Err(FilterModuleError::NotAModule { file: file() });
        }
        let sha256 = HEXLOWER.encode(digest(&SHA256, &bytes).as_ref());
        Ok(FilterModule {
            bytes: bytes.into(),
            sha256: sha256.into(),
        })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its SHA-256, in hexadecimal digits.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

fn served(admin: &Admin) -> Result<&FilterModule, Problem> {
    let missing =
        || Problem::not_found("this control plane serves no filter: start it with --filter FILE");
    admin.filter.as_ref().ok_or_else(missing)
}

/// `GET /filter.wasm`.
pub(super) async fn module(State(admin): State<Admin>) -> Result<Response, Problem> {
    let FilterModule { bytes, sha256 } = served(&admin)?;
    let headers = [
        (header::CONTENT_TYPE, "application/wasm".to_owned()),
        (header::ETAG, format!("\"{sha256}\"")),
    ];
    Ok((headers, bytes.clone()).into_response())
}

/// `GET /filter.wasm.sha256`.
pub(super) async fn checksum(State(admin): State<Admin>) -> Result<String, Problem> {
    let module = served(&admin)?;
    Ok(format!("{}  filter.wasm\n", module.sha256()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_module_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("filter.wasm");
        let told = || FilterModule::read(&file).unwrap_err().to_string();
        assert!(told().starts_with(&format!("{} cannot be read: ", file.display())));
        std::fs::write(&file, "<html>").unwrap();
        assert_eq!(
            told(),
            format!(
                "{} is no WebAssembly module: name `tidegate_filter.wasm`",
                file.display()
            )
        );
        // An empty module.
        std::fs::write(&file, b"\0asm\x01\0\0\0").unwrap();
        assert_eq!(
            FilterModule::read(&file).unwrap().sha256(),
            "93a44bbb96c751218e4c00d479e4c14358122a389acca16205b1e4d0dc5f9476"
        );
    }
}
