//! Generates the stubs of both schemas; needs no `protoc`.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let schemas = protox::compile(["hello_world.proto", "route_guide.proto"], ["proto"])?;
    Ok(tonic_prost_build::compile_fds(schemas)?)
}
