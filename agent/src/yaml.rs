//! Configuration files: YAML, with errors that name file, line and field.

use std::fmt;

use serde::de::DeserializeOwned;

/// The most values that a file may have, with all that stands behind its aliases: half a million services or so.
const NODES_MAX: usize = 10_000_000;

/// Why a configuration was rejected: the place, and the change that it needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The file, as it was named to the reader.
    pub file: String,
    /// From 1; 0 where the fault has no place of its own.
    pub line: u64,
    /// For example `services[0].routes[1].prefix`; empty for the file as a whole.
    pub field: String,
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Parses `text`, which stands in `file`, as far as YAML and types go.
///
/// # Errors
///
/// No YAML, or not of this type; the error names line and field.
pub fn read<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, ConfigError> {
    if text.trim().is_empty() {
        return Err(ConfigError {
            file: file.to_owned(),
            line: 0,
            field: String::new(),
            message: "the file is empty".to_owned(),
        });
    }
    let mut field = String::new();
    // By default a file may have some 15,000 services.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_events: 2 * NODES_MAX, max_nodes: NODES_MAX },
    };
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options, |de| {
        serde_path_to_error::deserialize(de).map_err(|error| {
            // `Spanned` shows as a field of its own; no field of ours has that name.
            field = error.path().to_string().replace(".value", "");
            error.into_inner()
        })
    });
    read.map_err(|error: serde_saphyr::Error| ConfigError {
        file: file.to_owned(),
        line: error.location().map_or(0, |location| location.line()),
        // A key at which reading stopped is `?`, and no key at all `.`.
        field: field.trim_end_matches(['.', '?']).to_owned(),
        message: match error.without_snippet() {
            serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
                format!("the key {key:?} stands twice")
            }
            other => first_line(&other.to_string()),
        },
    })
}

/// The message alone: the place stands before it.
fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    line.split_once(" at line ")
        .map_or(line, |(text, _)| text)
        .to_owned()
}
