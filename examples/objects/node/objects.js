// Barque's objects from Node over gRPC (@grpc/grpc-js); the .proto files of this repository are read when it starts.
//
//     cd examples/objects/node && npm install && node objects.js 127.0.0.1:6443 ca.crt client.crt client.key
//
// With a token instead of a certificate, send `authorization: Bearer <token>` as metadata of each call.

const fs = require('fs');
const path = require('path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const PROTO = path.join(__dirname, '..', '..', '..', 'proto');
const deadline = () => ({ deadline: Date.now() + 20_000 });

async function main([endpoint, ca, certificate, key]) {
  const definition = loader.loadSync('barque/objects/v1/objects.proto', {
    includeDirs: [PROTO], keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true,
  });
  const { Objects } = grpc.loadPackageDefinition(definition).barque.objects.v1;
  const credentials = grpc.credentials.createSsl(...[ca, key, certificate].map((file) => fs.readFileSync(file)));
  const client = new Objects(endpoint, credentials);
  const call = (method, request) => new Promise((resolve, reject) => {
    client[method](request, deadline(), (error, answer) => (error ? reject(error) : resolve(answer)));
  });

  const everything = { resource: 'configmaps', namespace: 'default' };
  const greeting = { ...everything, name: 'greeting-node' };
  const body = (data) => Buffer.from(JSON.stringify({
    apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: greeting.name }, data,
  }));

  const made = await call('Create', { resource: everything, body: { content: body({ text: 'hello' }) } });
  const { name, uid, resource_version } = made.object.metadata;
  console.log('created', name, 'with uid', uid);

  // Whatever happens after this version is seen by the watch.
  const watch = client.Watch({ resource: greeting, resource_version }, deadline());
  const gone = new Promise((resolve, reject) => {
    watch.on('data', (event) => {
      console.log('watched', event.type);
      if (event.type === 'DELETED') resolve(watch.cancel());
    });
    watch.on('error', (error) => (error.code === grpc.status.CANCELLED ? resolve() : reject(error)));
    watch.on('end', resolve);
  });

  // Server-side apply: we own what we send, and nothing else.
  await call('Patch', {
    resource: greeting, type: 'APPLY', patch: body({ text: 'hey there' }), force: true,
    options: { field_manager: 'example' },
  });
  const got = await call('Get', { resource: greeting });
  console.log('got', JSON.parse(got.body).data.text);

  // A list is a stream: all as of one version, however many there are.
  const names = [];
  for await (const page of client.List({ resource: everything, encoding: 'ENCODING_NONE' }, deadline())) {
    names.push(...page.items.map((item) => item.metadata.name));
  }
  console.log(names.includes(greeting.name) ? 'listed' : 'missed it');

  // Errors have gRPC's codes; the details hold the Kubernetes Status.
  await call('Get', { resource: { resource: 'pods', namespace: 'default', name: 'ghost' } })
    .catch((error) => console.log(`${grpc.status[error.code]}: ${error.details}`));

  await call('Delete', { resource: greeting });
  await gone;
  console.log('deleted');
  client.close();
}

if (process.argv.length !== 6) {
  console.error('usage: node objects.js ENDPOINT CA CERTIFICATE KEY');
  process.exit(2);
}
main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
