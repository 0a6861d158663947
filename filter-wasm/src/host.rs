//! The proxy-wasm calls that a request leads to. The only `unsafe` code of Tidegate.
//!
//! Why not `proxy_wasm::hostcalls`: its functions panic on a status that they do not expect, which here must not stop the
//! filter; they copy each header of a map; and they send no response code details. The signatures are those of the ABI
//! 0.2.1, <https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1>. A status is a plain number, since a value
//! that an enum does not list would be undefined behaviour.
#![allow(unsafe_code, reason = "the ABI is raw pointers")]

use std::ptr;

use crate::{
    carry_out::{HostFailed, Reply},
    header_map,
    metrics::Kind,
};

const STATUS_OK: u32 = 0;
const REQUEST_HEADERS: u32 = 0;

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
    if data.is_null() {
        return Some(vec![]);
    }
    // SAFETY: the host allocated the map through the SDK's `proxy_on_memory_allocate(size)`, a boxed slice of just that
    // size from the global allocator, filled all of it, and gave it to us.
    Some(unsafe { Vec::from_raw_parts(data, size, size) })
}

pub(crate) fn set_request_header(name: &[u8], value: &[u8]) -> Result<(), HostFailed> {
    // SAFETY: pointers and sizes are those of slices that live through the call; the host only reads.
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
    // SAFETY: as in `set_request_header`; the host writes the id into a local that lives through the call.
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
