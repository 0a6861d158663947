//! Envoy's ABI of dynamic modules, by hand: the callbacks that the module calls, and in [`hooks`]
//! those that Envoy calls. All of the module's `unsafe` code is here.
//!
//! Names and signatures are those of Envoy's `abi.h`. The callbacks are looked up when the module is
//! loaded, and an Envoy that lacks one is refused: linked as usual, the first call of a missing one
//! would end the process.
//!
//! No panic crosses the ABI: each hook catches it, and gives an answer that lets no write pass.
#![allow(unsafe_code, reason = "the ABI is raw pointers")]

use std::{
    ffi::{CStr, c_char, c_void},
    marker::PhantomData,
    mem, ptr, slice,
    sync::OnceLock,
};

use filter_core::{header_map, metrics::Kind};

mod hooks;

/// Bytes of the module.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Bytes {
    ptr: *const c_char,
    length: usize,
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Bytes {
        Bytes {
            ptr: bytes.as_ptr().cast(),
            length: bytes.len(),
        }
    }
}

/// Bytes of Envoy.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct EnvoyBytes {
    ptr: *const c_char,
    length: usize,
}

impl EnvoyBytes {
    const NONE: EnvoyBytes = EnvoyBytes {
        ptr: ptr::null(),
        length: 0,
    };

    /// # Safety
    ///
    /// It must be as Envoy gave it, and live for `'b`.
    unsafe fn as_slice<'b>(self) -> &'b [u8] {
        // SAFETY: as the caller promises.
        unsafe { bytes_at(self.ptr, self.length) }
    }
}

/// # Safety
///
/// Null, or that many bytes that nobody changes for `'b`.
unsafe fn bytes_at<'b>(ptr: *const c_char, length: usize) -> &'b [u8] {
    if ptr.is_null() {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { slice::from_raw_parts(ptr.cast(), length) }
}

/// A header, of the module or of Envoy.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Header {
    name: *const c_char,
    name_length: usize,
    value: *const c_char,
    value_length: usize,
}

impl Header {
    const NONE: Header = Header {
        name: ptr::null(),
        name_length: 0,
        value: ptr::null(),
        value_length: 0,
    };

    fn of((name, value): &(&str, &str)) -> Header {
        Header {
            name: name.as_ptr().cast(),
            name_length: name.len(),
            value: value.as_ptr().cast(),
            value_length: value.len(),
        }
    }

    /// # Safety
    ///
    /// It must be as Envoy gave it, and live for `'b`.
    unsafe fn as_slices<'b>(self) -> (&'b [u8], &'b [u8]) {
        // SAFETY: as the caller promises.
        unsafe {
            (
                bytes_at(self.name, self.name_length),
                bytes_at(self.value, self.value_length),
            )
        }
    }
}

const REQUEST_HEADERS: u32 = 0;
const SUCCESS: u32 = 0;
/// `response.code_details` and `response.flags`, in the order of `abi.h`.
const RESPONSE_CODE_DETAILS: u32 = 16;
const RESPONSE_FLAGS: u32 = 17;

type Envoy = *mut c_void;

macro_rules! callbacks {
    ($($field:ident: $name:literal ($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The callbacks that the module calls.
        struct Callbacks {
            $($field: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Callbacks {
            /// Finds all of them.
            ///
            /// # Errors
            ///
            /// The name of the first that is missing.
            ///
            /// # Safety
            ///
            /// What is found must have the signature that the ABI gives to its name.
            unsafe fn find(
                lookup: impl Fn(&CStr) -> *mut c_void,
            ) -> Result<Callbacks, &'static CStr> {
                Ok(Callbacks {
                    $($field: {
                        let found = lookup($name);
                        if found.is_null() {
                            return Err($name);
                        }
                        // SAFETY: a function of this signature, as the caller promises.
                        unsafe {
                            mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument),*) $(-> $result)?,
                            >(found)
                        }
                    },)*
                })
            }
        }
    };
}

callbacks! {
    log: c"envoy_dynamic_module_callback_log"(u32, Bytes);
    is_validation_mode: c"envoy_dynamic_module_callback_is_validation_mode"() -> bool;
    define_counter: c"envoy_dynamic_module_callback_http_filter_config_define_counter"
        (Envoy, Bytes, *const Bytes, usize, *mut usize) -> u32;
    define_gauge: c"envoy_dynamic_module_callback_http_filter_config_define_gauge"
        (Envoy, Bytes, *const Bytes, usize, *mut usize) -> u32;
    config_increment: c"envoy_dynamic_module_callback_http_filter_config_increment_counter"
        (Envoy, usize, *const Bytes, usize, u64) -> u32;
    config_set_gauge: c"envoy_dynamic_module_callback_http_filter_config_set_gauge"
        (Envoy, usize, *const Bytes, usize, u64) -> u32;
    increment: c"envoy_dynamic_module_callback_http_filter_increment_counter"
        (Envoy, usize, *const Bytes, usize, u64) -> u32;
    config_scheduler_new: c"envoy_dynamic_module_callback_http_filter_config_scheduler_new"
        (Envoy) -> *mut c_void;
    config_scheduler_commit: c"envoy_dynamic_module_callback_http_filter_config_scheduler_commit"
        (*mut c_void, u64);
    config_scheduler_delete: c"envoy_dynamic_module_callback_http_filter_config_scheduler_delete"
        (*mut c_void);
    scheduler_new: c"envoy_dynamic_module_callback_http_filter_scheduler_new"
        (Envoy) -> *mut c_void;
    scheduler_commit: c"envoy_dynamic_module_callback_http_filter_scheduler_commit"
        (*mut c_void, u64);
    scheduler_delete: c"envoy_dynamic_module_callback_http_filter_scheduler_delete"
        (*mut c_void);
    start_stream: c"envoy_dynamic_module_callback_http_filter_config_start_http_stream"
        (Envoy, *mut u64, Bytes, *const Header, usize, Bytes, bool, u64) -> u32;
    send_data: c"envoy_dynamic_module_callback_http_filter_config_stream_send_data"
        (Envoy, u64, Bytes, bool) -> bool;
    reset_stream: c"envoy_dynamic_module_callback_http_filter_config_reset_http_stream"
        (Envoy, u64);
    headers_size: c"envoy_dynamic_module_callback_http_get_headers_size"(Envoy, u32) -> usize;
    headers: c"envoy_dynamic_module_callback_http_get_headers"(Envoy, u32, *mut Header) -> bool;
    set_header: c"envoy_dynamic_module_callback_http_set_header"
        (Envoy, u32, Bytes, Bytes) -> bool;
    clear_route_cache: c"envoy_dynamic_module_callback_http_clear_route_cache"(Envoy);
    send_response: c"envoy_dynamic_module_callback_http_send_response"
        (Envoy, u32, *const Header, usize, Bytes, Bytes);
    attribute_text: c"envoy_dynamic_module_callback_http_filter_get_attribute_string"
        (Envoy, u32, *mut EnvoyBytes) -> bool;
    attribute_number: c"envoy_dynamic_module_callback_http_filter_get_attribute_int"
        (Envoy, u32, *mut u64) -> bool;
}

static CALLBACKS: OnceLock<Callbacks> = OnceLock::new();

/// None before the module is accepted; then Envoy calls no other hook.
fn callbacks() -> Option<&'static Callbacks> {
    CALLBACKS.get()
}

fn symbol(name: &CStr) -> *mut c_void {
    // SAFETY: the name ends with a zero byte.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

/// The version of this Envoy's ABI: that of the module that is a part of it. None where Envoy has no
/// such module.
fn envoys_version() -> Option<String> {
    let init = symbol(c"hickory_dns_static_envoy_dynamic_module_on_program_init");
    if init.is_null() {
        return None;
    }
    // SAFETY: the hook of a module that is linked into Envoy. It registers the module's types, and
    // may be called again.
    let version = unsafe {
        let init = mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *const c_char>(init);
        init()
    };
    if version.is_null() {
        return None;
    }
    // SAFETY: the hook returns a static text that ends with a zero byte.
    let version = unsafe { CStr::from_ptr(version) };
    Some(version.to_string_lossy().into_owned())
}

/// Writes a line to Envoy's log.
pub(crate) fn log(level: LogLevel, line: &str) {
    if let Some(callbacks) = callbacks() {
        // SAFETY: Envoy only reads the bytes, during the call.
        unsafe { (callbacks.log)(level as u32, line.as_bytes().into()) };
    }
}

/// As Envoy numbers them.
#[derive(Clone, Copy)]
pub(crate) enum LogLevel {
    Info = 2,
    Warn = 3,
    Error = 4,
}

/// Whether Envoy only checks a configuration. To be asked on the main thread.
pub(crate) fn only_validates() -> bool {
    // SAFETY: no pointers.
    callbacks().is_none_or(|callbacks| unsafe { (callbacks.is_validation_mode)() })
}

/// A configuration of the filter in Envoy, during one of its hooks, all of which run on the main
/// thread.
#[derive(Clone, Copy)]
pub(crate) struct EnvoyConfig<'h>(Envoy, PhantomData<&'h ()>);

impl EnvoyConfig<'_> {
    /// Only while the configuration is made.
    pub(crate) fn define(self, kind: Kind, name: &str) -> Option<usize> {
        let callbacks = callbacks()?;
        let define = match kind {
            Kind::Counter => callbacks.define_counter,
            Kind::Gauge => callbacks.define_gauge,
        };
        let mut id = 0;
        // SAFETY: Envoy's own pointer; the others live through the call.
        let result = unsafe { define(self.0, name.as_bytes().into(), ptr::null(), 0, &mut id) };
        (result == SUCCESS).then_some(id)
    }

    pub(crate) fn count(self, id: usize, by: u64) {
        if let Some(callbacks) = callbacks() {
            // SAFETY: Envoy's own pointer, and no labels.
            unsafe { (callbacks.config_increment)(self.0, id, ptr::null(), 0, by) };
        }
    }

    pub(crate) fn record(self, id: usize, value: u64) {
        if let Some(callbacks) = callbacks() {
            // SAFETY: Envoy's own pointer, and no labels.
            unsafe { (callbacks.config_set_gauge)(self.0, id, ptr::null(), 0, value) };
        }
    }

    pub(crate) fn scheduler(self) -> Option<ConfigScheduler> {
        // SAFETY: Envoy's own pointer.
        let scheduler = unsafe { (callbacks()?.config_scheduler_new)(self.0) };
        (!scheduler.is_null()).then_some(ConfigScheduler(scheduler))
    }

    /// Starts a stream to a cluster, without a time limit if `timeout_ms` is 0. It is not ended
    /// where it `is_open`.
    pub(crate) fn start_stream(
        self,
        cluster: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        is_open: bool,
        timeout_ms: u64,
    ) -> Option<u64> {
        let headers: Vec<Header> = headers.iter().map(Header::of).collect();
        let mut id = 0;
        // SAFETY: Envoy's own pointer; the others live through the call, in which Envoy copies
        // their bytes.
        let result = unsafe {
            (callbacks()?.start_stream)(
                self.0,
                &mut id,
                cluster.as_bytes().into(),
                headers.as_ptr(),
                headers.len(),
                body.into(),
                !is_open,
                timeout_ms,
            )
        };
        (result == SUCCESS).then_some(id)
    }

    pub(crate) fn send(self, stream: u64, data: &[u8]) -> bool {
        // SAFETY: Envoy's own pointer; Envoy copies the bytes during the call.
        callbacks().is_some_and(|callbacks| unsafe {
            (callbacks.send_data)(self.0, stream, data.into(), false)
        })
    }

    pub(crate) fn reset(self, stream: u64) {
        if let Some(callbacks) = callbacks() {
            // SAFETY: Envoy's own pointer. A stream that is no more is ignored.
            unsafe { (callbacks.reset_stream)(self.0, stream) };
        }
    }
}

/// A request in Envoy, during one of its hooks, all of which run on its worker.
#[derive(Clone, Copy)]
pub(crate) struct EnvoyStream<'h>(Envoy, PhantomData<&'h ()>);

impl EnvoyStream<'_> {
    /// The request's headers, encoded as [`header_map`] says: a copy, since Envoy's own are gone
    /// once one is set.
    pub(crate) fn headers(self) -> Option<Vec<u8>> {
        let callbacks = callbacks()?;
        // SAFETY: Envoy's own pointer.
        let count = unsafe { (callbacks.headers_size)(self.0, REQUEST_HEADERS) };
        let mut headers = vec![Header::NONE; count];
        // SAFETY: there is room for as many headers as Envoy has said.
        if !unsafe { (callbacks.headers)(self.0, REQUEST_HEADERS, headers.as_mut_ptr()) } {
            return None;
        }
        // SAFETY: Envoy has filled them all, and no header is set before they are copied.
        let pairs = headers.iter().map(|header| unsafe { header.as_slices() });
        header_map::encode_all(pairs)
    }

    pub(crate) fn set_header(self, name: &[u8], value: &[u8]) -> bool {
        self.replace_header(name, value.into())
    }

    pub(crate) fn remove_header(self, name: &[u8]) -> bool {
        let none = Bytes {
            ptr: ptr::null(),
            length: 0,
        };
        self.replace_header(name, none)
    }

    fn replace_header(self, name: &[u8], value: Bytes) -> bool {
        // SAFETY: Envoy's own pointer; Envoy copies the bytes during the call.
        callbacks().is_some_and(|callbacks| unsafe {
            (callbacks.set_header)(self.0, REQUEST_HEADERS, name.into(), value)
        })
    }

    /// Has Envoy match routes again.
    pub(crate) fn clear_route_cache(self) {
        if let Some(callbacks) = callbacks() {
            // SAFETY: Envoy's own pointer.
            unsafe { (callbacks.clear_route_cache)(self.0) };
        }
    }

    /// Answers the request. Envoy may call other hooks of the request meanwhile, even the one that
    /// destroys its filter.
    pub(crate) fn respond(self, status: u16, headers: &[(&str, &str)], body: &str, details: &str) {
        let headers: Vec<Header> = headers.iter().map(Header::of).collect();
        if let Some(callbacks) = callbacks() {
            // SAFETY: Envoy's own pointer; Envoy copies the bytes during the call.
            unsafe {
                (callbacks.send_response)(
                    self.0,
                    status.into(),
                    headers.as_ptr(),
                    headers.len(),
                    body.as_bytes().into(),
                    details.as_bytes().into(),
                );
            }
        }
    }

    pub(crate) fn count(self, id: usize, by: u64) {
        if let Some(callbacks) = callbacks() {
            // SAFETY: Envoy's own pointer, and no labels.
            unsafe { (callbacks.increment)(self.0, id, ptr::null(), 0, by) };
        }
    }

    pub(crate) fn scheduler(self) -> Option<StreamScheduler> {
        // SAFETY: Envoy's own pointer.
        let scheduler = unsafe { (callbacks()?.scheduler_new)(self.0) };
        (!scheduler.is_null()).then_some(StreamScheduler(scheduler))
    }

    pub(crate) fn response_code_details(self) -> Option<Vec<u8>> {
        let mut text = EnvoyBytes::NONE;
        // SAFETY: Envoy's own pointer, and a local that lives through the call.
        let found =
            unsafe { (callbacks()?.attribute_text)(self.0, RESPONSE_CODE_DETAILS, &mut text) };
        // SAFETY: as Envoy gave it, for the rest of the hook.
        found.then(|| unsafe { text.as_slice() }.to_vec())
    }

    pub(crate) fn response_flags(self) -> Option<u64> {
        let mut flags = 0;
        // SAFETY: Envoy's own pointer, and a local that lives through the call.
        let found = unsafe { (callbacks()?.attribute_number)(self.0, RESPONSE_FLAGS, &mut flags) };
        found.then_some(flags)
    }
}

/// Has Envoy call a hook of a configuration on the main thread, from any thread.
pub(crate) struct ConfigScheduler(*mut c_void);

// SAFETY: Envoy allows all three calls on any thread.
unsafe impl Send for ConfigScheduler {}
// SAFETY: as above; a call only reads the scheduler.
unsafe impl Sync for ConfigScheduler {}

impl ConfigScheduler {
    /// Not after the configuration was destroyed: Envoy's main loop may be gone then.
    pub(crate) fn commit(&self) {
        if let Some(callbacks) = callbacks() {
            // SAFETY: it is deleted when it is dropped, and not before.
            unsafe { (callbacks.config_scheduler_commit)(self.0, 0) };
        }
    }
}

impl Drop for ConfigScheduler {
    fn drop(&mut self) {
        if let Some(callbacks) = callbacks() {
            // SAFETY: nobody has it any more.
            unsafe { (callbacks.config_scheduler_delete)(self.0) };
        }
    }
}

/// Has Envoy call a hook of a request on its worker, from any thread. Nothing happens where the
/// request is gone.
pub(crate) struct StreamScheduler(*mut c_void);

// SAFETY: Envoy allows all three calls on any thread.
unsafe impl Send for StreamScheduler {}

impl StreamScheduler {
    pub(crate) fn commit(&self) {
        if let Some(callbacks) = callbacks() {
            // SAFETY: it is deleted when it is dropped, and not before.
            unsafe { (callbacks.scheduler_commit)(self.0, 0) };
        }
    }
}

impl Drop for StreamScheduler {
    fn drop(&mut self) {
        if let Some(callbacks) = callbacks() {
            // SAFETY: nobody has it any more.
            unsafe { (callbacks.scheduler_delete)(self.0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn any() {}

    #[test]
    fn a_callback_that_envoy_lacks_is_named() {
        let all = |_: &CStr| any as extern "C" fn() as *mut c_void;
        // SAFETY: none of them is called.
        assert!(unsafe { Callbacks::find(all) }.is_ok());
        let name = c"envoy_dynamic_module_callback_http_get_headers";
        let others = |wanted: &CStr| match wanted == name {
            true => ptr::null_mut(),
            false => all(wanted),
        };
        // SAFETY: as above.
        assert_eq!(unsafe { Callbacks::find(others) }.err(), Some(name));
    }
}
