// The client contract, one claim at a time, in each namespace.
import test from "node:test";
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { http } from "./harness/http.mjs";
import { eventually, sleep } from "./harness/wait.mjs";

const ID = /^[0-9a-z]{11}$/;
const OFFSET = /^m1\.[0-9a-z]{4}\.[0-9a-z]{11}$/i;
const NAMESPACES = ["/", "/normal-chat", "/group-chat"];
const SETTINGS = { "presence.grace": "1s", "limits.rooms-per-user": 20 };

function refused(answer, code, retry = false) {
  assert.equal(answer?.ok, false, JSON.stringify(answer));
  assert.equal(answer.error.code, code);
  assert.equal(answer.error.retry, retry);
  assert.equal(typeof answer.error.message, "string");
}

/// Something that surely came after whatever was sent before it: a message of its own in the room.
async function mark(client, room, ...watchers) {
  const { id } = await client.ok("message", { room, text: "mark" });
  for (const watcher of watchers) await watcher.next("message", (message) => message.id === id);
}

for (const ns of NAMESPACES) {
  test(`chat in ${ns}`, { timeout: 120_000 }, withCluster({ settings: SETTINGS }, async ({ cluster, step }) => {
    const [one, two, three] = cluster.nodes;
    const at = (node, user = unique("user"), options = {}) => Client.ready(node.url, { user, ns, ...options });
    const member = async (node, room, user) => {
      const client = await at(node, user);
      await client.ok("join", room);
      return client;
    };

    await step("ready is the first event, with the public id", async () => {
      const user = unique("user");
      const client = await at(one, user);
      const [{ event, args }] = client.log;
      assert.equal(event, "ready");
      const { sid, node, ...rest } = args[0];
      assert.deepEqual(rest, { user, rooms: [], recovered: false });
      assert.equal(sid, client.socket.id);
      assert.equal(node, one.name);
      assert.notEqual(sid, client.manager.engine.id, "the Engine.IO id is a secret");
    });

    await step("join and leave: acks and events", async () => {
      const room = unique("room");
      const a = await member(one, room);
      const b = await at(two);
      const ack = await b.ok("join", room);
      assert.equal(ack.room, room);
      assert.equal(ack.count, 2);
      assert.deepEqual(ack.users.map((each) => each.user ?? each).sort(), [a.user, b.user].sort());
      const [joined, offset] = await a.next("joined", (event) => event.user === b.user);
      assert.deepEqual(joined, { room, user: b.user, id: joined.id });
      assert.match(joined.id, ID);
      assert.match(offset, OFFSET);
      assert.ok(offset.endsWith(`.${joined.id}`));
      assert.deepEqual(await b.ok("leave", room), { ok: true, room });
      const [left] = await a.next("left", (event) => event.user === b.user);
      assert.ok(left.id > joined.id);
      await mark(a, room);
      await sleep(100);
      assert.deepEqual(b.messages(room), [], "nothing after the leave");
    });

    await step("joining twice is one membership and one `joined`", async () => {
      const room = unique("room");
      const a = await member(one, room);
      const b = await member(two, room);
      assert.equal((await b.ok("join", room)).count, 2);
      await mark(b, room, a);
      assert.equal(a.events("joined", (event) => event.user === b.user).length, 1);
    });

    await step("a message: to all members on all nodes, the sender too, and then the ack", async () => {
      const room = unique("room");
      const clients = await Promise.all(cluster.nodes.map((node) => member(node, room)));
      const mid = randomUUID();
      const ack = await clients[0].ok("message", { room, text: "hello", mid });
      assert.match(ack.id, ID);
      for (const client of clients) {
        const [message, offset] = await client.next("message", ({ id }) => id === ack.id);
        assert.deepEqual(message, { room, user: clients[0].user, text: "hello", id: ack.id, at: ack.at, mid });
        assert.match(offset, OFFSET);
        assert.ok(offset.endsWith(`.${ack.id}`));
      }
      const order = clients[0].log.map(({ event }) => event);
      assert.ok(order.lastIndexOf("message") < order.lastIndexOf("ack"), "the ack comes after the message");
      const { mid: none } = (await clients[1].ok("message", { room, text: "no mid" }), (await clients[0].next("message", ({ text }) => text === "no mid"))[0]);
      assert.equal(none, undefined);
    });

    await step("members only", async () => {
      const room = unique("room");
      const inside = await member(one, room);
      const outside = await at(two);
      refused(await outside.request("message", { room, text: "x" }), "not_member");
      refused(await outside.request("history", { room }), "not_member");
      refused(await outside.request("users", { room }), "not_member");
      refused(await outside.request("users", room), "not_member");
      outside.socket.emit("typing", { room });
      outside.socket.emit("message", { room, text: "without ack" });
      await outside.request("rooms");
      await mark(inside, room);
      assert.deepEqual(inside.messages(room).map(({ text }) => text), ["mark"]);
      assert.deepEqual(inside.events("typing"), []);
    });

    await step("bad requests are answered, and cost nothing else", async () => {
      const room = unique("room");
      const client = await member(one, room);
      for (const payload of [undefined, null, 7, "text", [], {}, { room }, { text: 1 }, { room: 5, text: 1 }, { room, text: 1, mid: 5 }]) {
        refused(await client.request("message", payload), "bad_request");
      }
      refused(await client.request("message", { room, text: 1, mid: "m".repeat(65) }), "bad_request");
      refused(await client.request("history", { room, limit: "many" }), "bad_request");
      refused(await client.request("join", { not: "a name" }), "bad_request");
      for (const name of ["", "r".repeat(129), "é".repeat(65), "a\u0000b", "a\nb"]) {
        refused(await client.request("join", name), "room_name");
      }
      await client.ok("join", "é".repeat(64));
      await client.ok("leave", "é".repeat(64));
      refused(await client.request("message", { room, text: "x".repeat(66_000) }), "too_large");
      assert.equal(client.outages.length, 0);
      await client.ok("message", { room, text: "still here" });
    });

    await step("a user has a bounded number of rooms", async () => {
      const client = await at(one);
      for (let i = 0; i < 20; i++) await client.ok("join", unique("many"));
      refused(await client.request("join", unique("many")), "too_many_rooms");
    });

    await step("the same mid is the same message, on any node", async () => {
      const room = unique("room");
      const user = unique("user");
      const a = await member(one, room, user);
      const b = await at(two, user);
      const other = await member(three, room);
      const mid = randomUUID();
      const first = await a.ok("message", { room, text: { b: 1, a: 2 }, mid });
      assert.deepEqual(await b.ok("message", { room, text: { b: 1, a: 2 }, mid }), first);
      assert.deepEqual(await a.ok("message", { room, text: { b: 1, a: 2 }, mid }), first);
      refused(await b.request("message", { room, text: "another", mid }), "mid_reused");
      const second = unique("room");
      await b.ok("join", second);
      refused(await b.request("message", { room: second, text: { b: 1, a: 2 }, mid }), "mid_reused");
      assert.notEqual((await other.ok("message", { room, text: "mine", mid })).id, first.id, "another user's mid is its own");
      await mark(a, room, b, other);
      for (const client of [a, b, other]) assert.equal(client.messages(room).length, 3);
    });

    await step("requests without an ack are carried out", async () => {
      const room = unique("room");
      const a = await at(one);
      const b = await member(two, room);
      a.socket.emit("join", room);
      a.socket.emit("message", { room, text: "quiet" });
      await b.next("message", ({ text, user }) => text === "quiet" && user === a.user);
      a.socket.emit("leave", room);
      await b.next("left", ({ user }) => user === a.user);
    });

    await step("text is kept as it came", async () => {
      const room = unique("room");
      const a = await member(one, room);
      const b = await member(two, room);
      const prefix = ns === "/" ? "" : `${ns},`;
      const texts = ["1.0", "12345678901234567890123", "1e400", '{"z":[1.50,{"y":null}],"a":-0}', '"\\u00e9 \\ud83d\\ude00 é"', "null", "false", '""', "[[[]]]"];
      for (const text of texts) {
        // The stock client would rewrite these; its engine sends what it is given.
        a.manager.engine.write(`2${prefix}["message",{"room":${JSON.stringify(room)},"text":${text}}]`);
      }
      await eventually("all texts", () => b.messages(room).length === texts.length);
      const packets = b.raw.filter((packet) => packet.includes('"message"'));
      texts.forEach((text, i) => assert.ok(packets[i].includes(`"text":${text}`), `${text} became ${packets[i]}`));
      const seen = b.raw.length;
      await b.ok("history", { room });
      const history = b.raw.slice(seen).find((packet) => packet.includes('"messages"'));
      for (const text of texts) assert.ok(history.includes(`"text":${text}`), `${text} in the history`);
      assert.equal(a.outages.length, 0);
    });

    await step("history pages both ways, oldest first", async () => {
      const room = unique("room");
      const a = await member(one, room);
      const ids = [];
      for (let n = 0; n < 25; n++) ids.push((await a.ok("message", { room, text: n })).id);
      const b = await member(two, room);
      const page = async (query) => {
        const { messages, more } = await b.ok("history", { room, ...query });
        return { ids: messages.filter(({ text }) => text !== undefined).map(({ id }) => id), more, messages };
      };
      const all = await page({ limit: 100 });
      assert.deepEqual(all.ids, ids);
      assert.equal(all.more, false);
      const { at, ...first } = all.messages.find(({ id }) => id === ids[0]);
      assert.equal(typeof at, "number");
      assert.deepEqual({ user: first.user, text: first.text, id: first.id }, { user: a.user, text: 0, id: ids[0] });
      const back = [];
      for (let before, more = true; more; before = back[0]) {
        const got = await page({ limit: 10, ...(before && { before }) });
        assert.ok(got.ids.length > 0 && got.ids.length <= 10);
        back.unshift(...got.ids);
        more = got.more;
        if (back[0] === ids[0]) break;
      }
      assert.deepEqual(back, ids);
      assert.deepEqual((await page({ after: ids[19], limit: 100 })).ids, ids.slice(20));
      assert.deepEqual((await page({ after: ids[4], limit: 3 })).ids, ids.slice(5, 8));
    });

    await step("rooms and users", async () => {
      const room = unique("room");
      const clients = await Promise.all([one, two, three, one, two].map((node) => member(node, room)));
      assert.deepEqual((await clients[0].ok("rooms")).rooms, [room]);
      // A node answers from its own state: what another has acknowledged may not be in it yet.
      await cluster.stateHashes();
      const names = clients.map(({ user }) => user).sort();
      const whole = (await clients[1].ok("users", room)).users;
      assert.deepEqual(whole.map(({ user }) => user).sort(), names);
      assert.ok(whole.every(({ online }) => online === true));
      const paged = [];
      for (let after; ; ) {
        const answer = await clients[2].ok("users", { room, limit: 2, ...(after && { after }) });
        assert.ok(answer.users.length <= 2);
        paged.push(...answer.users.map(({ user }) => user));
        if (!(after = answer.next)) break;
      }
      assert.deepEqual(paged.sort(), names, "each once, over all pages");
    });

    await step("typing reaches the other members and leaves no trace", async () => {
      const room = unique("room");
      const a = await member(one, room);
      const b = await member(two, room);
      await eventually("typing", () => {
        a.socket.emit("typing", { room }); // may be lost by contract: said again until heard
        return b.events("typing").length > 0;
      }, { every: 50 });
      const [event, ...rest] = b.events("typing")[0];
      assert.deepEqual(event, { room, user: a.user });
      assert.ok(typeof rest.at(-1) !== "string", "an ephemeral event never ends in a string");
    });

    await step("a second tab is in all of its user's rooms before it hears anything", async () => {
      const user = unique("user");
      const rooms = [unique("room"), unique("room")].sort();
      const first = await member(one, rooms[0], user);
      await first.ok("join", rooms[1]);
      const other = await member(three, rooms[0]);
      const tab = new Client(two.url, { user, ns });
      const talk = (async () => {
        while (!tab.last) await other.ok("message", { room: rooms[0], text: "talk" });
        return other.ok("message", { room: rooms[0], text: "after" });
      })();
      const ready = await tab.waitReady();
      assert.deepEqual([...ready.rooms].sort(), rooms);
      assert.equal(tab.log[0].event, "ready");
      const { id } = await talk;
      await tab.next("message", (message) => message.id === id);
      const tail = tab.messages(rooms[0]).map((message) => message.id);
      const due = other.messages(rooms[0]).map((message) => message.id).filter((each) => each >= tail[0]);
      assert.deepEqual(tail, due, "no gap after the first");
      const third = unique("room");
      await tab.ok("join", third);
      await tab.ok("message", { room: third, text: "for both" });
      await first.next("message", ({ room }) => room === third);
    });

    await step("a lost link: same id, same rooms, what was missed, nothing twice", async () => {
      const room = unique("room");
      const a = await member(one, room);
      const b = await member(two, room);
      await b.ok("message", { room, text: 0 });
      await a.next("message", ({ text }) => text === 0);
      a.dropTransport();
      for (let n = 1; n <= 20; n++) await b.ok("message", { room, text: n });
      const ready = await a.waitReady(2);
      assert.equal(ready.recovered, true);
      assert.equal(ready.socketRecovered, true);
      assert.equal(ready.socketId, a.readies[0].sid);
      assert.deepEqual(ready.rooms, [room]);
      await a.next("message", ({ text }) => text === 20);
      assert.deepEqual(a.messages(room).map(({ text }) => text), [...Array(21).keys()]);
      assert.deepEqual(a.finals, []);
    });

    await step("a client that has received nothing yet recovers too", async () => {
      const a = await at(one);
      a.dropTransport();
      assert.equal((await a.waitReady(2)).recovered, true);
      assert.equal(a.readies[0].sid, a.last.sid);
    });

    await step("the client's own disconnect() ends its session at once; its membership stays", async () => {
      const room = unique("room");
      const a = await member(one, room);
      const { sid } = a.last;
      a.socket.disconnect();
      await eventually("the session is gone", async () => (await http(two.admin, `/v1/sids/${sid}`)).status === 404);
      a.socket.connect();
      const ready = await a.waitReady(2);
      assert.equal(ready.recovered, false);
      assert.notEqual(ready.sid, sid);
      assert.deepEqual(ready.rooms, [room]);
    });

    await step("another user's token does not take over a session", async () => {
      const room = unique("room");
      const a = await member(one, room);
      const { sid } = a.last;
      a.socket.auth = { user: unique("user") };
      a.dropTransport();
      const ready = await a.waitReady(2);
      assert.equal(ready.recovered, false);
      assert.notEqual(ready.sid, sid);
      assert.deepEqual(ready.rooms, []);
    });

    await step("online and offline", async () => {
      const room = unique("room");
      const a = await member(one, room);
      const b = await member(two, room);
      b.socket.disconnect();
      const [offline, ...rest] = await a.next("offline", ({ user }) => user === b.user);
      assert.deepEqual(offline, { room, user: b.user });
      assert.ok(typeof rest.at(-1) !== "string");
      b.socket.connect();
      await a.next("online", ({ user, room: where }) => user === b.user && where === room);
    });

    await step("what else is in auth makes nobody a guest", async () => {
      const user = unique("user");
      // Half of an emoji, as text is cut by length; and deeper than any parser here goes.
      const odd = { nick: "ab\ud83d", deep: Array.from({ length: 200 }).reduce((inner) => [inner], 1) };
      const client = await Client.ready(one.url, { ns, user, auth: { user, ...odd } });
      assert.equal(client.last.user, user);
      const { sid } = client.last;
      client.dropTransport();
      assert.deepEqual([(await client.waitReady(2)).recovered, client.last.sid], [true, sid]);
      const nobody = new Client(one.url, { ns, auth: { user: "ab\ud83d" } });
      assert.deepEqual(await nobody.next("connect_error"), ["unauthorized"]);
      for (const each of [client, nobody]) each.close();
    });

    await step("a guest's rooms end with its session", async () => {
      const room = unique("room");
      const a = await member(one, room);
      const guest = await Client.ready(two.url, { ns });
      assert.equal(typeof guest.last.user, "string");
      await guest.ok("join", room);
      guest.dropTransport();
      assert.equal((await guest.waitReady(2)).recovered, true);
      assert.deepEqual(guest.last.rooms, [room]);
      guest.socket.disconnect();
      await eventually("the guest has left", async () => (await a.ok("users", room)).users.length === 1);
    });

    await step("csr: false has no recovery and no offset argument", async () => {
      const room = unique("room");
      const a = await Client.ready(one.url, { ns, auth: { user: unique("user"), csr: false } });
      await a.ok("join", room);
      await a.ok("message", { room, text: 1 });
      const [args] = a.events("message");
      assert.ok(typeof args.at(-1) !== "string");
      a.dropTransport();
      assert.equal((await a.waitReady(2)).recovered, false);
    });
  }));
}

test("namespaces", { timeout: 60_000 }, withCluster({}, async ({ cluster, step }) => {
  const [one, two] = cluster.nodes;

  await step("rooms of the same name in two namespaces are two rooms", async () => {
    const room = unique("room");
    const user = unique("user");
    const main = await Client.ready(one.url, { user });
    const group = new Client(one.url, { user, ns: "/group-chat", manager: main.manager });
    assert.deepEqual((await group.waitReady()).rooms, []);
    await main.ok("join", room);
    await group.ok("join", room);
    await main.ok("message", { room, text: "main" });
    await group.ok("message", { room, text: "group" });
    assert.deepEqual(main.messages(room).map(({ text }) => text), ["main"]);
    assert.deepEqual(group.messages(room).map(({ text }) => text), ["group"]);
    assert.notEqual(main.last.sid, group.last.sid);
  });

  await step("one lost link recovers every namespace on it", async () => {
    const room = unique("room");
    const main = await Client.ready(one.url, { user: unique("user") });
    const group = new Client(one.url, { user: main.user, ns: "/group-chat", manager: main.manager });
    await group.waitReady();
    const other = await Client.ready(two.url, { user: unique("user"), ns: "/group-chat" });
    await group.ok("join", room);
    await other.ok("join", room);
    main.dropTransport();
    await other.ok("message", { room, text: "missed" });
    assert.equal((await main.waitReady(2)).recovered, true);
    assert.equal((await group.waitReady(2)).recovered, true);
    await group.next("message", ({ text }) => text === "missed");
    assert.deepEqual(main.messages(room), []);
  });

  await step("an unknown namespace is Socket.IO's own refusal", async () => {
    const client = new Client(one.url, { user: unique("user"), ns: "/no-such" });
    const [message] = await client.next("connect_error");
    assert.equal(message, "Invalid namespace");
  });

  await step("the official client and the chat page are served", async () => {
    const script = await http(one.client, "/socket.io/socket.io.js");
    assert.equal(script.status, 200);
    assert.match(script.headers["content-type"], /javascript/);
    assert.match(script.text, /Socket\.IO v4\.8\.\d/);
    const page = await http(one.client, "/");
    assert.equal(page.status, 200);
    assert.match(page.headers["content-type"], /text\/html/);
    for (const path of ["/livez", "/readyz"]) assert.equal((await http(one.client, path)).status, 200);
  });
}));

test("history says when something is missing from it", { timeout: 60_000 }, withCluster({ nodes: 1, settings: { "history.size": 3 } }, async ({ cluster }) => {
  const room = unique("room");
  const client = await Client.ready(cluster.nodes[0].url, { user: unique("user") });
  await client.ok("join", room);
  const ids = [];
  for (let n = 0; n < 6; n++) ids.push((await client.ok("message", { room, text: n })).id);
  const after = async (id) => {
    const { messages, more, trimmed } = await client.ok("history", { room, after: id });
    return [messages.map(({ text }) => text), more, trimmed];
  };
  assert.deepEqual(await after(ids[1]), [[3, 4, 5], false, true], "number 2 is gone");
  assert.deepEqual(await after(ids[2]), [[3, 4, 5], false, undefined], "number 2 was known");
  assert.deepEqual(await after(ids[4]), [[5], false, undefined]);
  assert.equal((await client.ok("history", { room })).trimmed, undefined);
}));

test("an event in relay goes to the members on all nodes, or to nobody", { timeout: 60_000 }, withCluster({ settings: { relay: "cursor" } }, async ({ cluster }) => {
  const [one, two] = cluster.nodes;
  const room = unique("room");
  const [sender, near, far] = await Promise.all([one, one, two].map((node) => Client.ready(node.url, { user: unique("user") })));
  for (const client of [sender, near, far]) await client.ok("join", room);
  // A client may say as much, but no frame between nodes holds it.
  refused(await sender.request("cursor", { room, at: "x".repeat(70_000) }), "too_large");
  await eventually("both hear", () => {
    sender.socket.emit("cursor", { room, at: 1 }); // may be lost by contract: said again until heard
    return [near, far].every((client) => client.events("cursor").length > 0);
  }, { every: 50 });
  for (const client of [near, far]) assert.deepEqual(client.events("cursor")[0], [{ room, at: 1, user: sender.user }]);
  assert.deepEqual(sender.events("cursor"), []);
}));
