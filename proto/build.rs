//! Generates the gRPC code with a protobuf compiler written in Rust, so that building needs no `protoc`.

use prost::Message;

/// What is open to every client: described to those that ask the server itself (reflection).
const REFLECTED: [&str; 2] = ["barque/objects/v1/objects.proto", "google/rpc/status.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "barque/raft/v1/raft.proto",
        "barque/node/v1/node.proto",
        "barque/control/v1/control.proto",
        "barque/objects/v1/objects.proto",
        "etcd/kv.proto",
        "etcd/auth.proto",
        "etcd/rpc.proto",
        "etcd/lock.proto",
        "etcd/election.proto",
        "google/rpc/status.proto",
        "grpc/health.proto",
        "cri/runtime/v1/common.proto",
        "cri/runtime/v1/windows.proto",
        "cri/runtime/v1/sandbox.proto",
        "cri/runtime/v1/container.proto",
        "cri/runtime/v1/stats.proto",
        "cri/runtime/v1/image.proto",
        "cri/runtime/v1/runtime.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    let reflected = protox::compile(REFLECTED, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("reflected.bin");
    std::fs::write(out, reflected.encode_to_vec())?;
    Ok(())
}
