//! Generates the service that proxies hold grants from, in Rust alone; its messages are those of `protos`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../protos/tidegate");
    let descriptors = protox::compile(["tidegate/v1/fence.proto"], ["../protos"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".tidegate.v1", "::protos::wire")
        .compile_fds(descriptors)?;
    Ok(())
}
