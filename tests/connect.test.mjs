// From a CONNECT to its answer, where other namespaces share the connection: they are none of its business.
import test from "node:test";
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { Raw } from "./harness/raw.mjs";
import { eventually } from "./harness/wait.mjs";

const NS = "/group-chat";

/// Connected to the main namespace; what else it asks for goes over the same connection.
const main = (node, options) => Client.ready(node.url, { user: unique("main"), ...options });

/// A namespace on the connection of `client`, whose CONNECT was written when this returns.
const beside = (client, user, ns = NS) => new Client(undefined, { user, ns, manager: client.manager, auth: { user } });

function ask(client, user) {
  client.socket.auth = { user };
  client.socket.connect();
}

/// Ready as this user, and the one on whose connection it is can do its work.
async function settled(client, user, other) {
  await eventually(`ready as ${user}`, () => client.socket.connected && client.last?.user === user, { within: 5000 });
  assert.equal(client.last.sid, client.socket.id);
  await client.ok("rooms");
  await eventually("the other namespace", () => other.socket.connected);
  await other.ok("rooms");
  assert.deepEqual(other.finals, []);
}

/// The states of a process's threads, as proc(5) names them: a signal that stops it is not there at once.
const threads = (pid) =>
  readdirSync(`/proc/${pid}/task`).map((id) => readFileSync(`/proc/${pid}/task/${id}/stat`, "utf8").split(") ").at(-1)[0]);

const TRANSPORTS = { websocket: ["websocket"], polling: ["polling"], upgraded: ["polling", "websocket"] };

for (const [name, transports] of Object.entries(TRANSPORTS)) {
  test(`CONNECTs that share a connection: ${name}`, { timeout: 60_000 }, withCluster({ nodes: 1 }, async ({ cluster, step }) => {
    const [one] = cluster.nodes;
    const sids = async (user) => (await cluster.admin(one, `/v1/sids?ns=${NS}&user=${user}`)).sids;
    const start = async () => {
      const client = await main(one, { transports });
      const wanted = transports.at(-1);
      await eventually(wanted, () => client.manager.engine.transport.name === wanted);
      return client;
    };

    await step("one that was taken back is answered when it is said again, by whomever", async () => {
      const a = await start();
      const [first, second] = [unique("first"), unique("second")];
      const b = beside(a, first);
      b.socket.disconnect();
      assert.ok(!b.rawSent.some((packet) => packet.startsWith("41")), "the client does not say that it has left");
      await eventually("a session of nobody", async () => (await sids(first)).length === 1);
      ask(b, second);
      await settled(b, second, a);
      // And from there on as ever.
      b.socket.disconnect();
      await eventually("it has left", async () => (await sids(second)).length === 0);
      const before = a.readies.length;
      ask(b, first);
      await settled(b, first, a);
      assert.equal(a.readies.length, before, "nobody else noticed");
    });

    await step("taken back and said again in one step: whom it says last is whom it gets", async () => {
      const a = await start();
      const [first, second] = [unique("first"), unique("second")];
      const b = beside(a, first);
      b.socket.disconnect();
      ask(b, second);
      await settled(b, second, a);
    });

    // Over long-polling the second one is posted when the first was answered.
    if (name !== "polling") await step("said twice in one step, it is answered once, and nobody else notices", async () => {
      const a = await start();
      // The node comes to neither before both have been sent.
      one.stop();
      await eventually("every thread of it stands still", () => threads(one.child.pid).every((state) => state === "T"), { every: 1 });
      const b = beside(a, unique("user"));
      b.socket.disconnect();
      ask(b, b.user);
      await eventually("sent", () => a.manager.engine.writeBuffer.length === 0);
      one.cont();
      await settled(b, b.user, a);
      assert.deepEqual([a.readies.length, b.readies.length], [1, 1]);
    });

    await step("one that was refused may be said again, and nobody else notices", async () => {
      const a = await start();
      const b = beside(a, 7);
      await b.next("connect_error", (code) => code === "unauthorized");
      ask(b, "somebody");
      await settled(b, "somebody", a);
      const c = beside(a, unique("user"), "/nowhere");
      await eventually("refused", () => c.events("connect_error").length === 1);
      c.socket.connect();
      await eventually("refused again", () => c.events("connect_error").length === 2);
      await a.ok("rooms");
      assert.equal(a.readies.length, 1);
    });
  }));
}

/// Packets of several namespaces, or several of one, in one post or one segment: a stock client's `disconnect().connect()`.
const PACKETS = {
  polling: async (node) => {
    const path = `${node.url}/socket.io/?EIO=4&transport=polling`;
    const { sid } = JSON.parse((await (await fetch(path)).text()).slice(1));
    const say = async (...packets) => (await fetch(`${path}&sid=${sid}`, { method: "POST", body: packets.join("\x1e") })).text();
    const heard = async () => (await fetch(`${path}&sid=${sid}`)).text();
    return { say, heard, ended: async () => assert.match(await heard(), /Session ID unknown/), close: () => say("1") };
  },
  websocket: async (node) => {
    const raw = await Raw.open(node.client);
    const say = (...packets) => {
      raw.socket.cork();
      packets.forEach((packet) => raw.send(packet));
      raw.socket.uncork();
    };
    const heard = async () => {
      await raw.next(() => true);
      return raw.packets.splice(0).join("\x1e");
    };
    return { say, heard, ended: () => eventually("closed", () => raw.closed), close: () => raw.destroy() };
  },
};

for (const [name, open] of Object.entries(PACKETS)) {
  test(`left and asked for again in one breath, a CONNECT more is noticed still: ${name}`, { timeout: 60_000 }, withCluster({ nodes: 1 }, async ({ cluster }) => {
    const [first, second, third] = ["first", "second", "third"].map(unique);
    const connect = (user) => `40${NS},${JSON.stringify({ user })}`;
    const client = await open(cluster.nodes[0]);
    const ready = async (user) => {
      while (!(await client.heard()).includes(`42${NS},["ready",{"user":"${user}"`));
    };
    await client.say(connect(first));
    await ready(first);
    await client.say(`41${NS},`, connect(second));
    await ready(second);
    await client.say(connect(third));
    await client.ended();
    await client.close();
  }));
}

const LIMITED = { nodes: 1, settings: { "limits.sessions-per-user": 2 } };

test("one session more than a user may have", { timeout: 60_000 }, withCluster(LIMITED, async ({ cluster, step }) => {
  const [one] = cluster.nodes;

  await step("comes in as soon as one of them has gone", async () => {
    const user = unique("user");
    const [first, second] = [await Client.ready(one.url, { user, ns: NS }), await Client.ready(one.url, { user, ns: NS })];
    const third = new Client(one.url, { user, ns: NS });
    await eventually("tried again", () => third.connects.length >= 2);
    first.close();
    await third.waitReady();
    assert.deepEqual([third.finals, second.readies.length], [[], 1]);
  });

  await step("is not the one that takes the place of its own", async () => {
    const user = unique("user");
    const [first, second, again] = await Promise.all([1, 2, 3].map(() => Raw.open(one.client)));
    const { sid, pid } = await first.connect({ user });
    await second.connect({ user });
    first.destroy();
    // What it says that it heard last was not said here, so its session cannot go on.
    const answer = await again.connect({ user, pid, offset: "elsewhere" });
    assert.notEqual(answer.sid, sid);
    const { sids } = await cluster.admin(one, `/v1/sids?user=${user}`);
    assert.equal(sids.length, 2);
    for (const raw of [second, again]) raw.destroy();
  });
}));

const PATTERN = { nodes: 1, settings: { namespaces: ["/", "/t/{tenant}/chat"] } };

test("a pattern has a bound, and what is refused leaves nothing behind", { timeout: 60_000 }, withCluster(PATTERN, async ({ cluster, step }) => {
  const [one] = cluster.nodes;
  const tenant = (n) => `/t/${n}/chat`;
  const answer = (raw, ns) => raw.next((packet) => /^4[04]/.test(packet) && packet.slice(2).startsWith(`${ns},`));
  const connect = (raw, ns, auth = {}) => {
    raw.packets.length = 0;
    raw.send(`40${ns},${JSON.stringify(auth)}`);
    return answer(raw, ns);
  };
  const refused = (ns, why) => `44${ns},${JSON.stringify({ message: why })}`;

  const raw = await Raw.open(one.client);
  await step("whoever is not let in makes none", async () => {
    const stranger = await Raw.open(one.client);
    for (let n = 0; n < 1001; n++) stranger.send(`40${tenant(`x${n}`)},{"user":7}`);
    assert.equal(await answer(stranger, tenant("x1000")), refused(tenant("x1000"), "unauthorized"));
    assert.match(await connect(stranger, tenant("x5")), /^40/, "and may come back as somebody else");
    stranger.destroy();
  });

  await step("a thousand are made, and no more", async () => {
    for (let n = 1; n < 1000; n++) raw.send(`40${tenant(n)},{}`);
    assert.match(await answer(raw, tenant(999)), /^40/);
    for (const n of [1000, 1001, 1000]) {
      assert.equal(await connect(raw, tenant(n)), refused(tenant(n), "Invalid namespace"));
    }
  });

  await step("those that were made go on", async () => {
    const client = await Client.ready(one.url, { user: unique("user"), ns: tenant(5) });
    await client.ok("join", "room");
    const other = await Client.ready(one.url, { user: unique("user"), ns: tenant("x5") });
    await other.ok("rooms");
    assert.equal(raw.closed, false);
  });
}));
