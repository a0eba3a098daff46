// Nodes come and go for good, as real processes: a lost disk is replaced by itself, a removed node ends and stays out.
import test from "node:test";
import assert from "node:assert/strict";
import { rmSync } from "node:fs";
import { withCluster } from "./harness/cluster.mjs";
import { http } from "./harness/http.mjs";
import { Load } from "./harness/load.mjs";
import { eventually } from "./harness/wait.mjs";

const rows = async (cluster, via) => (await cluster.admin(via, "/v1/nodes")).nodes;
const rowOf = async (cluster, via, name) => (await rows(cluster, via)).filter((row) => row.name === name);

test("a node whose disk is lost takes its old place under a new id, and clients of the others see nothing of it",
  { timeout: 90_000 },
  withCluster({ settings: { "node.replace-after": "4s" } }, async ({ cluster, cleanup, t }) => {
    const lost = await cluster.follower();
    const others = cluster.others(lost);
    const [via] = others;
    const [before] = await rowOf(cluster, via, lost.name);
    const load = await Load.start({ urls: others.map((node) => node.url) });
    cleanup(() => load.close());
    await lost.kill9();
    rmSync(lost.data, { recursive: true });
    lost.start();
    await cluster.ready(lost); // a learner serves clients too
    const why = await eventually("it says why it has no vote", async () =>
      (await http(lost.admin, "/readyz?verbose")).text.match(/^learner: (.*)$/m)?.[1], { within: 10_000 });
    assert.match(why, new RegExp(`the name ${lost.name} is that of a voter that is down \\(id ${before.id}\\)`));
    const [after] = await eventually("it votes, and the old id is gone", async () => {
      const named = await rowOf(cluster, via, lost.name);
      return named.length === 1 && named[0].role === "voter" ? named : undefined;
    }, { within: 30_000 });
    assert.notEqual(after.id, before.id);
    const wrong = await load.finish({ demand: { acked: 50 } });
    t.diagnostic(load.ledger.report());
    assert.deepEqual(wrong, []);
    await cluster.stateHashes();
  }));

test("a removed node ends with its line and exit code 3, and its old folder stays out", { timeout: 60_000 },
  withCluster({}, async ({ cluster }) => {
    const leader = await cluster.leader();
    const [via, other] = cluster.others(leader);
    // The leader itself: another one has to do it.
    const answer = await http(via.admin, `/v1/nodes/${leader.name}`, { method: "DELETE", timeout: 15_000 });
    assert.equal(answer.status, 200, answer.text);
    const says = /refused: this node was removed from its cluster, and its id is never used again/;
    assert.deepEqual(await leader.exit, { code: 3, signal: null });
    assert.match(leader.log(), says);
    const term = async () => (await cluster.admin(via, "/v1/cluster")).term;
    const before = await term();
    leader.start();
    assert.deepEqual(await leader.exit, { code: 3, signal: null });
    assert.equal(leader.log().match(new RegExp(says, "g")).length, 2);
    assert.equal(await term(), before, "nobody's election was disturbed");
    assert.deepEqual((await rows(cluster, other)).map((row) => [row.name, row.role]).sort(),
      [via, other].map((node) => [node.name, "voter"]).sort());
  }));
