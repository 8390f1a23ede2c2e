//! Generates the types of etcd's API from the part of it that is used, without needing `protoc` (docs/adr/0005, 0028).

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=etcd");
    let descriptors = protox::compile(["etcd/rpc.proto"], ["."])?;
    tonic_prost_build::configure()
        .build_server(false)
        // Passwords and tokens are not printed.
        .skip_debug([
            ".etcdserverpb.AuthenticateRequest",
            ".etcdserverpb.AuthenticateResponse",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
