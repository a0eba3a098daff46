// What must hold, whatever happened. Each finding is a sentence.
//
// The rooms' lists come from the log, by way of the admin port. From them follows what is *due* to a user: the entries
// between each of its joins and leaves, both included. A member must have received what is due to its user, each once and
// in order. Only a fresh session interrupts that: what lies between the last entry before it and its beginning is in its
// history instead. Where exactly it began a client cannot know; it was before anything that was said after its `ready`.
//
// A fresh session needs a reason, and these are all there are here, where nothing is trimmed and nobody is away for long:
// the client switched recovery off or said goodbye; it had never heard `ready` in the session that it lost; or its user
// left and joined one room twice since its last entry, so that the membership's two last spans do not reach back; or it came
// for a session that was attached, as far as the log knew, and had been taken over ten times within twenty seconds. Of that
// last one only the node that decided it knows, and says so in its log; it must also be possible, by what was asked for.

const ENTRIES = ["message", "joined", "left"];
const LAST = "~"; // above every id
/// Users who were away for less are online. With what a busy machine may add to it.
const GRACE = 18_000;
/// A session is taken over so often at most in so many ms, of the log's clock.
const TAKEOVERS_MAX = 10;
const TAKEOVERS_MS = 20_000;
/// Between a CONNECT and what the log makes of it, or the client hears of it: a link that is held, a quorum that is missing.
const LATE = 10_000;

/// When which node refused to let a session be taken over once more, as their logs have it: sid -> times.
export function contests(nodes) {
  const line = /^(\S+) .*two clients take a session from each other.* sid=(\S+)/gm;
  const found = new Map();
  const origin = Date.now() - performance.now();
  for (const [, time, sid] of nodes.flatMap((node) => [...node.log().matchAll(line)])) {
    found.set(sid, [...(found.get(sid) ?? []), Date.parse(time) - origin]);
  }
  return found;
}

/// The rooms' lists: `lists` is an array of `{ ns, room, entries }`.
export class Rooms {
  constructor(lists, said) {
    this.lists = lists;
    this.all = lists.flatMap(({ ns, room, entries }) => entries.map((entry) => ({ ...entry, ns, room }))).sort(byId);
    this.byId = new Map(this.all.map((entry) => [entry.id, entry]));
    this.messages = this.all.filter(({ what }) => what === "message").map((entry) => ({ ...entry, at: said.get(entry.text?.key)?.at }));
    this.dueTo = new Map();
  }

  /// From each join to its leave, by room.
  spans(ns, user) {
    const spans = [];
    for (const { id, what, room } of this.all.filter((entry) => entry.ns === ns && entry.user === user)) {
      if (what === "joined") spans.push({ room, from: id, to: LAST });
      if (what === "left") spans.findLast((span) => span.room === room).to = id;
    }
    return spans;
  }

  due(ns, user) {
    const key = `${ns} ${user}`;
    if (!this.dueTo.has(key)) {
      const spans = this.spans(ns, user);
      const within = ({ id, room }) => spans.some((span) => span.room === room && span.from <= id && id <= span.to);
      this.dueTo.set(key, this.all.filter((entry) => entry.ns === ns && within(entry)));
    }
    return this.dueTo.get(key);
  }

  members(ns, room) {
    const users = new Set();
    for (const entry of this.all) {
      if (entry.ns !== ns || entry.room !== room) continue;
      if (entry.what === "joined") users.add(entry.user);
      if (entry.what === "left") users.delete(entry.user);
    }
    return [...users].sort();
  }

  /// The first entry that was certainly written after `at`.
  writtenAfter(at) {
    return this.messages.find((message) => message.at > at)?.id ?? LAST;
  }

  /// Each said message is there once at most, as it was said; each acknowledged one under the id of its ack.
  check(said) {
    const wrong = [];
    if (this.byId.size !== this.all.length) wrong.push("two entries have one id");
    const times = new Map();
    for (const { id, ns, room, user, text, mid } of this.messages) {
      const word = said.get(text?.key);
      if (!word) wrong.push(`${id} in ${room}: nobody said it`);
      else if (word.ns !== ns || word.room !== room || word.user !== user) wrong.push(`${id}: ${word.key} is in another place than it was said`);
      else if (mid !== (word.how === "once" ? undefined : word.key)) wrong.push(`${id}: ${word.key} has the mid ${mid}`);
      times.set(text?.key, [...(times.get(text?.key) ?? []), id]);
    }
    for (const [key, ids] of times) if (ids.length > 1) wrong.push(`${key} is there ${ids.length} times: ${ids}`);
    for (const { key, id, refused, error } of said.values()) {
      const ids = times.get(key) ?? [];
      if (id && !ids.includes(id)) wrong.push(`${key} was acknowledged as ${id}, and is there as ${ids[0]}`);
      if (refused && ids.length) wrong.push(`${key} was refused (${error}), and is there as ${ids[0]}`);
    }
    return wrong;
  }
}

const byId = (a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);

/// Walks one member's log.
class Walk {
  constructor(member, rooms, contests) {
    const { ns, user } = member.person;
    Object.assign(this, { member, rooms, contests, ns, user, wrong: [], got: new Set(), read: new Set(), windows: [] });
    this.due = rooms.due(ns, user);
    this.mine = new Set(this.due.map(({ id }) => id));
    this.last = "";
    this.session = null; // { sid, ready }
    this.acks = { seq: 0, id: "" };
  }

  no(text) {
    this.wrong.push(`${this.member.name}: ${text}`);
  }

  run() {
    for (const { event, args, at } of this.member.log) {
      if (event === "connect") this.connect(args[0], at);
      else if (event === "goodbye") this.goodbye = true;
      else if (event === "gone") this.gone ??= at;
      else if (event === "ready") this.ready(args[0], at);
      else if (ENTRIES.includes(event)) this.entry(event, args);
      else if (event === "history") this.history(args[0]);
      else if (event === "answer") this.answer(args[0]);
    }
    this.complete();
    for (const theft of this.member.thefts) this.theft(theft);
    if (this.member.client.finals.length) this.no(`was sent ${this.member.client.finals[0]}, after which no client comes back`);
    return this.wrong;
  }

  connect({ sid, recovered }, at) {
    const before = this.session;
    if (recovered && sid !== before?.sid) this.no(`recovered as ${sid}, was ${before?.sid}`);
    if (!recovered) {
      if (before?.sid === sid) this.no(`a fresh session has the old sid ${sid}`);
      if (before && !this.reason(at)) this.no(`a fresh session without a reason, after ${this.last}, at ${Math.round(at)}`);
      this.session = { sid, ready: false };
      this.fresh = true;
      this.goodbye = false;
    }
    this.session.recovered = recovered;
  }

  reason(at) {
    const { sid, ready } = this.session;
    // What another connection could not be told whole has ended the session.
    const ended = ({ reply, pid, ...theft }) => theft.sid === sid && reply && reply.pid !== pid && !this.contested(sid, theft.at);
    if (!this.member.csr || this.goodbye || !ready || this.member.thefts.some(ended)) return true;
    return this.rejoined(this.last, this.rooms.writtenAfter(at)) || this.contested(sid, at);
  }

  /// Whether a node said so, when enough connections had asked for it.
  contested(sid, at) {
    const said = (this.contests.get(sid) ?? []).filter((time) => Math.abs(time - at) < LATE);
    const asked = [...this.member.client.connects, ...this.member.thefts.map((theft) => theft.at)];
    const possible = (time) => asked.filter((each) => each <= time && each > time - TAKEOVERS_MS - LATE).length > TAKEOVERS_MAX;
    return said.some(possible);
  }

  rejoined(after, before) {
    const joins = this.due.filter(({ id, what, user }) => what === "joined" && user === this.user && after < id && id < before);
    return joins.some(({ room }, i) => joins.findIndex((join) => join.room === room) < i);
  }

  ready({ sid, recovered, rooms }, at) {
    if (sid !== this.session?.sid || recovered !== this.session.recovered) this.no(`ready says ${sid}, ${recovered}; CONNECT said ${this.session?.sid}, ${this.session?.recovered}`);
    if (this.fresh) {
      const readable = this.windows.length ? new Set(rooms) : new Set();
      this.windows.push({ after: this.last, before: this.rooms.writtenAfter(at), rooms: readable });
    }
    const expected = roomsOf(this.member.person, this.gone ?? this.member.log[0].at, at);
    if (expected && String([...rooms].sort()) !== String(expected)) this.no(`ready says ${rooms}, is in ${expected}`);
    this.session.ready = true;
    this.fresh = false;
    this.gone = undefined;
  }

  entry(event, args) {
    const [{ id, room, user, text }] = args;
    const known = this.rooms.byId.get(id);
    if (id <= this.last) this.no(`${id} came after ${this.last}`);
    if (known?.what !== event || known.room !== room || known.user !== user || known.ns !== this.ns) this.no(`${event} ${id} is not in the list of ${room}`);
    else if (event === "message" && text?.key !== known.text.key) this.no(`${id} is another text than in the list`);
    else if (!this.mine.has(id)) this.no(`${event} ${id} of ${room} is not for ${this.user}`);
    const offset = args.length > 1 ? args.at(-1) : undefined;
    if (this.member.csr ? !/^m1\..{4}\./.test(offset) || !offset.endsWith(id) : offset !== undefined) this.no(`${id} came with the offset ${offset}`);
    this.got.add(id);
    if (id > this.last) this.last = id;
  }

  history({ room, messages, refused }) {
    for (const { id } of messages) {
      if (this.rooms.byId.get(id)?.room !== room) this.no(`history has ${id}, the list of ${room} has not`);
      this.read.add(id);
    }
    // It left the room before it came to read.
    if (refused === "not_member") for (const window of this.windows) window.rooms.delete(room);
    else if (refused) this.no(`history of ${room} was refused: ${refused}`);
  }

  answer({ seq, event, tries, answer, payload }) {
    if (seq <= this.acks.seq) this.no(`the answer to its request ${seq} came after that to ${this.acks.seq}`);
    this.acks.seq = seq;
    if (event !== "message" || !answer.ok) return;
    const { id } = answer;
    if (tries === 1 && id <= this.acks.id) this.no(`what it said later than ${this.acks.id} became ${id}`);
    if (tries === 1) this.acks.id = id;
    if (this.mine.has(id) && !this.got.has(id) && !this.windowOf(id)) this.no(`the ack of ${id} (${payload.mid}) came before the message itself`);
  }

  windowOf(id) {
    return this.windows.find((window) => window.after < id && id < window.before);
  }

  complete() {
    const lost = this.due.filter(({ id, what, room }) => {
      const window = this.windowOf(id);
      return !this.got.has(id) && !this.read.has(id) && !(window && (what !== "message" || !window.rooms.has(room)));
    });
    if (!lost.length) return;
    const { id, what, room, user } = lost[0];
    this.no(`lost ${lost.length} of ${this.due.length}, first ${what} ${id} of ${user} in ${room}`);
  }

  /// What another connection with its pid was told: from the offset on without a gap, as far as it came.
  theft({ pid, sid, offset, reply, finals, entries, at }) {
    if (finals.length) this.no(`a second connection was sent ${finals[0]}`);
    if (!reply) return;
    const place = offset?.split(".")[2] ?? "";
    if (reply.pid !== pid) {
      const goodbye = this.member.log.some(({ event }) => event === "goodbye");
      const reason = !this.member.csr || goodbye || this.rejoined(place, this.rooms.writtenAfter(at + LATE)) || this.contested(sid, at);
      if (!reason) this.no(`a second connection got a fresh session after ${place}`);
      return;
    }
    if (!entries.length) return;
    const due = this.due.map(({ id }) => id).filter((id) => id > place && id <= entries.at(-1) && !this.windowOf(id));
    const told = entries.filter((id) => !this.windowOf(id));
    if (String(due) !== String(told)) this.no(`a second connection from ${place} on was told ${told.length} of ${due.length}, ${told[0]} to ${told.at(-1)}, due ${due[0]} to ${due.at(-1)}`);
  }
}

/// The person's rooms, if it did nothing about them between the two moments.
function roomsOf(person, from, to) {
  if (person.changes.some((change) => change.from <= to && change.to >= from)) return undefined;
  const rooms = new Set();
  for (const { what, room } of person.changes.filter((change) => change.to < from)) {
    if (what === "join") rooms.add(room);
    else rooms.delete(room);
  }
  return [...rooms].sort();
}

/// A refusal of a message is right only while its user is not, or not surely, in the room.
function checkRefusals(crowd) {
  const wrong = [];
  for (const { key, member, room, error, at, until } of crowd.said.values()) {
    if (!error) continue;
    const rooms = roomsOf(member.person, at, until);
    if (error !== "not_member" || rooms?.includes(room)) wrong.push(`${key}: ${error} in ${room}, though its user is in ${rooms}`);
  }
  return wrong;
}

/// Nobody is said to be offline but who said goodbye, or was away for long.
function checkPresence(crowd) {
  const wrong = [];
  const excused = (ns, user) => crowd.people.get(`${ns} ${user}`).members.some(({ log, client }) =>
    log.some(({ event }) => event === "goodbye") || client.outages.some(({ gap }) => gap > GRACE));
  for (const { name, person, client } of crowd.members) {
    for (const [{ user }] of client.events("offline")) {
      if (!excused(person.ns, user)) wrong.push(`${name} was told that ${user} is offline`);
    }
  }
  return [...new Set(wrong)];
}

export function verdict(crowd, lists, contests) {
  const rooms = new Rooms(lists, crowd.said);
  const wrong = [...crowd.wrong, ...rooms.check(crowd.said), ...checkRefusals(crowd), ...checkPresence(crowd)];
  for (const member of crowd.members) wrong.push(...new Walk(member, rooms, contests).run());
  for (const { ns, user, rooms: now } of crowd.people.values()) {
    const inList = rooms.spans(ns, user).filter(({ to }) => to === LAST).map(({ room }) => room).sort();
    if (String(inList) !== String([...now].sort())) wrong.push(`${user} is in ${inList} of ${ns}, and was told ${[...now].sort()}`);
  }
  return wrong;
}
