// What one client says in a burst is heard, and answered, in the order in which it was said.
import test from "node:test";
import assert from "node:assert/strict";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { Proxy } from "./harness/proxy.mjs";
import { eventually, sleep } from "./harness/wait.mjs";

const numbers = (count) => Array.from({ length: count }, (_, i) => i);
const heard = (client, room) => client.messages(room).map(({ text }) => text);
const all = (client, room, count) => eventually(`${count} messages`, () => client.messages(room).length >= count);

/// A sender on node 1, receivers on nodes 1 and 2, all members of a new room.
async function scene(cluster, at = (node) => node.url) {
  const [one, two] = cluster.nodes;
  const room = unique("burst");
  const urls = await Promise.all([one, one, two].map(at));
  const [sender, near, far] = await Promise.all(urls.map((url) => Client.ready(url, { user: unique("u") })));
  for (const client of [sender, near, far]) await client.ok("join", room);
  return { room, sender, near, far };
}

test("order", { timeout: 120_000 }, withCluster({}, async ({ cluster, step, cleanup }) => {
  await step("a burst of 100 reaches everybody in order, and so do its acks", async () => {
    const { room, sender, near, far } = await scene(cluster);
    for (let round = 0; round < 5; round++) {
      await Promise.all(numbers(100).map((n) => sender.ok("message", { room, text: round * 100 + n })));
    }
    for (const client of [sender, near, far]) {
      await all(client, room, 500);
      assert.deepEqual(heard(client, room), numbers(500));
    }
    const acks = sender.events("ack", (event) => event === "message");
    assert.deepEqual(acks.map(([, { text }]) => text), numbers(500));
    assert.deepEqual(acks.map(([, , { id }]) => id), sender.messages(room).map(({ id }) => id));
  });

  await step("2,000 messages in bursts of 100, with reconnects in the middle of them", async () => {
    const doors = [];
    const { room, sender, near, far } = await scene(cluster, async (node) => {
      const door = await Proxy.start({ target: node.client });
      cleanup(() => door.close());
      doors.push(door);
      return door.url;
    });
    const clients = [sender, near, far];
    const acked = new Set();
    // Whose links end while a burst is on its way; the first door is the sender's.
    const cuts = new Map([[4, [doors[1]]], [8, [doors[0]]], [12, [doors[2]]], [16, doors]]);
    for (let round = 0; round < 20; round++) {
      const say = (n) => sender.request("message", { room, text: n }).then(({ ok }) => ok && acked.add(n), () => {});
      const burst = numbers(100).map((n) => round * 100 + n);
      const first = burst.slice(0, 50).map(say);
      if (cuts.has(round)) {
        await sleep(2); // so that some are under way
        for (const door of cuts.get(round)) door.link().reset();
      }
      await Promise.all([...first, ...burst.slice(50).map(say)]);
      for (const client of clients) await eventually("back", () => client.socket.connected, { every: 5 });
    }
    for (const client of clients) await client.waitReady(3);
    for (const client of clients) {
      await eventually("all that was acknowledged", () => [...acked].every((n) => heard(client, room).includes(n)), { every: 100 });
    }
    const said = heard(near, room);
    // What was under way when the sender's link ended may have got lost, which is no inversion; it was not acknowledged.
    assert.ok(said.every((n, i) => i === 0 || n > said[i - 1]), `out of order: ${said.filter((n, i) => n <= said[i - 1])}`);
    for (const client of clients) assert.deepEqual(heard(client, room), said);
    assert.ok(acked.size >= 1800, `not conclusive: ${acked.size} of 2000 acknowledged`);
    const acks = sender.events("ack", (event) => event === "message");
    assert.deepEqual(acks.map(([, { text }]) => text), [...acked].sort((a, b) => a - b));
    const ids = acks.map(([, , { id }]) => id);
    assert.deepEqual(ids, [...ids].sort(), "acks in the order of their messages");
    for (const client of clients) {
      assert.deepEqual(client.finals, []);
      assert.ok(client.readies.slice(1).every(({ recovered }) => recovered));
    }
  });

  await step("a burst without acks keeps its order", async () => {
    const { room, sender, near, far } = await scene(cluster);
    for (const n of numbers(100)) sender.socket.emit("message", { room, text: n });
    for (const client of [near, far]) {
      await all(client, room, 100);
      assert.deepEqual(heard(client, room), numbers(100));
    }
  });

  await step("join and messages said in one breath are carried out in order", async () => {
    const { far } = await scene(cluster);
    const room = unique("breath");
    far.socket.emit("join", room);
    const acks = await Promise.all(numbers(10).map((n) => far.request("message", { room, text: n })));
    assert.ok(acks.every(({ ok }) => ok), JSON.stringify(acks[0]));
    far.socket.emit("leave", room);
    assert.equal((await far.request("message", { room, text: "late" })).error?.code, "not_member");
    assert.deepEqual(heard(far, room), numbers(10));
  });

  await step("acks and events of one socket are in one order", async () => {
    const { room, near, far } = await scene(cluster);
    let on = true;
    const chatter = (async () => {
      for (let n = 0; on; n++) await near.ok("message", { room, text: n });
    })();
    for (let i = 0; i < 10; i++) {
      await far.ok("leave", room);
      await far.ok("join", room);
    }
    on = false;
    await chatter;
    // Between the ack of a leave and the ack of the next join there is no message of the room.
    let inside = true;
    for (const { event, args } of far.log) {
      if (event === "ack" && args[0] === "leave") inside = false;
      if (event === "ack" && args[0] === "join" && args[1] === room) inside = true;
      if (event === "message" && args[0].room === room) assert.ok(inside, `message ${args[0].id} after the ack of the leave`);
    }
  });

  await step("with the client's own retries, and a mid, nothing is missing either", async () => {
    const [, two, three] = cluster.nodes;
    const { room, near, far } = await scene(cluster);
    const door = await Proxy.start({ target: two.client });
    cleanup(() => door.close());
    const sender = await Client.ready(door.url, { user: unique("u"), retries: 10, ackTimeout: 3000 });
    await sender.ok("join", room);
    const answers = [];
    for (const n of numbers(200)) {
      sender.socket.emit("message", { room, text: n, mid: `${sender.user}-${n}` }, (error, answer) => answers.push(error ?? answer));
      if (n % 60 === 30) {
        await eventually("some are answered", () => answers.length >= n - 20, { every: 1 });
        door.moveTo(n === 90 ? three.client : two.client);
      }
    }
    await eventually("all answered", () => answers.length === 200);
    assert.ok(answers.every(({ ok }) => ok), JSON.stringify(answers.find(({ ok }) => !ok)));
    for (const client of [sender, near, far]) {
      await all(client, room, 200);
      assert.deepEqual(heard(client, room), numbers(200));
    }
    assert.deepEqual(answers.map(({ id }) => id), sender.messages(room).map(({ id }) => id));
    assert.ok(sender.readies.length >= 3 && sender.last.recovered, `not conclusive: ${sender.readies.length} connections`);
  });

  await step("emits made while offline are sent in order after the reconnect", async () => {
    const { room, sender, near, far } = await scene(cluster);
    await sender.ok("message", { room, text: 0 });
    sender.dropTransport();
    await eventually("offline", () => !sender.socket.connected, { every: 1 });
    for (const n of numbers(50)) sender.socket.emit("message", { room, text: n + 1 });
    await sender.waitReady(2);
    for (const client of [sender, near, far]) {
      await all(client, room, 51);
      assert.deepEqual(heard(client, room), numbers(51));
    }
    assert.equal(sender.last.recovered, true);
    assert.deepEqual(sender.finals, []);
  });
}));
