"""An informer and a writer made with Kubernetes' Python client, which go on while leaders die."""

import sys
import threading
import time

from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException

NAMESPACE, LABELS, WRITES, PATIENCE_S = "default", "writer=python", 60, 120
config.load_kube_config(sys.argv[1])
known, kinds_seen = {}, set()


def follow():
    """List, then watch from there; after `410 Gone` list again. What breaks is begun anew from the last version."""
    core, version = client.CoreV1Api(), None
    while True:
        try:
            if version is None:
                listed = core.list_namespaced_config_map(NAMESPACE, label_selector=LABELS)
                known.clear()
                known.update({item.metadata.name: item.data for item in listed.items})
                version = listed.metadata.resource_version
            for event in watch.Watch().stream(
                core.list_namespaced_config_map, NAMESPACE, label_selector=LABELS, resource_version=version,
                timeout_seconds=30,
            ):
                item, version = event["object"], event["object"].metadata.resource_version
                kinds_seen.add(event["type"])
                if event["type"] == "DELETED":
                    known.pop(item.metadata.name, None)
                else:
                    known[item.metadata.name] = item.data
        except ApiException as error:
            version = None if error.status == 410 else version
            time.sleep(0.05)
        except Exception:  # whatever a broken connection looks like
            time.sleep(0.05)


def insist(write):
    """Tries until the write is acknowledged. One whose fate is unknown may have been made already."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return write()
        except ApiException as error:
            if error.status in (404, 409):
                return None
            if time.monotonic() > until:
                raise
        except Exception:
            if time.monotonic() > until:
                raise
        time.sleep(0.05)


threading.Thread(target=follow, daemon=True).start()
core = client.CoreV1Api()
expected = {}
for number in range(WRITES):
    name = f"python-{number}"
    meta = client.V1ObjectMeta(name=name, labels={"writer": "python"})
    insist(lambda: core.create_namespaced_config_map(NAMESPACE, client.V1ConfigMap(metadata=meta, data={"n": "0"})))
    insist(lambda: core.patch_namespaced_config_map(name, NAMESPACE, {"data": {"n": str(number)}}))
    expected[name] = {"n": str(number)}
    if number % 5 == 4:
        insist(lambda: core.delete_namespaced_config_map(name, NAMESPACE))
        del expected[name]
    print(f"acknowledged {number}", flush=True)
    time.sleep(0.05)

until = time.monotonic() + PATIENCE_S
while known != expected and time.monotonic() < until:
    time.sleep(0.05)
assert known == expected, (known, expected)
assert kinds_seen >= {"ADDED", "MODIFIED", "DELETED"}, kinds_seen
print("done", flush=True)
