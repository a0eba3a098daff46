// A stock client that is not the JavaScript one: python-socketio, in a process of its own, in a folder of its own.
//
// It records what it was told as `Client` does: `log`, `readies`, `messages(room)`. It knows nothing of recovery: each
// connection is a new session, and what it missed is its own to fetch.
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { eventually } from "./wait.mjs";

const HERE = join(dirname(fileURLToPath(import.meta.url)), "..", "python");
const TARGET = join(HERE, "..", "..", "target");
const REQUIREMENTS = join(HERE, "requirements.txt");

/// Why these tests cannot run here, or false. With MOIM_TEST_DEV=1 nothing is left out.
export function missing() {
  const found = spawnSync("python3", ["-c", ""]).status === 0;
  return found || process.env.MOIM_TEST_DEV === "1" ? false : "python3 is not installed (Debian: apt install python3-venv)";
}

function run(command, args) {
  const { status, error, stdout, stderr } = spawnSync(command, args, { encoding: "utf8", timeout: 300_000 });
  if (status === 0) return;
  throw new Error(`${command} ${args.join(" ")}: ${error?.message ?? status}\n${stdout ?? ""}${stderr ?? ""}` +
    "\nOn Debian: apt install python3-venv");
}

/// The interpreter with what requirements.txt names, made once for each version of that file.
export function interpreter() {
  const version = createHash("sha256").update(readFileSync(REQUIREMENTS)).digest("hex").slice(0, 12);
  const folder = join(TARGET, `python-${version}`);
  if (!existsSync(folder)) {
    // Made aside: a folder of this name is whole.
    const aside = `${folder}.${process.pid}`;
    mkdirSync(TARGET, { recursive: true });
    try {
      run("python3", ["-m", "venv", aside]);
      run(join(aside, "bin", "python3"), ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]);
      renameSync(aside, folder);
    } finally {
      rmSync(aside, { recursive: true, force: true });
    }
  }
  return join(folder, "bin", "python3");
}

export class PythonClient {
  /// Connected and `ready`.
  static async ready(url, { user, ns = "/", transports = ["websocket"] }) {
    const client = new PythonClient();
    Object.assign(client, { user, ns, log: [], readies: [], answers: new Map(), asked: 0, said: "" });
    // It ends with its standard input, and so with this process.
    client.child = spawn(interpreter(), [join(HERE, "client.py")], { stdio: ["pipe", "pipe", "pipe"] });
    client.gone = new Promise((resolve) => client.child.once("close", resolve));
    client.child.stdin.on("error", () => {});
    client.child.stderr.on("data", (text) => (client.said += text));
    createInterface({ input: client.child.stdout }).on("line", (line) => client.hear(JSON.parse(line)));
    client.transport = await client.ask({ do: "connect", url, auth: { user }, transports });
    await client.waitReady();
    return client;
  }

  hear({ event, args, answer, data, error }) {
    if (answer !== undefined) return this.answers.get(answer)({ data, error });
    this.log.push({ event, args });
    if (event === "ready") this.readies.push(args[0]);
  }

  async ask(what) {
    const id = ++this.asked;
    const answered = new Promise((resolve) => this.answers.set(id, resolve));
    this.child.stdin.write(JSON.stringify({ id, namespace: this.ns, ...what }) + "\n");
    const gone = this.gone.then((code) => ({ error: `it ended with ${code}: ${this.said}` }));
    const { data, error } = await Promise.race([answered, gone]);
    if (error) throw new Error(`${this.user}: ${what.event ?? what.do}: ${error}`);
    return data;
  }

  request(event, data) {
    return this.ask({ do: "emit", event, data });
  }

  async ok(event, data) {
    const answer = await this.request(event, data);
    if (answer?.ok !== true) throw new Error(`${event} ${JSON.stringify(data)}: ${JSON.stringify(answer)}`);
    return answer;
  }

  get last() {
    return this.readies.at(-1);
  }

  async waitReady(count = 1, options) {
    try {
      await eventually(`${this.user}: ready number ${count}`, () => this.readies.length >= count, { within: 20_000, ...options });
    } catch (error) {
      throw new Error(`${error.message}; it heard ${JSON.stringify(this.log.slice(-5))} ${this.said.slice(-2000)}`);
    }
    return this.last;
  }

  messages(room) {
    return this.log.filter(({ event, args }) => event === "message" && args[0].room === room).map(({ args }) => args[0]);
  }

  disconnect() {
    return this.ask({ do: "disconnect" });
  }

  async close() {
    this.child.kill("SIGKILL");
    await this.gone;
  }
}
