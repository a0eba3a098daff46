// Small cruelties, each the shortest way to a fault that a chat server of this kind is known to have.
import test from "node:test";
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { http } from "./harness/http.mjs";
import { Ledger } from "./harness/ledger.mjs";
import { publish } from "./harness/load.mjs";
import { Proxy } from "./harness/proxy.mjs";
import { Raw } from "./harness/raw.mjs";
import { eventually, sleep } from "./harness/wait.mjs";

/// A proxy in front of `node` for one client, which can be cut or moved to another node.
async function doorOf(node, cleanup) {
  const door = await Proxy.start({ target: node.client });
  cleanup(() => door.close());
  return door;
}

/// `count` clients that are members of one new room and in the ledger, all on `url(i)`.
async function room(ledger, count, url) {
  const name = unique("room");
  const clients = [];
  for (let i = 0; i < count; i++) {
    const client = await Client.ready(url(i), { user: unique("user") });
    ledger.add(client.user, client);
    await client.ok("join", name);
    ledger.joined(client.user, name);
    clients.push(client);
  }
  return { name, clients };
}

test("a link cut between CONNECT and ready leaves no ghost", { timeout: 90_000 },
  withCluster({ links: true }, async ({ cluster, cleanup }) => {
    // The commit takes at least 40 ms, so that most cuts fall while CONNECT waits for it.
    const leader = await cluster.leader();
    const [node] = cluster.others(leader);
    for (const other of cluster.others(node)) {
      cluster.link(node, other).delay(20);
      cluster.link(other, node).delay(20);
    }
    const stay = [];
    const gone = [];
    for (let i = 0; i < 20; i++) {
      const door = await doorOf(node, cleanup);
      const client = new Client(door.url, { user: unique("cut") });
      await eventually("CONNECT said", () => client.rawSent.some((packet) => packet.startsWith("0")), { every: 1 });
      await sleep(Math.random() * 120);
      if (i % 2) door.link().reset(); // this one comes back
      else {
        door.link().cut(); // this one never does
        client.manager.reconnection(false);
      }
      (i % 2 ? stay : gone).push(client);
    }
    for (const client of stay) await client.waitReady(1);
    await eventually("only live sockets are attached", async () => {
      const rows = await cluster.list(leader, "/v1/sids?consistency=linearizable", "sids");
      assert.ok(rows.every((row) => typeof row.attached === "boolean"), "a sid is attached or counting down");
      // One that was `ready` before its link was cut may be on its way back still, or has just come back as another.
      const alive = stay.map((client) => client.socket.id);
      assert.ok(alive.every(Boolean), "all that come back are back");
      assert.deepEqual(rows.filter((row) => row.attached).map((row) => row.sid).sort(), alive.sort());
      return true;
    }, { within: 15_000, every: 200 });
    for (const client of [...stay, ...gone]) assert.deepEqual(client.finals, []);
    for (const client of stay) await client.ok("join", unique("room")); // a live seat, not only a record of one
  }));

test("a volatile event on a busy socket moves nobody's place", { timeout: 60_000 },
  // More than the kernel keeps for a reader that is held up, so that the queue before it is really in use: only there
  // does a volatile event fall behind the messages that were said after it.
  withCluster({ settings: { "limits.queue-bytes": "64MiB", "history.bytes": "64MiB", "replay.bytes": "64MiB" } }, async ({ cluster, cleanup }) => {
    const [one, two] = cluster.nodes;
    const ledger = new Ledger();
    const door = await doorOf(one, cleanup);
    const { name, clients } = await room(ledger, 3, (i) => (i === 0 ? door.url : two.url));
    const [receiver, sender, typist] = clients;
    const typed = () => receiver.events("typing").length;
    const BODY = "x".repeat(50_000);
    const say = (round, from, to, body) => Promise.all(Array.from({ length: to - from }, (_, n) =>
      publish(ledger, sender.user, sender, name, { n: round * 1000 + from + n, body })));
    const type = () => typist.socket.emit("typing", { room: name });
    for (let round = 0; round < 6; round++) {
      const before = typed();
      if (round % 2) {
        // Said while nothing moves: the queue before the link is full when the volatile event is sent, and it arrives
        // after messages that are younger than it.
        door.link().hold();
        await say(round, 0, 240, BODY);
        type();
        await say(round, 240, 280, BODY);
        door.link().heal();
        await eventually("typing", () => typed() > before, { within: 10_000, every: 1 });
        door.link().reset();
      } else {
        // The link ends just after the volatile event was heard. (It may be lost: then it ends without.)
        const said = [say(round, 0, 10), type(), say(round, 10, 200)];
        await eventually("typing", () => typed() > before, { within: 300, every: 1 }).catch(() => {});
        door.link().reset();
        await Promise.all(said);
      }
      await receiver.waitReady(round + 2);
    }
    await eventually("everything delivered", () => ledger.settled());
    assert.deepEqual(ledger.check({ demand: { acked: 1400, reconnects: 6 } }), []);
    assert.ok(typed() > 0, "not conclusive: no volatile event was ever heard");
  }));

test("a client at B 5 ms after ready at A is recognised, though B is behind", { timeout: 60_000 },
  withCluster({ links: true }, async ({ cluster, cleanup }) => {
    const leader = await cluster.leader();
    const [a, b] = [leader, cluster.others(leader)[0]];
    const sender = await Client.ready(a.url, { user: unique("sender") });
    // Far more than the 5 ms, and below what Raft would take for a dead peer.
    cluster.link(leader, b).delay(40);
    cluster.link(b, leader).delay(40);
    for (let i = 0; i < 5; i++) {
      const ledger = new Ledger();
      const door = await doorOf(a, cleanup);
      const client = await Client.ready(door.url, { user: unique("mover") });
      ledger.add(client.user, client);
      if (i % 2) {
        // With a place, too: an offset that B has not applied is not an impossible one.
        const name = unique("room");
        for (const each of [client, sender]) await each.ok("join", name);
        ledger.joined(client.user, name);
        const { id } = await sender.ok("message", { room: name, text: 1 });
        await client.next("message", (message) => message.id === id);
      }
      await sleep(5);
      door.moveTo(b.client);
      const ready = await client.waitReady(2);
      assert.equal(ready.node, b.name);
      assert.equal(ready.recovered, true);
      assert.equal(ready.sid, client.readies[0].sid);
      assert.deepEqual(client.finals, []);
      client.close();
    }
  }));

/// What a balancer sees of a node, each change once.
function watch(node) {
  const seen = [];
  let going = true;
  const look = async () => {
    const { status, text } = await http(node.client, "/readyz");
    const now = status === 200 ? "ready" : text.trim();
    if (going && seen.at(-1) !== now) seen.push(now);
  };
  (async () => {
    for (; going; await sleep(2)) await look().catch(() => {});
  })();
  return { stop: () => ((going = false), seen) };
}

const FAST = { "node.timeout": "2s", "node.isolation": "4s" };

for (const role of ["follower", "leader"]) {
  test(`a ${role} cut off while clients talk to it: nothing is doubled or late when it heals`, { timeout: 90_000 },
    withCluster({ links: true, settings: FAST }, async ({ cluster, cleanup }) => {
      const node = await cluster[role]();
      const [elsewhere, watching] = cluster.others(node);
      const ledger = new Ledger();
      const doors = [];
      for (let i = 0; i < 5; i++) doors.push(await doorOf(node, cleanup));
      const { name, clients } = await room(ledger, 6, (i) => (i < 5 ? doors[i].url : watching.url));
      const stays = await Raw.open(node.client);
      cleanup(() => stays.destroy());
      const user = unique("stays");
      const { sid, pid } = await stays.connect({ user });

      // Bytes are held, not lost: what the node sends while cut off reaches the others after the heal.
      for (const link of cluster.linksOf(node)) link.hold();
      const said = clients.slice(0, 5).flatMap((client) =>
        Array.from({ length: 20 }, (_, n) => publish(ledger, client.user, client, name, { word: n }, { timeout: 20_000 })));
      await sleep(500);
      assert.equal(ledger.acked.size, 0, "a node that is cut off acknowledges nothing");
      for (const door of doors) door.moveTo(elsewhere.client);
      for (const client of clients.slice(0, 5)) await client.waitReady(2, { within: 20_000 });
      await Promise.all(said);
      await eventually("the socket that stayed is closed", () => stays.closed, { within: 12_000 });
      assert.ok(!stays.packets.some((packet) => /^4[14]/.test(packet)), "closed, without a final word");

      const before = clients[5].messages(name).length;
      const balancer = watch(node);
      cleanup(balancer.stop);
      for (const link of cluster.linksOf(node)) link.heal();
      await cluster.ready(node, { within: 20_000 });
      await sleep(500); // for what should not come
      const seen = balancer.stop();
      assert.deepEqual(seen.slice(seen.indexOf("ready")), ["ready"], `once it is ready it stays so: ${seen}`);
      assert.equal(clients[5].messages(name).length, before, "nothing comes late");
      assert.deepEqual(ledger.check({ demand: { acked: 100, reconnects: 5 } }), []);
      await cluster.stateHashes();

      const back = await Raw.open(node.client);
      cleanup(() => back.destroy());
      assert.deepEqual(await back.connect({ user, pid }), { sid, pid }, "the client that stayed recovers too");
    }));
}

test("a reader that stalls is let go, costs nobody else anything, and misses nothing", { timeout: 90_000 },
  withCluster({ settings: { "limits.queue-bytes": "512KiB", "history.bytes": "16MiB" } }, async ({ cluster, cleanup }) => {
    const [one, two] = cluster.nodes;
    const ledger = new Ledger();
    const { name, clients } = await room(ledger, 3, (i) => [one.url, one.url, two.url][i]);
    const user = unique("slow");
    const slow = await Raw.open(one.client);
    cleanup(() => slow.destroy());
    const { sid, pid } = await slow.connect({ user });
    slow.send(`421["join",${JSON.stringify(name)}]`);
    await slow.next((packet) => packet.startsWith("431"));
    slow.stall();
    // More than the kernel keeps for a reader that does not read, less than a replay may be.
    const body = "x".repeat(60_000);
    for (let n = 0; n < 110; n++) {
      const { id } = await publish(ledger, clients[0].user, clients[0], name, { n, body });
      // All that a node which lags behind catches up with at once may be too much for anybody.
      await Promise.all(clients.map((client) => client.next("message", (message) => message.id === id)));
    }
    await eventually("the stalled reader is let go", async () => {
      const row = await cluster.admin(two, `/v1/sids/${sid}?consistency=linearizable`);
      return row.attached === false;
    }, { within: 15_000, every: 100 });
    await eventually("everything delivered", () => ledger.settled());
    assert.deepEqual(ledger.check({ demand: { acked: 110 } }), []);
    for (const client of clients) assert.equal(client.outages.length, 0, "others stay");

    slow.go();
    await eventually("its link is closed", () => slow.closed);
    const heard = slow.events("message");
    assert.ok(heard.length < 110, "not conclusive: the kernel kept it all");
    const again = await Raw.open(two.client);
    cleanup(() => again.destroy());
    const offset = heard.at(-1)?.at(-1);
    assert.equal((await again.connect({ user, pid, ...(offset && { offset }) })).pid, pid, "recovered");
    const numbers = () => [...heard, ...again.events("message")].map(([{ text }]) => text.n);
    await eventually("the rest", () => numbers().length >= 110);
    assert.deepEqual(numbers(), [...Array(110).keys()]);
    for (const raw of [slow, again]) assert.ok(!raw.packets.some((packet) => /^4[14]/.test(packet)));
  }));

test("a long absence is replayed in one go", { timeout: 60_000 },
  withCluster({}, async ({ cluster, cleanup }) => {
    const [one, two, three] = cluster.nodes;
    const ledger = new Ledger();
    const door = await doorOf(one, cleanup);
    const { name, clients } = await room(ledger, 2, (i) => (i ? two.url : door.url));
    const [away, sender] = clients;
    door.link().cut();
    // More than any queue between the player and a socket holds in packets.
    for (let n = 0; n < 600; n += 100) {
      await Promise.all(Array.from({ length: 100 }, (_, i) => publish(ledger, sender.user, sender, name, { n: n + i })));
    }
    door.moveTo(three.client);
    door.link().heal();
    await away.waitReady(2);
    await eventually("everything delivered", () => ledger.settled());
    assert.deepEqual(ledger.check({ demand: { acked: 600, reconnects: 1 } }), []);
    assert.equal(away.readies.length, 2, "one reconnect was enough");
  }));

test("a planned stop announces itself before it closes the transport", { timeout: 60_000 },
  withCluster({}, async ({ cluster, cleanup }) => {
    const [one, two] = cluster.nodes;
    const door = await doorOf(one, cleanup);
    const client = await Client.ready(door.url, { user: unique("user") });
    const exit = one.term();
    const [announced, ...rest] = await client.next("moim:drain");
    assert.equal(typeof announced.within, "number");
    assert.ok(typeof rest.at(-1) !== "string", "it moves nobody's place");
    door.target = two.client;
    assert.equal((await client.waitReady(2)).recovered, true);
    const said = client.log.find(({ event }) => event === "moim:drain").at;
    assert.ok(said < client.outages[0].at, "said before, not after");
    assert.deepEqual(client.finals, []);
    assert.deepEqual(await exit, { code: 0, signal: null });
  }));

test("SIGTERM to all three at once: exit 0 within the deadline, clients find them again", { timeout: 60_000 },
  withCluster({ settings: { "drain.deadline": "8s" } }, async ({ cluster }) => {
    const clients = await Promise.all(cluster.nodes.map((node) => Client.ready(node.url, { user: unique("user") })));
    const start = performance.now();
    const exits = await Promise.all(cluster.nodes.map((node) => node.term()));
    const took = performance.now() - start;
    for (const exit of exits) assert.deepEqual(exit, { code: 0, signal: null });
    assert.ok(took < 8000, `${Math.round(took)} ms`);
    for (const node of cluster.nodes) node.start();
    for (const client of clients) {
      assert.equal((await client.waitReady(2, { within: 20_000 })).recovered, true);
      assert.deepEqual(client.finals, []);
    }
  }));

test("a paused node: its clients resume elsewhere, and it comes back without ghosts", { timeout: 60_000 },
  withCluster({ settings: FAST }, async ({ cluster, cleanup }) => {
    const node = await cluster.leader();
    const [elsewhere] = cluster.others(node);
    const ledger = new Ledger();
    const door = await doorOf(node, cleanup);
    const { name, clients } = await room(ledger, 2, (i) => (i ? elsewhere.url : door.url));
    node.stop();
    await eventually("another leader", async () => {
      const leader = await cluster.leaderNow(elsewhere);
      return leader && leader !== node;
    });
    const tries = publish(ledger, clients[0].user, clients[0], name, { n: 1 }, { timeout: 10_000 });
    await sleep(100);
    door.moveTo(elsewhere.client);
    assert.equal((await clients[0].waitReady(2)).recovered, true);
    await tries;
    node.cont();
    await cluster.ready(node, { within: 20_000 });
    await publish(ledger, clients[1].user, clients[1], name, { n: 1 });
    await eventually("everything delivered", () => ledger.settled());
    assert.deepEqual(ledger.check({ demand: { acked: 2, reconnects: 1 } }), []);
    const rows = await cluster.list(node, "/v1/sids?consistency=linearizable", "sids");
    assert.deepEqual(rows.filter((row) => row.attached).map((row) => row.node).sort(), [elsewhere.name, elsewhere.name]);
    await cluster.stateHashes();
  }));

test("a node that is not ready turns clients away with 503, never with a final word", { timeout: 60_000 },
  withCluster({ start: false }, async ({ cluster }) => {
    const [one, two, three] = cluster.nodes;
    one.start();
    await eventually("live", async () => (await http(one.client, "/livez")).status === 200);
    const handshake = await http(one.client, "/socket.io/?EIO=4&transport=polling");
    assert.equal(handshake.status, 503);
    const early = new Client(one.url, { user: unique("early") });
    await early.next("connect_error");
    two.start();
    three.start();
    await early.waitReady(1, { within: 20_000 });
    assert.deepEqual(early.finals, []);
    await early.ok("join", unique("room"));
    assert.equal((await early.request("message", { room: "elsewhere", text: 1, mid: randomUUID() })).error.code, "not_member");
  }));
