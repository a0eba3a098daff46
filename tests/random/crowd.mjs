// The crowd: users with one or two tabs, on every transport, some in two namespaces, and what they say and do.
//
// A *person* is a user in a namespace; its members are its sockets. What a person does with rooms is done by one of its
// sockets at a time and until the outcome is known, so that between two of these it is known where the person is.
import { Proxy } from "../harness/proxy.mjs";
import { eventually, sleep } from "../harness/wait.mjs";
import { Member } from "./member.mjs";

const TRANSPORTS = [["websocket"], ["polling"], ["polling", "websocket"]];
const ROOMS = { "/": ["r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7"], "/group-chat": ["g0", "g1", "g2"] };
/// Rooms that each person is in to begin with.
const FIRST_ROOMS = 3;
/// Between two things that somebody does.
const EVERY = 40;
const OPEN_MAX = 100;

/// How often what is done.
const DEEDS = { say: 70, once: 8, blurt: 4, join: 7, leave: 6, burst: 1.5, typing: 2, big: 1.5 };

export class Crowd {
  /// Everybody is ready and in some rooms when this returns, and the talk has begun.
  static async start(cluster, chance, { clients = 60 } = {}) {
    const crowd = new Crowd();
    Object.assign(crowd, { cluster, chance, doors: [], people: new Map(), members: [], said: new Map(), wrong: [] });
    crowd.work = new Set();
    try {
      for (let i = 0; i < clients; i++) await crowd.arrive(i);
      await crowd.begin();
    } catch (error) {
      await crowd.close();
      throw error;
    }
    return crowd;
  }

  async begin() {
    const first = (member) => eventually(`${member.name} ready`, () => member.live, { within: 30_000 });
    await Promise.all(this.members.map(first));
    for (const person of this.people.values()) {
      for (let i = 0; i < FIRST_ROOMS; i++) this.join(person);
    }
    await this.idle();
    this.talking = this.talk();
  }

  /// A client comes through a door of its own, behind which any node may be.
  async arrive(i) {
    const anyNode = () => {
      const running = this.cluster.nodes.filter((node) => node.running);
      return this.chance.pick(running.length ? running : this.cluster.nodes).client;
    };
    const door = await Proxy.start({ target: anyNode });
    this.doors.push(door);
    // Every fifth user has two tabs; every fifteenth cannot recover and has one.
    const user = `u${i % 5 === 1 ? i - 1 : i}`;
    const auth = i % 15 === 7 ? { user, csr: false } : { user };
    const options = { transports: TRANSPORTS[i % 3], auth };
    const member = this.enter(`${user}.${i}`, user, "/", door, options);
    if (i % 7 === 3) this.enter(`${user}.${i}+`, user, "/group-chat", door, { manager: member.client.manager, auth });
  }

  enter(name, user, ns, door, options) {
    const key = `${ns} ${user}`;
    if (!this.people.has(key)) this.people.set(key, { user, ns, members: [], rooms: new Set(), changes: [], waiting: 0, tail: null });
    const person = this.people.get(key);
    const member = new Member(name, person, door, options);
    person.members.push(member);
    person.fixed ||= !member.csr;
    this.members.push(member);
    return member;
  }

  async talk() {
    while (!this.stopped) {
      this.deed(this.chance.pick(this.members), this.chance.weighed(DEEDS));
      await sleep(EVERY);
    }
  }

  deed(member, what) {
    const { person } = member;
    if (what === "join" || what === "leave") return this[what](person);
    const rooms = [...person.rooms];
    if (!rooms.length || member.open > OPEN_MAX) return;
    const room = this.chance.pick(rooms);
    if (what === "typing") member.client.socket.emit("typing", { room });
    else if (what === "burst") for (let left = 10 + this.chance.below(40); left > 0; left--) this.say(member, room);
    else if (what === "big") this.say(member, room, { size: this.chance.below(20_000) });
    else this.say(member, room, { how: what });
  }

  /// `how`: "say" tries with one mid until it is answered; "once" has no mid and is tried once; "blurt" does not even ask
  /// for an answer.
  say(member, room, { how = "say", size = 10 } = {}) {
    const { user, ns } = member.person;
    const key = `${member.name}-${this.said.size}`;
    const word = { key, member, user, ns, room, how, at: performance.now(), id: undefined, refused: false };
    this.said.set(key, word);
    const payload = { room, text: { key, body: "x".repeat(size) }, ...(how !== "once" && { mid: key }) };
    if (how === "blurt") return void member.client.socket.emit("message", payload);
    this.go(async () => {
      const about = { key };
      const once = async () => ({ answer: await member.ask("message", payload, { ...about, tries: 1 }), tries: 1 });
      const { answer, tries } = how === "once" ? await once() : await member.insist("message", payload, about);
      if (answer?.ok) word.id = answer.id;
      else if (answer && !answer.error.retry) Object.assign(word, { refused: tries === 1, error: answer.error.code, until: performance.now() });
    });
  }

  join(person) {
    const outside = ROOMS[person.ns].filter((room) => !person.rooms.has(room));
    if (outside.length) this.change(person, "join", this.chance.pick(outside));
  }

  leave(person) {
    if (person.rooms.size > 1) this.change(person, "leave", this.chance.pick([...person.rooms]));
  }

  change(person, what, room) {
    // A client that cannot recover has no fence between its sessions: what an old one said may come after the new one.
    if (this.talking && person.fixed) return;
    if (this.talking && person.waiting) return;
    const member = this.chance.pick(person.members);
    const before = person.tail;
    person.waiting += 1;
    person.tail = this.go(async () => {
      await before;
      if (person.rooms.has(room) !== (what === "join")) await this.carryOut(person, member, what, room);
      person.waiting -= 1;
    });
  }

  async carryOut(person, member, what, room) {
    const change = { what, room, from: performance.now(), to: Infinity };
    person.changes.push(change);
    // Nobody says anything in it from here on.
    if (what === "leave") person.rooms.delete(room);
    const { answer, tries } = await member.insist(what, room);
    change.to = performance.now();
    const done = answer.ok || (what === "leave" && tries > 1 && answer.error.code === "not_member");
    if (!done) this.wrong.push(`${member.name}: ${what} ${room} was answered ${JSON.stringify(answer)}`);
    else if (what === "join") person.rooms.add(room);
  }

  go(work) {
    const done = work().catch((error) => this.wrong.push(error.stack)).finally(() => this.work.delete(done));
    this.work.add(done);
    return done;
  }

  async idle(ms = 60_000) {
    await eventually("everything answered", () => this.work.size === 0, { within: ms });
  }

  /// The talk ends; everybody is back, everything is answered, and each room has heard a last word.
  async settle() {
    this.stopped = true;
    await this.talking;
    const back = (member) => eventually(`${member.name} back`, () => member.live, { within: 30_000, every: 100 });
    await Promise.all(this.members.map(back));
    await this.idle();
    for (const ns of Object.keys(ROOMS)) {
      for (const room of ROOMS[ns]) {
        const inside = this.members.find(({ person }) => person.ns === ns && person.rooms.has(room));
        if (inside) this.say(inside, room);
      }
    }
    await this.idle();
    await Promise.all(this.members.map(back));
  }

  async close() {
    this.stopped = true;
    for (const member of this.members) member.over = true;
    await this.talking;
    await Promise.all(this.doors.map((door) => door.close()));
  }
}
