// Receivers that do not keep up: each is let go alone, in bounded memory, and misses nothing when it comes back.
import test from "node:test";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { http } from "./harness/http.mjs";
import { Raw } from "./harness/raw.mjs";
import { eventually } from "./harness/wait.mjs";

/// Room for eight of these bodies: where it is for two, a busy machine cuts clients that do read.
const SETTINGS = { "limits.queue-bytes": "512KiB", "history.bytes": "32MiB", "replay.bytes": "32MiB" };
const BODY = "x".repeat(60_000);
const slowOn = async (node) =>
  Number((await http(node.admin, "/metrics")).text.match(/^moim_slow_consumers_disconnected_total (\d+)$/m)[1]);
const residentBytes = (node) => Number(readFileSync(`/proc/${node.pid}/status`, "utf8").match(/VmRSS:\s+(\d+) kB/)[1]) * 1024;

/// A client that polls when it is told to.
class Poller {
  static async open(port, auth) {
    const poller = Object.assign(new Poller(), { port, path: "/socket.io/?EIO=4&transport=polling", packets: [] });
    const { text } = await http(port, poller.path);
    poller.id = JSON.parse(text.slice(1)).sid;
    poller.path += `&sid=${poller.id}`;
    await poller.post(`40${JSON.stringify(auth)}`);
    Object.assign(poller, JSON.parse((await poller.until("40{")).slice(2)));
    return poller;
  }

  async post(packet) {
    // A body that is no JSON: `http` would write it as a string.
    const answer = await fetch(`http://127.0.0.1:${this.port}${this.path}`, { method: "POST", body: packet });
    assert.equal(answer.status, 200);
  }

  /// One poll; false when the session is over.
  async poll() {
    const { status, text } = await http(this.port, this.path, { timeout: 30_000 });
    if (status === 200) this.packets.push(...text.split("\x1e"));
    for (const ping of text.split("\x1e").filter((packet) => packet === "2")) await this.post(`3${ping.slice(1)}`);
    return status === 200;
  }

  async until(start) {
    const found = () => this.packets.find((packet) => packet.startsWith(start));
    while (!found()) assert.ok(await this.poll(), "still there");
    return found();
  }

  async join(room) {
    await this.post(`421["join",${JSON.stringify(room)}]`);
    await this.until("431[");
  }
}

/// A WebSocket to which a session of another node was upgraded: its bytes pass `by`.
async function relayed(owner, by, auth) {
  const { text } = await http(owner.client, "/socket.io/?EIO=4&transport=polling");
  const raw = await Raw.upgrade(by.client, JSON.parse(text.slice(1)).sid);
  return Object.assign(raw, await raw.connect(auth));
}

async function direct(node, auth) {
  const raw = await Raw.open(node.client);
  return Object.assign(raw, await raw.connect(auth));
}

const join = async (raw, room) => {
  raw.send(`421["join",${JSON.stringify(room)}]`);
  await raw.next((packet) => packet.startsWith("431["));
};
const messages = (packets) => packets.filter((packet) => packet.startsWith('42["message"')).map((packet) => JSON.parse(packet.slice(2)));
const numbers = (packets) => messages(packets).map(([, { text }]) => text.n);
const offsetOf = (packets) => packets.filter((packet) => /^42.*"\]$/.test(packet)).map((packet) => JSON.parse(packet.slice(2)).at(-1)).at(-1);

/// What it heard, and then what it hears when it comes back on `node`, is all there was, once and in order.
async function recovers(what, user, pid, packets, node, count) {
  const again = await direct(node, { user, pid, offset: offsetOf(packets) });
  assert.equal(again.pid, pid, `${what} recovers`);
  const all = () => [...numbers(packets), ...numbers(again.packets)];
  await eventually(`${what} has the rest`, () => all().length >= count);
  assert.deepEqual(all(), [...Array(count).keys()], what);
  for (const packet of [...packets, ...again.packets]) assert.ok(!/^4[14]/.test(packet), `${what} was told ${packet}`);
  again.destroy();
}

test("receivers that stop reading, polling, or reading through another node", { timeout: 90_000 },
  withCluster({ settings: SETTINGS }, async ({ cluster, cleanup, t }) => {
    const [one, two, three] = cluster.nodes;
    const room = unique("room");
    const users = { direct: unique("direct"), relayed: unique("relayed"), polling: unique("polling") };
    const stalled = { direct: await direct(one, { user: users.direct }), relayed: await relayed(one, two, { user: users.relayed }) };
    for (const raw of Object.values(stalled)) {
      cleanup(() => raw.destroy());
      await join(raw, room);
    }
    const POLLERS = 30;
    const pollers = [];
    for (let i = 0; i < POLLERS; i++) {
      pollers.push(await Poller.open(one.client, { user: i ? unique("poller") : users.polling }));
      await pollers[i].join(room);
    }
    const others = await Promise.all([one, two, three].map((node) => Client.ready(node.url, { user: unique("user") })));
    const latencies = [];
    for (const client of others) {
      await client.ok("join", room);
      client.socket.on("message", ({ text }) => latencies.push(performance.now() - text.at));
    }
    await others[0].ok("message", { room, text: { n: 0, at: performance.now() } });
    await pollers[0].poll();
    await stalled.direct.next((packet) => packet.includes('"n":0'));
    await stalled.relayed.next((packet) => packet.includes('"n":0'));
    const before = residentBytes(one);
    assert.equal(await slowOn(one), 0);
    const relays = async () => (await cluster.admin(one, "/v1/cluster")).nodes.find(({ name }) => name === two.name).relayed;
    assert.equal(await relays(), 1);

    for (const raw of Object.values(stalled)) raw.stall();
    // More than the kernels keep for readers that do not read.
    const COUNT = 240;
    let most = 0;
    for (let n = 1; n < COUNT; n++) {
      const { id } = await others[0].ok("message", { room, text: { n, at: performance.now(), body: BODY } });
      // All that a node which lags behind catches up with at once may be too much for anybody.
      await Promise.all(others.map((client) => client.next("message", (message) => message.id === id)));
      if (n % 10 === 0) most = Math.max(most, residentBytes(one));
    }
    await eventually("each is let go, and counted once", async () => (await slowOn(one)) === POLLERS + 2, { within: 15_000 });
    for (const client of others) {
      await eventually("the others have everything", () => client.messages(room).length === COUNT);
      assert.deepEqual(client.outages, [], "the others stay");
    }
    latencies.sort((a, b) => a - b);
    const worst = Math.round(latencies.at(-1));
    t.diagnostic(`others: ${latencies.length} deliveries, p50 ${Math.round(latencies[latencies.length >> 1])} ms, worst ${worst} ms`);
    assert.ok(worst < 3000, "nobody else waits");
    const grown = most - before;
    t.diagnostic(`memory of their node grew by ${Math.round(grown / 2 ** 20)} MiB`);
    assert.ok(grown < 150 * 2 ** 20, `bounded: without a bound it were ${Math.round((POLLERS * COUNT * BODY.length) / 2 ** 20)} MiB`);
    // With a reason, where an operator looks.
    for (const user of Object.values(users)) {
      const { namespaces } = await cluster.admin(one, `/v1/users/${user}`);
      const [{ sid, attached }] = namespaces[0].sids;
      assert.equal(attached, false, user);
      assert.match(one.log(), new RegExp(`${sid}.*does not keep up|does not keep up.*${sid}`), user);
    }

    await recovers("the poller", users.polling, pollers[0].pid, pollers[0].packets, two, COUNT);
    assert.equal(await pollers[0].poll(), false, "its old session is over");
    for (const [what, raw] of Object.entries(stalled)) {
      raw.go();
      await eventually(`${what}: its link is closed`, () => raw.closed);
      assert.ok(numbers(raw.packets).length < COUNT, `not conclusive: the kernels kept it all for ${what}`);
      await recovers(what, users[what], raw.pid, raw.packets, three, COUNT);
    }
    assert.equal(await slowOn(one), POLLERS + 2);
    for (const node of [two, three]) assert.equal(await slowOn(node), 0);
  }));

test("a receiver that stalls in the middle of its replay", { timeout: 60_000 },
  withCluster({ settings: SETTINGS }, async ({ cluster, cleanup }) => {
    const [one, two] = cluster.nodes;
    const room = unique("room");
    const user = unique("user");
    const sender = await Client.ready(two.url, { user: unique("sender") });
    const beside = await Client.ready(one.url, { user: unique("beside") });
    const away = await direct(two, { user });
    for (const client of [sender, beside]) await client.ok("join", room);
    await join(away, room);
    const say = async (from, to) => {
      for (let n = from; n < to; n++) await sender.ok("message", { room, text: { n, body: BODY } });
    };
    await say(0, 1);
    await away.next((packet) => packet.includes('"n":0'));
    away.destroy();
    await say(1, 12);
    // It hears that it has recovered, and a part of what it missed; then it polls no more.
    const poller = await Poller.open(one.client, { user, pid: away.pid, offset: offsetOf(away.packets) });
    assert.equal(poller.pid, away.pid);
    await poller.until('42["message"');
    const heard = numbers(poller.packets).length;
    assert.ok(heard < 11, "not conclusive: it came in one go");
    await say(12, 30);
    await eventually("it is let go", async () => (await slowOn(one)) === 1);
    await eventually("the other has everything", () => beside.messages(room).length === 30);
    assert.deepEqual(beside.outages, []);
    await recovers("it", user, away.pid, [...away.packets, ...poller.packets], two, 30);
  }));

test("a burst that comes in one go cuts nobody who reads", { timeout: 60_000 },
  withCluster({ settings: { ...SETTINGS, "limits.queue-bytes": "256KiB" } }, async ({ cluster }) => {
    const [one, two] = cluster.nodes;
    const room = unique("room");
    const sender = await Client.ready(two.url, { user: unique("sender") });
    const readers = await Promise.all([one, one, one].map((node) => Client.ready(node.url, { user: unique("reader") })));
    for (const client of [sender, ...readers]) await client.ok("join", room);
    // What waits for the first of them makes up one batch, four times as large as what may wait for a client.
    const COUNT = 30;
    const acks = await Promise.all(Array.from({ length: COUNT }, (_, n) => sender.request("message", { room, text: { n, body: BODY } })));
    assert.ok(acks.every(({ ok }) => ok), JSON.stringify(acks));
    for (const client of [sender, ...readers]) {
      await eventually("everything is there", () => client.messages(room).length === COUNT);
      assert.deepEqual(client.messages(room).map(({ text }) => text.n), [...Array(COUNT).keys()]);
      assert.deepEqual(client.outages, [], "nobody is cut");
    }
    for (const node of cluster.nodes) assert.equal(await slowOn(node), 0);
  }));

test("who asks for much at once gets it all, over a queue that holds a fraction", { timeout: 60_000 },
  withCluster({ settings: { ...SETTINGS, "limits.queue-bytes": "256KiB" } }, async ({ cluster }) => {
    const [one, two] = cluster.nodes;
    for (const transport of ["websocket", "polling"]) {
      const name = unique("room");
      const sender = await Client.ready(two.url, { user: unique("sender") });
      await sender.ok("join", name);
      const body = "x".repeat(8000);
      for (let n = 0; n < 100; n++) await sender.ok("message", { room: name, text: { body } });
      // It comes later: what is said to it unasked, in one go, is another matter.
      const reader = await Client.ready(one.url, { user: unique("reader"), transports: [transport], upgrade: false });
      await reader.ok("join", name);
      // 40 answers of 0.8 MB, while the room goes on.
      const pages = Array.from({ length: 40 }, () => reader.request("history", { room: name }, { timeout: 30_000 }));
      for (let n = 0; n < 20; n++) await sender.ok("message", { room: name, text: { n } });
      for (const page of await Promise.all(pages)) assert.equal(page.messages?.length, 100, JSON.stringify(page).slice(0, 200));
      await eventually("the rest heard", () => reader.messages(name).length === 20);
      assert.deepEqual(reader.outages, [], `${transport}: a client that reads is not cut`);
      for (const client of [reader, sender]) client.close();
    }
  }));

test("who leaves a namespace in the middle of its replay keeps the others of its connection", { timeout: 60_000 },
  withCluster({ nodes: 1, settings: SETTINGS }, async ({ cluster, cleanup }) => {
    const [one] = cluster.nodes;
    const [ns, user, room] = ["/group-chat", unique("user"), unique("room")];
    const connect = async (raw, auth) => {
      raw.send(`40${ns},${JSON.stringify({ user, ...auth })}`);
      return JSON.parse((await raw.next((packet) => packet.startsWith(`40${ns},`))).slice(2 + ns.length + 1));
    };
    const before = await Raw.open(one.client);
    const { pid } = await connect(before);
    before.send(`42${ns},1["join",${JSON.stringify(room)}]`);
    await before.next((packet) => packet.startsWith(`43${ns},1[`));
    before.destroy();
    const sender = await Client.ready(one.url, { user: unique("user"), ns });
    await sender.ok("join", room);
    // More than the kernels keep for a reader that does not read.
    for (let n = 0; n < 240; n++) await sender.ok("message", { room, text: { n, body: BODY } });

    const raw = await direct(one, { user });
    cleanup(() => raw.destroy());
    assert.equal((await connect(raw, { pid })).pid, pid, "it recovers");
    raw.stall();
    raw.send(`41${ns},`);
    await eventually("it has left", async () => (await cluster.admin(one, `/v1/sids?ns=${ns}&user=${user}`)).sids.length === 0);
    raw.go();
    raw.send('421["rooms"]');
    await raw.next((packet) => packet.startsWith("431["));
    assert.equal(raw.closed, false);
    const heard = raw.packets.filter((packet) => packet.startsWith(`42${ns},["message"`)).length;
    assert.ok(heard < 240, "it was in the middle");
  }));
