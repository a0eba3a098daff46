// What a rolling restart costs stock clients: moim, and beside it the peer (tests/peer), in one run.
//
//   node bench/roll.mjs [--peer BINARY] [--clients 1000] [--rate 100] [--json] [--max FIGURE=VALUE]...
//
// Three nodes behind HAProxy, `clients` of them in 50 rooms with `reconnectionDelay: 50`, `rate` messages a second. Each node is
// stopped by SIGTERM and started again, one after another, with moim's own settings for a drain. A gap is from `disconnect` to
// `ready`. A member lost a message that was acknowledged, or doubled one that it received twice. With a broken limit it exits 1.
// MOIM_BIN names the moim to measure; the peer needs redis-server.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { io } from "socket.io-client";
import { Cluster } from "../harness/cluster.mjs";
import { spawnGuarded } from "../harness/guard.mjs";
import { Haproxy } from "../harness/haproxy.mjs";
import { http } from "../harness/http.mjs";
import { freePort } from "../harness/ports.mjs";
import { eventually, sleep } from "../harness/wait.mjs";

const ROOMS = 50;
const CONNECTING = 50;
/// Before the first node, between two, and after the last.
const PAUSE = 2000;
const DRAIN = { "drain.delay": "1s", "drain.window": "10s" };
/// What an operator would set where thousands of clients come at once: a check that fails once is a busy node, not a dead one.
const CHECK = "inter 250ms fall 2 rise 1";

const progress = (line) => console.error(line);

async function moim() {
  const cluster = await Cluster.start({ settings: DRAIN });
  return {
    name: "moim", nodes: cluster.nodes, folder: cluster.folder, alive: {},
    async restart(node) {
      await node.term();
      node.start();
      await cluster.ready(node);
    },
    close: () => cluster.destroy(),
  };
}

async function peer(binary) {
  const folder = mkdtempSync(join(tmpdir(), "moim-peer-"));
  const port = await freePort();
  const file = (name) => ({ logFile: join(folder, `${name}.log`) });
  const redis = spawnGuarded("redis-server", ["--port", String(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "yes", "--appendfsync", "always"], file("redis"));
  const start = async (node) => {
    node.child = spawnGuarded(binary, [String(node.client), `redis://127.0.0.1:${port}/`], file(node.name));
    await eventually(`${node.name} answers`, () => http(node.client, "/"), { every: 10 });
  };
  const nodes = [];
  for (const name of ["peer1", "peer2", "peer3"]) nodes.push({ name, client: await freePort() });
  await sleep(300); // redis-server
  for (const node of nodes) await start(node);
  return {
    name: "peer", nodes, folder, alive: { path: "/", status: 404 }, // it has no page, and says so as long as it lives
    async restart(node) {
      node.child.kill("SIGTERM");
      await node.child.exit;
      await start(node);
    },
    async close() {
      for (const child of [...nodes.map((node) => node.child), redis]) {
        child.kill("SIGKILL");
        await child.exit;
      }
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

/// A stock client that is in one room and counts.
class Client {
  constructor(url, number) {
    Object.assign(this, { room: `bench-r${number % ROOMS}`, heard: new Map(), gaps: [], recovered: 0, owed: [] });
    const settings = { transports: ["websocket"], forceNew: true, reconnectionDelay: 50, reconnectionDelayMax: 500 };
    this.socket = io(url, { ...settings, auth: { user: `bench-u${number}` } });
    this.socket.on("message", ({ text }) => this.heard.set(text, (this.heard.get(text) ?? 0) + 1));
    this.socket.on("disconnect", () => (this.lostAt ??= performance.now()));
    this.socket.on("ready", (ready) => this.ready(ready));
    this.in = new Promise((resolve) => (this.entered = resolve));
  }

  ready({ recovered }) {
    if (this.lostAt !== undefined) this.gaps.push(performance.now() - this.lostAt);
    if (recovered) this.recovered += 1;
    this.lostAt = undefined;
    // A server that does not recover knows nothing of the rooms either.
    if (!recovered) this.socket.emit("join", this.room, () => this.entered());
  }
}

async function run(fleet, { clients: count, rate }) {
  const haproxy = await Haproxy.start(fleet, { check: CHECK, alive: fleet.alive });
  const clients = [];
  try {
    for (let i = 0; i < count; i += CONNECTING) {
      const some = Array.from({ length: Math.min(CONNECTING, count - i) }, (_, j) => new Client(haproxy.url, i + j));
      clients.push(...some);
      await Promise.all(some.map((client) => client.in));
    }
    const talk = talking(clients, rate);
    await sleep(PAUSE);
    for (const node of fleet.nodes) {
      await fleet.restart(node);
      await haproxy.sees(node);
      progress(`${fleet.name}: ${node.name} restarted`);
      await sleep(PAUSE);
    }
    const acked = await talk.end();
    await eventually("everybody back", () => clients.every((client) => client.lostAt === undefined), { within: 30_000 });
    await sleep(PAUSE);
    return figures(clients, acked);
  } finally {
    for (const { socket } of clients) socket.disconnect();
    await haproxy.close();
    await fleet.close();
  }
}

function talking(clients, rate) {
  const acked = [];
  let [said, on] = [0, true];
  const running = (async () => {
    for (let next = performance.now(); on; next += 1000 / rate) {
      await sleep(Math.max(0, next - performance.now()));
      const { socket, room } = clients[(said * 7919) % clients.length];
      const text = ++said;
      if (socket.connected) socket.emit("message", { room, text }, ({ ok }) => ok && acked.push({ room, text }));
    }
  })();
  return {
    async end() {
      on = false;
      await running;
      await sleep(500);
      return acked;
    },
  };
}

function figures(clients, acked) {
  const gaps = clients.flatMap((client) => client.gaps).sort((a, b) => a - b);
  const at = (share) => Math.round(gaps[Math.max(0, Math.ceil(share * gaps.length) - 1)] ?? 0);
  const rooms = groups(acked);
  const due = clients.flatMap((client) => (rooms.get(client.room) ?? []).map(({ text }) => client.heard.get(text) ?? 0));
  return {
    gaps: gaps.length, p50_ms: at(0.5), p95_ms: at(0.95), p99_ms: at(0.99), max_ms: at(1),
    recovered: clients.reduce((sum, client) => sum + client.recovered, 0),
    due: due.length, lost: due.filter((times) => times === 0).length, doubled: due.filter((times) => times > 1).length,
  };
}

function groups(acked) {
  const rooms = new Map();
  for (const each of acked) rooms.set(each.room, [...(rooms.get(each.room) ?? []), each]);
  return rooms;
}

/// The limits that are not kept, as sentences.
function broken(all, limits) {
  return limits.flatMap((limit) => {
    const [name, value] = limit.split("=");
    if (!(name in all) || !Number.isFinite(Number(value))) return [`${limit} is no limit here; figures: ${Object.keys(all).join(", ")}`];
    return all[name] > Number(value) ? [`${name} is ${all[name]}, above ${value}`] : [];
  });
}

const { values } = parseArgs({
  options: {
    peer: { type: "string" }, clients: { type: "string", default: "1000" }, rate: { type: "string", default: "100" },
    json: { type: "boolean", default: false }, max: { type: "string", multiple: true, default: [] },
  },
});
const load = { clients: Number(values.clients), rate: Number(values.rate) };
const all = await run(await moim(), load);
if (values.peer) {
  const theirs = await run(await peer(values.peer), load);
  for (const [name, value] of Object.entries(theirs)) all[`peer_${name}`] = value;
  all.p99_ratio = Number((all.p99_ms / theirs.p99_ms).toFixed(2));
}
if (values.json) console.log(JSON.stringify(all, null, 2));
else for (const [name, value] of Object.entries(all)) console.log(`${name.padEnd(16)}${value}`);
const failed = broken(all, values.max);
for (const sentence of failed) console.error(sentence);
process.exit(failed.length ? 1 : 0);
