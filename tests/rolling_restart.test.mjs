// Every node restarted once, one after another, under load: nobody can tell but by a short gap.
import test from "node:test";
import assert from "node:assert/strict";
import { withCluster } from "./harness/cluster.mjs";
import { Haproxy } from "./harness/haproxy.mjs";
import { Load } from "./harness/load.mjs";
import { sleep } from "./harness/wait.mjs";

for (const mode of ["http", "tcp"]) {
  test(
    `a rolling restart loses, doubles and reorders nothing (balancer in ${mode} mode)`,
    { timeout: 120_000 },
    withCluster({}, async ({ cluster, t, cleanup }) => {
      const haproxy = await Haproxy.start(cluster, { mode });
      cleanup(() => haproxy.close());
      const load = await Load.start({ urls: [haproxy.url] });
      cleanup(() => load.close());
      await sleep(1000); // traffic before, between and after: this is the run itself
      for (const node of cluster.nodes) {
        assert.deepEqual(await node.term(), { code: 0, signal: null }, `${node.name} exits cleanly`);
        node.start();
        await cluster.ready(node);
        await haproxy.sees(node);
      }
      await sleep(1000);
      const wrong = await load.finish({ demand: { acked: 100, reconnects: 100 } });
      t.diagnostic(load.ledger.report());
      assert.deepEqual(wrong, []);
      const { p99 } = load.ledger.gaps();
      assert.ok(p99 < 250, `p99 of the gap is ${p99} ms`);
      await cluster.stateHashes();
    }),
  );
}
