// Free ports that stay free.
//
// A node must come back on the port it had. A port from bind(0) lies in the range from which the kernel
// also takes the local ports of outgoing connections, so while a node is down one of a hundred
// reconnecting clients may sit on it. These ports lie below that range, and each was bound once.
import { readFileSync } from "node:fs";
import { createServer } from "node:net";

const FIRST = 12_000;
const taken = new Set();

function ephemeralStart() {
  try {
    return Number(readFileSync("/proc/sys/net/ipv4/ip_local_port_range", "utf8").split(/\s+/)[0]);
  } catch {
    return 32_768;
  }
}

const canBind = (port) =>
  new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(false));
    server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
  });

/// A port that is free, together with those at `offsets` from it.
export async function freePort(offsets = [0]) {
  const last = ephemeralStart() - Math.max(...offsets);
  for (let tries = 0; tries < 1000; tries++) {
    const port = FIRST + Math.floor(Math.random() * (last - FIRST));
    const wanted = offsets.map((offset) => port + offset);
    if (wanted.some((each) => taken.has(each))) continue;
    if (!(await Promise.all(wanted.map(canBind))).every(Boolean)) continue;
    for (const each of wanted) taken.add(each);
    return port;
  }
  throw new Error("no free port found in 1000 tries");
}
