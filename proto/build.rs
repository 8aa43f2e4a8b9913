//! Generates the gRPC code with a protobuf compiler written in Rust, so that building needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "barque/raft/v1/raft.proto",
        "barque/node/v1/node.proto",
        "barque/control/v1/control.proto",
        "etcd/kv.proto",
        "etcd/auth.proto",
        "etcd/rpc.proto",
        "etcd/lock.proto",
        "etcd/election.proto",
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
    Ok(())
}
