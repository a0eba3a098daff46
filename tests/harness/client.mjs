// The stock client, and a record of all that it was told.
//
// `log` holds events and acks in the order in which they came: `{ event, args }`, where an ack is the event
// "ack" with `[request, payload, answer]`. `finals` holds every raw DISCONNECT (41) and CONNECT_ERROR (44):
// the only packets that stop a stock client from coming back, so the server owes a returning client none.
import { io } from "socket.io-client";
import { eventually } from "./wait.mjs";

const QUICK = { reconnectionDelay: 50, reconnectionDelayMax: 500, randomizationFactor: 0.5 };
const open = new Set();

export class Client {
  constructor(url, { user, ns = "/", auth, manager, ...options } = {}) {
    this.log = [];
    this.finals = [];
    this.raw = [];
    this.rawSent = [];
    this.connects = []; // when it asked for its namespace, answered or not
    this.outages = [];
    this.readies = [];
    this.user = user;
    this.ns = ns;
    const settings = { transports: ["websocket"], forceNew: true, ...QUICK, ...options };
    settings.auth = auth ?? (user === undefined ? {} : { user });
    this.socket = manager ? manager.socket(ns, { auth: settings.auth }) : io(url + ns, settings);
    this.manager = this.socket.io;
    // Each connection has an engine of its own, made just after these; CONNECT is written before "open".
    this.hook();
    this.manager.on("reconnect_attempt", () => queueMicrotask(() => this.hook()));
    this.manager.on("open", () => this.hook());
    this.socket.onAny((event, ...args) => this.on(event, args));
    this.socket.on("disconnect", (reason) => this.lost(reason));
    this.socket.on("connect_error", (error) => this.log.push({ event: "connect_error", args: [error.message] }));
    open.add(this);
  }

  /// Connected and `ready`.
  static async ready(url, options) {
    const client = new Client(url, options);
    await client.waitReady();
    return client;
  }

  hook() {
    const { engine } = this.manager;
    if (!engine || this.hooked === engine) return;
    this.hooked = engine;
    const mine = (rest) => (this.ns === "/" ? !rest.startsWith("/") : rest.startsWith(`${this.ns},`));
    engine.on("packet", ({ type, data }) => {
      if (type !== "message" || typeof data !== "string") return;
      this.raw.push(data);
      if (/^[14]/.test(data) && mine(data.slice(1))) this.finals.push(data);
    });
    engine.on("packetCreate", ({ type, data }) => {
      if (type !== "message") return;
      this.rawSent.push(data);
      if (/^0/.test(data) && mine(data.slice(1))) this.connects.push(performance.now());
    });
  }

  on(event, args) {
    this.log.push({ event, args, at: performance.now() });
    if (event !== "ready") return;
    this.readies.push({ ...args[0], socketId: this.socket.id, socketRecovered: this.socket.recovered });
    const outage = this.outages.at(-1);
    if (outage && outage.gap === undefined) outage.gap = performance.now() - outage.at;
  }

  lost(reason) {
    // An outage lasts until the next `ready`: a second loss before that one is part of it.
    const open = this.outages.at(-1);
    if (!open || open.gap !== undefined) this.outages.push({ reason, at: performance.now() });
  }

  get last() {
    return this.readies.at(-1);
  }

  async waitReady(count = 1, options) {
    await eventually(`${this.user ?? "guest"}: ready number ${count}`, () => this.readies.length >= count, { every: 2, ...options });
    return this.last;
  }

  /// The answer to a request, in the log too; an unknown outcome (no answer, link lost) is an exception.
  async request(event, payload, { timeout = 5000 } = {}) {
    const args = payload === undefined ? [] : [payload];
    const answer = await new Promise((resolve, reject) => {
      this.socket.timeout(timeout).emit(event, ...args, (error, answer) => {
        if (error) return reject(error);
        this.log.push({ event: "ack", args: [event, payload, answer] });
        resolve(answer);
      });
    });
    return answer;
  }

  async ok(event, payload, options) {
    const answer = await this.request(event, payload, options);
    if (answer?.ok !== true) throw new Error(`${event} ${JSON.stringify(payload)}: ${JSON.stringify(answer)}`);
    return answer;
  }

  events(name, where = () => true) {
    return this.log.filter(({ event, args }) => event === name && where(...args)).map(({ args }) => args);
  }

  messages(room) {
    return this.messagesAll().filter((message) => message.room === room);
  }

  messagesAll() {
    return this.events("message").map(([message]) => message);
  }

  /// Waits for an event that is or will be in the log.
  next(name, where = () => true, options) {
    const what = `${this.user ?? "guest"}: ${name}`;
    return eventually(what, () => this.events(name, where)[0], { every: 2, ...options });
  }

  /// Loses the transport as a lost network does: no goodbye, and the client comes back by itself.
  dropTransport() {
    this.manager.engine.close();
  }

  close() {
    open.delete(this);
    this.socket.disconnect();
  }
}

/// Ends every client that is still open. For the end of a test.
export function closeAll() {
  for (const client of [...open]) client.close();
}

let counter = 0;
/// A name that no other test uses.
export const unique = (word) => `${word}-${process.pid}-${++counter}`;
