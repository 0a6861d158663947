//! Compiles the protos in Rust: this crate, and so the filter, builds without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=tidegate");
    let descriptors = protox::compile(
        [
            "tidegate/v1/policy.proto",
            "tidegate/v1/fence.proto",
            "tidegate/v1/guest.proto",
            "tidegate/v1/peers.proto",
            "tidegate/v1/status.proto",
        ],
        ["."],
    )?;
    prost_build::Config::new()
        .bytes([".tidegate.v1.Piece.deflated"])
        .compile_fds(descriptors)?;
    Ok(())
}
