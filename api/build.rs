//! Turns `proto/` into Rust: protox reads the files, so that no protoc is needed.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto");
    let files = [
        "access",
        "common",
        "format",
        "image",
        "inspection",
        "job",
        "plan",
        "pool",
        "secret",
        "webhook",
    ]
    .map(|name| format!("vdisk/v1/{name}.proto"));
    for file in &files {
        println!("cargo:rerun-if-changed={}", root.join(file).display());
    }
    let descriptors = protox::compile(files, [&root])?;
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(
        Path::new(&out).join("vdisk.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    tonic_prost_build::configure()
        // Its value must not get into a log.
        .skip_debug([
            "vdisk.v1.CreateSecretRequest",
            "vdisk.v1.CreateTokenResponse",
            "vdisk.v1.CreateWebhookRequest",
        ])
        .bytes(".vdisk.v1.UploadFileRequest")
        .bytes(".vdisk.v1.DownloadResponse")
        .compile_fds(descriptors)?;
    Ok(())
}
