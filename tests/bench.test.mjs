// What `moim bench` says: each row small, and only what does not depend on how quick a machine is.
import test from "node:test";
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { BIN, withCluster } from "./harness/cluster.mjs";

const run = promisify(execFile);

test("each row of moim bench measures what it says", { timeout: 60_000 }, withCluster({}, async ({ cluster, step }) => {
  const urls = cluster.nodes.map((node) => node.url).join();
  const bench = async (...args) => {
    const { stdout } = await run(BIN, ["bench", ...args, "--url", urls, "--json"], { timeout: 30_000 });
    return JSON.parse(stdout);
  };
  await step("connect", async () => {
    const figures = await bench("connect", "--sockets", "20");
    assert.equal(figures.sockets, 20);
    assert.ok(figures.ready_p50_ms > 0 && figures.p50_ms >= figures.ready_p50_ms);
  });
  await step("rooms", async () => assert.ok((await bench("rooms", "--seconds", "1")).requests_per_second > 0));
  await step("fanout", async () => {
    const { acked, missing, deliveries_per_second } = await bench("fanout", "--rate", "20", "--seconds", "1");
    assert.deepEqual({ acked, missing }, { acked: 1, missing: 0 });
    assert.ok(deliveries_per_second > 0);
  });
  // More than one task reads in one go; some of them have heard nothing yet.
  await step("storm", async () => assert.equal((await bench("storm", "--sockets", "200", "--rounds", "2")).recovered, 1));
  await step("a bound that is missed is an exit code", async () => {
    const missed = bench("storm", "--sockets", "20", "--rounds", "1", "--min", "recovered=2");
    const error = await missed.then(() => assert.fail("it was met"), (error) => error);
    assert.equal(error.code, 1);
    assert.match(error.stderr, /recovered/);
  });
}));
