"""The Python client of Kubernetes through what its users do with it. The pod's program is the test's node."""

import sys
import threading

from kubernetes import client, config, dynamic, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import stream

config.load_kube_config(sys.argv[1])
core, apps, custom = client.CoreV1Api(), client.AppsV1Api(), client.CustomObjectsApi()
NAMESPACE = "default"

# Create, read, list with selectors and pages.
for number in range(5):
    meta = client.V1ObjectMeta(name=f"map-{number}", labels={"app": "python", "odd": str(number % 2)})
    made = core.create_namespaced_config_map(NAMESPACE, client.V1ConfigMap(metadata=meta, data={"key": str(number)}))
    assert made.metadata.uid
odd = core.list_namespaced_config_map(NAMESPACE, label_selector="app=python,odd=1")
assert [item.metadata.name for item in odd.items] == ["map-1", "map-3"], odd
page = core.list_namespaced_config_map(NAMESPACE, label_selector="app=python", limit=2)
names = [item.metadata.name for item in page.items]
while page.metadata._continue:
    page = core.list_namespaced_config_map(
        NAMESPACE, label_selector="app=python", limit=2, _continue=page.metadata._continue
    )
    names += [item.metadata.name for item in page.items]
assert names == [f"map-{number}" for number in range(5)], names

# Watch from a version, while another thread changes things.
version = page.metadata.resource_version


def change():
    core.patch_namespaced_config_map("map-0", NAMESPACE, {"data": {"key": "patched"}})
    core.delete_namespaced_config_map("map-4", NAMESPACE)


threading.Timer(0.2, change).start()
seen = []
for event in watch.Watch().stream(
    core.list_namespaced_config_map, NAMESPACE, resource_version=version, timeout_seconds=30
):
    seen.append((event["type"], event["object"].metadata.name))
    if event["type"] == "DELETED":
        break
assert seen == [("MODIFIED", "map-0"), ("DELETED", "map-4")], seen

# The patches, and server-side apply.
json_patch = [{"op": "replace", "path": "/data/key", "value": "json"}]
assert core.patch_namespaced_config_map("map-1", NAMESPACE, json_patch).data["key"] == "json"
cluster = dynamic.DynamicClient(client.ApiClient())
maps = cluster.resources.get(api_version="v1", kind="ConfigMap")
applied = maps.server_side_apply(
    body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"a": "b"}},
    namespace=NAMESPACE,
    name="applied",
    field_manager="python",
)
assert applied.data.a == "b"

# Errors are Statuses.
try:
    core.read_namespaced_pod("ghost", NAMESPACE)
    raise AssertionError("there is no such pod")
except ApiException as error:
    assert error.status == 404 and "NotFound" in error.body, error

# A kind of one's own.
extensions = client.ApiextensionsV1Api()
schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
apps.list_namespaced_deployment(NAMESPACE)
assert client.VersionApi().get_code().major == "1"
assert "v1" in client.CoreApi().get_api_versions().versions
assert extensions.list_custom_resource_definition().items == []

# A program in a pod.
container = client.V1Container(name="main", image="barque/hello:1.0")
core.create_namespaced_pod(
    NAMESPACE, client.V1Pod(metadata=client.V1ObjectMeta(name="a"), spec=client.V1PodSpec(containers=[container]))
)
target = client.V1ObjectReference(kind="Node", name="n1")
binding = client.V1Binding(metadata=client.V1ObjectMeta(name="a"), target=target)
core.create_namespaced_pod_binding("a", NAMESPACE, binding, _preload_content=False)
session = stream(
    core.connect_get_namespaced_pod_exec, "a", NAMESPACE, command=["say", "it"],
    stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False,
)
session.write_stdin("hello")
session.update(timeout=10)
while not session.peek_stdout():
    session.update(timeout=10)
assert session.read_stdout() == "hello"
assert session.read_stderr() == "main: say it\n"
session.close()
assert core.read_namespaced_pod_log("a", NAMESPACE).endswith("second line\n")
core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="app=python")
assert core.list_namespaced_config_map(NAMESPACE, label_selector="app=python").items == []
print("done")
