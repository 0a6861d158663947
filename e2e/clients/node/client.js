// A gRPC client that calls as it is told: `client.js PORT`. It understands what client.py does.

const net = require('node:net');
const readline = require('node:readline');
const grpc = require('@grpc/grpc-js');
require('@grpc/grpc-js-xds').register();

const bytes = (value) => value; // Bytes in, bytes out.

function callOnce(client, order, metadata) {
  return new Promise((resolve) => {
    let instance;
    const options = { deadline: Date.now() + order.timeout_s * 1000 };
    const done = (error) => resolve({ instance, error });
    const call = client.makeUnaryRequest(
      order.method, bytes, bytes, Buffer.alloc(0), metadata, options, done);
    call.on('metadata', (answered) => { [instance] = answered.get('x-instance'); });
  });
}

async function carryOut(order, client) {
  const metadata = new grpc.Metadata();
  for (const [name, value] of Object.entries(order.metadata)) metadata.set(name, value);
  const instances = {}, statuses = {};
  let message = '';
  const count = (counts, name) => { counts[name] = (counts[name] ?? 0) + 1; };
  for (let call = 0; call < order.calls; call += 1) {
    const { instance, error } = await callOnce(client, order, metadata);
    if (error) {
      count(statuses, grpc.status[error.code]);
      message = error.details;
    } else {
      count(instances, instance);
    }
  }
  return { instances, statuses, message };
}

async function main() {
  const clients = new Map();
  const connection = net.connect(Number(process.argv[2]), '127.0.0.1');
  for await (const line of readline.createInterface({ input: connection })) {
    const order = JSON.parse(line);
    if (!clients.has(order.target)) {
      clients.set(order.target, new grpc.Client(order.target, grpc.credentials.createInsecure()));
    }
    connection.write(`${JSON.stringify(await carryOut(order, clients.get(order.target)))}\n`);
  }
  process.exit(0);
}

main();
