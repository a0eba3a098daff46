// A node whose wall clock is wrong does not lead and ends nobody's session. Needs Debian's libfaketime.
import test from "node:test";
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
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
      assert.equal((await http(odd.client, "/readyz")).status, 503);
      away.socket.connect();
      assert.equal((await away.waitReady(2)).recovered, true);
      await away.next("message", ({ text }) => text === 10);
      assert.deepEqual(away.messages(room).map(({ text }) => text), [...Array(11).keys()]);
      const { messages } = await watcher.ok("history", { room, limit: 100 });
      assert.equal(messages.filter(({ text }) => text !== undefined).length, 11);
    }));
}
