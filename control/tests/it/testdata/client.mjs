// The JavaScript client of Kubernetes through what its users do with it. The pod's program is the test's node.

import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import * as k8s from '@kubernetes/client-node';

const config = new k8s.KubeConfig();
config.loadFromFile(process.argv[2]);
const core = config.makeApiClient(k8s.CoreV1Api);
const namespace = 'default';

for (const number of [0, 1, 2]) {
  const body = { metadata: { name: `map-${number}`, labels: { app: 'node' } }, data: { key: `${number}` } };
  const made = await core.createNamespacedConfigMap({ namespace, body });
  assert.ok(made.metadata.uid);
}
const list = await core.listNamespacedConfigMap({ namespace, labelSelector: 'app=node' });
assert.deepEqual(list.items.map((item) => item.metadata.name), ['map-0', 'map-1', 'map-2']);

// An informer: what is there, then what changes.
const path = `/api/v1/namespaces/${namespace}/configmaps`;
const informer = k8s.makeInformer(config, path, () => core.listNamespacedConfigMap({ namespace, labelSelector: 'app=node' }), 'app=node');
const seen = [];
const gone = new Promise((resolve, reject) => {
  for (const verb of ['add', 'update', 'delete']) {
    informer.on(verb, (object) => {
      seen.push(`${verb} ${object.metadata.name}`);
      if (verb === 'delete') resolve();
    });
  }
  informer.on('error', reject);
});
await informer.start();
await core.patchNamespacedConfigMap(
  { name: 'map-1', namespace, body: { data: { key: 'patched' } } },
  k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.MergePatch),
);
await core.deleteNamespacedConfigMap({ name: 'map-2', namespace });
await gone;
await informer.stop();
assert.deepEqual(seen.sort(), ['add map-0', 'add map-1', 'add map-2', 'delete map-2', 'update map-1']);

// Server-side apply by the generic client.
const objects = k8s.KubernetesObjectApi.makeApiClient(config);
const applied = await objects.patch(
  { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'applied', namespace }, data: { a: 'b' } },
  undefined, undefined, 'node', true, k8s.PatchStrategy.ServerSideApply,
);
assert.equal(applied.data.a, 'b');

await assert.rejects(core.readNamespacedPod({ name: 'ghost', namespace }), (error) => error.code === 404);

// A program in a pod.
await core.createNamespacedPod({
  namespace, body: { metadata: { name: 'a' }, spec: { containers: [{ name: 'main', image: 'barque/hello:1.0' }] } },
});
await core.createNamespacedPodBinding({
  name: 'a', namespace, body: { metadata: { name: 'a' }, target: { kind: 'Node', name: 'n1' } },
});
const [stdin, stdout, stderr] = [new PassThrough(), new PassThrough(), new PassThrough()];
const texts = { out: '', err: '' };
stdout.on('data', (bytes) => { texts.out += bytes; });
stderr.on('data', (bytes) => { texts.err += bytes; });
await new Promise((resolve, reject) => {
  const timer = setTimeout(() => reject(new Error(`no answer: ${JSON.stringify(texts)}`)), 30_000);
  const done = () => {
    if (texts.out === 'hello' && texts.err === 'main: say it\n') resolve(clearTimeout(timer));
  };
  stdout.on('data', done);
  stderr.on('data', done);
  new k8s.Exec(config).exec(namespace, 'a', 'main', ['say', 'it'], stdout, stderr, stdin, false)
    .then(() => stdin.write('hello'), reject);
});
console.log('done');
process.exit(0);
