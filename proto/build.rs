//! Generates the wire types from the `.proto` files, without needing `protoc`.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=forebay");
    let files = [
        "fleet",
        "keys",
        "model",
        "pool_settings",
        "registry",
        "revisions",
        "sync",
    ]
    .map(|name| format!("forebay/v1/{name}.proto"));

    // Source info is kept, so that `grpcurl describe` shows the comments.
    let mut compiler = protox::Compiler::new(["."])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(&files)?;
    let descriptors = compiler.file_descriptor_set();

    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("forebay.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // `Bytes`, so that one encoded configuration is shared by all streams.
        .bytes(".forebay.v1")
        // What has secrets is not printed; see `secret`.
        .skip_debug([
            ".forebay.v1.Credential",
            ".forebay.v1.CreateKeyResponse",
            ".forebay.v1.SealKey",
            ".forebay.v1.VerifyKey",
        ])
        .codec_path("crate::codec::SmallBuffers")
        .compile_fds(descriptors)?;
    Ok(())
}
