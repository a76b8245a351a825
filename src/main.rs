//! The command-line program: plans, schedules, reports, and computes what needs no libtorch. It does not link libtorch, so it
//! starts in milliseconds.

/// A plan is many small values; the system's allocator would take a third of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    std::process::exit(attrflow::cli::guarded(
        &attrflow::kinds::kinds(),
        &attrflow::kinds::without_libtorch(),
    ));
}
