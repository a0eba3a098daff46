// HAProxy in front of a cluster, configured as an operator would: it asks /readyz and nothing else.
import { writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { spawnGuarded } from "./guard.mjs";
import { freePort } from "./ports.mjs";
import { eventually, within } from "./wait.mjs";

const BIN = process.env.HAPROXY_BIN ?? "/usr/sbin/haproxy";

// `redispatch 1`: a refused connection goes to another node at once instead of waiting for this one.
const config = ({ mode, check, alive: { path = "/readyz", status = 200 } }, port, nodes, control) => `
global
  maxconn 8000
  stats socket ${control} mode 600
defaults
  mode ${mode}
  balance roundrobin
  option redispatch 1
  retries 3
  timeout connect 500ms
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
frontend clients
  bind 127.0.0.1:${port}
  default_backend nodes
backend nodes
  option httpchk GET ${path}
  http-check expect status ${status}
  default-server check ${check}
${nodes.map((node) => `  server ${node.name} 127.0.0.1:${node.client}`).join("\n")}
`;

export class Haproxy {
  /// `check`: how soon a node counts as gone. The default is for tests that stop nodes; on a busy machine it takes one out
  /// that is only slow. `alive`: the path that is asked, and the status that is wanted.
  static async start(cluster, { mode = "http", check = "inter 200ms fall 1 rise 1", alive = {} } = {}) {
    const haproxy = new Haproxy();
    const port = await freePort();
    haproxy.control = join(cluster.folder, "haproxy.sock");
    const file = join(cluster.folder, "haproxy.cfg");
    writeFileSync(file, config({ mode, check, alive }, port, cluster.nodes, haproxy.control));
    Object.assign(haproxy, { port, url: `http://127.0.0.1:${port}` });
    haproxy.child = spawnGuarded(BIN, ["-db", "-f", file], { logFile: join(cluster.folder, "haproxy.log") });
    await eventually("HAProxy sees every node", async () => (await haproxy.up()).length === cluster.nodes.length);
    return haproxy;
  }

  /// The names of the nodes that it would send a client to now.
  async up() {
    const rows = (await this.ask("show stat")).split("\n").map((line) => line.split(","));
    const status = rows[0].indexOf("status");
    return rows.filter((row) => row[0] === "nodes" && row[1] !== "BACKEND" && row[status]?.startsWith("UP")).map((row) => row[1]);
  }

  async sees(node) {
    await eventually(`HAProxy sees ${node.name}`, async () => (await this.up()).includes(node.name));
  }

  ask(command) {
    return within(2000, `HAProxy's answer to "${command}"`, new Promise((resolve, reject) => {
      let text = "";
      const socket = connect(this.control, () => socket.write(command + "\n"));
      socket.on("data", (data) => (text += data));
      socket.on("error", reject);
      socket.on("end", () => resolve(text.replace(/^# /, "")));
    }));
  }

  async close() {
    this.child.kill("SIGKILL");
    await this.child.exit;
  }
}
