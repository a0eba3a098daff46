// Steady traffic: clients in overlapping rooms, publishing at a fixed total rate, retrying as the contract says.
import { randomUUID } from "node:crypto";
import { Client, unique } from "./client.mjs";
import { Ledger } from "./ledger.mjs";
import { eventually, sleep, within } from "./wait.mjs";

/// The helper line that INTERFACES offers to clients, and that they may leave out.
function drainHelper(socket) {
  socket.on("moim:drain", () => {
    socket.io.reconnectionDelay(50);
    socket.io.once("reconnect", () => socket.io.reconnectionDelay(1000));
  });
}

/// Publishes once, with one mid, however many tries that takes. Returns the ack, or throws on a final no.
export async function publish(ledger, name, client, room, text, { timeout = 3000, mid = randomUUID() } = {}) {
  for (;;) {
    let ack;
    try {
      ack = await client.request("message", { room, text, mid }, { timeout });
    } catch {
      ledger.unknown += 1; // it may or may not have happened: the mid makes asking again safe
      continue;
    }
    if (ack.ok) {
      ledger.acknowledge(name, mid, room, text, ack);
      return ack;
    }
    if (ack.error?.retry !== true) throw new Error(`${name}: ${JSON.stringify(ack)}`);
    ledger.retried += 1;
    await sleep(50);
  }
}

export class Load {
  /// All clients are connected, and in two of the rooms each, when this returns; traffic has begun.
  static async start({ urls, clients = 100, rooms = 20, rate = 50, helper = false, ns = "/", options = {} }) {
    const load = new Load();
    load.ledger = new Ledger();
    load.stopped = false;
    load.prefix = unique("load");
    load.members = await Promise.all(
      Array.from({ length: clients }, async (_, i) => {
        const name = `${load.prefix}-u${i}`;
        const client = new Client(urls[i % urls.length], { user: name, ns, ...options });
        if (helper) drainHelper(client.socket);
        await client.waitReady(1, { within: 20_000, every: 20 });
        load.ledger.add(name, client);
        const own = [`${load.prefix}-r${i % rooms}`, `${load.prefix}-r${(i + 7) % rooms}`];
        for (const room of own) {
          await client.ok("join", room);
          load.ledger.joined(name, room);
        }
        return { name, client, rooms: own, n: 0, tail: Promise.resolve() };
      }),
    );
    load.running = load.run(1000 / rate);
    return load;
  }

  async run(every) {
    let next = performance.now();
    for (let turn = 0; !this.stopped; turn++) {
      const member = this.members[turn % this.members.length];
      const room = member.rooms[Math.floor(turn / this.members.length) % member.rooms.length];
      const text = { n: ++member.n, body: "a line of chat" };
      // One at a time for each client, so that a retry cannot pass what the client said later.
      member.tail = member.tail.then(() => publish(this.ledger, member.name, member.client, room, text));
      member.tail.catch((error) => this.ledger.wrong.push(error.message));
      next += every;
      await sleep(Math.max(0, next - performance.now()));
    }
  }

  /// Ends the traffic, waits until all is answered and everybody is back and has everything, and checks.
  async finish({ demand } = {}) {
    this.stopped = true;
    await this.running;
    await within(30_000, "every publish answered", Promise.allSettled(this.members.map(({ tail }) => tail)));
    // What does not settle is for the ledger to name.
    await eventually("everything delivered", () => this.ledger.settled() && this.allBack(), { within: 5000, every: 100 }).catch(() => {});
    return this.ledger.check({ demand });
  }

  allBack() {
    return this.members.every(({ client }) => client.outages.every(({ gap }) => gap !== undefined));
  }

  close() {
    this.stopped = true;
    for (const { client } of this.members) client.close();
  }
}
