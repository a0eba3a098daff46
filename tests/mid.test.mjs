// Sending exactly once: a message with a `mid` is there once and has one ack, however often and wherever it was sent.
import test from "node:test";
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { connect, createServer } from "node:net";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { Haproxy } from "./harness/haproxy.mjs";
import { http } from "./harness/http.mjs";
import { eventually, sleep } from "./harness/wait.mjs";

/// What an application does with the stock client's own `retries`: one emit for each message. That an answer of "not now"
/// is an answer, and ends them, is Socket.IO's way; such a message is emitted again.
async function send(client, payload) {
  for (;;) {
    const ack = await new Promise((resolve, reject) => {
      client.socket.emit("message", payload, (error, ack) => (error ? reject(error) : resolve(ack)));
    });
    if (ack.ok || ack.error.retry !== true) return ack;
    await sleep(50);
  }
}

const RETRIES = { retries: 50, ackTimeout: 1000 };
/// How often the client wrote a message with this mid.
const sends = (client, mid) => client.rawSent.filter((packet) => packet.includes(`"${mid}"`)).length;
const handOver = async (cluster) => {
  const before = await cluster.leader();
  const { status, text } = await http(before.admin, "/v1/cluster/leader", { method: "POST" });
  assert.equal(status, 200, text);
  await eventually("another leader", async () => (await cluster.leaderNow(before)) !== before);
};

test("the stock client's retries, through every change of nodes: one ack, one message, in order", { timeout: 120_000 },
  withCluster({}, async ({ cluster, cleanup }) => {
    const haproxy = await Haproxy.start(cluster);
    cleanup(() => haproxy.close());
    const room = unique("room");
    const watcher = await Client.ready(haproxy.url, { user: unique("watcher") });
    const senders = [];
    for (let i = 0; i < 6; i++) senders.push(await Client.ready(haproxy.url, { user: unique("sender"), ...RETRIES }));
    // One of them does not hear the last ack before each change: it has to send that message again.
    const door = await deafDoor(haproxy.port, cleanup);
    const deaf = await Client.ready(door.url, { user: unique("deaf"), ...RETRIES });
    senders.push(deaf);
    for (const client of [watcher, ...senders]) await client.ok("join", room);

    let going = true;
    const acked = new Map();
    const traffic = senders.map(async (client) => {
      for (let n = 0; going; n++) {
        const mid = `${client.user}-${n}`;
        const ack = await send(client, { room, text: { n }, mid });
        assert.ok(ack.ok, JSON.stringify(ack));
        acked.set(mid, { ack, client, n });
        await sleep(20);
      }
    });
    const back = async (node) => {
      node.start();
      await cluster.ready(node);
      await haproxy.sees(node);
    };
    const unheard = [];
    const change = async (what) => {
      const said = () => [...acked.values()].filter(({ client }) => client === deaf).length;
      const before = said();
      await eventually("it has heard an ack", () => said() > before);
      door.hush = new RegExp(`"mid":"(${deaf.user}-\\d+)"`);
      unheard.push(await eventually("an ack is lost", () => door.deaf));
      await what();
      door.moveTo(haproxy.port);
    };
    const kill = async (node) => {
      await node.kill9();
      await sleep(500);
      await back(node);
    };
    const changes = async () => {
      await change(async () => kill(await cluster.follower()));
      await change(() => handOver(cluster));
      await change(async () => kill(await cluster.leader()));
      await change(async () => {
        const drained = await cluster.follower();
        assert.deepEqual(await drained.term(), { code: 0, signal: null });
        await back(drained);
      });
    };
    await Promise.race([changes(), Promise.all(traffic)]);
    going = false;
    await Promise.all(traffic);

    const last = Math.max(...[...acked.values()].map(({ ack }) => parseInt(ack.id, 36)));
    await eventually("everything heard", () => watcher.messages(room).some(({ id }) => parseInt(id, 36) >= last));
    const heard = watcher.messages(room);
    assert.equal(heard.length, acked.size, "each once, and none that was not acknowledged");
    for (const { mid, id, at, user, text } of heard) {
      const { ack, client, n } = acked.get(mid);
      assert.deepEqual([ack.id, ack.at, client.user, n], [id, at, user, text.n]);
    }
    for (const { user } of senders) {
      const own = heard.filter((message) => message.user === user).map(({ text }) => text.n);
      assert.deepEqual(own, [...own.keys()], "in the order in which they were sent");
    }
    assert.equal(new Set(unheard).size, 4);
    for (const mid of unheard) assert.ok(sends(deaf, mid) > 1, `${mid} was sent ${sends(deaf, mid)} times`);
    for (const client of senders) assert.deepEqual(client.finals, []);
  }));

/// A door that passes what its client says and, once `deaf`, nothing of what it is told; with `soon`, from behind `ready` on;
/// with `hush`, from the first bytes on that match it, of which `deaf` then is the first group.
async function deafDoor(target, cleanup) {
  const door = { target, deaf: false, soon: false, hush: null, pairs: new Set() };
  const server = createServer((client) => {
    const node = connect({ port: door.target, host: "127.0.0.1", noDelay: true });
    const pair = [client, node];
    door.pairs.add(pair);
    client.setNoDelay(true);
    client.on("data", (chunk) => node.write(chunk));
    node.on("data", (chunk) => {
      const found = door.hush?.exec(chunk);
      if (found) Object.assign(door, { deaf: found[1], hush: null });
      if (door.deaf) return;
      client.write(chunk);
      door.deaf = door.soon && chunk.includes('"ready"');
    });
    for (const each of pair) each.on("error", () => {}).on("close", () => { client.destroy(); node.destroy(); door.pairs.delete(pair); });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  door.url = `http://127.0.0.1:${server.address().port}`;
  door.moveTo = (to) => {
    Object.assign(door, { target: to, deaf: false });
    for (const [client] of door.pairs) client.destroy();
  };
  cleanup(() => {
    for (const [client] of door.pairs) client.destroy();
    return new Promise((resolve) => server.close(resolve));
  });
  return door;
}

test("an ack that is lost comes again, the same: on each node in turn", { timeout: 60_000 },
  withCluster({}, async ({ cluster, cleanup }) => {
    const [one, two, three] = cluster.nodes;
    const room = unique("room");
    const door = await deafDoor(one.client, cleanup);
    const client = await Client.ready(door.url, { user: unique("sender"), ...RETRIES, ackTimeout: 5000 });
    const watcher = await Client.ready(two.url, { user: unique("watcher") });
    for (const each of [client, watcher]) await each.ok("join", room);

    const mid = randomUUID();
    door.deaf = true;
    const answered = send(client, { room, text: "once", mid });
    const [first] = await watcher.next("message", (message) => message.mid === mid);
    // The other nodes hear it again, and their acks are lost too; the third is drained meanwhile.
    for (const [n, node] of [two, three].entries()) {
      door.soon = true;
      door.moveTo(node.client);
      await client.waitReady(2 + n);
      await eventually("sent again", () => sends(client, mid) === 2 + n, { every: 1 });
      if (n === 0) await sleep(200);
    }
    const exit = three.term();
    await sleep(200);
    door.soon = false;
    door.moveTo(one.client);
    const ack = await answered;
    await exit;
    assert.deepEqual(ack, { ok: true, id: first.id, at: first.at });
    assert.ok(sends(client, mid) >= 3 && client.readies.length >= 3, `sent ${sends(client, mid)} times`);
    assert.ok(client.readies.every(({ recovered }, i) => recovered === i > 0));
    await eventually("its own too", () => client.messages(room).length === 1);
    await watcher.ok("message", { room, text: "mark" });
    assert.deepEqual(watcher.messages(room).map(({ text }) => text), ["once", "mark"]);
  }));

test("four times the same, across kill -9, a hand-over and a drain: one message and one ack", { timeout: 60_000 },
  withCluster({}, async ({ cluster, cleanup }) => {
    const haproxy = await Haproxy.start(cluster);
    cleanup(() => haproxy.close());
    const room = unique("room");
    const user = unique("user");
    const client = await Client.ready(haproxy.url, { user });
    const watcher = await Client.ready(haproxy.url, { user: unique("watcher") });
    for (const each of [client, watcher]) await each.ok("join", room);
    const payload = { room, text: { any: ["json", 1.5] }, mid: randomUUID() };
    const first = await client.ok("message", payload);
    const changes = [
      async (node) => node.kill9(),
      async () => handOver(cluster),
      async (node) => node.term(),
    ];
    for (const [n, change] of changes.entries()) {
      const node = cluster.nodes.find(({ name }) => name === client.last.node);
      await change(node);
      const fresh = await Client.ready(haproxy.url, { user: n === 1 ? user : client.user });
      // The same client, and a tab of its user that never sent it.
      for (const each of [client, fresh]) {
        const again = await eventually("an answer", () => each.request("message", payload).then((ack) => ack.ok && ack));
        assert.deepEqual(again, first);
      }
      fresh.close();
      if (node.running) continue;
      node.start();
      await cluster.ready(node);
      await haproxy.sees(node);
    }
    await client.ok("message", { room, text: "mark" });
    await watcher.next("message", ({ text }) => text === "mark");
    for (const each of [client, watcher]) assert.equal(each.messages(room).filter(({ mid }) => mid === payload.mid).length, 1);
  }));

const WINDOW = 4000;

test("mids of many tabs", { timeout: 60_000 },
  withCluster({ settings: { "mid.window": `${WINDOW}ms` } }, async ({ cluster, step }) => {
    const room = unique("room");
    const user = unique("user");
    const tabs = [];
    for (const node of cluster.nodes) {
      tabs.push(await Client.ready(node.url, { user }));
      await tabs.at(-1).ok("join", room);
    }
    const watcher = await Client.ready(cluster.nodes[1].url, { user: unique("watcher") });
    await watcher.ok("join", room);
    /// Every tab has its say at the same moment.
    const together = (payload) => Promise.all(tabs.map((tab, n) => tab.request("message", payload(n))));
    const heard = (mid) => watcher.messages(room).filter((message) => message.mid === mid);
    const marked = async () => {
      const { id } = await tabs[0].ok("message", { room, text: "mark" });
      await watcher.next("message", (message) => message.id === id);
    };

    await step("the same mid, room and text on three nodes at once: one message, one ack for all", async () => {
      const mids = Array.from({ length: 25 }, () => randomUUID());
      for (const mid of mids) {
        const [first, ...others] = await together(() => ({ room, text: `all ${mid}`, mid }));
        assert.ok(first.ok, JSON.stringify(first));
        for (const other of others) assert.deepEqual(other, first);
      }
      await marked();
      for (const mid of mids) assert.equal(heard(mid).length, 1);
    });

    await step("the same mid for different texts: one is taken, the others are told so, nothing is swallowed", async () => {
      for (let round = 0; round < 15; round++) {
        const mid = `tab-${round}`;
        const acks = await together((n) => ({ room, text: { tab: n, round }, mid }));
        const taken = acks.filter(({ ok }) => ok);
        assert.equal(taken.length, 1, JSON.stringify(acks));
        for (const { error } of acks.filter(({ ok }) => !ok)) {
          assert.deepEqual([error.code, error.retry], ["mid_reused", false]);
        }
        // What was refused is said with a mid of its own, and then all of it is there.
        await Promise.all(acks.map(({ ok }, n) => ok || tabs[n].ok("message", { room, text: { tab: n, round }, mid: randomUUID() })));
        await marked();
        assert.deepEqual(heard(mid).map(({ id }) => id), [taken[0].id]);
        const said = watcher.messages(room).filter(({ text }) => text.round === round).map(({ text }) => text.tab);
        assert.deepEqual(said.sort(), [0, 1, 2]);
      }
    });

    await step("after its window a mid is new", async () => {
      const mid = randomUUID();
      const first = await tabs[0].ok("message", { room, text: "again", mid });
      assert.deepEqual(await tabs[1].ok("message", { room, text: "again", mid }), first);
      await sleep(WINDOW + 300);
      const second = await tabs[2].ok("message", { room, text: "again", mid });
      assert.notEqual(second.id, first.id);
      assert.deepEqual(await tabs[1].ok("message", { room, text: "again", mid }), second);
      assert.equal((await tabs[0].request("message", { room, text: "other", mid })).error.code, "mid_reused");
      await marked();
      assert.deepEqual(heard(mid).map(({ id }) => id), [first.id, second.id]);
    });
    await cluster.stateHashes();
  }));
