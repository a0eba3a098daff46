// Long-polling, alone and on its way to a WebSocket, on whichever node: the same sessions, the same promises.
import test from "node:test";
import assert from "node:assert/strict";
import { connect, createServer } from "node:net";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { Haproxy } from "./harness/haproxy.mjs";
import { http } from "./harness/http.mjs";
import { Ledger } from "./harness/ledger.mjs";
import { Load, publish } from "./harness/load.mjs";
import { Proxy } from "./harness/proxy.mjs";
import { eventually, sleep } from "./harness/wait.mjs";

const POLLING = { transports: ["polling"] };
const DEFAULT = { transports: ["polling", "websocket"] };
const UNKNOWN = { code: 1, message: "Session ID unknown" };

const transport = (client) => client.manager.engine.transport.name;
const upgraded = (client) => eventually("upgraded", () => transport(client) === "websocket", { every: 2 });

/// A member of `room`, in the ledger.
async function member(ledger, url, room, options) {
  const client = await Client.ready(url, { user: unique("user"), ...options });
  ledger.add(client.user, client);
  await client.ok("join", room);
  ledger.joined(client.user, room);
  return client;
}

async function say(ledger, client, room, from, to) {
  for (let n = from; n < to; n++) await publish(ledger, client.user, client, room, { n });
}

/// What a client may hold against us after `losses` of its transport.
async function recovered(ledger, client, losses) {
  await client.waitReady(1 + losses);
  const sids = new Set(client.readies.map(({ sid }) => sid));
  assert.equal(sids.size, 1, "one sid through all of it");
  for (const { recovered, socketId, socketRecovered, sid } of client.readies.slice(1)) {
    assert.ok(recovered && socketRecovered, "recovered");
    assert.equal(socketId, sid);
  }
  assert.deepEqual(client.finals, []);
  await eventually("everything delivered", () => ledger.settled());
  assert.deepEqual(ledger.check(), []);
}

for (const [name, options] of [["polling only", POLLING], ["polling, then a WebSocket", DEFAULT]]) {
  test(`${name}: a client recovers whatever happens to its link or its node`, { timeout: 120_000 },
    withCluster({}, async ({ cluster, step, cleanup }) => {
      const [one, two, three] = cluster.nodes;
      const door = await Proxy.start({ target: one.client });
      cleanup(() => door.close());
      const ledger = new Ledger();
      const room = unique("room");
      const client = await member(ledger, door.url, room, options);
      const sender = await member(ledger, three.url, room);
      let losses = 0;
      const there = () => (options === DEFAULT ? upgraded(client) : assert.equal(transport(client), "polling"));

      await step("events and acks pass", async () => {
        await there();
        await say(ledger, client, room, 0, 20);
        await say(ledger, sender, room, 20, 40);
        await recovered(ledger, client, losses);
      });
      await step("a cut link", async () => {
        door.link().cut();
        await say(ledger, sender, room, 40, 60);
        door.link().heal();
        await recovered(ledger, client, ++losses);
        await there();
      });
      await step("a close of its own transport, then another node", async () => {
        client.dropTransport();
        door.target = two.client;
        await say(ledger, sender, room, 60, 80);
        await recovered(ledger, client, ++losses);
        await there();
      });
      await step("SIGTERM of its node", async () => {
        const exit = two.term();
        door.target = three.client;
        await say(ledger, sender, room, 80, 100);
        assert.deepEqual(await exit, { code: 0, signal: null });
        await recovered(ledger, client, ++losses);
        assert.equal(client.events("moim:drain").length, 1, "it was announced");
        two.start();
        await cluster.ready(two);
        await there();
      });
      await step("kill -9 of its node", async () => {
        client.dropTransport();
        door.target = one.client;
        await recovered(ledger, client, ++losses);
        await there();
        await one.kill9();
        door.target = three.client;
        door.link().reset();
        await say(ledger, sender, room, 100, 120);
        await recovered(ledger, client, ++losses);
        one.start();
        await cluster.ready(one);
      });
      await step("its own disconnect ends the session at once", async () => {
        const { sid } = client.last;
        client.socket.disconnect();
        await eventually("gone", async () => (await http(three.admin, `/v1/sids/${sid}`)).status === 404);
      });
      await cluster.stateHashes();
    }));
}

/// A door that ends the upgrade's connection after so many bytes of it in one direction.
async function cuttingDoor(target, cut) {
  const sockets = new Set();
  const server = createServer((client) => {
    const node = connect({ port: target, host: "127.0.0.1", noDelay: true });
    for (const each of [client, node]) {
      sockets.add(each);
      each.on("error", () => {}).on("close", () => { client.destroy(); node.destroy(); });
    }
    client.setNoDelay(true);
    let websocket;
    const passed = { up: 0, down: 0 };
    const pass = (way, to) => (chunk) => {
      websocket ??= chunk.includes("transport=websocket");
      const left = websocket && cut.way === way ? cut.after - passed[way] : Infinity;
      passed[way] += chunk.length;
      if (chunk.length <= left) return void to.write(chunk);
      cut.way = "done";
      to.write(chunk.subarray(0, Math.max(0, left)), () => { client.destroy(); node.destroy(); });
    };
    client.on("data", pass("up", node));
    node.on("data", pass("down", client));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const close = () => {
    for (const each of sockets) each.destroy();
    return new Promise((resolve) => server.close(resolve));
  };
  return { url: `http://127.0.0.1:${server.address().port}`, close };
}

test("a connection that is lost in the middle of an upgrade loses nothing", { timeout: 120_000 },
  withCluster({ nodes: 1 }, async ({ cluster, t, cleanup }) => {
    const [node] = cluster.nodes;
    const ledger = new Ledger();
    const room = unique("room");
    const sender = await member(ledger, node.url, room);
    // The request is some 300 bytes, its answer 129; then come the probe, its answer, the upgrade, and events.
    const places = [["up", 0], ["up", 100], ["down", 1], ["down", 128], ["down", 129], ["up", "head"], ["up", "head+3"],
      ["up", "head+13"], ["down", 133], ["up", "head+16"], ["down", 137], ["down", 140], ["down", 200]];
    const seen = [];
    let head = 0;
    for (const [i, [way, place]] of places.entries()) {
      const cut = { way: "none", after: 0 };
      const door = await cuttingDoor(node.client, cut);
      cleanup(door.close);
      if (!head) head = await requestHead(node.client, door.url);
      cut.way = way;
      cut.after = typeof place === "number" ? place : head + Number(place.slice(5) || 0);
      const user = unique("user");
      // Its user is a member before it comes, so that `ready` says the same each time.
      const other = await Client.ready(node.url, { user });
      await other.ok("join", room);
      other.close();
      const client = await Client.ready(door.url, { user, ...DEFAULT });
      ledger.add(user, client);
      ledger.joined(user, room);
      const both = (from, to) => Promise.all([say(ledger, sender, room, 30 * i + from, 30 * i + to), say(ledger, client, room, from, to)]);
      await both(0, 20);
      // Cut before the server has accepted it, the client polls on; later, it comes back and tries again.
      await eventually(`${way} ${place}: cut`, () => cut.way === "done");
      await eventually(`${way} ${place}: at rest`, () => client.outages.every(({ gap }) => gap !== undefined));
      await both(20, 30);
      await eventually(`${way} ${place}: everything delivered`, () => ledger.settled());
      assert.ok(client.readies.slice(1).every(({ recovered }) => recovered), `${way} ${place}: recovered`);
      assert.deepEqual(client.finals, []);
      seen.push(`${way} ${place}: ${client.outages.length ? "came back" : "stayed"}, ${transport(client)}`);
    }
    t.diagnostic(seen.join("; "));
    assert.ok(seen.filter((place) => place.includes("came back")).length >= 2, "not conclusive: nobody had to recover");
    assert.deepEqual(ledger.check({ demand: { acked: 30 * 2 * places.length } }), []);
  }));

/// Bytes of the stock client's upgrade request, as it is against this server.
async function requestHead(target) {
  let bytes = 0;
  const server = createServer((client) => {
    const node = connect({ port: target, host: "127.0.0.1" });
    let first;
    client.on("data", (chunk) => {
      if (!first) {
        first = chunk;
        if (chunk.includes("transport=websocket")) bytes = chunk.indexOf("\r\n\r\n") + 4;
      }
      node.write(chunk);
    });
    node.on("data", (chunk) => client.write(chunk));
    for (const each of [client, node]) each.on("error", () => {}).on("close", () => { client.destroy(); node.destroy(); });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const client = await Client.ready(`http://127.0.0.1:${server.address().port}`, { user: unique("head"), ...DEFAULT });
  await upgraded(client);
  client.close();
  await new Promise((resolve) => server.close(resolve));
  return bytes;
}

test("polling clients through plain round robin: no 400, no disconnect", { timeout: 240_000 },
  withCluster({ settings: { "ping.interval": "5s" } }, async ({ cluster, t, cleanup }) => {
    const [clients, seconds] = [Number(process.env.MOIM_TEST_POLLERS ?? 200), Number(process.env.MOIM_TEST_POLLING_SECONDS ?? 10)];
    const haproxy = await Haproxy.start(cluster, { check: "inter 2s fall 3 rise 1" });
    cleanup(() => haproxy.close());
    const load = await Load.start({ urls: [haproxy.url], clients, rate: 25, options: POLLING });
    cleanup(() => load.close());
    const everyone = load.members.map(({ client }) => client);
    const [one, two] = everyone;
    await two.ok("join", load.members[0].rooms[0]);
    const room = load.members[0].rooms[0];
    const before = await answers(haproxy);

    two.socket.emit("typing", { room });
    await one.next("typing", ({ user }) => user === two.user);
    const large = "x".repeat(60 * 1024);
    const lone = unique("large");
    for (const client of [one, two]) await client.ok("join", lone);
    for (let n = 0; n < 5; n++) await two.ok("message", { room: lone, text: `${n}${large}` });
    await one.next("message", ({ room, text }) => room === lone && text === `4${large}`);
    // The chat has no use for binary data; that it says so means that it came, in one piece.
    const binary = await two.request("join", Buffer.from([0, 1, 2, 0x1e, 255]));
    assert.equal(binary.error?.code, "bad_request");
    await sleep(seconds * 1000);

    const wrong = await load.finish({ demand: { acked: 25 * seconds * 0.5, reconnects: 0 } });
    t.diagnostic(load.ledger.report());
    assert.deepEqual(wrong, []);
    assert.deepEqual(everyone.flatMap(({ outages }) => outages), [], "no disconnect");
    assert.deepEqual(everyone.flatMap((client) => client.events("connect_error")), []);
    const after = await answers(haproxy);
    t.diagnostic(`HAProxy: ${JSON.stringify(after)}`);
    assert.equal(after["4xx"] - before["4xx"] + after["5xx"], 0, "no refusal");
    await cluster.stateHashes();
  }));

/// How many answers of each class HAProxy saw from the nodes.
async function answers(haproxy) {
  const [names, ...rows] = (await haproxy.ask("show stat")).split("\n").map((line) => line.split(","));
  const backend = rows.find((row) => row[0] === "nodes" && row[1] === "BACKEND");
  return Object.fromEntries(["2xx", "4xx", "5xx"].map((word) => [word, Number(backend[names.indexOf(`hrsp_${word}`)])]));
}

for (const [name, options] of [["polling", POLLING], ["polling and relayed WebSockets", DEFAULT]]) {
  test(`round robin, ${name}: nodes come and go under load, and nothing is lost`, { timeout: 120_000 },
    withCluster({}, async ({ cluster, t, cleanup }) => {
      const haproxy = await Haproxy.start(cluster);
      cleanup(() => haproxy.close());
      const load = await Load.start({ urls: [haproxy.url], clients: 30, rooms: 6, rate: 25, options });
      cleanup(() => load.close());
      for (const node of cluster.nodes) {
        assert.deepEqual(await node.term(), { code: 0, signal: null }, `${node.name} exits cleanly`);
        node.start();
        await cluster.ready(node);
        await haproxy.sees(node);
      }
      const victim = await cluster.follower();
      await victim.kill9();
      await sleep(1500);
      victim.start();
      await cluster.ready(victim);
      const wrong = await load.finish({ demand: { acked: 50, reconnects: 30 } });
      t.diagnostic(load.ledger.report());
      assert.deepEqual(wrong, []);
      await cluster.stateHashes();
    }));
}

test("requests for another node's session are passed on, once", { timeout: 120_000 },
  withCluster({}, async ({ cluster, step, cleanup }) => {
    const [one, two, three] = cluster.nodes;
    const row = async (node) => (await cluster.admin(one, "/v1/cluster")).nodes.find(({ name }) => name === node.name);
    /// A client whose first request goes to `owner`, and every other to `by`.
    const apart = async (owner, by, options) => {
      const door = await Proxy.start({ target: owner.client });
      cleanup(() => door.close());
      const client = new Client(door.url, { user: unique("apart"), ...options });
      client.manager.engine.once("handshake", () => (door.target = by.client));
      await client.waitReady();
      client.door = door;
      return client;
    };

    await step("a WebSocket is relayed and counted", async () => {
      const client = await apart(two, three, DEFAULT);
      await upgraded(client);
      assert.equal(client.last.node, two.name);
      await eventually("counted", async () => (await row(three)).relayed === 1);
      assert.equal((await row(two)).relayed, 0);
      await client.ok("join", unique("room"));
      client.close();
      await eventually("no longer", async () => (await row(three)).relayed === 0);
    });
    await step("the node between is drained: its relayed clients go first and recover, its polls go elsewhere", async () => {
      const ledger = new Ledger();
      const room = unique("room");
      const websocket = await apart(two, three, DEFAULT);
      const polling = await apart(two, three, POLLING);
      const sender = await member(ledger, one.url, room);
      for (const client of [websocket, polling]) {
        ledger.add(client.user, client);
        await client.ok("join", room);
        ledger.joined(client.user, room);
      }
      await upgraded(websocket);
      const exit = three.term();
      for (const { door } of [websocket, polling]) door.target = one.client;
      await say(ledger, sender, room, 0, 50);
      assert.deepEqual(await exit, { code: 0, signal: null });
      assert.equal(websocket.events("moim:drain").length, 1, "it was announced");
      await recovered(ledger, websocket, 1);
      await recovered(ledger, polling, 0);
      three.start();
      await cluster.ready(three);
    });
    await step("a dead node's tag is an unknown session, soon, and the client recovers", async () => {
      const ledger = new Ledger();
      const room = unique("room");
      const client = await apart(three, two, POLLING);
      ledger.add(client.user, client);
      await client.ok("join", room);
      ledger.joined(client.user, room);
      const id = client.manager.engine.id;
      const sender = await member(ledger, one.url, room);
      const killed = performance.now();
      await three.kill9();
      await eventually("the loss is learnt", () => client.outages.length === 1, { every: 1 });
      assert.ok(performance.now() - killed < 1500, "soon");
      const answer = await http(one.client, `/socket.io/?EIO=4&transport=polling&sid=${id}`);
      assert.deepEqual([answer.status, answer.json], [400, UNKNOWN]);
      await say(ledger, sender, room, 0, 20);
      await recovered(ledger, client, 1);
      three.start();
      await cluster.ready(three);
    });
    await step("a node that stands still keeps no request hanging", async () => {
      const client = await apart(three, two, POLLING);
      const relayed = await apart(three, one, DEFAULT);
      await upgraded(relayed);
      const stopped = performance.now();
      three.stop();
      try {
        for (const each of [client, relayed]) await eventually("the loss is learnt", () => each.outages.length === 1, { every: 1 });
        assert.ok(performance.now() - stopped < 6000, "soon");
        for (const each of [client, relayed]) await each.waitReady(2);
      } finally {
        three.cont();
      }
      for (const each of [client, relayed]) assert.ok(each.last.recovered);
      await cluster.ready(three);
    });
    await step("two posts at once end the session with 400, as with Socket.IO's own server; one after another are fine", async () => {
      for (const by of [one, two]) {
        const path = `/socket.io/?EIO=4&transport=polling`;
        const { sid } = JSON.parse((await http(one.client, path)).text.slice(1));
        const post = (length) => {
          const socket = connect({ port: by.client, host: "127.0.0.1", noDelay: true });
          socket.on("error", () => {});
          socket.text = "";
          socket.on("data", (data) => (socket.text += data));
          cleanup(() => socket.destroy());
          socket.write(`POST ${path}&sid=${sid} HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: ${length}\r\n\r\n`);
          return socket;
        };
        const answer = (socket) => eventually("an answer", () => socket.text.match(/^HTTP\/1.1 (\d+)/)?.[1], { every: 2 });
        const connecting = post(2);
        connecting.write("40");
        assert.equal(await answer(connecting), "200");
        // Half of it, on the node that has the session: the relay passes on whole ones only.
        const said = '420["rooms"]';
        const half = post(said.length);
        half.write(said.slice(0, 5));
        await sleep(50);
        const whole = post(said.length);
        whole.write(said);
        if (by !== one) {
          assert.equal(await answer(whole), "200", "the half one is not there yet");
          half.write(said.slice(5));
          assert.equal(await answer(half), "200");
          continue;
        }
        assert.equal(await answer(whole), "400");
        assert.deepEqual((await http(one.client, `${path}&sid=${sid}`)).json, UNKNOWN);
      }
    });
    await step("ids are no secret's neighbour", async () => {
      const client = await Client.ready(one.url, { user: unique("ids"), ...POLLING });
      const eio = client.manager.engine.id;
      assert.notEqual(client.last.sid, eio);
      assert.ok(!eio.includes(client.last.sid) && !client.last.sid.includes(eio.slice(16)));
      const said = JSON.stringify([client.log, await cluster.admin(one, `/v1/sids/${client.last.sid}`)]);
      assert.ok(!said.includes(eio.slice(16)), "the Engine.IO id is in nothing that is said");
      client.close();
    });
  }));
