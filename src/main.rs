//! The front program: plans, schedules and reports. It links no libtorch, so it answers at once.

fn main() {
    std::process::exit(attrflow::cli::main(&attrflow::stages::kinds()));
}
