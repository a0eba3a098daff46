// Who is online, as the others see it, over time.
import test from "node:test";
import assert from "node:assert/strict";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { Haproxy } from "./harness/haproxy.mjs";
import { Returning } from "./harness/raw.mjs";
import { eventually, sleep } from "./harness/wait.mjs";

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
  /// As a client is told, and an operator by three routes: all the same.
  const isOnline = async (client) => {
    const { online } = (await watcher.ok("users", room)).users.find(({ user }) => user === client.user);
    const [users, rows, one] = await Promise.all([`/v1/rooms/${room}`, `/v1/users?prefix=${client.user}`, `/v1/users/${client.user}`]
      .map((path) => cluster.admin(leader, `${path}${path.includes("?") ? "&" : "?"}consistency=linearizable`)));
    for (const { user, online: said } of [...users.users, ...rows.users, one]) if (user === client.user) assert.equal(said, online);
    return online;
  };

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

  await step("many tabs are one user, whichever of them come and go", async () => {
    const place = unique("tabs");
    await watcher.ok("join", place);
    const of = (user, name) => watcher.events(name, (event) => event.room === place && event.user === user).length;
    const tabs = [await Client.ready(other.url, { user: unique("user") })];
    const { user } = tabs[0];
    await tabs[0].ok("join", place);
    tabs[0].socket.disconnect();
    await watcher.next("offline", (event) => event.room === place);
    tabs[0].socket.connect();
    await tabs[0].waitReady(2);
    for (const node of [leader, victim, other, leader]) tabs.push(await Client.ready(node.url, { user }));
    assert.deepEqual((await watcher.ok("users", place)).users.filter((each) => each.user === user), [{ user, online: true }]);
    // One loses its link and comes back, one loses it for good, two are closed: somebody of this user is always there.
    tabs[1].dropTransport();
    tabs[2].manager.reconnection(false);
    tabs[2].dropTransport();
    await tabs[1].waitReady(2);
    for (const tab of [tabs[0], tabs[3]]) tab.socket.disconnect();
    await sleep(GRACE + 1500);
    assert.deepEqual([of(user, "online"), of(user, "offline")], [1, 1]);
    tabs[1].socket.disconnect();
    await watcher.ok("message", { room: place, text: "one is left" });
    assert.deepEqual([of(user, "online"), of(user, "offline")], [1, 1]);
    for (const tab of tabs.slice(0, 4)) assert.deepEqual(tab.events("online", (event) => event.user === user), []);
  });

  await step("a closed tab is offline at once", async () => {
    const client = await member(other);
    const closed = performance.now();
    client.socket.disconnect();
    await watcher.next("offline", ({ user }) => user === client.user);
    assert.ok(performance.now() - closed < GRACE / 2, "not after the grace");
    assert.equal(await isOnline(client), false);
  });
}));

test("a rolling restart of all three nodes makes none of 300 users offline or online", { timeout: 120_000 },
  withCluster({ settings: { "presence.grace": `${GRACE}ms` } }, async ({ cluster, cleanup, t }) => {
    const haproxy = await Haproxy.start(cluster);
    cleanup(() => haproxy.close());
    const port = Number(new URL(haproxy.url).port);
    const room = unique("room");
    const observers = await Promise.all(Array.from({ length: 6 }, () => Client.ready(haproxy.url, { user: unique("observer") })));
    for (const observer of observers) await observer.ok("join", room);
    const crowd = [];
    cleanup(() => Promise.all(crowd.map((each) => each.close())));
    while (crowd.length < 294) {
      const wanted = Array.from({ length: 14 }, () => Returning.start(port, unique("user"), room));
      crowd.push(...(await Promise.all(wanted)));
    }
    assert.equal((await observers[0].ok("users", { room, limit: 1000 })).users.length, 300);
    for (const node of cluster.nodes) {
      assert.deepEqual(await node.term(), { code: 0, signal: null });
      node.start();
      await cluster.ready(node);
      await haproxy.sees(node);
      await eventually("everybody is back", () => crowd.every(({ here }) => here));
    }
    await sleep(GRACE + 1500); // a verdict on any of the three absences would have come by now
    const moves = crowd.reduce((sum, { came }) => sum + came - 1, 0);
    t.diagnostic(`${moves} moves of the crowd`);
    assert.ok(moves >= 290, "not conclusive: too few moved");
    for (const each of crowd) assert.deepEqual([each.wrong, each.came - each.recovered], [[], 1], "recovered each time");
    for (const observer of observers) {
      assert.deepEqual([...observer.events("online"), ...observer.events("offline")], []);
      assert.equal(observer.events("joined").length, new Set(observer.events("joined").map(([{ user }]) => user)).size);
      assert.ok(observer.readies.slice(1).every(({ recovered }) => recovered));
    }
    const { users } = await observers[5].ok("users", { room, limit: 1000 });
    assert.deepEqual([users.length, users.filter(({ online }) => !online)], [300, []]);
  }));

test("kill -9: who does not come back is offline and then gone, in time, and nobody else", { timeout: 90_000 },
  withCluster({
    settings: { "presence.grace": "2s", "session.ttl": "18s", "node.isolation": "6s" },
  }, async ({ cluster, t }) => {
    const [grace, ttl, late] = [2000, 18_000, 5000];
    const room = unique("room");
    const victim = await cluster.leader();
    const [here, there] = cluster.others(victim);
    const member = async (node, options) => {
      const client = await Client.ready(node.url, { user: unique("user"), ...options });
      await client.ok("join", room);
      return client;
    };
    const watcher = await member(here);
    const lost = await Promise.all([1, 2, 3, 4].map(() => member(victim, { reconnection: false })));
    // This one had lost its link before; this user has another tab elsewhere.
    lost[0].dropTransport();
    const tab = await Client.ready(there.url, { user: lost[1].user });
    const gone = lost.map((client) => client.last.sid);
    const offline = lost.filter((client) => client !== lost[1]);
    const killed = performance.now();
    await victim.kill9();

    const seen = { offline: 0, first: undefined, last: undefined };
    const look = async () => {
      const since = performance.now() - killed;
      const { users, sids } = await cluster.admin(there, `/v1/rooms/${room}`);
      assert.equal(users.length, 5, "a member stays one");
      const off = users.filter(({ online }) => !online).map(({ user }) => user);
      if (off.length === offline.length) seen.offline ||= since;
      const left = sids.filter(({ sid }) => gone.includes(sid));
      if (left.length < gone.length) seen.first ??= since;
      if (since > 5000) assert.ok(left.every(({ attached }) => attached === false), "it does not look as if it were there");
      if (!left.length) seen.last ??= since;
      return seen.last !== undefined;
    };
    await eventually("no ghost is left", look, { within: ttl + late + 5000, every: 100 });
    t.diagnostic(`offline after ${Math.round(seen.offline)} ms, gone after ${Math.round(seen.first)} to ${Math.round(seen.last)} ms`);
    assert.ok(seen.offline <= grace + late, "offline in time");
    assert.ok(seen.first >= ttl, "no session ends early");
    assert.ok(seen.last <= ttl + late, "no ghost is left later than that");
    for (const client of [watcher, tab]) {
      const said = client.events("offline").map(([{ user }]) => user).sort();
      assert.deepEqual(said, offline.map(({ user }) => user).sort(), "each once, and no other");
      assert.deepEqual(client.events("online", ({ user }) => user !== lost[0].user), []);
    }
    const { users } = await watcher.ok("users", room);
    assert.deepEqual(users.filter(({ online }) => !online).map(({ user }) => user).sort(), offline.map(({ user }) => user).sort());
  }));
