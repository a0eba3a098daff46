// A node whose wall clock is wrong does not lead and ends nobody's session. Needs Debian's libfaketime.
import test from "node:test";
import assert from "node:assert/strict";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Client, unique } from "./harness/client.mjs";
import { withCluster } from "./harness/cluster.mjs";
import { http } from "./harness/http.mjs";
import { eventually, sleep } from "./harness/wait.mjs";

const LIB = ["x86_64", "aarch64"].map((arch) => `/usr/lib/${arch}-linux-gnu/faketime/libfaketimeMT.so.1`).find(existsSync);
const skip = LIB ? false : "libfaketime is not installed (Debian: apt install faketime)";

for (const offset of ["+1h", "+1d", "-3m"]) {
  test(`a clock at ${offset}: no session ends, nobody loses a message, the node does not lead`, { timeout: 60_000, skip },
    withCluster({}, async ({ cluster }) => {
      const [odd, other] = [await cluster.leader(), await cluster.follower()];
      const room = unique("room");
      const watcher = await Client.ready(other.url, { user: unique("watcher") });
      const away = await Client.ready(other.url, { user: unique("away"), reconnection: false });
      for (const client of [watcher, away]) await client.ok("join", room);
      await watcher.ok("message", { room, text: 0 });
      await away.next("message");
      away.dropTransport();
      // The monotonic clock stays true: it is the wall clock that operators and hypervisors move.
      odd.env = { LD_PRELOAD: LIB, FAKETIME: offset, FAKETIME_DONT_FAKE_MONOTONIC: "1" };
      await odd.term();
      odd.start();
      await eventually("live", async () => (await http(odd.client, "/livez")).status === 200);
      for (let n = 1; n <= 10; n++) {
        await watcher.ok("message", { room, text: n });
        await sleep(200);
      }
      assert.notEqual(await cluster.leader(other), odd);
      const { status, text } = await http(odd.client, "/readyz");
      assert.deepEqual([status, text.trim()], [503, "clock"]);
      away.socket.connect();
      assert.equal((await away.waitReady(2)).recovered, true);
      await away.next("message", ({ text }) => text === 10);
      assert.deepEqual(away.messages(room).map(({ text }) => text), [...Array(11).keys()]);
      const { messages } = await watcher.ok("history", { room, limit: 100 });
      assert.equal(messages.filter(({ text }) => text !== undefined).length, 11);
    }));
}

for (const jump of ["+1d", "-1h"]) {
  test(`the leader's clock jumps by ${jump} while it leads: it stops leading, and nothing is trimmed or said twice`, { timeout: 60_000, skip },
    withCluster({ start: false, settings: { "history.ttl": "10m" } }, async ({ cluster }) => {
      for (const node of cluster.nodes) {
        node.clock = join(cluster.folder, `${node.name}.clock`);
        writeFileSync(node.clock, "+0");
        node.env = { LD_PRELOAD: LIB, FAKETIME_TIMESTAMP_FILE: node.clock, FAKETIME_NO_CACHE: "1", FAKETIME_DONT_FAKE_MONOTONIC: "1" };
        node.start();
      }
      await cluster.allReady();
      const odd = await cluster.leader();
      const client = await Client.ready(odd.url, { user: unique("user") });
      const room = unique("room");
      await client.ok("join", room);
      const mid = unique("mid");
      const first = await client.ok("message", { room, text: "first", mid });
      writeFileSync(odd.clock, jump);
      // Most of these are stamped by the leader whose clock is wrong already.
      const sent = [];
      for (let n = 1; n <= 60; n++) {
        sent.push(n);
        await client.ok("message", { room, text: n });
        await sleep(50);
      }
      await eventually("another leader", async () => {
        const leader = await cluster.leaderNow(cluster.others(odd)[0]);
        return leader && leader !== odd;
      });
      assert.match((await http(odd.admin, "/readyz?verbose")).text, /^clock: .*median/);
      assert.equal((await client.ok("message", { room, text: "first", mid })).id, first.id);
      const { messages } = await client.ok("history", { room, limit: 100 });
      const texts = messages.filter(({ text }) => text !== undefined);
      assert.deepEqual(texts.map(({ text }) => text), ["first", ...sent]);
      for (const { at } of texts) assert.ok(Math.abs(at - Date.now()) < 60_000, `stamped ${at}`);
      writeFileSync(odd.clock, "+0");
      await cluster.ready(odd);
    }));
}
