// A TCP proxy whose links can be held, cut, dropped and delayed.
//
// A proxy stands before one listener. Each connection belongs to a link, named by `classify` (who is it
// that connects?), and a link's state holds for the connections that it has and for those to come:
//   pass   as without a proxy
//   hold   nothing moves, nothing is lost; goes on after heal(); at once, or after so many bytes
//   cut    connections are reset, new ones too
//   drop   connections stay open and every byte is swallowed, or every byte of one direction; reset at
//          heal(), for a stream with a hole in it must not go on
//   delay  pass, each byte so many ms later, in order
import { createServer, connect } from "node:net";

class Pipe {
  /// `way` is "up", to the target, or "down".
  constructor(link, way, from, to) {
    Object.assign(this, { link, way, from, to, queue: [], due: 0, timer: null });
    from.on("data", (chunk) => this.push(chunk));
    from.on("end", () => this.push(null));
    to.on("drain", () => this.link.mode !== "hold" && from.resume());
  }

  push(chunk) {
    if (this.link.swallows(this.way)) return;
    this.due = Math.max(this.due, performance.now() + this.link.delayMs);
    this.queue.push({ due: this.due, chunk });
    this.flush();
  }

  flush() {
    clearTimeout(this.timer);
    while (this.link.passes(this.way) && this.queue.length && this.queue[0].due <= performance.now()) {
      const { chunk } = this.queue.shift();
      if (chunk === null) this.to.end();
      else {
        if (!this.to.write(chunk)) this.from.pause();
        this.link.moved(this.way, chunk.length);
      }
    }
    if (!this.link.passes(this.way) || !this.queue.length) return;
    this.timer = setTimeout(() => this.flush(), Math.ceil(this.queue[0].due - performance.now()));
  }
}

export class Link {
  constructor(name) {
    this.name = name;
    this.mode = "pass";
    this.dropped = null; // the one direction that "drop" is about; null: both
    this.delayMs = 0;
    this.left = Infinity; // bytes that go down before it holds
    this.accepted = 0;
    this.pairs = new Set();
  }

  swallows(way) {
    return this.mode === "drop" && (this.dropped ?? way) === way;
  }

  passes(way) {
    return this.mode === "pass" || (this.mode === "drop" && !this.swallows(way));
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
    pair.pipes = [new Pipe(this, "up", socket, upstream), new Pipe(this, "down", upstream, socket)];
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

  /// Holds once so many more bytes have gone down, or up to one chunk more.
  holdAfter(bytes) {
    this.left = bytes;
  }

  moved(way, bytes) {
    if (way === "up") return;
    this.left -= bytes;
    if (this.left <= 0) this.hold();
  }

  cut() {
    this.mode = "cut";
    this.reset();
  }

  /// `way`: "up" or "down"; both when it is left away.
  drop(way = null) {
    this.mode = "drop";
    this.dropped = way;
  }

  delay(ms) {
    this.heal();
    this.delayMs = ms;
  }

  heal() {
    if (this.mode === "drop") this.reset();
    this.mode = "pass";
    this.delayMs = 0;
    this.left = Infinity;
    for (const { sockets, pipes } of this.pairs) {
      for (const pipe of pipes) pipe.flush();
      for (const each of sockets) each.resume();
    }
  }
}

/// The first bytes that a connection brings, until they are `enough` or it ends. They stay in it.
export const firstBytes = (socket, enough) =>
  new Promise((resolve) => {
    let bytes = Buffer.alloc(0);
    const done = () => {
      socket.off("readable", look);
      if (bytes.length && !socket.readableEnded) socket.unshift(bytes);
      resolve(bytes);
    };
    const look = () => {
      bytes = Buffer.concat([bytes, socket.read() ?? Buffer.alloc(0)]);
      if (enough(bytes)) done();
    };
    socket.on("readable", look).once("end", done).once("close", done);
  });

export class Proxy {
  /// Listens on `port` (0: any) and passes on to `target`, a port or a function that names one for each connection.
  /// `classify(socket)` names the link, at once or as a promise.
  static async start({ target, port = 0, classify = () => "all" }) {
    const proxy = new Proxy();
    proxy.target = target;
    proxy.links = new Map();
    proxy.server = createServer({ allowHalfOpen: true }, async (socket) => {
      socket.on("error", () => {});
      const name = await classify(socket);
      const port = typeof proxy.target === "function" ? proxy.target() : proxy.target;
      proxy.link(name).add(socket, port, "127.0.0.1");
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
