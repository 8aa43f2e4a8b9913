// Barque's store from Node, with the client that was made for etcd.
//
//     cd examples/node && npm install && node example.js 127.0.0.1:2379

const { Etcd3 } = require('etcd3');

async function main(hosts) {
  const client = new Etcd3({ hosts });
  try {
    await client.put('greeting').value('hello');
    console.log('got', await client.get('greeting').string());

    // Change it only if it is what we saw.
    const change = await client
      .if('greeting', 'Value', '==', 'hello')
      .then(client.put('greeting').value('hey there'))
      .commit();
    console.log(change.succeeded ? 'changed' : 'somebody was faster');

    for (const number of [0, 1, 2]) await client.put(`list/${number}`).value(`${number}`);
    console.log('list:', await client.getAll().prefix('list/').strings());
    const deleted = await client.delete().prefix('list/');
    console.log('deleted', deleted.deleted);
  } finally {
    client.close();
  }
}

main(process.argv.slice(2).map((host) => `http://${host}`).concat(process.argv.length > 2 ? [] : 'http://127.0.0.1:2379'))
  .catch((error) => {
    console.error(error);
    process.exitCode = 1;
  });
