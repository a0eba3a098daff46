// What cannot be recovered whole is not recovered at all: a fresh session, with nothing replayed, and `history` for the
// rest. What only looks odd is recovered all the same.
import test from "node:test";
import assert from "node:assert/strict";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { http } from "./harness/http.mjs";
import { Proxy } from "./harness/proxy.mjs";
import { Raw } from "./harness/raw.mjs";
import { eventually } from "./harness/wait.mjs";

const SETTINGS = { "history.size": 200, "replay.limit": 100, "replay.bytes": "128KiB" };
const numbers = (count) => Array.from({ length: count }, (_, i) => i);
const offsetOf = (cluster, position) => `m1.${cluster.slice(0, 4)}.${position.toString(36).padStart(11, "0")}`;

/// How many sessions all nodes have begun anew for this cause.
async function begunAnew(cluster, cause) {
  const line = new RegExp(`^moim_replays_refused_total\\{cause="${cause}"\\} (\\d+)`, "m");
  const texts = await Promise.all(cluster.nodes.map(async (node) => (await http(node.admin, "/metrics")).text));
  return texts.map((text) => Number(line.exec(text)[1])).reduce((a, b) => a + b);
}

test("what cannot be recovered", { timeout: 120_000 }, withCluster({ settings: SETTINGS }, async ({ cluster, step, cleanup }) => {
  const [one, two, three] = cluster.nodes;

  /// A member behind a door that can be shut.
  async function member(room, user = unique("user")) {
    const door = await Proxy.start({ target: one.client });
    cleanup(() => door.close());
    const client = await Client.ready(door.url, { user });
    await client.ok("join", room);
    client.door = door;
    return client;
  }

  /// The scene of each refusal: one who was away for `say`, one who was not and watches.
  async function scene(say) {
    const room = unique("room");
    const [away, sender] = [await member(room), await member(room)];
    const { id } = await sender.ok("message", { room, text: "heard" });
    await away.next("message", (message) => message.id === id);
    away.door.link().cut();
    await eventually("away", () => away.outages.length === 1);
    const ids = [];
    for (const text of say) ids.push(sender.ok("message", { room, text }));
    const missed = (await Promise.all(ids)).map((ack) => ack.id);
    return { room, away, sender, missed };
  }

  /// Back as somebody new, who was told nothing of what it missed; and from here on all is well.
  async function fresh({ room, away, sender }) {
    const before = away.log.length;
    const ready = await away.waitReady(away.readies.length + 1);
    const [was] = away.readies.slice(-2);
    assert.deepEqual([ready.recovered, ready.socketRecovered], [false, false]);
    assert.notEqual(ready.sid, was.sid);
    assert.equal(ready.socketId, ready.sid);
    assert.deepEqual(ready.rooms, [room]);
    const { id } = await sender.ok("message", { room, text: "live" });
    await away.next("message", (message) => message.id === id);
    const since = away.log.slice(before).filter(({ event }) => event !== "connect_error");
    assert.deepEqual(since.map(({ event }) => event), ["ready", "message"], "nothing of what it missed");
    assert.deepEqual(away.finals, []);
    assert.deepEqual([...sender.events("offline"), ...sender.events("online")], [], "its user was there all the while");
    const gone = await eventually("the old session is gone", async () => (await http(two.admin, `/v1/sids/${was.sid}`)).status === 404);
    assert.ok(gone);
    // The stock client keeps the offset of the session before, until it hears something.
    away.dropTransport();
    const again = await away.waitReady(away.readies.length + 1);
    assert.deepEqual([again.recovered, again.sid], [true, ready.sid]);
  }

  async function comesBack({ away }, to = two) {
    away.door.target = to.client;
    away.door.link().heal();
  }

  for (const [name, cause, say] of [
    ["history of a room that was trimmed", "trimmed", numbers(250)],
    ["more entries than a replay may have", "too_long", numbers(101)],
    ["more bytes than a replay may have", "too_long", numbers(40).map((n) => `${n}${"x".repeat(4000)}`)],
  ]) {
    await step(`${name}: a fresh session, nothing partial, and history works`, async () => {
      const before = await begunAnew(cluster, cause);
      const seen = await scene(say);
      comesBack(seen);
      await fresh(seen);
      assert.equal(await begunAnew(cluster, cause), before + 1);
      const { messages } = await seen.away.ok("history", { room: seen.room, limit: 1000 });
      const due = seen.missed.slice(-150);
      assert.deepEqual(messages.map(({ id }) => id).filter((id) => due.includes(id)), due);
    });
  }

  await step("just as much as a replay may have is replayed", async () => {
    const { room, away, missed, ...rest } = await scene(numbers(100));
    comesBack({ away, ...rest });
    const ready = await away.waitReady(2);
    assert.equal(ready.recovered, true);
    await eventually("all", () => away.messages(room).length === 101);
    assert.deepEqual(away.messages(room).slice(1).map(({ id }) => id), missed);
  });

  const { cluster: id } = await cluster.admin(one, "/v1/cluster");

  const ODD = [
    ["another cluster's", "m1.zzzz.00000000001", "foreign"],
    ["not ours at all", "1715000000000-0", "foreign"],
    ["an empty text", "", "foreign"],
    ["cut short", `m1.${id.slice(0, 4)}.000`, "foreign"],
    ["a number", 7, "foreign"],
    ["an object", { position: 7 }, "foreign"],
    ["a list", ["m1"], "foreign"],
    ["true", true, "foreign"],
    ["100 KB long", "m1.".padEnd(100_000, "x"), "foreign"],
    ["of the future", offsetOf(id, 2 ** 40), "future"],
    ["beyond all numbers", `m1.${id.slice(0, 4)}.zzzzzzzzzzz`, "future"],
  ];
  await step("an offset that was never given: a fresh session", async () => {
    for (const [what, offset, cause] of ODD) {
      const before = await begunAnew(cluster, cause);
      const room = unique("room");
      const user = unique("user");
      const born = await Raw.open(one.client);
      const { sid, pid } = await born.connect({ user });
      born.send(`421["join",${JSON.stringify(room)}]`);
      await born.next((packet) => packet.startsWith("431"));
      born.destroy();
      const back = await Raw.open(two.client);
      cleanup(() => back.destroy());
      const given = await back.connect({ user, pid, offset });
      await back.next((packet) => packet.startsWith('42["ready"'));
      const [[ready]] = back.events("ready");
      assert.deepEqual([ready.recovered, ready.rooms], [false, [room]], what);
      assert.ok(given.sid !== sid && given.pid !== pid, what);
      assert.equal(await begunAnew(cluster, cause), before + 1, what);
      // Whatever would come of the old session would come before this.
      back.send('422["rooms"]');
      await back.next((packet) => packet.startsWith("432"));
      assert.deepEqual(back.packets.filter((packet) => packet.startsWith("42")).length, 1, what);
      back.destroy();
    }
  });

  await step("an offset from before the session began counts as its beginning; none at all too", async () => {
    const room = unique("room");
    const sender = await member(room);
    for (const offset of [offsetOf(id, 0), offsetOf(id, 1), undefined, null]) {
      // Its user was a member long before.
      const { user, ...first } = await member(room);
      await sender.ok("message", { room, text: "before its time" });
      const born = await Raw.open(one.client);
      const { sid, pid } = await born.connect({ user });
      await born.next((packet) => packet.startsWith('42["ready"'));
      born.destroy();
      first.socket.disconnect();
      const ids = [];
      for (const n of numbers(5)) ids.push((await sender.ok("message", { room, text: n })).id);
      const back = await Raw.open(two.client);
      cleanup(() => back.destroy());
      assert.deepEqual(await back.connect({ user, pid, offset }), { sid, pid });
      await eventually("all of it", () => back.events("message").length === 5);
      assert.deepEqual(back.events("message").map(([{ id }]) => id), ids);
      assert.equal(back.events("joined").length, 0, "nor the join of its user");
      back.destroy();
    }
  });

  await step("a pid that was never given: a fresh session, and no harm", async () => {
    const odd = ["", "x", "y".repeat(32), "y".repeat(100_000), 7, 1.5, true, [], ["a"], {}, { pid: "x" }, null, "\u0000".repeat(32), "방".repeat(32)];
    for (const pid of odd) {
      for (const offset of ["m1.zzzz.00000000001", {}]) {
        const raw = await Raw.open(one.client);
        cleanup(() => raw.destroy());
        const given = await raw.connect({ user: unique("user"), pid, offset });
        assert.notEqual(given.pid, pid);
        await raw.next((packet) => packet.startsWith('42["ready"'));
        assert.equal(raw.events("ready")[0][0].recovered, false);
        raw.destroy();
      }
    }
    // No object at all is a guest; more than a frame may have ends the connection, and nothing else.
    for (const auth of [[], "text", 7, null]) {
      const raw = await Raw.open(one.client);
      cleanup(() => raw.destroy());
      assert.equal((await raw.connect(auth)).pid.length, 32);
      raw.destroy();
    }
    for (const key of ["pid", "offset", "user"]) {
      const raw = await Raw.open(one.client);
      cleanup(() => raw.destroy());
      raw.send(`40${JSON.stringify({ [key]: "x".repeat(1 << 20) })}`);
      await eventually("closed", () => raw.closed);
      assert.ok(!raw.packets.some((packet) => /^4[014]/.test(packet)));
    }
    assert.equal((await http(one.client, "/readyz")).status, 200);
  });

  await step("another user with somebody's pid gets nothing of it", async () => {
    const room = unique("room");
    for (const who of ["a name", "no name"]) {
      const victim = await member(room);
      const { sid } = victim.last;
      const thief = new Client(two.url, {
        auth: { ...(who === "a name" && { user: unique("thief") }), pid: victim.socket._pid, offset: victim.socket._lastOffset },
      });
      const ready = await thief.waitReady();
      assert.deepEqual([ready.recovered, ready.rooms], [false, []]);
      assert.ok(ready.sid !== sid && ready.user !== victim.user);
      // The secret is out: its owner begins anew, in its rooms.
      const again = await victim.waitReady(2);
      assert.deepEqual([again.recovered, again.user, again.rooms], [false, victim.user, [room]]);
      const { id } = await victim.ok("message", { room, text: "among us" });
      await victim.next("message", (message) => message.id === id);
      assert.equal((await thief.request("history", { room })).error.code, "not_member");
      assert.deepEqual(thief.log.map(({ event }) => event), ["ready", "ack"]);
      assert.deepEqual([...victim.finals, ...thief.finals], []);
      for (const client of [victim, thief]) client.close();
    }
  });

  await step("a pid belongs to its namespace", async () => {
    const a = await Client.ready(one.url, { user: unique("user") });
    const b = new Client(two.url, { ns: "/group-chat", auth: { user: a.user, pid: a.socket._pid } });
    assert.equal((await b.waitReady()).recovered, false);
    assert.notEqual(b.last.sid, a.last.sid);
    assert.equal(a.readies.length, 1);
    await a.ok("rooms");
  });
}));
