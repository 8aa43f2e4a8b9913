"""Barque's objects from Python over gRPC (grpcio), with stubs made from the .proto files of this repository.

    pip install grpcio grpcio-tools
    python examples/objects/python/objects.py 127.0.0.1:6443 ca.crt client.crt client.key

With a token instead of a certificate, send `authorization: Bearer <token>` as metadata of each call.
"""

import json
import pathlib
import sys
import tempfile
import threading

import grpc
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[3] / "proto"
TIMEOUT_S = 20


def say(*words):
    """Writes a line at once: two threads talk."""
    sys.stdout.write(" ".join(words) + "\n")


def generate(target):
    """Generates the stubs and makes them importable."""
    well_known = pathlib.Path(protoc.__file__).parent / "_proto"
    files = ["barque/objects/v1/objects.proto", "google/rpc/status.proto"]
    arguments = ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={target}", f"--grpc_python_out={target}"]
    if protoc.main(arguments + files) != 0:
        sys.exit("cannot generate the stubs")
    sys.path.insert(0, target)


def main(endpoint, ca, certificate, key):
    with tempfile.TemporaryDirectory() as target:
        generate(target)
        from barque.objects.v1 import objects_pb2 as pb
        from barque.objects.v1 import objects_pb2_grpc as rpc

    read = lambda path: pathlib.Path(path).read_bytes()
    credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(certificate))
    with grpc.secure_channel(endpoint, credentials) as channel:
        objects = rpc.ObjectsStub(channel)
        everything = pb.Resource(resource="configmaps", namespace="default")
        greeting = pb.Resource(resource="configmaps", namespace="default", name="greeting-python")

        def body(**data):
            value = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": greeting.name}, "data": data}
            return json.dumps(value).encode()

        made = objects.Create(
            pb.CreateRequest(resource=everything, body=pb.Body(content=body(text="hello"))), timeout=TIMEOUT_S
        )
        say("created", made.object.metadata.name, "with uid", made.object.metadata.uid)

        # Whatever happens after this version is seen by the watch.
        watch = objects.Watch(
            pb.WatchRequest(resource=greeting, resource_version=made.object.metadata.resource_version),
            timeout=TIMEOUT_S,
        )
        seen = threading.Thread(target=follow, args=(watch,))
        seen.start()

        # Server-side apply: we own what we send, and nothing else.
        objects.Patch(
            pb.PatchRequest(
                resource=greeting,
                type=pb.PatchRequest.APPLY,
                patch=body(text="hey there"),
                force=True,
                options=pb.WriteOptions(field_manager="example"),
            ),
            timeout=TIMEOUT_S,
        )
        got = objects.Get(pb.GetRequest(resource=greeting), timeout=TIMEOUT_S)
        say("got", json.loads(got.body)["data"]["text"])

        # A list is a stream: all as of one version, however many there are.
        names = [
            item.metadata.name
            for page in objects.List(
                pb.ListRequest(resource=everything, encoding=pb.ENCODING_NONE), timeout=TIMEOUT_S
            )
            for item in page.items
        ]
        say("listed" if greeting.name in names else "missed it")

        # Errors have gRPC's codes; the details hold the Kubernetes Status.
        try:
            objects.Get(pb.GetRequest(resource=pb.Resource(resource="pods", namespace="default", name="ghost")))
        except grpc.RpcError as error:
            say(error.code().name + ":", error.details())

        objects.Delete(pb.DeleteRequest(resource=greeting), timeout=TIMEOUT_S)
        seen.join()
        say("deleted")


def follow(watch):
    """Says what a watch sees, until the object is gone."""
    for event in watch:
        say("watched", event.Type.Name(event.type))
        if event.type == event.DELETED:
            return watch.cancel()


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
