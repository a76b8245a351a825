//! The command-line program: plans, schedules, reports, and computes what needs no libtorch. It does not link libtorch, so it
//! starts in milliseconds.

use std::sync::atomic::{AtomicBool, Ordering};

/// A plan is many small values; the system's allocator would take a third of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Whether standard output was closed when the process began. Before `main`, the runtime opens `/dev/null` in its place, so
/// that output would be lost without a word.
static CLOSED: AtomicBool = AtomicBool::new(false);

// SAFETY: the C library calls each function of this section once, before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    unsafe extern "C" {
        fn fcntl(descriptor: i32, command: i32, ...) -> i32;
    }
    const F_GETFD: i32 = 1;
    // SAFETY: the call takes no pointer; of a descriptor that is not open it returns -1.
    CLOSED.store(unsafe { fcntl(1, F_GETFD) } < 0, Ordering::Relaxed);
}

fn main() {
    if CLOSED.load(Ordering::Relaxed) {
        attrflow::progress::output_is_closed();
    }
    std::process::exit(attrflow::cli::guarded(
        &attrflow::kinds::kinds(),
        &attrflow::kinds::without_libtorch(),
    ));
}
