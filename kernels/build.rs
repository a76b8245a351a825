//! Compiles the random numbers, whose source NVIDIA's compiler takes too, with each operation rounded by itself.

fn main() {
    println!("cargo:rerun-if-changed=src/philox.cuh");
    println!("cargo:rerun-if-changed=src/philox.cpp");
    cc::Build::new()
        .cpp(true)
        .file("src/philox.cpp")
        .opt_level(3)
        .flag("-ffp-contract=off")
        .flag("-fno-fast-math")
        .flag("-fno-math-errno")
        .flag("-std=c++17")
        .compile("attrflow_philox");
}
