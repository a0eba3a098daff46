// One socket of the crowd: what it asks for, what it writes down.
//
// Its log is `client.log` with more in it, all in the order in which it happened: "connect" with the id and whether it was
// recovered, "gone", "goodbye", "answer" to what was asked, "history" that was read after a fresh start.
import { Client } from "../harness/client.mjs";
import { sleep } from "../harness/wait.mjs";

const ANSWER = 5000;
const PAGE = 100;

export class Member {
  constructor(name, person, door, options) {
    Object.assign(this, { name, person, door, csr: options.auth?.csr !== false });
    this.asked = 0;
    this.open = 0; // questions without an answer
    this.missing = new Map(); // room -> id after which its history has to be read
    this.last = ""; // id of the last entry that came
    this.thefts = [];
    const { ns, user } = person;
    this.client = new Client(door.url, { user, ns, ...options });
    this.log = this.client.log;
    const { socket } = this.client;
    socket.on("connect", () => this.connected(socket));
    socket.on("disconnect", (reason) => {
      this.note("gone", { reason });
      // What still came for the session that it said goodbye to, after it asked for another one: the stock client keeps that
      // for its next session, also over a lost link, and would hear twice what that one is replayed.
      socket.receiveBuffer = [];
    });
    for (const event of ["message", "joined", "left"]) socket.on(event, ({ id }) => (this.last = id));
    socket.on("ready", ({ rooms }) => this.ready(rooms));
  }

  get live() {
    return this.client.socket.connected && this.client.readies.length > 0 && !this.fresh && this.missing.size === 0;
  }

  note(event, about) {
    this.log.push({ event, args: [about], at: performance.now() });
  }

  connected({ id, recovered }) {
    this.note("connect", { sid: id, recovered: recovered === true });
    this.sid = id;
    this.fresh ||= !recovered;
  }

  /// A fresh session begins where history ends: what was said between the two sessions is read there.
  ready(rooms) {
    const again = this.client.readies.length > 1;
    if (this.fresh && again) {
      for (const room of rooms) if (!this.missing.has(room)) this.missing.set(room, this.last);
      this.catchingUp ??= this.catchUp().finally(() => (this.catchingUp = undefined));
    }
    this.fresh = false;
  }

  async catchUp() {
    while (this.missing.size && !this.over) {
      const [room, after] = this.missing.entries().next().value;
      const answer = await this.ask("history", { room, after, limit: PAGE });
      if (!answer || answer.error?.retry) await sleep(50);
      else if (!answer.ok) {
        this.missing.delete(room);
        this.note("history", { room, messages: [], refused: answer.error.code });
      } else {
        this.note("history", { room, messages: answer.messages });
        if (answer.more) this.missing.set(room, answer.messages.at(-1).id);
        else this.missing.delete(room);
      }
    }
  }

  /// The answer, or null when it is not known what became of it.
  ask(event, payload, about = {}) {
    const asked = { seq: ++this.asked, event, payload, at: performance.now(), ...about };
    this.open += 1;
    return new Promise((resolve) => {
      this.client.socket.timeout(ANSWER).emit(event, payload, (error, answer) => {
        this.open -= 1;
        if (error) return resolve(null);
        this.note("answer", { ...asked, answer });
        resolve(answer);
      });
    });
  }

  /// Until the answer is a yes or a final no.
  async insist(event, payload, about = {}) {
    for (let tries = 1; ; tries++) {
      const answer = await this.ask(event, payload, { ...about, tries });
      if (answer && (answer.ok || !answer.error.retry)) return { answer, tries };
      if (answer) await sleep(50);
      // The run has ended, with that question open: nobody waits for the answer.
      if (this.over) await new Promise(() => {});
    }
  }

  /// As a closed tab, which is opened again. Not while it waits for the answer to its CONNECT: the stock client says nothing
  /// then, and where another namespace keeps the connection open, the server goes on talking to it.
  async goodbye(ms) {
    if (!this.client.socket.connected) return;
    this.note("goodbye", {});
    this.client.socket.disconnect();
    await sleep(ms);
    this.client.socket.connect();
  }
}
