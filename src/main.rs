//! The front program: plans, schedules and reports, and computes what needs no libtorch. It links none, so it answers at once.

/// Plans are many small values, which the system's allocator takes a third of the time for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    std::process::exit(attrflow::cli::main(&attrflow::kinds::kinds(), &attrflow::kinds::without_libtorch()));
}
