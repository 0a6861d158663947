//! The hooks that Envoy calls.

use std::{
    ffi::c_char,
    marker::PhantomData,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr, slice,
    sync::Arc,
};

use super::{
    CALLBACKS, Callbacks, Envoy, EnvoyBytes, EnvoyConfig, EnvoyStream, Header, LogLevel,
    envoys_version, log, symbol,
};
use crate::{
    module::{self, Context},
    requests::{self, Filter, Then},
    version,
};

/// The order of these numbers is Envoy's, for headers.
const CONTINUE: u32 = 0;
const STOP_ITERATION: u32 = 1;
/// For a body: no more of it, and none is kept.
const STOP_AND_DROP: u32 = 3;

/// Runs a hook. A panic gives `otherwise`.
fn guarded<T>(hook: &str, otherwise: T, act: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or_else(|panic| {
        log(
            LogLevel::Error,
            &format!("a panic in {hook}: please report it"),
        );
        // Its destructor might panic again.
        mem::forget(panic);
        otherwise
    })
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_program_init() -> *const c_char {
    guarded("on_program_init", ptr::null(), || {
        // SAFETY: in Envoy's process these names are those of the ABI.
        let found = unsafe { Callbacks::find(symbol) };
        let missing = found.as_ref().map(drop);
        let missing = missing.map_err(|name| name.to_string_lossy());
        match version::check(envoys_version().as_deref(), missing) {
            Ok(version) => {
                if let Ok(found) = found {
                    CALLBACKS.get_or_init(|| found);
                }
                version.as_ptr()
            }
            Err(refusal) => {
                // Not by a callback, which might be another one in this Envoy.
                eprintln!("{refusal}");
                ptr::null()
            }
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_new(
    config: Envoy,
    _name: EnvoyBytes,
    bytes: EnvoyBytes,
) -> *const Context {
    guarded("on_http_filter_config_new", ptr::null(), || {
        // SAFETY: Envoy's bytes live through the hook.
        let bytes = unsafe { bytes.as_slice() };
        match module::configure(EnvoyConfig(config, PhantomData), bytes) {
            Some(context) => Arc::into_raw(context),
            None => ptr::null(),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_destroy(context: *const Context) {
    guarded("on_http_filter_config_destroy", (), || {
        // SAFETY: made by `Arc::into_raw` in the hook above, and Envoy gives it back once.
        module::removed(&unsafe { Arc::from_raw(context) });
    });
}

/// Runs a hook of a configuration.
///
/// # Safety
///
/// Envoy calls the hook with its own pointer and with that of the module, which lives until it is
/// destroyed.
unsafe fn on_config(
    hook: &str,
    config: Envoy,
    context: *const Context,
    act: impl FnOnce(EnvoyConfig<'_>, &Context),
) {
    guarded(hook, (), || {
        // SAFETY: as the caller promises.
        if let Some(context) = unsafe { context.as_ref() } {
            act(EnvoyConfig(config, PhantomData), context);
        }
    });
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_scheduled(
    config: Envoy,
    context: *const Context,
    _event: u64,
) {
    // SAFETY: Envoy's hook.
    unsafe { on_config("on_tick", config, context, module::on_tick) };
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_http_stream_headers(
    config: Envoy,
    context: *const Context,
    stream: u64,
    headers: *const Header,
    count: usize,
    _end_of_stream: bool,
) {
    // SAFETY: Envoy's hook.
    unsafe {
        on_config("on_stream_headers", config, context, |config, context| {
            module::on_stream_headers(config, context, stream, &pairs(headers, count));
        });
    }
}

/// # Safety
///
/// Null, or that many headers of Envoy that live for `'b`.
unsafe fn pairs<'b>(headers: *const Header, count: usize) -> Vec<(&'b [u8], &'b [u8])> {
    if headers.is_null() {
        return vec![];
    }
    // SAFETY: as the caller promises.
    let headers = unsafe { slice::from_raw_parts(headers, count) };
    // SAFETY: as the caller promises.
    let pairs = headers.iter().map(|header| unsafe { header.as_slices() });
    pairs.collect()
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_http_stream_data(
    config: Envoy,
    context: *const Context,
    stream: u64,
    data: *const EnvoyBytes,
    count: usize,
    _end_of_stream: bool,
) {
    // SAFETY: Envoy's hook, with that many buffers that live through it.
    unsafe {
        on_config("on_stream_data", config, context, |config, context| {
            if data.is_null() {
                return;
            }
            for piece in slice::from_raw_parts(data, count) {
                module::on_stream_data(config, context, stream, piece.as_slice());
            }
            module::settle(config, context);
        });
    }
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_http_stream_trailers(
    config: Envoy,
    context: *const Context,
    stream: u64,
    trailers: *const Header,
    count: usize,
) {
    // SAFETY: Envoy's hook.
    unsafe {
        on_config("on_stream_trailers", config, context, |_, context| {
            module::on_stream_trailers(context, stream, &pairs(trailers, count));
        });
    }
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_http_stream_complete(
    config: Envoy,
    context: *const Context,
    stream: u64,
) {
    // SAFETY: Envoy's hook.
    unsafe {
        on_config("on_stream_complete", config, context, |config, context| {
            module::on_stream_over(config, context, stream);
        });
    }
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_config_http_stream_reset(
    config: Envoy,
    context: *const Context,
    stream: u64,
    _reason: u32,
) {
    // SAFETY: Envoy's hook.
    unsafe {
        on_config("on_stream_reset", config, context, |config, context| {
            module::on_stream_over(config, context, stream);
        });
    }
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_new(
    context: *const Context,
    _stream: Envoy,
) -> *mut Filter {
    guarded("on_http_filter_new", ptr::null_mut(), || {
        // SAFETY: the configuration lives as long as its filters. The count that is raised is the
        // filter's own.
        let context = unsafe {
            Arc::increment_strong_count(context);
            Arc::from_raw(context)
        };
        Box::into_raw(Box::new(Filter::new(context)))
    })
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_destroy(filter: *mut Filter) {
    guarded("on_http_filter_destroy", (), || {
        // SAFETY: made by `Box::into_raw` in the hook above, and Envoy gives it back once.
        requests::destroyed(*unsafe { Box::from_raw(filter) });
    });
}

/// Runs a hook of a request on its filter, and then what is left to do when the filter is not in use
/// any more: Envoy may destroy it meanwhile.
///
/// # Safety
///
/// Envoy calls the hook with its own pointer and with that of the module, which lives until it is
/// destroyed; it calls the hooks of a request on one thread, and nothing that `act` calls leads to
/// another one.
unsafe fn on_filter(
    hook: &str,
    stream: Envoy,
    filter: *mut Filter,
    act: impl FnOnce(EnvoyStream<'_>, &mut Filter) -> Then,
) -> Then {
    let stream = EnvoyStream(stream, PhantomData);
    let then = guarded(hook, Then::Refuse, || {
        // SAFETY: as the caller promises.
        unsafe { filter.as_mut() }.map_or(Then::Refuse, |filter| act(stream, filter))
    });
    guarded(hook, (), || requests::finish(&then, stream));
    then
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_request_headers(
    stream: Envoy,
    filter: *mut Filter,
    end_of_stream: bool,
) -> u32 {
    // SAFETY: Envoy's hook.
    let then = unsafe {
        on_filter("on_request_headers", stream, filter, |stream, filter| {
            requests::on_headers(stream, filter, end_of_stream)
        })
    };
    match then {
        Then::Continue => CONTINUE,
        _ => STOP_ITERATION,
    }
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_request_body(
    _stream: Envoy,
    filter: *mut Filter,
    end_of_stream: bool,
) -> u32 {
    guarded("on_request_body", STOP_AND_DROP, || {
        // SAFETY: Envoy's hook; nothing else uses the filter meanwhile.
        match unsafe { filter.as_mut() }.map(|filter| filter.goes_on(end_of_stream)) {
            Some(true) => CONTINUE,
            Some(false) | None => STOP_AND_DROP,
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_request_trailers(
    _stream: Envoy,
    filter: *mut Filter,
) -> u32 {
    guarded("on_request_trailers", STOP_ITERATION, || {
        // SAFETY: Envoy's hook; nothing else uses the filter meanwhile.
        match unsafe { filter.as_mut() }.map(|filter| filter.goes_on(true)) {
            Some(true) => CONTINUE,
            Some(false) | None => STOP_ITERATION,
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_scheduled(
    stream: Envoy,
    filter: *mut Filter,
    _event: u64,
) {
    // SAFETY: Envoy's hook.
    unsafe {
        on_filter("on_scheduled", stream, filter, |_, filter| {
            requests::on_answer(filter)
        })
    };
}

#[unsafe(no_mangle)]
extern "C" fn envoy_dynamic_module_on_http_filter_stream_complete(
    stream: Envoy,
    filter: *mut Filter,
) {
    let stream = EnvoyStream(stream, PhantomData);
    guarded("on_stream_complete", (), || {
        // SAFETY: Envoy's hook; nothing else uses the filter meanwhile.
        if let Some(filter) = unsafe { filter.as_mut() } {
            requests::over(stream, filter);
        }
    });
}

/// Hooks that Envoy demands, and of which the module makes no use.
macro_rules! unused {
    ($($name:ident($($argument:ty),*) $(-> $result:ty = $value:expr)?;)*) => {
        $(#[unsafe(no_mangle)]
        extern "C" fn $name($(_: $argument),*) $(-> $result)? {
            $($value)?
        })*
    };
}

unused! {
    envoy_dynamic_module_on_http_filter_response_headers(Envoy, *mut Filter, bool)
        -> u32 = CONTINUE;
    envoy_dynamic_module_on_http_filter_response_body(Envoy, *mut Filter, bool)
        -> u32 = CONTINUE;
    envoy_dynamic_module_on_http_filter_response_trailers(Envoy, *mut Filter)
        -> u32 = CONTINUE;
    envoy_dynamic_module_on_http_filter_http_callout_done
        (Envoy, *mut Filter, u64, u32, *const Header, usize, *const EnvoyBytes, usize);
    envoy_dynamic_module_on_http_filter_http_stream_headers
        (Envoy, *mut Filter, u64, *const Header, usize, bool);
    envoy_dynamic_module_on_http_filter_http_stream_data
        (Envoy, *mut Filter, u64, *const EnvoyBytes, usize, bool);
    envoy_dynamic_module_on_http_filter_http_stream_trailers
        (Envoy, *mut Filter, u64, *const Header, usize);
    envoy_dynamic_module_on_http_filter_http_stream_complete(Envoy, *mut Filter, u64);
    envoy_dynamic_module_on_http_filter_http_stream_reset(Envoy, *mut Filter, u64, u32);
    envoy_dynamic_module_on_http_filter_downstream_above_write_buffer_high_watermark
        (Envoy, *mut Filter);
    envoy_dynamic_module_on_http_filter_downstream_below_write_buffer_low_watermark
        (Envoy, *mut Filter);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_at_the_hook_and_lets_nothing_pass() {
        let hook = |stops| {
            guarded("a test", STOP_ITERATION, || match stops {
                true => panic!("a fault"),
                false => CONTINUE,
            })
        };
        assert_eq!((hook(false), hook(true)), (CONTINUE, STOP_ITERATION));
    }

    #[test]
    fn a_request_without_a_filter_is_stopped() {
        let (stream, filter) = (ptr::null_mut(), ptr::null_mut());
        let headers = envoy_dynamic_module_on_http_filter_request_headers(stream, filter, true);
        assert_eq!(headers, STOP_ITERATION);
        let body = envoy_dynamic_module_on_http_filter_request_body(stream, filter, true);
        assert_eq!(body, STOP_AND_DROP);
        let trailers = envoy_dynamic_module_on_http_filter_request_trailers(stream, filter);
        assert_eq!(trailers, STOP_ITERATION);
    }
}
