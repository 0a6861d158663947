//! The ABI that the module is built for.
//!
//! Envoy loads modules of any version, and only warns. Calls of another version would be undefined
//! behaviour, so the module refuses by itself.

use std::ffi::CStr;

/// Envoy 1.40's.
#[cfg(not(feature = "other-abi"))]
const ABI: &CStr = c"v0.2.0";
#[cfg(feature = "other-abi")]
const ABI: &CStr = c"v0.0.0";

/// The version of the ABI, if this Envoy has it. `found` is the version of Envoy's own module, where
/// it has one; `callbacks` names a callback that Envoy lacks.
///
/// # Errors
///
/// A line for Envoy's log: what differs, and what to do.
pub(crate) fn check(
    found: Option<&str>,
    callbacks: Result<(), impl AsRef<str>>,
) -> Result<&'static CStr, String> {
    let expected = ABI.to_string_lossy();
    let remedy = "use the module that was built for this Envoy, or the wasm filter";
    if let Some(found) = found.filter(|found| *found != expected) {
        return Err(format!(
            "tidegate is not loaded: this Envoy has the ABI {found} of dynamic modules, and the module is built for {expected} of Envoy 1.40: {remedy}"
        ));
    }
    if let Err(missing) = callbacks {
        return Err(format!(
            "tidegate is not loaded: this Envoy has no {}, a part of the ABI {expected} of Envoy 1.40 that the module is built for: {remedy}",
            missing.as_ref()
        ));
    }
    Ok(ABI)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Result<(), &str> = Ok(());

    #[test]
    fn the_pinned_abi_is_accepted_and_returned() {
        for found in [Some(ABI.to_str().unwrap()), None] {
            assert_eq!(check(found, ALL), Ok(ABI));
        }
    }

    #[test]
    fn another_version_is_refused_whatever_callbacks_it_has() {
        let refusal = check(Some("v0.9.0"), ALL).unwrap_err();
        assert!(
            refusal.contains("this Envoy has the ABI v0.9.0"),
            "{refusal}"
        );
        assert!(
            refusal.contains("use the module that was built"),
            "{refusal}"
        );
    }

    #[test]
    fn a_missing_callback_is_named() {
        let refusal = check(None, Err("envoy_dynamic_module_callback_x")).unwrap_err();
        assert!(
            refusal.contains("no envoy_dynamic_module_callback_x"),
            "{refusal}"
        );
    }
}
