//! The path of a request.

/// The path without query and fragment.
pub(crate) fn without_query(path: &[u8]) -> &[u8] {
    path.split(|b| matches!(b, b'?' | b'#'))
        .next()
        .unwrap_or_default()
}
