//! Generates the services that filters speak to, in Rust alone; their messages are those of `protos`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../protos/tidegate");
    let descriptors = protox::compile(
        ["tidegate/v1/fence.proto", "tidegate/v1/status.proto"],
        ["../protos"],
    )?;
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".tidegate.v1", "::protos::wire")
        .compile_fds(descriptors)?;
    Ok(())
}
