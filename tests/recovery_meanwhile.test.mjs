// What happened while a client was away: in its rooms by its user's other tabs, in its other namespaces, and in its own
// head, which went on talking.
import test from "node:test";
import assert from "node:assert/strict";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { http } from "./harness/http.mjs";
import { Ledger } from "./harness/ledger.mjs";
import { publish } from "./harness/load.mjs";
import { Proxy } from "./harness/proxy.mjs";
import { eventually } from "./harness/wait.mjs";

const SETTINGS = { "history.size": 60 };
const NAMESPACES = ["/", "/normal-chat", "/group-chat"];
const numbers = (count) => Array.from({ length: count }, (_, i) => i);

test("while a client was away", { timeout: 120_000 }, withCluster({ settings: SETTINGS }, async ({ cluster, step, cleanup }) => {
  const [one, two, three] = cluster.nodes;

  async function behindADoor(options) {
    const door = await Proxy.start({ target: one.client });
    cleanup(() => door.close());
    const client = await Client.ready(door.url, { user: unique("user"), ...options });
    client.door = door;
    return client;
  }

  const goAway = async (client) => {
    client.door.link().cut();
    await eventually("away", () => client.outages.at(-1)?.gap === undefined && client.outages.length > 0);
  };

  const comeBack = (client, to = two) => {
    client.door.target = to.client;
    client.door.link().heal();
    return client.waitReady(client.readies.length + 1);
  };

  /// All that a client has heard of its rooms, as it happened.
  const heard = (client) => client.log.flatMap(({ event, args: [it] }) =>
    ["message", "joined", "left"].includes(event) ? [`${event} ${it.room} ${it.id} ${it.user}`] : []);

  /// A client that is away, another tab of its user, and one who talks in `room` and `other`.
  async function tabs(...joined) {
    const [room, other] = [unique("room"), unique("other")];
    const away = await behindADoor();
    const tab = await Client.ready(three.url, { user: away.user });
    const talker = await Client.ready(two.url, { user: unique("talker") });
    for (const name of [room, other]) await talker.ok("join", name);
    for (const name of joined) await tab.ok("join", { room, other }[name]);
    const talk = async () => {
      for (const name of [room, other]) await talker.ok("message", { room: name, text: "talk" });
    };
    return { room, other, away, tab, talk, talker };
  }

  /// What the tab heard that stayed, the one that was away has heard as well.
  async function theSame({ away, tab, talker, room, other }) {
    // Something behind all that: a room of their own.
    const last = unique("last");
    await tab.ok("join", last);
    await tab.ok("message", { room: last, text: "last" });
    for (const each of [away, tab]) await each.next("message", (message) => message.room === last);
    assert.deepEqual(heard(away), heard(tab));
    assert.deepEqual((await away.ok("rooms")).rooms, (await tab.ok("rooms")).rooms);
    assert.deepEqual(away.finals, []);
    for (const each of [away, tab, talker]) each.close();
    return [room, other];
  }

  await step("a room joined from another tab; it had heard nothing at all yet", async () => {
    const seen = await tabs();
    await goAway(seen.away);
    await seen.talk();
    await seen.tab.ok("join", seen.room);
    await seen.talk();
    const ready = await comeBack(seen.away);
    assert.deepEqual([ready.recovered, ready.rooms], [true, [seen.room]]);
    await theSame(seen);
  });

  const LEFT = {
    "a room left from another tab: what was said until then": false,
    "a room left and joined again: what was said before and after, and nothing between": true,
  };
  for (const [what, again] of Object.entries(LEFT)) {
    await step(what, async () => {
      const seen = await tabs("room", "other");
      await seen.talk();
      await goAway(seen.away);
      for (const verb of again ? ["leave", "join"] : ["leave"]) {
        await seen.talk();
        await seen.tab.ok(verb, seen.room);
      }
      await seen.talk();
      const ready = await comeBack(seen.away);
      assert.deepEqual([ready.recovered, ready.rooms], [true, again ? [seen.room, seen.other].sort() : [seen.other]]);
      await theSame(seen);
    });
  }

  await step("left and joined once more than is remembered: a fresh session, and nothing partial", async () => {
    const seen = await tabs("room", "other");
    await seen.talk();
    await goAway(seen.away);
    for (let i = 0; i < 2; i++) {
      await seen.talk();
      await seen.tab.ok("leave", seen.room);
      await seen.talk();
      await seen.tab.ok("join", seen.room);
    }
    const before = seen.away.log.length;
    const ready = await comeBack(seen.away);
    assert.deepEqual([ready.recovered, ready.rooms], [false, [seen.room, seen.other].sort()]);
    await seen.talk();
    await seen.away.next("message", ({ id }) => id === seen.tab.messages(seen.other).at(-1).id);
    const since = seen.away.log.slice(before).filter(({ event }) => event !== "connect_error");
    assert.deepEqual(since.map(({ event }) => event), ["ready", "message", "message"]);
  });

  /// A client in a room of each namespace, all over one link, and who talks in each.
  async function everywhere() {
    const room = unique("room");
    const first = await behindADoor();
    const own = [first];
    for (const ns of NAMESPACES.slice(1)) own.push(new Client(first.door.url, { ns, user: first.user, manager: first.manager }));
    const talkers = [];
    for (const [i, ns] of NAMESPACES.entries()) {
      await own[i].waitReady();
      talkers.push(await Client.ready(three.url, { ns, user: unique("talker") }));
      for (const client of [own[i], talkers[i]]) await client.ok("join", room);
    }
    assert.equal(new Set(own.map(({ last }) => last.sid)).size, own.length, "a session for each");
    return { room, own, talkers, door: first.door };
  }

  await step("several namespaces on one link recover each", async () => {
    const { room, own, talkers, door } = await everywhere();
    for (const to of [two, three]) {
      await goAway({ door, outages: own[0].outages });
      for (const talker of talkers) for (const n of numbers(5)) await talker.ok("message", { room, text: `${talker.ns} ${to.name} ${n}` });
      await comeBack({ door, readies: own[0].readies, waitReady: (count) => own[0].waitReady(count) }, to);
      for (const client of own) await client.waitReady(own[0].readies.length);
    }
    for (const [i, client] of own.entries()) {
      await eventually("all", () => client.messages(room).length === 10);
      const texts = [two, three].flatMap((to) => numbers(5).map((n) => `${talkers[i].ns} ${to.name} ${n}`));
      assert.deepEqual(client.messages(room).map(({ text }) => text), texts, "its own, once, in order");
      assert.deepEqual(client.readies.map(({ recovered, sid }) => [recovered, sid]), [false, true, true].map((was) => [was, client.last.sid]));
      assert.deepEqual(client.finals, []);
    }
  });

  await step("one namespace that cannot recover does the others no harm", async () => {
    const { room, own, talkers, door } = await everywhere();
    await goAway({ door, outages: own[0].outages });
    // More than the history of this one keeps.
    for (const n of numbers(80)) await talkers[1].ok("message", { room, text: n });
    for (const i of [0, 2]) for (const n of numbers(5)) await talkers[i].ok("message", { room, text: n });
    door.target = two.client;
    door.link().heal();
    for (const [i, client] of own.entries()) {
      assert.equal((await client.waitReady(2)).recovered, i !== 1, client.ns);
      await talkers[i].ok("message", { room, text: "live" });
      await client.next("message", ({ text }) => text === "live");
      const texts = client.messages(room).map(({ text }) => text);
      assert.deepEqual(texts, i === 1 ? ["live"] : [...numbers(5), "live"]);
      assert.deepEqual([client.outages.length, client.readies.length], [1, 2], "one loss, for all of them");
      assert.deepEqual(client.finals, []);
    }
  });

  await step("disconnect() and connect() in one breath, beside another namespace: a fresh session, and no loss for the other", async () => {
    const { room, own: [main, other], talkers: [, talker] } = await everywhere();
    for (const n of numbers(10)) {
      const { sid } = other.last;
      // What it said before is carried out, and what is said to it just then harms nobody.
      other.socket.emit("message", { room, text: { n, user: other.user } });
      const said = numbers(10).map(() => talker.ok("message", { room, text: "on and on" }));
      other.socket.disconnect().connect();
      const ready = await other.waitReady(n + 2);
      assert.equal(ready.recovered, false);
      assert.notEqual(ready.sid, sid);
      await eventually("the one before is gone", async () => (await http(two.admin, `/v1/sids/${sid}`)).status === 404);
      await talker.next("message", ({ text }) => text.n === n);
      await Promise.all(said);
    }
    const { id } = await talker.ok("message", { room, text: "the last" });
    await other.next("message", (message) => message.id === id);
    await main.ok("rooms");
    assert.deepEqual([main.outages.length, main.readies.length], [0, 1]);
  });

  await step("what it says while away is said once, in order, right behind its CONNECT", async () => {
    const room = unique("room");
    const ledger = new Ledger();
    const away = await behindADoor();
    const listener = await Client.ready(three.url, { user: unique("user") });
    for (const client of [away, listener]) {
      ledger.add(client.user, client);
      await client.ok("join", room);
      ledger.joined(client.user, room);
    }
    const said = [];
    for (const [round, node] of [two, three, one].entries()) {
      await goAway(away);
      const speak = (n) => said.push(publish(ledger, away.user, away, room, { n: round * 100 + n }, { mid: `${away.user}-${round}-${n}`, timeout: 20_000 }));
      numbers(30).forEach(speak);
      await publish(ledger, listener.user, listener, room, { n: round });
      const ready = await comeBack(away, node);
      assert.deepEqual([ready.node, ready.recovered], [node.name, true]);
      await Promise.all(said);
    }
    await eventually("everything delivered", () => ledger.settled());
    assert.deepEqual(ledger.check({ demand: { acked: 93, reconnects: 3 } }), []);
    const [heard] = [listener.messages(room).filter(({ user }) => user === away.user)];
    assert.deepEqual(heard.map(({ text }) => text.n), [0, 1, 2].flatMap((round) => numbers(30).map((n) => round * 100 + n)));
  });

  await step("the stock client's retries, with a mid, through losses while they are answered: each once, in order", async () => {
    const room = unique("room");
    const ledger = new Ledger();
    const away = await behindADoor({ retries: 50, ackTimeout: 400 });
    const listener = await Client.ready(three.url, { user: unique("user") });
    for (const client of [away, listener]) {
      ledger.add(client.user, client);
      await new Promise((resolve) => client.socket.emit("join", room, resolve));
      ledger.joined(client.user, room);
    }
    // The listener hears a message while its ack is still under way, and there it ends.
    away.door.link().delay(20);
    const acks = numbers(45).map((n) => new Promise((resolve, reject) =>
      away.socket.emit("message", { room, text: { n }, mid: `${away.user}-${n}` }, (error, ack) => (error ? reject(error) : resolve(ack)))));
    for (const [i, node] of [two, three, one].entries()) {
      await listener.next("message", ({ text }) => text.n === i * 15 + 10);
      away.door.moveTo(node.client);
      await away.waitReady(i + 2);
    }
    const ids = (await Promise.all(acks)).map(({ ok, id }) => (assert.ok(ok), id));
    await eventually("everything delivered", () => listener.messages(room).length === 45);
    assert.deepEqual(ledger.check({ demand: { acked: 0, reconnects: 3 } }), []);
    for (const client of [away, listener]) {
      assert.deepEqual(client.messages(room).map(({ text, id }) => [text.n, id]), ids.map((id, n) => [n, id]));
    }
  });
}));
