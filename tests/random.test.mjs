// Sixty stock clients through a minute of everything: kills, restarts, cuts, drains, double connects, joins and leaves.
//
// Here it is a short one, with another seed each time. A run is a chain of rounds, each with a seed and a cluster of its own;
// `MOIM_SEED=<n>` runs a round's plan again (what the machine makes of it is another matter), `MOIM_SECONDS=7200` goes on for
// two hours.
import test from "node:test";
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { withCluster } from "./harness/cluster.mjs";
import { rng } from "./harness/rng.mjs";
import { eventually, sleep } from "./harness/wait.mjs";
import { Crowd } from "./random/crowd.mjs";
import { Faults } from "./random/faults.mjs";
import { contests, verdict } from "./random/verdict.mjs";

const SECONDS = Number(process.env.MOIM_SECONDS ?? 15);
const SEED = Number(process.env.MOIM_SEED ?? Math.floor(Math.random() * 1e6));
const ROUND = 60;

const SETTINGS = {
  "node.timeout": "2s",
  "node.isolation": "4s",
  "ping.interval": "3s",
  "ping.timeout": "2s",
  "drain.deadline": "10s",
  // Nothing is trimmed: a fresh session for that reason would hide one without.
  "history.size": 1_000_000,
  "history.bytes": "1GiB",
};

/// Every room's list, oldest first, as the leader has it now.
async function lists(cluster, node) {
  const all = [];
  for (const { ns } of (await cluster.admin(node, "/v1/namespaces")).namespaces) {
    for (const { room } of await cluster.list(node, `/v1/rooms?ns=${encodeURIComponent(ns)}`, "rooms")) {
      const path = `/v1/rooms/${room}/messages?ns=${encodeURIComponent(ns)}&consistency=linearizable&limit=500`;
      const entries = [];
      for (let more = true; more; ) {
        const page = await cluster.admin(node, `${path}&after=${entries.at(-1)?.id ?? "0".repeat(11)}`);
        entries.push(...page.messages);
        more = page.more;
      }
      all.push({ ns, room, entries });
    }
  }
  return all;
}

/// No ghosts: what is attached is what the clients say, on the nodes that they say.
async function onlyTheLiving(cluster, crowd) {
  const living = crowd.members.map(({ client }) => `${client.socket.id} on ${client.last.node}`).sort();
  await eventually("only live sockets are attached", async () => {
    const spaces = [...new Set(crowd.members.map(({ person }) => person.ns))];
    const rows = await Promise.all(spaces.map((ns) => cluster.list(cluster.nodes[0], `/v1/sids?ns=${encodeURIComponent(ns)}&consistency=linearizable`, "sids")));
    const attached = rows.flat().filter((row) => row.attached).map(({ sid, node }) => `${sid} on ${node}`).sort();
    assert.deepEqual(attached, living);
    return true;
  }, { within: 15_000, every: 300 });
}

const round = (seed, seconds) => withCluster({ links: true, settings: SETTINGS }, async ({ cluster, t, cleanup }) => {
  t.diagnostic(`MOIM_SEED=${seed} MOIM_SECONDS=${seconds}`);
  const crowd = await Crowd.start(cluster, rng(seed, "crowd"));
  cleanup(() => crowd.close());
  const faults = new Faults(cluster, crowd, seed);
  const wrong = [];
  const must = (what, promise) => promise.catch((error) => wrong.push(`${what}: ${error.message}`));
  try {
    await sleep(seconds * 1000);
    await must("the end of all faults", faults.end());
    await must("the end of the talk", crowd.settle());
    await must("ghosts", onlyTheLiving(cluster, crowd));
    await must("hashes", cluster.stateHashes());
    const all = await lists(cluster, cluster.nodes[0]);
    // What does not come is for the verdict to name.
    const judge = () => verdict(crowd, all, contests(cluster.nodes));
    await eventually("everything delivered", () => !judge().length, { within: 5000, every: 500 }).catch(() => {});
    wrong.push(...faults.wrong, ...judge());
    t.diagnostic(JSON.stringify({ ...counts(crowd), faults: faults.counts }));
    if (wrong.length) record(cluster, seed, { wrong, story: faults.story, lists: all, members: crowd.members });
    assert.deepEqual(wrong.slice(0, 20), [], `seed ${seed}`);
    conclusive(crowd, faults, seconds);
  } finally {
    faults.over = true;
  }
});

function counts(crowd) {
  const readies = crowd.members.map(({ client }) => client.readies);
  const again = readies.flatMap((all) => all.slice(1));
  const acked = [...crowd.said.values()].filter(({ id }) => id).length;
  return {
    said: crowd.said.size,
    acked,
    received: crowd.members.reduce((sum, { client }) => sum + client.messagesAll().length, 0),
    recovered: again.filter(({ recovered }) => recovered).length,
    fresh: again.filter(({ recovered }) => !recovered).length,
    doubles: crowd.members.reduce((sum, { thefts }) => sum + thefts.filter(({ reply }) => reply).length, 0),
  };
}

/// A run in which little happened proves little.
function conclusive(crowd, faults, seconds) {
  const { acked, recovered, doubles } = counts(crowd);
  assert.ok(acked > seconds * 4 && recovered > seconds * 2 && doubles > seconds / 10, `not conclusive: ${acked} acknowledged, ${recovered} recovered`);
  for (const lane of ["node", "links", "client"]) {
    assert.ok(Object.keys(faults.counts).some((what) => what.startsWith(lane)), `not conclusive: nothing happened to a ${lane}`);
  }
}

function record(cluster, seed, { members, ...found }) {
  const logs = members.map(({ name, person, client, log, thefts }) => {
    const { user, ns, changes } = person;
    return { name, user, ns, changes, log, thefts, connects: client.connects };
  });
  const file = join(cluster.folder, `seed-${seed}.json`);
  writeFileSync(file, JSON.stringify({ seed, ...found, logs }));
  console.error(`what everybody heard, and what happened when: ${file}`);
}

for (let left = SECONDS, seed = SEED; left > 0; left -= ROUND, seed++) {
  const seconds = Math.min(left, ROUND);
  test(`everything at once, seed ${seed}, for ${seconds} s`, { timeout: (seconds + 180) * 1000 }, round(seed, seconds));
}
