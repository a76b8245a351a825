//! The front program: plans, schedules and reports, and computes what needs no libtorch. It links none, so it answers at once.

fn main() {
    std::process::exit(attrflow::cli::main(&attrflow::stages::kinds(), &attrflow::stages::light()));
}
