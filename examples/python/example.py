"""Barque's store from Python over grpcio, with stubs made from the .proto files of this repository.

    pip install grpcio grpcio-tools
    python examples/python/example.py 127.0.0.1:2379
"""

import pathlib
import sys
import tempfile

import grpc
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"


def generate(target):
    """Generates the stubs and makes them importable."""
    files = [f"etcd/{name}.proto" for name in ("kv", "auth", "rpc")]
    arguments = ["protoc", f"-I{PROTO}", f"--python_out={target}", f"--grpc_python_out={target}", *files]
    if protoc.main(arguments) != 0:
        sys.exit("cannot generate the stubs")
    sys.path.insert(0, target)


def main(endpoint):
    with tempfile.TemporaryDirectory() as target:
        generate(target)
        from etcd import rpc_pb2 as pb
        from etcd import rpc_pb2_grpc as rpc

    with grpc.insecure_channel(endpoint) as channel:
        kv = rpc.KVStub(channel)

        # Every answer tells the store's revision.
        put = kv.Put(pb.PutRequest(key=b"greeting", value=b"hello"))
        print("put at revision", put.header.revision)

        got = kv.Range(pb.RangeRequest(key=b"greeting"))
        print("got", got.kvs[0].value.decode())

        # Change it only if nobody else has since we read it.
        unchanged = pb.Compare(
            key=b"greeting",
            target=pb.Compare.MOD,
            result=pb.Compare.EQUAL,
            mod_revision=got.kvs[0].mod_revision,
        )
        change = pb.RequestOp(request_put=pb.PutRequest(key=b"greeting", value=b"hey there"))
        txn = kv.Txn(pb.TxnRequest(compare=[unchanged], success=[change]))
        print("changed" if txn.succeeded else "somebody was faster")

        # Everything under a prefix: up to the prefix with its last byte raised.
        for number in range(3):
            kv.Put(pb.PutRequest(key=f"list/{number}".encode(), value=b"x"))
        listed = kv.Range(pb.RangeRequest(key=b"list/", range_end=b"list0", keys_only=True))
        print("list:", [pair.key.decode() for pair in listed.kvs])

        # An old revision can be read until it is compacted.
        old = kv.Range(pb.RangeRequest(key=b"greeting", revision=put.header.revision))
        print("it was", old.kvs[0].value.decode())

        # Errors come as gRPC statuses with etcd's texts.
        try:
            kv.Range(pb.RangeRequest(key=b"greeting", revision=put.header.revision + 1_000_000))
        except grpc.RpcError as error:
            print(error.code().name + ":", error.details())

        deleted = kv.DeleteRange(pb.DeleteRangeRequest(key=b"list/", range_end=b"list0"))
        print("deleted", deleted.deleted)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:2379")
