// The harness can see what it is there to see: each check is shown a server that breaks just that.
import test from "node:test";
import assert from "node:assert/strict";
import { createServer, connect } from "node:net";
import { mkdtempSync, rmSync, existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { closeAll } from "../client.mjs";
import { Haproxy } from "../haproxy.mjs";
import { Load } from "../load.mjs";
import { Proxy, firstBytes } from "../proxy.mjs";
import { Raw } from "../raw.mjs";
import { eventually, sleep } from "../wait.mjs";
import { fakeServer } from "./fake.mjs";

test.after(closeAll);

async function run({ fault, cuts = 2 } = {}) {
  const server = await fakeServer({ fault });
  const proxy = await Proxy.start({ target: server.port });
  const load = await Load.start({ urls: [proxy.url], clients: 10, rooms: 8, rate: 100 });
  for (let i = 0; i < cuts; i++) {
    await sleep(200);
    proxy.link().reset();
  }
  await sleep(500);
  const wrong = await load.finish({ demand: { acked: 50, reconnects: 10 * cuts } });
  load.close();
  await proxy.close();
  await server.close();
  return { wrong, load };
}

test("a server that keeps its word passes, cuts included", async () => {
  const { wrong, load } = await run();
  assert.deepEqual(wrong, []);
  const gaps = load.ledger.gaps();
  assert.equal(gaps.count, 20);
  assert.ok(gaps.p50 >= 20 && gaps.p50 < 300, JSON.stringify(gaps));
});

test("one lost message is seen", async () => {
  const { wrong } = await run({ cuts: 0, fault: (m, s) => (m.text.n === 2 && s.sid === "sid3" ? 0 : 1) });
  assert.match(wrong.join("\n"), /lost \d+ of/);
});

test("one doubled message is seen", async () => {
  const { wrong } = await run({ cuts: 0, fault: (m, s) => (m.text.n === 2 && s.sid === "sid3" ? 2 : 1) });
  assert.match(wrong.join("\n"), /doubled/);
});

test("a message out of order is seen", async () => {
  let held;
  const server = await fakeServer();
  const load = await Load.start({ urls: [`http://127.0.0.1:${server.port}`], clients: 4, rooms: 8, rate: 100 });
  await sleep(400);
  assert.deepEqual(await load.finish(), []);
  const { log } = load.members[0].client;
  const at = log.findIndex(({ event }) => event === "message");
  [held] = log.splice(at, 1);
  log.push(held);
  assert.match(load.ledger.check().join("\n"), /came after/);
  load.close();
  await server.close();
});

test("too little traffic is no pass", async () => {
  const server = await fakeServer();
  const load = await Load.start({ urls: [`http://127.0.0.1:${server.port}`], clients: 2, rooms: 8, rate: 10 });
  assert.match((await load.finish({ demand: { acked: 1000 } })).join("\n"), /not conclusive/);
  load.close();
  await server.close();
});

async function echo() {
  const server = createServer((socket) => socket.on("error", () => {}).pipe(socket));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const proxy = await Proxy.start({ target: server.address().port });
  const socket = connect(proxy.port, "127.0.0.1");
  const state = { text: "", closed: false };
  socket.on("data", (data) => (state.text += data)).on("error", () => {}).on("close", () => (state.closed = true));
  const close = async () => {
    socket.destroy();
    await proxy.close();
    server.close();
  };
  return { link: proxy.link(), socket, state, close };
}

test("hold keeps bytes and gives them up at heal", async () => {
  const { link, socket, state, close } = await echo();
  socket.write("a");
  await eventually("a", () => state.text === "a");
  link.hold();
  socket.write("b");
  await sleep(100);
  assert.equal(state.text, "a");
  link.heal();
  await eventually("b", () => state.text === "ab");
  await close();
});

test("holdAfter passes so many bytes and then holds", async () => {
  const { link, socket, state, close } = await echo();
  link.holdAfter(3);
  for (const letter of "abcde") {
    socket.write(letter);
    await sleep(20);
  }
  assert.equal(state.text, "abc");
  link.heal();
  await eventually("all of it", () => state.text === "abcde");
  await close();
});

test("delay keeps the order and the time", async () => {
  const { link, socket, state, close } = await echo();
  socket.write("a");
  await eventually("a", () => state.text === "a");
  link.delay(60);
  const start = performance.now();
  for (const letter of "bcd") {
    socket.write(letter);
    await sleep(5);
  }
  await eventually("bcd", () => state.text === "abcd");
  assert.ok(performance.now() - start >= 115);
  await close();
});

test("drop swallows and resets at heal", async () => {
  const { link, socket, state, close } = await echo();
  socket.write("a");
  await eventually("a", () => state.text === "a");
  link.drop();
  socket.write("b");
  await sleep(100);
  assert.deepEqual(state, { text: "a", closed: false });
  link.heal();
  await eventually("closed", () => state.closed);
  await close();
});

test("cut resets at once", async () => {
  const { link, socket, state, close } = await echo();
  socket.write("a");
  await eventually("a", () => state.text === "a");
  link.cut();
  await eventually("closed", () => state.closed);
  await close();
});

test("HAProxy takes out a node that is not ready, and takes it back", async () => {
  const folder = mkdtempSync(join(tmpdir(), "moim-haproxy-"));
  const servers = [await fakeServer(), await fakeServer()];
  const nodes = servers.map(({ port }, i) => ({ name: `node${i + 1}`, client: port }));
  const haproxy = await Haproxy.start({ folder, nodes });
  servers[0].state.ready = false;
  await eventually("out", async () => (await haproxy.up()).join() === "node2");
  const load = await Load.start({ urls: [haproxy.url], clients: 4, rooms: 8, rate: 50 });
  servers[0].state.ready = true;
  await haproxy.sees(nodes[0]);
  assert.deepEqual(await load.finish(), []);
  load.close();
  await haproxy.close();
  for (const server of servers) await server.close();
  rmSync(folder, { recursive: true });
});

test("a cluster is started, asked, stopped and cleared away", async () => {
  process.env.MOIM_BIN = fileURLToPath(new URL("fake-moim.mjs", import.meta.url));
  const { Cluster } = await import("../cluster.mjs");
  const cluster = await Cluster.start({ links: true, settings: { "session.ttl": "9s" } });
  const [one, two] = cluster.nodes;
  assert.equal((await cluster.leader()).name, "node1");
  assert.equal((await cluster.stateHashes()).length, 3);
  assert.match(one.log(), /MOIM_SESSION_TTL=9s MOIM_DRAIN_DELAY=300ms/);
  assert.deepEqual(await one.term(), { code: 0, signal: null });
  assert.equal((await two.kill9()).signal, "SIGKILL");
  one.start();
  await cluster.ready(one);
  const { folder } = cluster;
  await cluster.destroy();
  assert.ok(!existsSync(folder));
});

test("a proxy names links by what a connection says first, and passes that on", async () => {
  const echo = createServer((socket) => socket.pipe(socket));
  await new Promise((resolve) => echo.listen(0, "127.0.0.1", resolve));
  const classify = async (socket) => `${await firstBytes(socket, (bytes) => bytes.length >= 3)}`;
  const proxy = await Proxy.start({ target: () => echo.address().port, classify });
  const heard = {};
  const sockets = ["ada", "bob"].map((name) => {
    const socket = connect({ port: proxy.port, host: "127.0.0.1", noDelay: true }, async () => {
      for (const letter of name) await sleep(10).then(() => socket.write(letter));
    });
    return socket.on("data", (data) => (heard[name] = `${heard[name] ?? ""}${data}`));
  });
  await eventually("echoed", () => heard.ada === "ada" && heard.bob === "bob");
  proxy.link("ada").drop("down");
  for (const socket of sockets) socket.write("!");
  await eventually("echoed", () => heard.bob === "bob!");
  assert.equal(heard.ada, "ada", "swallowed on the way back");
  for (const socket of sockets) socket.destroy();
  await proxy.close();
  echo.close();
});

test("the raw client speaks enough to connect, stall and go on", async () => {
  const server = await fakeServer();
  const raw = await Raw.open(server.port);
  const { sid } = await raw.connect({ user: "raw" });
  assert.equal(sid, "sid1");
  raw.send('421["join","r"]');
  await raw.next((packet) => packet.startsWith("431"));
  raw.stall();
  raw.send(`422["message",{"room":"r","text":"${"x".repeat(70000 - 10000)}","mid":"m"}]`);
  await sleep(50);
  assert.equal(raw.events("message").length, 0);
  raw.go();
  await raw.next((packet) => packet.startsWith("432"));
  assert.equal(raw.events("message")[0][0].text.length, 60000);
  raw.destroy();
  await server.close();
});

test("children end with the run, even when it is killed", async () => {
  const folder = mkdtempSync(join(tmpdir(), "moim-guard-"));
  const guard = new URL("../guard.mjs", import.meta.url).href;
  const script = `const { spawnGuarded } = await import(${JSON.stringify(guard)});
    console.log(spawnGuarded("sleep", ["1000"], { logFile: ${JSON.stringify(join(folder, "log"))} }).pid);
    setTimeout(() => {}, 1e6);`;
  const runner = spawn(process.execPath, ["--input-type=module", "-e", script], { stdio: ["ignore", "pipe", "inherit"] });
  const pid = await new Promise((resolve) => runner.stdout.once("data", (data) => resolve(Number(data))));
  assert.ok(existsSync(`/proc/${pid}`));
  runner.kill("SIGKILL");
  await eventually("the child is gone", () => !existsSync(`/proc/${pid}`));
  rmSync(folder, { recursive: true });
});
