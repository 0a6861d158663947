//! The calls into the proxy. The only `unsafe` code of Tidegate that ships.
//!
//! Why not `proxy_wasm::hostcalls`: its functions panic on a status that they do not expect, which
//! here must not stop the filter; they copy each header of a map; and they send no response code
//! details. The signatures are those of the ABI 0.2.1,
//! <https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1>. A status is a plain number,
//! since a value that an enum does not list would be undefined behaviour.
#![allow(unsafe_code, reason = "the ABI is raw pointers")]

use std::{ptr, time::Duration};

use filter_core::{
    apply::{HostFailed, Reply},
    fence::{
        cluster::reads_as_message,
        ending::Ending,
        process::{Reading, Version},
    },
    header_map,
    metrics::Kind,
};

const STATUS_OK: u32 = 0;
const STATUS_NOT_FOUND: u32 = 1;
const STATUS_CAS_MISMATCH: u32 = 8;
const REQUEST_HEADERS: u32 = 0;
const GRPC_RECEIVE_BUFFER: u32 = 5;
const PLUGIN_CONFIGURATION: u32 = 7;
const CLOCK_WALL: u32 = 0;
const CLOCK_MONOTONIC: u32 = 1;

/// A version that no shared value has: versions are counted up from 1. The proxy takes 0 for
/// "whatever is there", and would then overwrite another worker's new value; with
/// a version that does not match it makes a value where there is none, and refuses where there is
/// one.
const NO_VERSION: u32 = u32::MAX;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_replace_header_map_value(
        map: u32,
        name: *const u8,
        name_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_remove_header_map_value(map: u32, name: *const u8, name_size: usize) -> u32;
    fn proxy_send_local_response(
        status: u32,
        details: *const u8,
        details_size: usize,
        body: *const u8,
        body_size: usize,
        headers: *const u8,
        headers_size: usize,
        grpc_status: i32,
    ) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, name_size: usize, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, by: i64) -> u32;
    fn proxy_record_metric(id: u32, value: u64) -> u32;
    fn proxy_get_buffer_bytes(
        buffer: u32,
        start: usize,
        size_max: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_get_property(
        path: *const u8,
        path_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_set_tick_period_milliseconds(period_ms: u32) -> u32;
    fn proxy_get_shared_data(
        key: *const u8,
        key_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
        version: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(
        key: *const u8,
        key_size: usize,
        value: *const u8,
        value_size: usize,
        version: u32,
    ) -> u32;
    fn proxy_set_effective_context(context: u32) -> u32;
    fn proxy_grpc_send(stream: u32, message: *const u8, size: usize, end: u32) -> u32;
    fn proxy_grpc_cancel(stream: u32) -> u32;
}

// Clocks and chance, of the system interface <https://wasi.dev/interfaces>, preview 1. `std` hides
// what a clock shows, and panics where there is no chance.
#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn clock_time_get(clock: u32, precision_ns: u64, time_ns: *mut u64) -> u32;
    fn random_get(bytes: *mut u8, size: usize) -> u32;
}

fn check(status: u32) -> Result<(), HostFailed> {
    match status {
        STATUS_OK => Ok(()),
        _ => Err(HostFailed),
    }
}

/// The request's headers, encoded as [`header_map`] says.
pub(crate) fn request_headers() -> Option<Vec<u8>> {
    let mut data = ptr::null_mut();
    let mut size = 0;
    // SAFETY: both pointers are to locals that live through the call.
    check(unsafe { proxy_get_header_map_pairs(REQUEST_HEADERS, &mut data, &mut size) }).ok()?;
    // SAFETY: as the host returned them.
    Some(unsafe { given(data, size) })
}

/// The bytes that the host returned through two pointers.
///
/// # Safety
///
/// Both must be as the host left them in a call that succeeded, and this must be the only use of
/// them.
unsafe fn given(data: *mut u8, size: usize) -> Vec<u8> {
    if data.is_null() {
        return vec![];
    }
    // SAFETY: the host allocated it through the SDK's `proxy_on_memory_allocate(size)`, a boxed
    // slice of just that size from the global allocator, filled all of it, and gave it to us.
    unsafe { Vec::from_raw_parts(data, size, size) }
}

fn buffer(buffer: u32, size_max: usize) -> Option<Vec<u8>> {
    let mut data = ptr::null_mut();
    let mut size = 0;
    // SAFETY: both pointers are to locals that live through the call.
    check(unsafe { proxy_get_buffer_bytes(buffer, 0, size_max, &mut data, &mut size) }).ok()?;
    // SAFETY: as the host returned them.
    Some(unsafe { given(data, size) })
}

/// The plugin's configuration, which is this long.
pub(crate) fn configuration(size: usize) -> Option<Vec<u8>> {
    buffer(PLUGIN_CONFIGURATION, size)
}

/// The message that has come on a stream, which is this long.
pub(crate) fn grpc_message(size: usize) -> Option<Vec<u8>> {
    buffer(GRPC_RECEIVE_BUFFER, size)
}

/// A property, by its path with zero bytes between the parts. None where there is no such.
fn property(path: &[u8]) -> Option<Vec<u8>> {
    let mut data = ptr::null_mut();
    let mut size = 0;
    // SAFETY: pointers and sizes are those of a slice and of locals that live through the call.
    check(unsafe { proxy_get_property(path.as_ptr(), path.len(), &mut data, &mut size) }).ok()?;
    // SAFETY: as the host returned them.
    Some(unsafe { given(data, size) })
}

/// A property that is a whole number.
fn number(path: &[u8]) -> Option<u64> {
    let bytes = property(path)?.try_into().ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// The name under which this proxy is known to its control plane.
pub(crate) fn node_id() -> Option<String> {
    String::from_utf8(property(b"xds\0node\0id")?).ok()
}

/// The role of this proxy, as its bootstrap tells the control plane.
pub(crate) fn node_role() -> Option<String> {
    String::from_utf8(property(b"xds\0node\0metadata\0tidegate\0role")?).ok()
}

/// A text of the proxy's node, by its path.
pub(crate) fn node_text(path: &[&str]) -> Option<String> {
    let parts = ["xds", "node"].iter().chain(path);
    let path: Vec<&str> = parts.copied().collect();
    String::from_utf8(property(path.join("\0").as_bytes())?).ok()
}

/// The proxy's notes of the current request, which is over.
pub(crate) fn ending() -> Ending {
    Ending {
        flags: number(b"response\0flags"),
        details: property(b"response\0code_details").unwrap_or_default(),
    }
}

/// How many bytes of the current request have come, its headers included. Removed and added headers
/// count.
pub(crate) fn request_bytes() -> Option<u64> {
    number(b"request\0total_size")
}

/// Makes the next calls be about this context: of a request, or a root context.
pub(crate) fn turn_to(context: u32) -> Result<(), HostFailed> {
    // SAFETY: no pointers.
    check(unsafe { proxy_set_effective_context(context) })
}

/// None where the proxy does not give this clock.
fn clock_us(clock: u32) -> Option<u64> {
    let mut time_ns = 0;
    // SAFETY: the pointer is to a local that lives through the call.
    let status = unsafe { clock_time_get(clock, 1_000, &mut time_ns) };
    (status == 0).then_some(time_ns / 1_000)
}

/// The same clocks in all workers of the process.
pub(crate) fn now() -> Option<Reading> {
    Some(Reading {
        monotonic_us: clock_us(CLOCK_MONOTONIC)?,
        wall_us: clock_us(CLOCK_WALL)?,
    })
}

pub(crate) fn random() -> Option<u128> {
    let mut bytes = [0; 16];
    // SAFETY: pointer and size are those of a local that lives through the call.
    let status = unsafe { random_get(bytes.as_mut_ptr(), bytes.len()) };
    (status == 0).then_some(u128::from_le_bytes(bytes))
}

/// Has the current root context woken this often; 0 for never.
pub(crate) fn set_tick_period(period_ms: u32) -> Result<(), HostFailed> {
    // SAFETY: no pointers.
    check(unsafe { proxy_set_tick_period_milliseconds(period_ms) })
}

pub(crate) fn get_shared(key: &str) -> Result<Option<(Vec<u8>, Version)>, HostFailed> {
    let mut data = ptr::null_mut();
    let mut size = 0;
    let mut version = 0;
    // SAFETY: pointers and sizes are those of a slice and of locals that live through the call.
    let status = unsafe {
        proxy_get_shared_data(key.as_ptr(), key.len(), &mut data, &mut size, &mut version)
    };
    if status == STATUS_NOT_FOUND {
        return Ok(None);
    }
    check(status)?;
    // SAFETY: as the host returned them.
    let value = unsafe { given(data, size) };
    let version = Version::new(version).ok_or(HostFailed)?;
    Ok(Some((value, version)))
}

pub(crate) fn swap_shared(
    key: &str,
    seen: Option<Version>,
    value: &[u8],
) -> Result<bool, HostFailed> {
    let seen = seen.map_or(NO_VERSION, Version::get);
    // SAFETY: as in `set_request_header`.
    let status = unsafe {
        proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), seen)
    };
    match status {
        STATUS_CAS_MISMATCH => Ok(false),
        status => check(status).map(|()| true),
    }
}

/// Opens a stream on behalf of the current root context: `method` of `service` on a cluster.
///
/// Through the SDK, which otherwise would not pass on what comes on the stream. It panics on
/// statuses other than those that an unknown cluster, or one without a connection, leads to; a name
/// that reads as a message would lead to another.
pub(crate) fn grpc_open(cluster: &str, service: &str, method: &str) -> Result<u32, HostFailed> {
    if reads_as_message(cluster.as_bytes()) {
        return Err(HostFailed);
    }
    proxy_wasm::hostcalls::open_grpc_stream(cluster, service, method, vec![])
        .map_err(|_| HostFailed)
}

/// How long an answer to a single call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes a single call on behalf of the current root context: `method` of `service` on a cluster.
/// Through the SDK, as [`grpc_open`].
pub(crate) fn grpc_call(
    cluster: &str,
    service: &str,
    method: &str,
    message: &[u8],
) -> Result<(), HostFailed> {
    if reads_as_message(cluster.as_bytes()) {
        return Err(HostFailed);
    }
    proxy_wasm::hostcalls::dispatch_grpc_call(
        cluster,
        service,
        method,
        vec![],
        Some(message),
        CALL_TIMEOUT,
    )
    .map(|_| ())
    .map_err(|_| HostFailed)
}

/// Says something on a stream of the current root context.
pub(crate) fn grpc_send(stream: u32, message: &[u8]) -> Result<(), HostFailed> {
    // SAFETY: as in `set_request_header`.
    check(unsafe { proxy_grpc_send(stream, message.as_ptr(), message.len(), 0) })
}

/// Ends a stream of the current root context, and has the proxy forget it.
pub(crate) fn grpc_cancel(stream: u32) -> Result<(), HostFailed> {
    // SAFETY: no pointers.
    check(unsafe { proxy_grpc_cancel(stream) })
}

pub(crate) fn set_request_header(name: &[u8], value: &[u8]) -> Result<(), HostFailed> {
    // SAFETY: pointers and sizes are those of slices that live through the call; the host only
    // reads.
    check(unsafe {
        proxy_replace_header_map_value(
            REQUEST_HEADERS,
            name.as_ptr(),
            name.len(),
            value.as_ptr(),
            value.len(),
        )
    })
}

pub(crate) fn remove_request_header(name: &[u8]) -> Result<(), HostFailed> {
    // SAFETY: as in `set_request_header`.
    check(unsafe { proxy_remove_header_map_value(REQUEST_HEADERS, name.as_ptr(), name.len()) })
}

/// The proxy itself sees whether the request is gRPC, and takes the HTTP or the gRPC status.
pub(crate) fn send_local_response(reply: &Reply<'_>) -> Result<(), HostFailed> {
    let headers = header_map::encode(reply.headers).ok_or(HostFailed)?;
    // SAFETY: as in `set_request_header`.
    check(unsafe {
        proxy_send_local_response(
            reply.status.into(),
            reply.details.as_ptr(),
            reply.details.len(),
            reply.body.as_ptr(),
            reply.body.len(),
            headers.as_ptr(),
            headers.len(),
            reply.grpc_status.into(),
        )
    })
}

pub(crate) fn define_metric(kind: Kind, name: &str) -> Result<u32, HostFailed> {
    let kind = match kind {
        Kind::Counter => 0,
        Kind::Gauge => 1,
    };
    let mut id = 0;
    // SAFETY: as in `set_request_header`; the host writes the id into a local that lives through
    // the call.
    check(unsafe { proxy_define_metric(kind, name.as_ptr(), name.len(), &mut id) })?;
    Ok(id)
}

pub(crate) fn increment_metric(id: u32, by: u32) -> Result<(), HostFailed> {
    // SAFETY: no pointers.
    check(unsafe { proxy_increment_metric(id, by.into()) })
}

pub(crate) fn record_metric(id: u32, value: u64) -> Result<(), HostFailed> {
    // SAFETY: no pointers.
    check(unsafe { proxy_record_metric(id, value) })
}
