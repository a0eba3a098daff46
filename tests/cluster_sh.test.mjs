// The two ways in which a person starts a cluster: `moim dev` and scripts/cluster.sh. The script uses the
// documented ports, which may be taken on a shared machine: it runs only with MOIM_TEST_DEV=1.
import test from "node:test";
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { execFile } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Client, closeAll, unique } from "./harness/client.mjs";
import { BIN } from "./harness/cluster.mjs";
import { spawnGuarded } from "./harness/guard.mjs";
import { http } from "./harness/http.mjs";
import { freePort } from "./harness/ports.mjs";
import { eventually, within } from "./harness/wait.mjs";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..");
test.after(closeAll);

test("moim dev: a cluster behind one address, within 2 s; Ctrl-C ends it", { timeout: 60_000 }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "moim-dev-"));
  const port = await freePort([0, 1, 2, 3, 101, 102, 103, 201, 202, 203]);
  const started = performance.now();
  const dev = spawnGuarded(BIN, ["dev", "--port", String(port)], { logFile: join(folder, "log"), env: { ...process.env, TMPDIR: folder } });
  let passed = false;
  try {
    const url = `http://127.0.0.1:${port}`;
    // The balancer answers as soon as one node is ready; all of them are promised.
    for (let i = 0; i <= 3; i++) {
      await eventually(i ? `node ${i} ready` : "ready", async () => (await http(port + i, "/readyz")).status === 200, { within: 20_000 });
    }
    const took = Math.round(performance.now() - started);
    assert.ok(took < 4000, `ready after ${took} ms: 2 s are promised, twice that is allowed on a busy machine`);
    const page = await http(port, "/");
    assert.equal(page.status, 200);
    const [a, b] = await Promise.all([Client.ready(url, { user: unique("a") }), Client.ready(url, { user: unique("b") })]);
    const room = unique("room");
    for (const client of [a, b]) await client.ok("join", room);
    const { id } = await a.ok("message", { room, text: "hello" });
    await b.next("message", (message) => message.id === id);
    dev.kill("SIGINT");
    const { code } = await within(20_000, "dev has ended", dev.exit);
    assert.equal(code, 0);
    for (let i = 0; i <= 3; i++) await assert.rejects(http(port + i, "/livez"), `port ${port + i} is free again`);
    passed = true;
  } finally {
    dev.kill("SIGKILL");
    if (passed) rmSync(folder, { recursive: true, force: true });
    else console.error(`log kept in ${folder}`);
  }
});

const skip = process.env.MOIM_TEST_DEV === "1" ? false : "uses the documented ports: set MOIM_TEST_DEV=1";
test("scripts/cluster.sh: start, status, kill, restart, rolling-restart, stop", { timeout: 180_000, skip }, async () => {
  // Not spawnSync: this process is also the client, which has to come back while the script runs.
  const run = async (...args) => {
    const { stdout, stderr } = await promisify(execFile)(join(ROOT, "scripts", "cluster.sh"), args, { timeout: 120_000 });
    return stdout + stderr;
  };
  const ready = (port) => eventually(`port ${port} ready`, async () => (await http(port, "/readyz")).status === 200, { within: 20_000 });
  assert.ok(!existsSync(join(ROOT, ".moim")), "there is a cluster's data under .moim already: it is not this test's to touch");
  try {
    const squatter = createServer().listen(3102, "127.0.0.1");
    await once(squatter, "listening");
    await assert.rejects(run("start"), /port 3102, which node2 needs, is in use/);
    await assert.rejects(http(3001, "/livez"), "nothing was started");
    squatter.close();
    await once(squatter, "close");
    await run("start");
    for (const port of [3001, 3002, 3003]) await ready(port);
    assert.match(await run("status"), /node3/);
    await run("kill", "2");
    await assert.rejects(http(3002, "/livez"));
    await run("restart", "2");
    await ready(3002);
    const client = await Client.ready("http://127.0.0.1:3001", { user: unique("user") });
    assert.match(await run("rolling-restart"), /p99/);
    assert.equal((await client.waitReady(2, { within: 20_000 })).recovered, true);
  } finally {
    await run("stop");
    rmSync(join(ROOT, ".moim"), { recursive: true, force: true });
  }
});
