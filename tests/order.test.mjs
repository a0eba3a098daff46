// What one client says in a burst is heard, and answered, in the order in which it was said.
import test from "node:test";
import assert from "node:assert/strict";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { eventually } from "./harness/wait.mjs";

const numbers = (count) => Array.from({ length: count }, (_, i) => i);
const heard = (client, room) => client.messages(room).map(({ text }) => text);
const all = (client, room, count) => eventually(`${count} messages`, () => client.messages(room).length >= count);

/// A sender on node 1, receivers on nodes 1 and 2, all members of a new room.
async function scene(cluster) {
  const [one, two] = cluster.nodes;
  const room = unique("burst");
  const [sender, near, far] = await Promise.all([one, one, two].map((node) => Client.ready(node.url, { user: unique("u") })));
  for (const client of [sender, near, far]) await client.ok("join", room);
  return { room, sender, near, far };
}

test("order", { timeout: 60_000 }, withCluster({}, async ({ cluster, step }) => {
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
