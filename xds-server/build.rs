//! Generates the Rust code of the services that filters and other replicas call; their messages are
//! those of `protos`.

#[allow(
    clippy::disallowed_methods,
    reason = "cargo tells a build script where to write by the environment"
)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=../protos/tidegate");
    let descriptors = protox::compile(
        [
            "tidegate/v1/fence.proto",
            "tidegate/v1/guest.proto",
            "tidegate/v1/status.proto",
        ],
        ["../protos"],
    )?;
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".tidegate.v1", "::protos::wire")
        .compile_fds(descriptors)?;
    // In its own directory: both files have the package's name.
    let peers = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("peers");
    std::fs::create_dir_all(&peers)?;
    tonic_prost_build::configure()
        .out_dir(peers)
        .extern_path(".tidegate.v1", "::protos::wire")
        .compile_fds(protox::compile(["tidegate/v1/peers.proto"], ["../protos"])?)?;
    Ok(())
}
