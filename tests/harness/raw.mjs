// A WebSocket client of our own, for what a well-behaved one never does: stop reading, say half a thing.
import { randomBytes } from "node:crypto";
import { connect } from "node:net";
import { eventually, sleep } from "./wait.mjs";

const TEXT = 1;
const CLOSE = 8;

function sized(length) {
  if (length < 126) return Buffer.from([0x80 | length]);
  const size = Buffer.alloc(length < 65_536 ? 3 : 9);
  size[0] = 0x80 | (length < 65_536 ? 126 : 127);
  size.writeUIntBE(length, size.length - (length < 65_536 ? 2 : 4), length < 65_536 ? 2 : 4);
  return size;
}

function frame(text) {
  const payload = Buffer.from(text);
  const mask = randomBytes(4);
  return Buffer.concat([Buffer.from([0x80 | TEXT]), sized(payload.length), mask, payload.map((byte, i) => byte ^ mask[i % 4])]);
}

/// One whole frame from the start of `buffer` as `{ opcode, payload, size }`, or null: more is to come.
function parse(buffer) {
  if (buffer.length < 2) return null;
  let length = buffer[1] & 0x7f;
  let start = 2;
  if (length === 126) {
    if (buffer.length < 4) return null;
    length = buffer.readUInt16BE(2);
    start = 4;
  } else if (length === 127) {
    if (buffer.length < 10) return null;
    length = Number(buffer.readBigUInt64BE(2));
    start = 10;
  }
  const size = start + length;
  return buffer.length < size ? null : { opcode: buffer[0] & 0x0f, payload: buffer.subarray(start, size), size };
}

export class Raw {
  /// An Engine.IO session over WebSocket; no CONNECT is sent yet.
  static async open(port, options) {
    const raw = Raw.dial(port, "");
    const open = () => raw.packets.some((packet) => packet.startsWith("0{"));
    try {
      await eventually("OPEN", () => open() || raw.closed, { every: 5, ...options });
      if (!open()) throw new Error("refused");
    } catch (error) {
      raw.destroy();
      throw error;
    }
    return raw;
  }

  /// A session that began with long-polling goes on over a WebSocket.
  static async upgrade(port, sid) {
    const raw = Raw.dial(port, `&sid=${sid}`);
    raw.send("2probe");
    await raw.next((packet) => packet === "3probe");
    raw.send("5");
    return raw;
  }

  static dial(port, query) {
    const raw = new Raw();
    Object.assign(raw, { packets: [], closed: false, rest: Buffer.alloc(0), upgraded: false });
    raw.socket = connect({ port, host: "127.0.0.1", noDelay: true });
    raw.socket.on("error", () => {});
    raw.socket.on("close", () => (raw.closed = true));
    raw.socket.on("data", (data) => raw.read(data));
    raw.socket.write(
      `GET /socket.io/?EIO=4&transport=websocket${query} HTTP/1.1\r\n` + "Host: 127.0.0.1\r\nUpgrade: websocket\r\n" +
        `Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${randomBytes(16).toString("base64")}\r\n\r\n`,
    );
    return raw;
  }

  read(data) {
    this.rest = Buffer.concat([this.rest, data]);
    if (!this.upgraded) {
      const end = this.rest.indexOf("\r\n\r\n");
      if (end < 0) return;
      if (!this.rest.subarray(0, end).toString().startsWith("HTTP/1.1 101")) return this.socket.destroy();
      this.upgraded = true;
      this.rest = this.rest.subarray(end + 4);
    }
    for (let found; (found = parse(this.rest)); this.rest = this.rest.subarray(found.size)) {
      if (found.opcode === CLOSE) this.socket.end();
      if (found.opcode !== TEXT) continue;
      const packet = found.payload.toString();
      if (packet === "2") this.send("3"); // Engine.IO's ping
      else this.packets.push(packet);
    }
  }

  send(packet) {
    if (!this.socket.destroyed) this.socket.write(frame(packet));
  }

  /// CONNECT to the main namespace; `{ sid, pid }` from the answer.
  async connect(auth) {
    this.send(`40${JSON.stringify(auth)}`);
    return JSON.parse((await this.next((packet) => packet.startsWith("40{"))).slice(2));
  }

  next(where, options) {
    return eventually("a packet", () => this.packets.find(where), { every: 5, ...options });
  }

  /// The arguments of each event of this name so far.
  events(name) {
    const all = this.packets.filter((packet) => packet.startsWith("42")).map((packet) => JSON.parse(packet.slice(2)));
    return all.filter(([event]) => event === name).map(([, ...args]) => args);
  }

  stall() {
    this.socket.pause();
  }

  go() {
    this.socket.resume();
  }

  destroy() {
    this.socket.destroy();
  }
}

/// A cheap client that comes back, as the stock one does: with what it was given and the last offset. For crowds.
export class Returning {
  /// In `room`, and connected.
  static async start(port, user, room) {
    const client = new Returning();
    Object.assign(client, { port, user, came: 0, recovered: 0, wanted: true, wrong: [] });
    await client.connect();
    client.raw.send(`421["join",${JSON.stringify(room)}]`);
    await client.raw.next((packet) => packet.startsWith("431[{\"ok\":true"));
    client.running = client.stay();
    return client;
  }

  async connect() {
    const raw = await Raw.open(this.port);
    try {
      const { sid, pid } = await raw.connect({ user: this.user, pid: this.pid, offset: this.offset });
      this.recovered += pid === this.pid ? 1 : 0;
      this.came += 1;
      Object.assign(this, { raw, sid, pid });
    } catch (error) {
      raw.destroy();
      throw error;
    }
  }

  async stay() {
    while (this.wanted) {
      await eventually(`${this.user}: a lost link`, () => this.raw.closed || !this.wanted, { within: 600_000 });
      const { packets } = this.raw;
      this.wrong.push(...packets.filter((packet) => /^4[14]/.test(packet)));
      const played = packets.findLast((packet) => packet.startsWith("42") && packet.endsWith('"]'));
      if (played) this.offset = JSON.parse(played.slice(2)).at(-1);
      while (this.wanted && this.raw.closed) {
        await sleep(50 + Math.random() * 100);
        await this.connect().catch(() => {}); // 503, or a node that has just gone: again
      }
    }
  }

  get here() {
    return !this.raw.closed;
  }

  async close() {
    this.wanted = false;
    await this.running;
    this.raw.destroy();
  }
}
