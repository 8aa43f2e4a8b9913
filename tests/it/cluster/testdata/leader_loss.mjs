// An informer and a writer made with Kubernetes' JavaScript client, which go on while leaders die.

import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import * as k8s from '@kubernetes/client-node';

const [namespace, labelSelector, writes, patience] = ['default', 'writer=node', 60, 120_000];
const config = new k8s.KubeConfig();
config.loadFromFile(process.argv[2]);
const core = config.makeApiClient(k8s.CoreV1Api);

// An informer as its documentation says: started again whenever it fails.
const known = new Map();
const seen = new Set();
const list = () => core.listNamespacedConfigMap({ namespace, labelSelector });
const informer = k8s.makeInformer(config, `/api/v1/namespaces/${namespace}/configmaps`, list, labelSelector);
const keep = (object) => known.set(object.metadata.name, object.data.n);
informer.on('add', (object) => { seen.add('add'); keep(object); });
informer.on('update', (object) => { seen.add('update'); keep(object); });
informer.on('delete', (object) => { seen.add('delete'); known.delete(object.metadata.name); });
const start = () => informer.start().catch(() => setTimeout(start, 100));
informer.on('error', () => setTimeout(start, 100));
start();

// Tries until the write is acknowledged. One whose fate is unknown may have been made already.
async function insist(write) {
  const until = Date.now() + patience;
  for (;;) {
    try {
      return await write();
    } catch (error) {
      if (error.code === 404 || error.code === 409) return undefined;
      if (Date.now() > until) throw error;
      await sleep(50);
    }
  }
}

const merge = k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.MergePatch);
const expected = new Map();
for (let number = 0; number < writes; number += 1) {
  const name = `node-${number}`;
  const body = { metadata: { name, labels: { writer: 'node' } }, data: { n: '0' } };
  await insist(() => core.createNamespacedConfigMap({ namespace, body }));
  await insist(() => core.patchNamespacedConfigMap({ name, namespace, body: { data: { n: `${number}` } } }, merge));
  expected.set(name, `${number}`);
  if (number % 5 === 4) {
    await insist(() => core.deleteNamespacedConfigMap({ name, namespace }));
    expected.delete(name);
  }
  console.log(`acknowledged ${number}`);
  await sleep(50);
}

const text = (map) => JSON.stringify([...map].sort());
const until = Date.now() + patience;
while (text(known) !== text(expected) && Date.now() < until) await sleep(50);
assert.equal(text(known), text(expected));
assert.deepEqual([...seen].sort(), ['add', 'delete', 'update']);
console.log('done');
process.exit(0);
