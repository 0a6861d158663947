//! Steps the wall clock of one process, while it runs: preloaded (`LD_PRELOAD`), it adds an offset
//! to CLOCK_REALTIME and does not change CLOCK_MONOTONIC. The offset is in nanoseconds, eight bytes
//! in the machine's byte order, in the file that `WALL_CLOCK_FILE` names. Writing to it steps the
//! clocks of all processes that use it.
//!
//! Not libfaketime, because Envoy does not start with it: its allocator reads the time while it
//! holds the lock that libfaketime's first `malloc` waits for. So this library neither allocates
//! nor takes a lock.
//!
//! Limits: it does not affect programs that call the kernel directly instead of libc (Go programs,
//! so etcd), and the absolute deadlines of waits, which stay the kernel's.

#![allow(
    unsafe_code,
    reason = "these functions take the place of libc's, whose interface is raw pointers"
)]

use std::ffi::{CStr, c_int, c_long, c_void};
use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

use libc::{clockid_t, time_t, timespec, timeval};

const VARIABLE: &CStr = c"WALL_CLOCK_FILE";
const BYTES: usize = size_of::<i64>();
const NANOSECONDS: i64 = 1_000_000_000;

static OFFSET: AtomicPtr<AtomicI64> = AtomicPtr::new(ptr::null_mut());

/// The offset of the clock in nanoseconds; 0 without a file.
fn offset_ns() -> i64 {
    let known = OFFSET.load(Ordering::Acquire);
    let place = match known.is_null() {
        true => map(),
        false => known,
    };
    // SAFETY: a pointer that is not null was mapped by `map`, has the required size and alignment,
    // and is never unmapped. Other processes change the value, so it is atomic.
    unsafe { place.as_ref() }.map_or(0, |offset| offset.load(Ordering::Relaxed))
}

/// Maps the file; null after a failure, which is retried at the next call.
fn map() -> *mut AtomicI64 {
    // SAFETY: plain calls of libc with valid arguments. Two concurrent threads map it twice, which
    // is harmless.
    let place = unsafe {
        let path = libc::getenv(VARIABLE.as_ptr());
        if path.is_null() {
            return ptr::null_mut();
        }
        let file = libc::open(path, libc::O_RDONLY | libc::O_CLOEXEC);
        if file < 0 {
            return ptr::null_mut();
        }
        let place = libc::mmap(
            ptr::null_mut(),
            BYTES,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file,
            0,
        );
        libc::close(file);
        place
    };
    if place == libc::MAP_FAILED {
        return ptr::null_mut();
    }
    let place = place.cast::<AtomicI64>();
    OFFSET.store(place, Ordering::Release);
    place
}

/// Calls the kernel; like in libc, -1 and `errno` mean a failure.
///
/// # Safety
/// `time` has to be null or valid for writing.
unsafe fn ask(clock: clockid_t, time: *mut timespec) -> c_long {
    // SAFETY: the kernel checks both.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock as c_long, time) }
}

fn stepped(time: timespec) -> timespec {
    let whole = time.tv_sec * NANOSECONDS + time.tv_nsec + offset_ns();
    timespec {
        tv_sec: whole.div_euclid(NANOSECONDS),
        tv_nsec: whole.rem_euclid(NANOSECONDS),
    }
}

fn wall_clock() -> timespec {
    let mut now = timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is ours. CLOCK_REALTIME cannot fail.
    unsafe { ask(libc::CLOCK_REALTIME, &raw mut now) };
    stepped(now)
}

/// Replaces libc's function.
///
/// # Safety
/// As libc's: `time` has to be null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    // SAFETY: as the caller promises.
    let asked = unsafe { ask(clock, time) };
    let is_wall = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE);
    if asked == 0 && is_wall && !time.is_null() {
        // SAFETY: the kernel has just written there.
        unsafe { *time = stepped(*time) };
    }
    asked as c_int
}

/// Replaces libc's function.
///
/// # Safety
/// As libc's: `time` has to be null or valid for writing. The time zone is ignored, as usual.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gettimeofday(time: *mut timeval, _: *mut c_void) -> c_int {
    if !time.is_null() {
        let now = wall_clock();
        let now = timeval {
            tv_sec: now.tv_sec,
            tv_usec: now.tv_nsec / 1000,
        };
        // SAFETY: as the caller promises.
        unsafe { *time = now };
    }
    0
}

/// Replaces libc's function.
///
/// # Safety
/// As libc's: `place` has to be null or valid for writing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn time(place: *mut time_t) -> time_t {
    let now = wall_clock().tv_sec;
    if !place.is_null() {
        // SAFETY: as the caller promises.
        unsafe { *place = now };
    }
    now
}
