//! Chance and time of a run, in place of the kernel's.
//!
//! Hash maps order their entries, and tokio its branches, by numbers that the standard library asks `getrandom` for, a
//! symbol that it leaves to others to put in place. Here it is: on a thread that was given a seed it counts from there; on all
//! others it is the kernel's. So it is with `clock_gettime`, by which HTTP/2 forgets streams and dates its answers: on such a
//! thread it tells how long the run has lasted, to the last step of its clock.

#![expect(
    unsafe_code,
    reason = "symbols of the C library are put in place, which write to their callers' memory"
)]

use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};
use std::time::Duration;

use nix::libc;

/// What clocks show when a run begins: late enough that nothing lies before their zero.
const BEGIN: Duration = Duration::from_secs(1_000_000_000);

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// How long this thread's run has lasted.
pub fn now() -> Duration {
    NOW.get()
}

pub(crate) fn set_now(now: Duration) {
    NOW.set(now);
}

/// From now on this thread gets numbers that follow from `seed`. Call it first thing on a new thread: hash maps ask once in a
/// thread's life.
pub fn seed(seed: u64) {
    STATE.set(Some(seed));
    raft_store::simulation::seed(mixed(seed));
}

/// SplitMix64's mixing (Steele, Lea, Flood 2014).
pub fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// `getrandom(2)`.
///
/// # Safety
/// `buffer` has room for `bytes`.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, bytes: libc::size_t, flags: c_uint) -> libc::ssize_t {
    let Ok(Some(mut state)) = STATE.try_with(Cell::get) else {
        // SAFETY: the caller's promise is the kernel's condition.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, bytes, flags) } as libc::ssize_t;
    };
    for at in 0..bytes {
        state = state.wrapping_add(1);
        // SAFETY: `at` lies below `bytes`, for which the caller promised room.
        unsafe { buffer.cast::<u8>().add(at).write(mixed(state) as u8) };
    }
    // The thread lives, or there had been no state.
    let _ = STATE.try_with(|cell| cell.set(Some(state)));
    bytes as libc::ssize_t
}

/// `clock_gettime(2)`.
///
/// # Safety
/// `time` points to room for a time.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    if !matches!(STATE.try_with(Cell::get), Ok(Some(_))) {
        // SAFETY: the caller's promise is the kernel's condition.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as c_int;
    }
    let now = BEGIN + NOW.try_with(Cell::get).unwrap_or_default();
    let told = libc::timespec { tv_sec: now.as_secs() as i64, tv_nsec: i64::from(now.subsec_nanos()) };
    // SAFETY: the caller promised room for a time.
    unsafe { time.write(told) };
    0
}
