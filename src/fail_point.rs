//! Places where a test ends the process as a power cut would: at once, with nothing that runs afterwards.
//!
//! They are numbered as they are passed. In a debug build `GPUVM_DIE_AT=N` kills the process at the N-th, and
//! `GPUVM_PAUSE_AT=N` stops it there until it is told to continue. A release build has none of this.

/// Passes a place; `name` says to the reader of a failed test what had just happened.
#[cfg(not(debug_assertions))]
pub fn fail_point(_name: &str) {}

/// Passes a place; `name` says to the reader of a failed test what had just happened.
#[cfg(debug_assertions)]
pub fn fail_point(name: &str) {
    use std::io::Write as _;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use nix::sys::signal::{Signal, raise};

    static PASSED: AtomicU64 = AtomicU64::new(0);
    static AT: OnceLock<[Option<u64>; 2]> = OnceLock::new();
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let [die, pause] = *AT.get_or_init(|| [number("GPUVM_DIE_AT"), number("GPUVM_PAUSE_AT")]);
    if die.is_none() && pause.is_none() {
        return;
    }
    let passed = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
    if die == Some(passed) {
        let _ = writeln!(std::io::stderr(), "fail point {passed}: {name}");
        // SIGKILL cannot be caught: no destructor, no buffer, no handler comes after it.
        let _ = raise(Signal::SIGKILL);
        std::process::abort();
    }
    if pause == Some(passed) {
        let _ = raise(Signal::SIGSTOP);
    }
}

/// Passes the place of a screen at which a test has the process panic: with `GPUVM_PANIC` in a debug build.
#[cfg(debug_assertions)]
#[expect(clippy::panic, reason = "a test asks for it")]
pub fn panic_point() {
    if std::env::var_os("GPUVM_PANIC").is_some() {
        panic!("as a test asked");
    }
}

/// Passes the place of a screen at which a test has the process panic.
#[cfg(not(debug_assertions))]
pub fn panic_point() {}
