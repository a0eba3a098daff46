// No process outlives the run that started it.
//
// Every child is named to a small watcher process. When this process ends, however it ends (a failed
// test, Ctrl-C, kill -9), the watcher's input closes and it ends the children that are still there, each
// by its id. An id is taken off the list when its process has exited, so a reused id is never hit.
import { spawn } from "node:child_process";
import { openSync, closeSync } from "node:fs";

const WATCHER = `
  const alive = new Set();
  let rest = "";
  process.stdin.on("data", (data) => {
    const lines = (rest + data).split("\\n");
    rest = lines.pop();
    for (const line of lines) line[0] === "+" ? alive.add(+line.slice(1)) : alive.delete(+line.slice(1));
  });
  process.stdin.on("end", () => {
    for (const pid of alive) try { process.kill(pid, "SIGKILL"); } catch {}
    process.exit();
  });`;

let watcher;

function tell(line) {
  if (!watcher) {
    watcher = spawn(process.execPath, ["-e", WATCHER], { stdio: ["pipe", "ignore", "ignore"], detached: true });
    watcher.unref();
    watcher.stdin.unref();
    watcher.stdin.on("error", () => {}); // the watcher was ended from outside; nothing depends on it
  }
  watcher.stdin.write(line + "\n");
}

/// A child process with its output in `logFile`, under guard. `exit` resolves to `{ code, signal }`, once.
export function spawnGuarded(command, args, { env = process.env, logFile, cwd } = {}) {
  const log = openSync(logFile, "a");
  const child = spawn(command, args, { stdio: ["ignore", log, log], env, cwd });
  closeSync(log);
  if (child.pid) tell(`+${child.pid}`);
  const exit = new Promise((resolve) => {
    child.once("exit", (code, signal) => {
      guarded.running = false;
      tell(`-${child.pid}`);
      resolve({ code, signal });
    });
    child.once("error", (error) => {
      guarded.running = false; // it could not be started
      resolve({ code: null, signal: null, error });
    });
  });
  const guarded = { pid: child.pid, exit, running: true, kill: (signal) => child.kill(signal) };
  return guarded;
}
