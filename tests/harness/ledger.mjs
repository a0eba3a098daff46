// Who was promised what, and who got what.
//
// Publishers write down each acknowledgement, receivers each delivery. `check` compares the two and returns
// what does not hold, as sentences. A ledger that saw too little is not a pass: `demand` says how much
// traffic and how many reconnects a run must have had.
const ID = /^[0-9a-z]{11}$/;

export class Ledger {
  constructor() {
    this.receivers = new Map(); // name -> { client, since: room -> id }
    this.acked = new Map(); // mid -> { name, room, id, text }
    this.wrong = []; // what was seen to be wrong at the moment it happened
    this.unknown = 0; // tries without an answer; each was tried again with its mid
    this.retried = 0; // tries answered "not now, try again"
  }

  add(name, client) {
    this.receivers.set(name, { client, since: new Map() });
  }

  /// From here on `name` is owed every message of `room`: its join is acknowledged.
  joined(name, room) {
    const known = this.list(room);
    this.receivers.get(name).since.set(room, known.at(-1)?.id ?? "");
  }

  acknowledge(name, mid, room, text, ack) {
    if (this.acked.has(mid)) this.wrong.push(`${mid}: acknowledged twice to one publisher`);
    if (!ID.test(ack.id)) this.wrong.push(`${mid}: ack has the id ${JSON.stringify(ack.id)}`);
    this.acked.set(mid, { name, room, id: ack.id, text });
    const receiver = this.receivers.get(name);
    if (!receiver?.since.has(room)) return;
    if (!receiver.client.messages(room).some(({ id }) => id === ack.id)) {
      this.wrong.push(`${name}: ack of ${ack.id} came before the message itself`);
    }
  }

  /// The room's one list: everything that anybody received in it, by id.
  list(room) {
    const byId = new Map();
    for (const { client } of this.receivers.values()) {
      for (const message of client.messages(room)) byId.set(message.id, message);
    }
    return [...byId.values()].sort((a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0));
  }

  rooms() {
    return [...new Set([...this.receivers.values()].flatMap(({ since }) => [...since.keys()]))];
  }

  /// Whether everything acknowledged has reached everybody by now; the wait before a check.
  settled() {
    const got = new Map([...this.receivers].map(([name, { client }]) => [name, new Set(client.messagesAll().map(({ id }) => id))]));
    for (const { room, id } of this.acked.values()) {
      for (const [name, { since }] of this.receivers) {
        if (since.has(room) && id > since.get(room) && !got.get(name).has(id)) return false;
      }
    }
    return true;
  }

  check({ demand = {} } = {}) {
    const wrong = [...this.wrong];
    const { acked = 1, reconnects = 0 } = demand;
    const outages = this.outages();
    if (this.acked.size < acked) wrong.push(`not conclusive: ${this.acked.size} acknowledged, ${acked} wanted`);
    if (outages.length < reconnects) wrong.push(`not conclusive: ${outages.length} reconnects, ${reconnects} wanted`);
    for (const room of this.rooms()) wrong.push(...this.checkRoom(room));
    for (const [name, receiver] of this.receivers) wrong.push(...checkReceiver(name, receiver));
    return wrong;
  }

  checkRoom(room) {
    const wrong = [];
    const list = this.list(room);
    const mids = list.map(({ mid }) => mid).filter((mid) => mid !== undefined);
    if (new Set(mids).size !== mids.length) wrong.push(`${room}: one mid became two messages`);
    const byId = new Map(list.map((message) => [message.id, message]));
    for (const [mid, ack] of this.acked) {
      if (ack.room !== room) continue;
      const message = byId.get(ack.id);
      if (!message) wrong.push(`${room}: ${ack.id} was acknowledged and nobody received it`);
      else if (message.mid !== mid || !same(message.text, ack.text)) wrong.push(`${room}: the ack ${ack.id} is for another message`);
    }
    for (const [name, { client, since }] of this.receivers) {
      if (!since.has(room)) continue;
      const due = list.filter(({ id }) => id > since.get(room)).map(({ id }) => id);
      const got = client.messages(room).filter(({ id }) => id > since.get(room)).map(({ id }) => id);
      const have = new Set(got);
      const lost = due.filter((id) => !have.has(id));
      if (lost.length) wrong.push(`${name} in ${room}: lost ${lost.length} of ${due.length}, first ${lost[0]}`);
      if (have.size !== got.length) wrong.push(`${name} in ${room}: ${got.length - have.size} doubled`);
    }
    return wrong;
  }

  outages() {
    return [...this.receivers.values()].flatMap(({ client }) => client.outages.filter(({ gap }) => gap !== undefined));
  }

  /// Downtime as clients saw it, `disconnect` to `ready`, in ms.
  gaps() {
    const all = this.outages().map(({ gap }) => gap).sort((a, b) => a - b);
    const at = (share) => Math.round(all[Math.min(all.length - 1, Math.ceil(share * all.length) - 1)] ?? 0);
    const histogram = {};
    for (const gap of all) {
      const bucket = [10, 25, 50, 100, 150, 250, 400, 1000, 2000, 5000].find((bound) => gap <= bound) ?? "more";
      histogram[bucket] = (histogram[bucket] ?? 0) + 1;
    }
    return { count: all.length, p50: at(0.5), p99: at(0.99), max: at(1), histogram };
  }

  report() {
    return JSON.stringify({ acked: this.acked.size, unknown: this.unknown, retried: this.retried, gaps: this.gaps() });
  }
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/// What must hold for one receiver over all its rooms and reconnects.
function checkReceiver(name, { client, since }) {
  const wrong = [];
  const rooms = [...since.keys()].sort();
  const ids = client.messagesAll().map(({ id }) => id);
  const back = ids.findIndex((id, i) => i > 0 && !(id > ids[i - 1]));
  if (back >= 0) wrong.push(`${name}: ${ids[back]} came after ${ids[back - 1]}`);
  wrong.push(...senderOrder(name, client));
  if (client.finals.length) wrong.push(`${name}: was sent ${client.finals[0]}, after which no client comes back`);
  const [first, ...later] = client.readies;
  for (const ready of later) {
    if (ready.recovered !== true || ready.socketRecovered !== true) wrong.push(`${name}: came back without recovery`);
    if (ready.sid !== first.sid || ready.socketId !== first.sid) wrong.push(`${name}: came back as ${ready.sid}, was ${first.sid}`);
    if (!same([...ready.rooms].sort(), rooms)) wrong.push(`${name}: came back in ${ready.rooms}, was in ${rooms}`);
  }
  const unfinished = client.outages.find(({ gap }) => gap === undefined);
  if (unfinished) wrong.push(`${name}: never came back from "${unfinished.reason}"`);
  return wrong;
}

/// Publishers number their texts `{ n }`: what one client sent is received in the order in which it sent it.
function senderOrder(name, client) {
  const last = new Map();
  for (const { user, room, text } of client.messagesAll()) {
    if (typeof text?.n !== "number") continue;
    const key = `${user} ${room}`;
    if (last.has(key) && text.n <= last.get(key)) return [`${name}: ${user}'s ${text.n} came after its ${last.get(key)} in ${room}`];
    last.set(key, text.n);
  }
  return [];
}
