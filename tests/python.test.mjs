// Clients that cannot recover: no `pid`, no offset, a new session each time. What they get instead: they are in all of
// their user's rooms before they hear anything, and fetch what they missed.
import test from "node:test";
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { Haproxy } from "./harness/haproxy.mjs";
import { http } from "./harness/http.mjs";
import { PythonClient, missing } from "./harness/python.mjs";
import { eventually, sleep } from "./harness/wait.mjs";

const skip = missing();
const ids = (messages) => messages.map(({ id }) => id);

/// Sends with one mid, until it is answered.
async function publish(client, room, text) {
  const mid = randomUUID();
  for (;;) {
    const ack = await client.request("message", { room, text, mid }).catch(() => undefined);
    if (ack?.ok) return ack;
    if (ack && ack.error.retry !== true) throw new Error(JSON.stringify(ack));
    await sleep(20);
  }
}

/// What a client did not hear live, page by page.
async function catchUp(client, room, after = "0".repeat(11)) {
  const missed = [];
  for (let more = true; more; ) {
    const page = await client.ok("history", { room, limit: 50, after });
    missed.push(...page.messages);
    after = page.messages.at(-1)?.id ?? after;
    more = page.more;
  }
  return missed;
}

/// The log, cut where a connection begins: what was heard on each.
function connections(client) {
  const all = [];
  for (const entry of client.log) {
    if (entry.event === "connect") all.push([]);
    else all.at(-1)?.push(entry);
  }
  return all;
}

for (const [name, transports] of [["websocket", ["websocket"]], ["polling", ["polling"]], ["polling, then websocket", ["polling", "websocket"]]]) {
  test(`python-socketio over ${name}: in all its rooms before its first event, on whichever node`, { skip, timeout: 120_000 },
    withCluster({}, async ({ cluster, cleanup }) => {
      const haproxy = await Haproxy.start(cluster);
      cleanup(() => haproxy.close());
      const [first, second] = [unique("room"), unique("room")].sort();
      const python = await PythonClient.ready(haproxy.url, { user: unique("python"), transports });
      cleanup(() => python.close());
      assert.equal(python.transport, transports.at(-1));
      for (const room of [first, second]) await python.ok("join", room);

      // Somebody who never loses a message talks all the time, in one of the two rooms.
      const talker = await Client.ready(haproxy.url, { user: unique("talker") });
      await talker.ok("join", first);
      let talking = true;
      const talk = (async () => {
        for (let n = 0; talking; n++) await Promise.all([publish(talker, first, n), sleep(20)]);
      })();

      for (const end of ["kill9", "term", "kill9"]) {
        const victim = cluster.nodes.find((node) => node.name === python.last.node);
        const count = python.readies.length;
        await victim[end]();
        await python.waitReady(count + 1);
        assert.notEqual(python.last.node, victim.name);
        assert.equal(python.last.recovered, false);
        assert.deepEqual([...python.last.rooms].sort(), [first, second]);
        await publish(python, second, `after ${end}`);
        victim.start();
        await cluster.ready(victim);
        await haproxy.sees(victim);
      }
      talking = false;
      await talk;
      const { id } = await publish(talker, first, "last");
      await eventually("the last one", () => ids(python.messages(first)).includes(id));

      assert.equal(new Set(python.readies.map(({ sid }) => sid)).size, python.readies.length, "each a session of its own");
      const whole = await catchUp(talker, first);
      const lives = connections(python);
      assert.ok(lives.length >= 4, "not conclusive: it stayed connected");
      let known;
      const heard = [];
      for (const life of lives) {
        if (life[0]?.event !== "ready") assert.deepEqual(life.filter(({ event }) => event !== "disconnect"), [], "`ready` is the first event");
        const messages = life.filter(({ event, args }) => event === "message" && args[0].room === first).map(({ args }) => args[0]);
        if (!messages.length) continue;
        // From its first message on there is no gap, and what lies before it is in the history.
        const [from, to] = [messages[0].id, messages.at(-1).id];
        assert.deepEqual(ids(messages), ids(whole.filter(({ id }) => id >= from && id <= to)));
        if (known) heard.push(...whole.filter(({ id }) => id > known && id < from));
        heard.push(...messages);
        known = to;
      }
      assert.deepEqual(ids(heard), ids(whole.filter(({ id }) => id >= heard[0].id)), "live and history make the whole");
      assert.deepEqual(ids(await catchUp(python, first, heard[0].id)), ids(heard.slice(1)), "it can fetch all of it");

      const { sid } = python.last;
      await python.disconnect();
      const row = () => http(cluster.nodes[0].admin, `/v1/sids/${sid}`);
      // Over a WebSocket this client closes it before its DISCONNECT is written: to a server, a lost link.
      const polls = transports.at(-1) === "polling";
      await eventually("its session ends, or counts down", async () => {
        const { status, json } = await row();
        return polls ? status === 404 : json.attached === false;
      });
      assert.deepEqual(talker.finals, []);
      await cluster.stateHashes();
    }));
}

test("csr: false: joined again everywhere, and never an offset", { timeout: 120_000 },
  withCluster({}, async ({ cluster, cleanup }) => {
    const haproxy = await Haproxy.start(cluster);
    cleanup(() => haproxy.close());
    const user = unique("user");
    const rooms = [unique("room"), unique("room")].sort();
    const client = await Client.ready(haproxy.url, { auth: { user, csr: false } });
    let connected;
    client.socket.on("connect", () => (connected = client.log.length));
    const other = await Client.ready(haproxy.url, { user: unique("other") });
    for (const room of rooms) for (const each of [client, other]) await each.ok("join", room);
    for (const [i, end] of ["kill9", "term", "drop"].entries()) {
      const victim = cluster.nodes.find((node) => node.name === client.last.node);
      if (end === "drop") client.dropTransport();
      else await victim[end]();
      await publish(other, rooms[0], `${end} missed?`);
      await client.waitReady(2 + i, { within: 20_000 });
      assert.equal(client.last.recovered, false);
      assert.ok(!client.last.socketRecovered);
      assert.deepEqual([...client.last.rooms].sort(), rooms);
      const again = client.log[connected];
      assert.equal(again.event, "ready", "before anything else");
      const { id } = await publish(other, rooms[1], `${end} heard`);
      await client.next("message", (message) => message.id === id);
      if (end === "drop") continue;
      victim.start();
      await cluster.ready(victim);
      await haproxy.sees(victim);
    }
    // Everything that an offset could ride on: messages, joins and leaves of others, presence, typing.
    const third = await Client.ready(haproxy.url, { user: unique("third") });
    await third.ok("join", rooms[0]);
    await eventually("typing", () => (third.socket.emit("typing", { room: rooms[0] }), client.events("typing").length), { every: 50 });
    await third.ok("leave", rooms[0]);
    await client.next("left", (left) => left.user === third.user);
    assert.ok(client.events("joined").length && client.events("message").length);
    for (const { event, args } of client.log.filter(({ event }) => !["ack", "connect_error"].includes(event))) {
      assert.equal(args.length, 1, event);
      assert.notEqual(typeof args[0], "string", event);
    }
    assert.ok(client.rawSent.filter((packet) => packet.startsWith("0")).every((packet) => !/"pid"|"offset"/.test(packet)));
    assert.deepEqual(client.finals, []);
    // Others on the same connection's node are not touched by it.
    assert.ok(other.events("message").every((args) => typeof args.at(-1) === "string"));
  }));
