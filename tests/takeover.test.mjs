// One session, two connections: who has it, who does not, and how a quarrel ends.
import test from "node:test";
import assert from "node:assert/strict";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { http } from "./harness/http.mjs";
import { Ledger } from "./harness/ledger.mjs";
import { publish } from "./harness/load.mjs";
import { Proxy } from "./harness/proxy.mjs";
import { Raw } from "./harness/raw.mjs";
import { eventually, sleep } from "./harness/wait.mjs";

/// A proxy in front of `node`; each connection is a link of its own: "1", "2", …
async function doorOf(node, cleanup) {
  let count = 0;
  const door = await Proxy.start({ target: node.client, classify: () => String(++count) });
  cleanup(() => door.close());
  return door;
}

/// What a client would bring along to recover, as somebody else could copy it.
const place = ({ socket, user }) => ({ user, pid: socket._pid, ...(socket._lastOffset && { offset: socket._lastOffset }) });

test("one session, two connections", { timeout: 120_000 }, withCluster({}, async ({ cluster, step, cleanup }) => {
  const [one, two, three] = cluster.nodes;
  const row = (sid) => cluster.admin(three, `/v1/sids/${sid}?consistency=linearizable`);

  for (const [where, there] of [["another node", two], ["the same node", one]]) {
    await step(`back on ${where} before the loss was noticed: the old socket's late words and late death change nothing`, async () => {
      const ledger = new Ledger();
      const room = unique("room");
      const door = await doorOf(one, cleanup);
      const client = await Client.ready(door.url, { user: unique("user") });
      const sender = await Client.ready(three.url, { user: unique("user") });
      for (const each of [client, sender]) {
        ledger.add(each.user, each);
        await each.ok("join", room);
        ledger.joined(each.user, room);
      }
      const say = async (from, to) => {
        for (let n = from; n < to; n++) await publish(ledger, sender.user, sender, room, { n });
      };
      await say(0, 3);
      // Nothing moves on the old link any more, and nobody is told.
      door.link("1").hold();
      client.socket.emit("message", { room, text: "late" });
      client.socket.emit("leave", room);
      await say(3, 6);
      door.target = there.client;
      client.dropTransport();
      const ready = await client.waitReady(2);
      assert.deepEqual([ready.node, ready.recovered], [there.name, true]);
      await say(6, 9);
      door.link("1").heal();
      await eventually("the old link has ended", () => door.link("1").pairs.size === 0);
      await sleep(300); // for what should not come
      await say(9, 12);
      const { attached, node } = await row(client.last.sid);
      assert.deepEqual([attached, node], [true, there.name]);
      assert.equal(sender.events("message", ({ text }) => text === "late").length, 0);
      await eventually("everything delivered", () => ledger.settled());
      assert.deepEqual(ledger.check({ demand: { acked: 12, reconnects: 1 } }), []);
      assert.equal(client.readies.length, 2, "it was left alone");
    });
  }

  await step("presented twice at once, on the same and on different nodes: exactly one lives", async () => {
    const room = unique("room");
    const sender = await Client.ready(three.url, { user: unique("user") });
    await sender.ok("join", room);
    const seen = { first: 0, second: 0, unanswered: 0 };
    for (let i = 0; i < 40; i++) {
      const user = unique("user");
      const born = await Raw.open(cluster.nodes[i % 3].client);
      const { sid, pid } = await born.connect({ user });
      born.send(`421["join",${JSON.stringify(room)}]`);
      await born.next((packet) => packet.startsWith("431"));
      const others = [cluster.nodes[i % 2].client, cluster.nodes[(i >> 1) % 2].client];
      const rivals = await Promise.all(others.map((port) => Raw.open(port)));
      // Lost before, or still held.
      if (i % 4 < 2) born.destroy();
      const answers = rivals.map(async (raw, n) => {
        if (n === (i >> 2) % 2) await sleep(Math.random() * (i % 5) * 3);
        raw.send(`40${JSON.stringify({ user, pid })}`);
        await eventually("answered or closed", () => raw.closed || raw.packets.some((packet) => packet.startsWith("40{")), { every: 1 });
      });
      await Promise.all(answers);
      await eventually("one is gone", () => rivals.filter((raw) => raw.closed).length === 1, { every: 1 });
      await eventually("the one before is gone", () => born.closed);
      const [alive] = rivals.filter((raw) => !raw.closed);
      const [gone] = rivals.filter((raw) => raw.closed);
      const given = (raw) => raw.packets.filter((packet) => packet.startsWith("40{")).map((packet) => JSON.parse(packet.slice(2)));
      assert.deepEqual(given(alive), [{ sid, pid }], "the one that lives goes on with the session");
      for (const each of given(gone)) assert.equal(each.sid, sid, "and the other one was not given another");
      seen[alive === rivals[0] ? "first" : "second"] += 1;
      if (!given(gone).length) seen.unanswered += 1;
      const { id } = await sender.ok("message", { room, text: i });
      await eventually("it hears", () => alive.events("message").some(([message]) => message.id === id));
      assert.deepEqual(alive.events("ready").map(([{ sid, recovered }]) => [sid, recovered]), [[sid, true]]);
      assert.ok(!gone.events("message").some(([message]) => message.id === id), "the other one does not");
      const { attached, node } = await row(sid);
      assert.deepEqual([attached, node], [true, alive.events("ready")[0][0].node]);
      for (const raw of [born, ...rivals]) {
        assert.ok(!raw.packets.some((packet) => /^4[14]/.test(packet)), "no final word");
        raw.destroy();
      }
    }
    assert.ok(seen.first && seen.second, `not conclusive: ${JSON.stringify(seen)}`);
  });

  await step("presented to a node that has not heard of it yet: that one asks the leader before it says no", async () => {
    const late = await cluster.follower();
    for (let i = 0; i < 5; i++) {
      const [born, raw] = await Promise.all([Raw.open(one === late ? two.client : one.client), Raw.open(late.client)]);
      const user = unique("user");
      // Stopped, it can have applied nothing of what the others commit.
      late.stop();
      const { sid, pid } = await born.connect({ user });
      raw.send(`40${JSON.stringify({ user, pid })}`);
      late.cont();
      const answer = await raw.next((packet) => packet.startsWith("40{"));
      assert.deepEqual(JSON.parse(answer.slice(2)), { sid, pid });
      for (const each of [born, raw]) each.destroy();
    }
  });

  await step("a duplicated tab ends with two sessions, not with a fight", async () => {
    for (const nodes of [[one, two], [one, one]]) {
      const room = unique("room");
      const first = await Client.ready(nodes[0].url, { user: unique("user") });
      await first.ok("join", room);
      await first.ok("message", { room, text: 0 });
      // As a page does that keeps its place in what the browser copies along with a tab.
      const copied = place(first);
      let fresh = true;
      const auth = (give) => {
        give(fresh ? copied : { user: first.user });
        fresh = false;
      };
      const second = new Client(nodes[1].url, { auth });
      await eventually("two sessions", () => second.last && first.last.sid !== second.last.sid, { within: 25_000 });
      const readies = [first, second].map((client) => client.readies.length);
      assert.ok(readies[0] + readies[1] <= 1 + 10 + 1, `${readies} attachments`);
      const [stayed, moved] = first.last.sid === first.readies[0].sid ? [first, second] : [second, first];
      assert.equal(stayed.last.sid, first.readies[0].sid, "one goes on");
      assert.equal(moved.last.recovered, false, "the other one begins anew");
      assert.deepEqual(moved.last.rooms, [room]);
      await sleep(1500); // longer than either would take to come back
      assert.deepEqual([first, second].map((client) => client.readies.length), readies, "in peace");
      for (const client of [first, second]) {
        const { id } = await client.ok("message", { room, text: client.last.sid });
        for (const each of [first, second]) await each.next("message", (message) => message.id === id);
        assert.deepEqual(client.finals, []);
      }
      // And each has a place of its own.
      for (const client of [first, second]) {
        const { sid } = client.last;
        client.dropTransport();
        await client.waitReady(client.readies.length + 1);
        assert.deepEqual([client.last.sid, client.last.recovered], [sid, true]);
        client.close();
      }
    }
    const texts = await Promise.all(cluster.nodes.map(async (node) => (await http(node.admin, "/metrics")).text));
    const counts = texts.map((text) => Number(/_refused_total\{cause="contested"\} (\d+)/.exec(text)[1]));
    assert.equal(counts.reduce((a, b) => a + b), 2, "and it is counted");
  });
}));
