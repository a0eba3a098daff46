#!/usr/bin/env node
// Looks like `moim serve` to the harness: ports, settings, health, a clean exit. It keeps no promise.
import { createServer } from "node:http";

const flag = (name) => process.argv[process.argv.indexOf(name) + 1];
const port = (name) => Number(flag(name).split(":")[1]);
const { MOIM_SESSION_TTL, MOIM_DRAIN_DELAY } = process.env;
console.log(`MOIM_SESSION_TTL=${MOIM_SESSION_TTL} MOIM_DRAIN_DELAY=${MOIM_DRAIN_DELAY}`);
const answers = {
  "/readyz": "ready",
  "/v1/cluster": { applied: 7, leader: 1, nodes: [1, 2, 3].map((id) => ({ id, name: `node${id}`, leader: id === 1 })) },
  "/v1/state/hash": { applied: 7, index: 7, hash: "same" },
};
for (const name of ["--client", "--admin"]) {
  createServer((req, res) => res.end(JSON.stringify(answers[req.url.split("?")[0]]))).listen(port(name), "127.0.0.1");
}
process.once("SIGTERM", () => process.exit(0));
