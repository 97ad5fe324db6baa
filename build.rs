//! proto/ -> Rust, nothing else. The proto compiler is pure Rust: nobody has to install protoc.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files =
        ["common", "enrolment", "session", "operator"].map(|f| format!("proto/undertone/v1/{f}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    // Served by gRPC reflection.
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("undertone.v1.bin");
    std::fs::write(out, prost_bytes(&descriptors))?;
    tonic_prost_build::configure().bytes(".").codec_path("crate::SmallBuffers").compile_fds(descriptors)?;
    Ok(())
}

fn prost_bytes(descriptors: &impl prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}
