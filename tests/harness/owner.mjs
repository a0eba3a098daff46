// Which process is at the other end of a loopback connection?
//
// A node announces one peer address to everybody, so a proxy before it cannot tell its peers apart by
// where they connect. The kernel knows: a socket's inode is in /proc/net/tcp, and in its owner's
// descriptor table.
import { readFileSync, readdirSync, readlinkSync } from "node:fs";

function inodeOf(localPort) {
  const port = localPort.toString(16).toUpperCase().padStart(4, "0");
  for (const line of readFileSync("/proc/net/tcp", "utf8").split("\n").slice(1)) {
    const field = line.trim().split(/\s+/);
    if (field[1] === `0100007F:${port}` && field[3] === "01") return field[9];
  }
  return null;
}

function holds(pid, inode) {
  try {
    return readdirSync(`/proc/${pid}/fd`).some((fd) => {
      try {
        return readlinkSync(`/proc/${pid}/fd/${fd}`) === `socket:[${inode}]`;
      } catch {
        return false; // closed while we looked
      }
    });
  } catch {
    return false; // the process has gone
  }
}

/// The one of `pids` that holds the other end of `socket`, or undefined.
export function ownerOf(socket, pids) {
  const inode = inodeOf(socket.remotePort);
  return inode === null ? undefined : pids.find((pid) => holds(pid, inode));
}
