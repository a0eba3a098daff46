// Who is online, as the others see it, over time.
import test from "node:test";
import assert from "node:assert/strict";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { sleep } from "./harness/wait.mjs";

const GRACE = 4000;

test("presence", { timeout: 90_000 }, withCluster({ settings: { "presence.grace": `${GRACE}ms` } }, async ({ cluster, step }) => {
  const room = unique("room");
  const member = async (node, options) => {
    const client = await Client.ready(node.url, { user: unique("user"), ...options });
    await client.ok("join", room);
    return client;
  };
  const leader = await cluster.leader();
  const [victim, other] = cluster.nodes.filter((node) => node !== leader);
  const watcher = await member(leader);
  const isOnline = async (client) => (await watcher.ok("users", room)).users.find(({ user }) => user === client.user).online;

  await step("a node that is killed and comes back within the grace makes nobody offline", async () => {
    const client = await member(victim);
    await victim.kill9();
    victim.start();
    await cluster.ready(victim);
    assert.equal((await client.waitReady(2)).recovered, true);
    await sleep(GRACE + 2000); // a verdict on the lost time would have come by now
    for (const each of [watcher, client]) {
      assert.deepEqual([...each.events("online"), ...each.events("offline")], []);
    }
    assert.equal(await isOnline(client), true);
  });

  await step("a user that is gone is online until its grace is over", async () => {
    const client = await member(other, { reconnection: false });
    const lost = performance.now();
    client.dropTransport();
    await sleep(GRACE / 2);
    assert.equal(await isOnline(client), true);
    await watcher.next("offline", ({ user }) => user === client.user);
    assert.ok(performance.now() - lost >= GRACE);
    assert.equal(await isOnline(client), false);
    const again = await Client.ready(other.url, { user: client.user });
    await watcher.next("online", ({ user }) => user === client.user);
    assert.equal(await isOnline(client), true);
    assert.deepEqual(again.events("online"), [], "it is not told of itself");
  });
}));
