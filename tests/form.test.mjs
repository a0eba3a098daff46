// A cluster forms in any order, once; goes on without one node; stops, and says so, without two.
import test from "node:test";
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { http } from "./harness/http.mjs";
import { eventually, sleep } from "./harness/wait.mjs";

const isReady = async (node) => (await http(node.client, "/readyz")).status === 200;
const live = (node) => eventually(`${node.name} live`, async () => (await http(node.client, "/livez")).status === 200);

for (const order of [[0, 1, 2], [2, 0, 1], [1, 2, 0]]) {
  test(`three empty nodes form one cluster, started in the order ${order.map((i) => i + 1)}`, { timeout: 60_000 },
    withCluster({ start: false }, async ({ cluster }) => {
      for (const i of order) {
        const node = cluster.nodes[i];
        // Nobody serves before all have found each other: two of three must not form a cluster.
        for (const other of cluster.nodes.filter((each) => each.running)) assert.equal(await isReady(other), false);
        node.start();
        await live(node);
        if (i !== order.at(-1)) await sleep(300); // time enough to do the wrong thing
      }
      await cluster.allReady();
      const ids = new Set();
      for (const node of cluster.nodes) {
        const answer = await cluster.admin(node, "/v1/cluster");
        ids.add(answer.cluster ?? answer.cluster_id ?? answer.id);
        assert.equal(answer.nodes.length, 3);
      }
      assert.equal(ids.size, 1);
      await cluster.stateHashes();
    }));
}

test("all at once, and again with the same data: everything is found", { timeout: 60_000 },
  withCluster({}, async ({ cluster }) => {
    const [one, two] = cluster.nodes;
    const room = unique("room");
    const user = unique("user");
    const first = await Client.ready(one.url, { user });
    await first.ok("join", room);
    const { id } = await first.ok("message", { room, text: "kept" });
    first.close();
    const before = await cluster.admin(one, "/v1/cluster");
    await Promise.all(cluster.nodes.map((node) => node.term()));
    for (const node of cluster.nodes) node.start();
    await cluster.allReady();
    const after = await cluster.admin(two, "/v1/cluster");
    assert.deepEqual(after.nodes.map((node) => [node.id, node.name]).sort(), before.nodes.map((node) => [node.id, node.name]).sort());
    assert.ok(after.term >= before.term);
    const again = await Client.ready(two.url, { user });
    assert.deepEqual(again.last.rooms, [room]);
    const { messages } = await again.ok("history", { room });
    assert.deepEqual(messages.filter(({ text }) => text !== undefined).map((message) => message.id), [id]);
  }));

test("one dead goes on; two dead refuse and come back by themselves", { timeout: 90_000 },
  withCluster({}, async ({ cluster, step }) => {
    const leader = await cluster.leader();
    const [last, second] = cluster.others(leader);
    const room = unique("room");
    const client = await Client.ready(last.url, { user: unique("user") });
    await client.ok("join", room);

    await step("one dead (the leader): writes go on after one election", async () => {
      await leader.kill9();
      await eventually("a write", async () => (await client.request("message", { room, text: 1 }, { timeout: 1000 })).ok);
      assert.equal(client.outages.length, 0, "the clients of the other nodes stay");
    });

    const mid = randomUUID();
    await step("two dead: refused with retry, never done by halves", async () => {
      const { messages: before } = await client.ok("history", { room, limit: 100 });
      await second.kill9();
      const answer = await eventually("an answer", () => client.request("message", { room, text: "minority", mid }, { timeout: 9000 }), { within: 9500 });
      assert.equal(answer.ok, false);
      assert.equal(answer.error.code, "unavailable");
      assert.equal(answer.error.retry, true);
      assert.equal(client.messages(room).some(({ text }) => text === "minority"), false);
      assert.ok(before.length > 0);
      const read = await http(last.admin, "/v1/state?consistency=linearizable", { timeout: 10_000 });
      assert.equal(read.status, 503);
      assert.equal((await http(last.admin, "/v1/state")).status, 200, "a local read goes on, and says how old it is");
    });

    await step("a node without a quorum is not ready and lets its clients go, without a final word", async () => {
      await eventually("not ready", async () => !(await isReady(last)), { within: 15_000 });
      await eventually("closed", () => client.outages.length > 0, { within: 15_000 });
      assert.deepEqual(client.finals, []);
    });

    await step("one more node back: it serves by itself, and the client recovers", async () => {
      second.start();
      await cluster.ready(second);
      await cluster.ready(last);
      const ready = await client.waitReady(2, { within: 10_000 });
      assert.equal(ready.recovered, true);
      await eventually("the retry", async () => (await client.request("message", { room, text: "minority", mid }, { timeout: 2000 })).ok);
      assert.equal(client.messages(room).filter(({ text }) => text === "minority").length, 1);
      leader.start();
      await cluster.ready(leader);
      await sleep(200);
      await cluster.stateHashes();
    });
  }));

test("one node alone is a cluster", { timeout: 30_000 },
  withCluster({ nodes: 1 }, async ({ cluster }) => {
    const [node] = cluster.nodes;
    const room = unique("room");
    const client = await Client.ready(node.url, { user: unique("user") });
    await client.ok("join", room);
    await client.ok("message", { room, text: 1 });
    assert.deepEqual(await node.term(), { code: 0, signal: null });
    node.start();
    await cluster.ready(node);
    assert.equal((await client.waitReady(2)).recovered, true);
    assert.deepEqual(client.last.rooms, [room]);
  }));
