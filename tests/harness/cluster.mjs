// A cluster of real processes: the built binary, temporary folders, loopback ports.
//
// `withCluster` is how a test gets one: the cluster and all clients are gone when the test ends, and after a
// failure its logs are kept and their place is printed.
import { existsSync, mkdtempSync, rmSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { closeAll } from "./client.mjs";
import { spawnGuarded } from "./guard.mjs";
import { http } from "./http.mjs";
import { freePort } from "./ports.mjs";
import { Proxy, firstBytes } from "./proxy.mjs";
import { eventually, within } from "./wait.mjs";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
export const BIN = process.env.MOIM_BIN ?? join(ROOT, "target", "release", "moim");

/// What every test runs with, unless it says otherwise: a drain that fits a test.
const SETTINGS = { "drain.delay": "300ms", "drain.window": "1s" };

function environment(settings, extra) {
  const env = Object.fromEntries(Object.entries(process.env).filter(([key]) => !key.startsWith("MOIM_")));
  for (const [key, value] of Object.entries({ ...SETTINGS, ...settings })) {
    env[`MOIM_${key.replace(/[.-]/g, "_").toUpperCase()}`] = String(value);
  }
  return { ...env, ...extra };
}

export class Node {
  constructor(cluster, name, ports) {
    Object.assign(this, { cluster, name, ...ports, child: null, env: {} });
    this.data = join(cluster.folder, name);
    this.logFile = join(cluster.folder, `${name}.log`);
    this.url = `http://127.0.0.1:${this.client}`;
  }

  get pid() {
    return this.child?.pid;
  }

  get running() {
    return this.child?.running === true;
  }

  /// Resolves to `{ code, signal }` when the process that runs now has exited.
  get exit() {
    return this.child.exit;
  }

  start() {
    const { join: peers, settings } = this.cluster;
    const at = (port) => `127.0.0.1:${port}`;
    const args = ["serve", "--name", this.name, "--data", this.data, "--auth", "open"];
    args.push("--client", at(this.client), "--admin", at(this.admin), "--peer", at(this.peer));
    if (this.advertised !== this.peer) args.push("--advertise-peer", at(this.advertised));
    if (peers.length > 1) args.push("--join", peers.join(","), "--expect", String(peers.length));
    this.child = spawnGuarded(BIN, args, { env: environment(settings, this.env), logFile: this.logFile });
  }

  term() {
    this.child.kill("SIGTERM");
    return this.exit;
  }

  kill9() {
    this.child.kill("SIGKILL");
    return this.exit;
  }

  stop() {
    this.child.kill("SIGSTOP");
  }

  cont() {
    this.child.kill("SIGCONT");
  }

  log() {
    return existsSync(this.logFile) ? readFileSync(this.logFile, "utf8") : "";
  }
}

export class Cluster {
  /// `links: true` puts a proxy on every peer link (see `link`); `start: false` leaves the nodes to the test.
  static async start({ nodes = 3, settings = {}, links = false, start = true } = {}) {
    if (!existsSync(BIN)) throw new Error(`no binary at ${BIN}: build it, or name one in MOIM_BIN`);
    const cluster = new Cluster();
    cluster.settings = settings;
    cluster.folder = mkdtempSync(join(tmpdir(), "moim-test-"));
    cluster.proxies = [];
    cluster.nodes = [];
    for (let i = 1; i <= nodes; i++) {
      const ports = { client: await freePort(), admin: await freePort(), peer: await freePort() };
      cluster.nodes.push(new Node(cluster, `node${i}`, ports));
    }
    for (const node of cluster.nodes) node.advertised = links ? await cluster.peerProxy(node) : node.peer;
    cluster.join = cluster.nodes.map((node) => `127.0.0.1:${node.advertised}`);
    if (!start) return cluster;
    try {
      for (const node of cluster.nodes) node.start();
      await cluster.allReady();
    } catch (error) {
      await cluster.destroy({ keepLogs: true });
      throw error;
    }
    return cluster;
  }

  async peerProxy(node) {
    // A node announces one address to all others; who connects says its name first, though not in its first packet.
    const named = (hello) => this.nodes.find(({ name }) => hello.includes(name))?.name;
    const classify = async (socket) => named(await firstBytes(socket, named)) ?? "unknown";
    node.proxy = await Proxy.start({ target: node.peer, port: await freePort(), classify });
    this.proxies.push(node.proxy);
    return node.proxy.port;
  }

  /// The link that `from` opened to `to`. (Peers open a link each way: a cut pair is two of these.)
  link(from, to) {
    return to.proxy.link(from.name);
  }

  /// All links between `node` and the others, to be dropped, held or healed together.
  linksOf(node) {
    return this.others(node).flatMap((other) => [this.link(node, other), this.link(other, node)]);
  }

  others(...nodes) {
    return this.nodes.filter((each) => !nodes.includes(each));
  }

  /// GET /readyz on the client port until it says 200.
  async ready(node, { within: ms = 15_000 } = {}) {
    const ready = eventually(`${node.name} ready`, async () => (await http(node.client, "/readyz")).status === 200, { within: ms });
    const gone = node.exit.then(({ code, signal, error }) => {
      throw new Error(`${node.name} ended before it was ready: ${error?.message ?? code ?? signal}\n${node.log().slice(-2000)}`);
    });
    gone.catch(() => {}); // it will end some day, long after this
    await Promise.race([ready, gone]);
  }

  async allReady(options) {
    await Promise.all(this.nodes.map((node) => this.ready(node, options)));
  }

  /// JSON of a GET on the admin port; anything but 200 is an error.
  async admin(node, path) {
    const answer = await http(node.admin, path);
    if (answer.status !== 200) throw new Error(`GET ${path} on ${node.name}: ${answer.status} ${answer.text}`);
    return answer.json;
  }

  /// Every row of a paged list.
  async list(node, path, key) {
    const rows = [];
    let after = "";
    for (let page = 0; page < 1000; page++) {
      const answer = await this.admin(node, `${path}${path.includes("?") ? "&" : "?"}limit=500${after}`);
      rows.push(...answer[key]);
      if (!answer.next) return rows;
      after = `&after=${encodeURIComponent(answer.next)}`;
    }
    throw new Error(`${path} has no last page`);
  }

  /// The node that `via` (any running node) knows as leader, or undefined while there is none.
  async leaderNow(via = this.nodes.find((node) => node.running)) {
    const { leader, nodes } = await this.admin(via, "/v1/cluster");
    const row = nodes.find((each) => each.leader === true || (leader !== null && (each.id === leader || each.name === leader)));
    return row && this.nodes.find((node) => node.name === row.name);
  }

  leader(via) {
    return eventually("a leader", () => this.leaderNow(via));
  }

  async follower() {
    return this.others(await this.leader())[0];
  }

  /// The state hash of each node at one index that all have applied: three equal strings, or an error.
  async stateHashes(nodes = this.nodes) {
    const applied = async () => Promise.all(nodes.map(async (node) => (await this.admin(node, "/v1/cluster")).applied));
    const index = Math.max(...(await applied()));
    await eventually(`all nodes at index ${index}`, async () => Math.min(...(await applied())) >= index);
    const hashes = await Promise.all(nodes.map(async (node) => (await this.admin(node, `/v1/state/hash?index=${index}`)).hash));
    if (typeof hashes[0] !== "string" || new Set(hashes).size !== 1) {
      throw new Error(`state differs at index ${index}: ${nodes.map((node, i) => `${node.name} ${hashes[i]}`).join(", ")}`);
    }
    return hashes;
  }

  async destroy({ keepLogs = false } = {}) {
    const running = this.nodes.filter((node) => node.child);
    for (const node of running) node.child.kill("SIGKILL");
    await within(5000, "every node gone", Promise.all(running.map((node) => node.exit)));
    await Promise.all(this.proxies.map((proxy) => proxy.close()));
    if (keepLogs) console.error(`logs and data kept in ${this.folder}`);
    else rmSync(this.folder, { recursive: true, force: true });
  }
}

/// A test body that gets a running cluster, and `step(name, fn)` for subtests whose failure keeps the logs.
export function withCluster(options, body) {
  return async (t) => {
    const cluster = await Cluster.start(options);
    const cleanups = [];
    let failed = false;
    const watched = (fn) => async (inner) => {
      try {
        return await fn(inner);
      } catch (error) {
        failed = true;
        throw error;
      }
    };
    const step = (name, fn) => t.test(name, watched(fn));
    try {
      await watched(() => body({ cluster, t, step, cleanup: (fn) => cleanups.push(fn) }))();
    } finally {
      closeAll();
      for (const fn of cleanups.reverse()) await fn();
      await cluster.destroy({ keepLogs: failed });
    }
  };
}
