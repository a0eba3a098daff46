// A node that is killed costs its clients a short gap and nothing else.
import test from "node:test";
import assert from "node:assert/strict";
import { withCluster } from "./harness/cluster.mjs";
import { Haproxy } from "./harness/haproxy.mjs";
import { Load } from "./harness/load.mjs";
import { sleep } from "./harness/wait.mjs";

// The leader's death stops writes until there is another: an election is part of that gap.
for (const [role, limit] of [["follower", 400], ["leader", 2000]]) {
  test(
    `kill -9 of a ${role} loses nothing`,
    { timeout: 90_000 },
    withCluster({}, async ({ cluster, t, cleanup }) => {
      const haproxy = await Haproxy.start(cluster);
      cleanup(() => haproxy.close());
      const load = await Load.start({ urls: [haproxy.url] });
      cleanup(() => load.close());
      await sleep(1000);
      const victim = await cluster[role]();
      await victim.kill9();
      await sleep(3000);
      victim.start();
      await cluster.ready(victim);
      await sleep(500);
      const wrong = await load.finish({ demand: { acked: 100, reconnects: 25 } });
      t.diagnostic(load.ledger.report());
      assert.deepEqual(wrong, []);
      const { p99 } = load.ledger.gaps();
      assert.ok(p99 < limit, `p99 of the gap is ${p99} ms`);
      await cluster.stateHashes();
    }),
  );
}
