// A TCP proxy whose links can be held, cut, dropped and delayed.
//
// A proxy stands before one listener. Each connection belongs to a link, named by `classify` (who is it
// that connects?), and a link's state holds for the connections that it has and for those to come:
//   pass   as without a proxy
//   hold   nothing moves, nothing is lost; goes on after heal()
//   cut    connections are reset, new ones too
//   drop   connections stay open and every byte is swallowed; reset at heal(), for a stream with a hole
//          in it must not go on
//   delay  pass, each byte so many ms later, in order
import { createServer, connect } from "node:net";

class Pipe {
  constructor(link, from, to) {
    Object.assign(this, { link, from, to, queue: [], due: 0, timer: null });
    from.on("data", (chunk) => this.push(chunk));
    from.on("end", () => this.push(null));
    to.on("drain", () => this.link.mode !== "hold" && from.resume());
  }

  push(chunk) {
    if (this.link.mode === "drop") return;
    this.due = Math.max(this.due, performance.now() + this.link.delayMs);
    this.queue.push({ due: this.due, chunk });
    this.flush();
  }

  flush() {
    clearTimeout(this.timer);
    while (this.link.mode === "pass" && this.queue.length && this.queue[0].due <= performance.now()) {
      const { chunk } = this.queue.shift();
      if (chunk === null) this.to.end();
      else if (!this.to.write(chunk)) this.from.pause();
    }
    if (this.link.mode !== "pass" || !this.queue.length) return;
    this.timer = setTimeout(() => this.flush(), Math.ceil(this.queue[0].due - performance.now()));
  }
}

export class Link {
  constructor(name) {
    this.name = name;
    this.mode = "pass";
    this.delayMs = 0;
    this.accepted = 0;
    this.pairs = new Set();
  }

  add(socket, port, host) {
    this.accepted += 1;
    if (this.mode === "cut") return socket.resetAndDestroy();
    const upstream = connect({ port, host, noDelay: true });
    socket.setNoDelay(true);
    const pair = { sockets: [socket, upstream], pipes: [] };
    // An orderly end is passed on by the pipe, after what is still queued; an error ends both sides. A
    // dropped link keeps even that to itself, as a pulled cable would.
    const gone = () => this.mode !== "drop" && this.end(pair);
    for (const each of pair.sockets) each.on("error", gone);
    socket.on("close", gone);
    upstream.on("close", () => pair.pipes[1].queue.length || gone());
    pair.pipes = [new Pipe(this, socket, upstream), new Pipe(this, upstream, socket)];
    this.pairs.add(pair);
    if (this.mode === "hold") this.freeze();
  }

  end(pair) {
    if (!this.pairs.delete(pair)) return;
    for (const pipe of pair.pipes) clearTimeout(pipe.timer);
    // Not `resetAndDestroy`: of a socket that is being reset twice, or before it has connected, Node 20 keeps the
    // handle, and with it this process.
    for (const each of pair.sockets) each.destroy();
  }

  freeze() {
    for (const { sockets } of this.pairs) for (const each of sockets) each.pause();
  }

  reset() {
    for (const pair of [...this.pairs]) this.end(pair);
  }

  hold() {
    this.mode = "hold";
    this.freeze();
  }

  cut() {
    this.mode = "cut";
    this.reset();
  }

  drop() {
    this.mode = "drop";
  }

  delay(ms) {
    this.heal();
    this.delayMs = ms;
  }

  heal() {
    if (this.mode === "drop") this.reset();
    this.mode = "pass";
    this.delayMs = 0;
    for (const { sockets, pipes } of this.pairs) {
      for (const pipe of pipes) pipe.flush();
      for (const each of sockets) each.resume();
    }
  }
}

export class Proxy {
  /// Listens on `port` (0: any) and passes on to `target`. `classify(socket)` names the link.
  static async start({ target, port = 0, classify = () => "all" }) {
    const proxy = new Proxy();
    proxy.target = target;
    proxy.links = new Map();
    proxy.server = createServer({ allowHalfOpen: true }, (socket) => {
      socket.on("error", () => {});
      proxy.link(classify(socket)).add(socket, proxy.target, "127.0.0.1");
    });
    await new Promise((resolve, reject) => {
      proxy.server.once("error", reject);
      proxy.server.listen(port, "127.0.0.1", resolve);
    });
    proxy.port = proxy.server.address().port;
    proxy.url = `http://127.0.0.1:${proxy.port}`;
    return proxy;
  }

  link(name = "all") {
    if (!this.links.has(name)) this.links.set(name, new Link(name));
    return this.links.get(name);
  }

  /// Connections from now on go to another listener; those that exist are reset.
  moveTo(target) {
    this.target = target;
    for (const link of this.links.values()) link.reset();
  }

  async close() {
    for (const link of this.links.values()) link.reset();
    await new Promise((resolve) => this.server.close(resolve));
  }
}
