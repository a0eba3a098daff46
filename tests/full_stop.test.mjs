// All nodes gone at once and back within the sessions' time: the same clients, rooms, members and messages.
import test from "node:test";
import assert from "node:assert/strict";
import { withCluster } from "./harness/cluster.mjs";
import { Haproxy } from "./harness/haproxy.mjs";
import { Load } from "./harness/load.mjs";
import { sleep } from "./harness/wait.mjs";

const DEADLINE = 10_000;

const sortedState = ({ sids, rooms, members }) => {
  const sorted = (map) => Object.fromEntries(Object.keys(map).sort().map((key) => [key, [...map[key]].sort()]));
  return { sids: sorted(sids), rooms: sorted(rooms), members: sorted(members) };
};

async function stopAll(cluster, how) {
  const start = performance.now();
  const exits = await Promise.all(cluster.nodes.map((node) => node[how]()));
  return { exits, took: performance.now() - start };
}

for (const how of ["term", "kill9"]) {
  test(
    `everything survives a stop of all nodes (${how})`,
    { timeout: 120_000 },
    withCluster({ settings: { "drain.deadline": `${DEADLINE}ms` } }, async ({ cluster, t, cleanup }) => {
      const haproxy = await Haproxy.start(cluster);
      cleanup(() => haproxy.close());
      const load = await Load.start({ urls: [haproxy.url] });
      cleanup(() => load.close());
      await sleep(1000);
      const before = sortedState(await cluster.admin(cluster.nodes[0], "/v1/state?consistency=linearizable"));

      const { exits, took } = await stopAll(cluster, how);
      if (how === "term") {
        for (const exit of exits) assert.deepEqual(exit, { code: 0, signal: null }, "a signal is never refused");
        assert.ok(took < DEADLINE, `all exited within the deadline (${Math.round(took)} ms)`);
      }
      await sleep(500); // clients meet a cluster that is not there
      for (const node of cluster.nodes) node.start();
      await cluster.allReady();
      await sleep(1500);

      const wrong = await load.finish({ demand: { acked: 100, reconnects: 100 } });
      t.diagnostic(load.ledger.report());
      assert.deepEqual(wrong, []);
      const after = sortedState(await cluster.admin(cluster.nodes[1], "/v1/state?consistency=linearizable"));
      assert.deepEqual(after, before);
      await cluster.stateHashes();
    }),
  );
}
