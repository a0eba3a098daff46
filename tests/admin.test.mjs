// What an operator can ask, what the answers say about their own freshness, and whom the port refuses.
import test from "node:test";
import assert from "node:assert/strict";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { http } from "./harness/http.mjs";
import { eventually } from "./harness/wait.mjs";

const READS = ["/v1/cluster", "/v1/rooms", "/v1/sids", "/v1/state", "/v1/state/hash"];

function assertInverse({ sids, rooms }) {
  const pairs = (map, flip) =>
    Object.entries(map).flatMap(([key, values]) => values.map((value) => (flip ? `${value} ${key}` : `${key} ${value}`))).sort();
  assert.deepEqual(pairs(sids, false), pairs(rooms, true));
  for (const [room, members] of Object.entries(rooms)) assert.ok(members.length > 0, `${room} is empty and listed`);
}

test("admin", { timeout: 90_000 }, withCluster({}, async ({ cluster, step }) => {
  const [one, two, three] = cluster.nodes;
  const encoded = encodeURIComponent;
  const room = `${unique("room")} é/?&`;
  const alice = await Client.ready(one.url, { user: unique("alice") });
  const bob = await Client.ready(two.url, { user: unique("bob") });
  for (const client of [alice, bob]) await client.ok("join", room);

  await step("livez and readyz say one word", async () => {
    for (const node of cluster.nodes) {
      for (const port of [node.admin, node.client]) {
        for (const path of ["/livez", "/readyz"]) {
          const { status, text } = await http(port, path);
          assert.equal(status, 200);
          assert.match(text.trim(), /^\w+$/);
        }
      }
      assert.equal((await http(node.admin, "/readyz?verbose")).status, 200);
    }
  });

  await step("every read says up to which index it is, and how it was read", async () => {
    const paths = [...READS, `/v1/rooms/${encoded(room)}`, `/v1/sids/${alice.last.sid}`, `/v1/users/${alice.user}`];
    for (const path of paths) {
      for (const consistency of ["local", "linearizable"]) {
        const answer = await cluster.admin(three, `${path}?consistency=${consistency}`);
        assert.ok(Number.isInteger(answer.applied) && answer.applied > 0, `${path}: applied ${answer.applied}`);
        assert.equal(answer.consistency, consistency, path);
      }
      assert.equal((await cluster.admin(three, path)).consistency, "local", path);
      assert.equal((await http(three.admin, `${path}?consistency=maybe`)).status, 400, path);
    }
  });

  await step("the cluster: three voters, one leader, the same on every node", async () => {
    const leaders = new Set();
    for (const node of cluster.nodes) {
      const answer = await cluster.admin(node, "/v1/cluster?consistency=linearizable");
      assert.deepEqual(answer.nodes.map(({ name }) => name).sort(), ["node1", "node2", "node3"]);
      for (const row of answer.nodes) {
        assert.equal(row.role, "voter");
        assert.equal(row.ready, true, JSON.stringify(row));
      }
      leaders.add((await cluster.leader(node)).name);
    }
    assert.equal(leaders.size, 1);
  });

  await step("rooms, a room, a sid and a user tell one story", async () => {
    for (const node of cluster.nodes) {
      const fresh = "consistency=linearizable";
      const rooms = await cluster.admin(node, `/v1/rooms?${fresh}&prefix=${encoded(room)}`);
      assert.equal(rooms.rooms.length, 1);
      const text = JSON.stringify(await cluster.admin(node, `/v1/rooms/${encoded(room)}?${fresh}`));
      for (const word of [alice.user, bob.user, alice.last.sid, bob.last.sid, "node1", "node2"]) assert.ok(text.includes(word), `${word} in ${text}`);
      const sid = await cluster.admin(node, `/v1/sids/${alice.last.sid}?${fresh}`);
      assert.equal(sid.user, alice.user);
      assert.equal(sid.node, "node1");
      assert.deepEqual(sid.rooms, [room]);
      assert.equal(sid.attached, true);
      const user = JSON.stringify(await cluster.admin(node, `/v1/users/${bob.user}?${fresh}`));
      assert.ok(user.includes(bob.last.sid) && user.includes(JSON.stringify(room)), user);
      const mine = (await cluster.admin(node, `/v1/sids?${fresh}&user=${alice.user}`)).sids;
      assert.deepEqual(mine.map((row) => row.sid), [alice.last.sid]);
    }
  });

  await step("no secret is shown", async () => {
    const pid = alice.raw.map((packet) => /"pid":"([^"]+)"/.exec(packet)?.[1]).find(Boolean);
    const secrets = [pid, alice.manager.engine.id];
    for (const path of [`/v1/sids/${alice.last.sid}`, "/v1/sids", "/v1/state", `/v1/users/${alice.user}`]) {
      const { text } = await http(one.admin, path);
      for (const secret of secrets) assert.ok(secret && !text.includes(secret), `${path} shows a secret`);
    }
  });

  await step("the maps are mutual inverses, and equal on all nodes", async () => {
    const states = [];
    for (const node of cluster.nodes) {
      const state = await cluster.admin(node, "/v1/state?consistency=linearizable");
      assertInverse(state);
      assert.deepEqual([...state.rooms[room]].sort(), [alice.last.sid, bob.last.sid].sort());
      assert.deepEqual([...state.members[room]].sort(), [alice.user, bob.user].sort());
      states.push({ sids: state.sids, rooms: state.rooms, members: state.members });
    }
    assert.deepEqual(states[1], states[0]);
    assert.deepEqual(states[2], states[0]);
    await cluster.stateHashes();
  });

  await step("a linearizable read sees what was acknowledged before it, on any node", async () => {
    for (let i = 0; i < 10; i++) {
      const fresh = unique("fresh");
      await alice.ok("join", fresh);
      const node = cluster.nodes[i % 3];
      const { members } = await cluster.admin(node, "/v1/state?consistency=linearizable");
      assert.deepEqual(members[fresh], [alice.user]);
      await alice.ok("leave", fresh);
    }
  });

  await step("lists are paged", async () => {
    const prefix = unique("page");
    const names = Array.from({ length: 7 }, (_, i) => `${prefix}-${i}`);
    for (const name of names) await bob.ok("join", name);
    const seen = [];
    let after = "";
    for (let pages = 0; pages < 10; pages++) {
      const path = `/v1/rooms?consistency=linearizable&limit=3&prefix=${prefix}${after}`;
      const answer = await cluster.admin(three, path);
      assert.ok(answer.rooms.length <= 3);
      seen.push(...answer.rooms.map((row) => row.room ?? row.name));
      if (!answer.next) break;
      after = `&after=${encoded(answer.next)}`;
    }
    assert.deepEqual(seen, names);
  });

  await step("what is not there is 404, in the shape of every error", async () => {
    const paths = ["/v1/nothing", "/v1/rooms/no-such-room", "/v1/sids/no-such-sid", "/v1/users/no-such-user", "/v1/state/hash?index=999999999"];
    for (const path of paths) {
      const { status, json } = await http(one.admin, path);
      assert.equal(status, 404, path);
      assert.equal(typeof json?.error?.code, "string", path);
      assert.equal(typeof json.error.message, "string", path);
    }
    const { status, json } = await http(one.admin, "/v1/rooms?limit=many");
    assert.equal(status, 400);
    assert.equal(typeof json.error.code, "string");
  });

  await step("without a token only this machine's own tools get in", async () => {
    const ask = async (headers, method = "GET", path = "/v1/cluster") => (await http(one.admin, path, { method, headers })).status;
    const host = `127.0.0.1:${one.admin}`;
    for (const good of [{}, { host }, { host: `localhost:${one.admin}` }, { host: `[::1]:${one.admin}` }]) {
      assert.equal(await ask(good), 200, JSON.stringify(good));
    }
    const own = { host, origin: `http://${host}`, "sec-fetch-site": "same-origin" };
    assert.equal(await ask(own), 200);
    const bad = [
      { host: "moim.example" },
      { host: "127.0.0.1.moim.example" },
      { host: `localhost.example:${one.admin}` },
      { host, origin: "http://moim.example" },
      { host, origin: "null" },
      { host, origin: `http://127.0.0.1:${one.client}` },
      { host, origin: `http://127.0.0.1.moim.example:${one.admin}` },
      { host, "sec-fetch-site": "cross-site" },
    ];
    for (const headers of bad) {
      assert.equal(await ask(headers), 403, JSON.stringify(headers));
      assert.equal(await ask(headers, "POST", "/v1/drain"), 403, JSON.stringify(headers));
    }
    assert.equal((await http(one.client, "/readyz")).status, 200, "nothing was drained by that");
    assert.notEqual((await http(one.client, "/v1/cluster")).status, 200, "the client port has no admin routes");
  });

  await step("a lost socket is counting down, then found attached elsewhere", async () => {
    const carol = await Client.ready(three.url, { user: unique("carol"), reconnection: false });
    const { sid } = carol.last;
    const row = () => cluster.admin(two, `/v1/sids/${sid}?consistency=linearizable`);
    assert.equal((await row()).attached, true);
    carol.dropTransport();
    await eventually("counting down", async () => (await row()).attached === false);
    carol.socket.connect();
    await carol.waitReady(2);
    assert.equal((await row()).attached, true);
    assert.equal(carol.last.sid, sid);
  });
}));
