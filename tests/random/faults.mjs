// What happens to nodes, to the links between them, and to clients: three lanes side by side, each drawn from the seed.
//
// A lane waits for what it did to be over (a node is ready again, a link healed) before it goes on, so a majority is
// missing only when two lanes meet, or when a lane takes it away on purpose.
import { http } from "../harness/http.mjs";
import { Raw } from "../harness/raw.mjs";
import { rng } from "../harness/rng.mjs";
import { eventually, sleep } from "../harness/wait.mjs";

const NODES = { kill: 3, killLeader: 2, term: 3, termLeader: 2, drain: 3, transfer: 4, pause: 2, killTwo: 1, killAll: 0.7 };
const LINKS = { cut: 3, hold: 3, drop: 2, up: 2, down: 2, delay: 3 };
const CLIENTS = { close: 3, reset: 4, cut: 3, hold: 3, drop: 2, up: 2, down: 2, double: 5, doubleAtOnce: 3, goodbye: 2, together: 1 };
/// Longer than a node is missed before it is declared down, with the settings of this test.
const LONGEST = 3500;
const READY = 30_000;

export class Faults {
  constructor(cluster, crowd, seed) {
    Object.assign(this, { cluster, crowd, counts: {}, story: [], wrong: [], begun: performance.now(), work: new Set() });
    this.lanes = [
      this.lane(rng(seed, "nodes"), NODES, [200, 1000], (what, chance) => this.node(what, chance)),
      this.lane(rng(seed, "links"), LINKS, [300, 1500], (what, chance) => this.links(what, chance)),
      this.lane(rng(seed, "clients"), CLIENTS, [50, 250], (what, chance) => this.client(what, chance)),
    ];
  }

  async lane(chance, weights, [low, high], act) {
    while (!this.over) {
      await sleep(chance.between(low, high));
      if (this.over) break;
      const what = chance.weighed(weights);
      try {
        await act(what, chance);
      } catch (error) {
        this.wrong.push(`${what}: ${error.message}`);
      }
    }
  }

  tell(kind, what, about) {
    this.counts[`${kind} ${what}`] = (this.counts[`${kind} ${what}`] ?? 0) + 1;
    this.story.push(`${((performance.now() - this.begun) / 1000).toFixed(2)} ${kind} ${what} ${about}`);
  }

  /// Nothing more happens, all links are whole and all nodes in service.
  async end() {
    this.over = true;
    await Promise.all(this.lanes);
    await Promise.allSettled(this.work);
    await this.cluster.allReady({ within: READY });
  }

  async node(what, chance) {
    const { cluster } = this;
    const leader = await cluster.leaderNow().catch(() => undefined);
    const any = chance.pick(cluster.nodes);
    const one = what.endsWith("Leader") && leader ? leader : any;
    const pause = chance.between(100, 2500);
    this.tell("node", what, `${one.name}, ${Math.round(pause)} ms${one === leader ? ", leading" : ""}`);
    if (what === "transfer") return void (await this.ask(one, "/v1/cluster/leader", chance.chance(0.5) ? { node: one.name } : {}));
    if (what === "drain") return this.drain(one, pause);
    if (what === "pause") {
      one.stop();
      await sleep(pause);
      one.cont();
      return cluster.ready(one, { within: READY });
    }
    const victims = { killAll: cluster.nodes, killTwo: [one, cluster.others(one)[0]] }[what] ?? [one];
    const exits = await Promise.all(victims.map((node) => (what.startsWith("term") ? node.term() : node.kill9())));
    if (what.startsWith("term") && exits[0].code !== 0) this.wrong.push(`${one.name} did not exit cleanly: ${JSON.stringify(exits[0])}`);
    await sleep(pause);
    for (const node of victims) node.start();
    await Promise.all(victims.map((node) => cluster.ready(node, { within: READY })));
  }

  async drain(node, pause) {
    const { status } = await this.ask(node, `/v1/nodes/${node.name}/drain`);
    if (status === 409) this.tell("drain", "refused", node.name);
    await sleep(pause);
    const back = async () => (await this.ask(node, "/v1/undrain")).status === 200;
    await eventually(`${node.name} back in service`, back, { within: READY, every: 200 });
    await this.cluster.ready(node, { within: READY });
  }

  ask(node, path, body) {
    return http(node.admin, path, { method: "POST", body }).catch((error) => ({ status: 0, text: error.message }));
  }

  async links(how, chance) {
    const { cluster } = this;
    const [a, b] = [chance.pick(cluster.nodes), chance.pick(cluster.nodes)];
    const pair = [cluster.link(a, b), cluster.link(b, a)];
    const links = a === b ? cluster.linksOf(a) : chance.chance(0.5) ? pair : pair.slice(0, 1);
    const ms = chance.between(100, LONGEST);
    this.tell("links", how, `${a === b ? `all of ${a.name}` : `${a.name}${links.length === 2 ? "-" : ">"}${b.name}`}, ${Math.round(ms)} ms`);
    for (const link of links) impair(link, how, chance.between(2, 40));
    await sleep(ms);
    for (const link of links) link.heal();
  }

  async client(what, chance) {
    const member = chance.pick(this.crowd.members);
    const link = member.door.link();
    const ms = chance.between(10, what === "goodbye" ? 500 : 2500);
    this.tell("client", what, `${member.name}, ${Math.round(ms)} ms`);
    // The lane does not wait for a client: many of these overlap.
    if (what === "together") for (const door of this.crowd.doors) chance.chance(0.5) && door.link().reset();
    else if (what === "close") member.client.dropTransport();
    else if (what === "reset") link.reset();
    else if (what === "goodbye") this.go(() => member.goodbye(ms));
    else if (what.startsWith("double")) {
      const stay = chance.between(0, 300);
      const node = chance.pick(this.cluster.nodes);
      if (what === "doubleAtOnce") member.client.dropTransport();
      this.go(() => steal(member, node, stay));
    } else if (link.mode === "pass") {
      impair(link, what);
      this.go(async () => {
        await sleep(ms);
        link.heal();
      });
    }
  }

  go(work) {
    const done = work().catch((error) => this.wrong.push(error.message)).finally(() => this.work.delete(done));
    this.work.add(done);
  }
}

function impair(link, how, delay) {
  if (how === "up" || how === "down") link.drop(how);
  else link[how](delay);
}

/// A second connection with the same `pid` and offset, for a moment. What it was told is written down with the member's.
async function steal(member, node, stay) {
  const { _pid: pid, _lastOffset: offset } = member.client.socket;
  const { user, ns } = member.person;
  if (!pid || ns !== "/" || !node.running) return;
  const theft = { pid, sid: member.sid, offset };
  let raw;
  try {
    raw = await Raw.open(node.client, { within: 1000 });
  } catch {
    return; // a node that is not ready, or stands still
  }
  theft.at = performance.now();
  raw.send(`40${JSON.stringify({ user, pid, ...(offset && { offset }) })}`);
  const reply = () => raw.packets.find((packet) => packet.startsWith("40{"));
  await eventually("an answer, or none", () => reply() || raw.closed, { within: 5000, every: 5 }).catch(() => {});
  await sleep(stay);
  raw.destroy();
  theft.reply = reply() && JSON.parse(reply().slice(2));
  theft.finals = raw.packets.filter((packet) => /^4[14]/.test(packet));
  const said = raw.packets.filter((packet) => packet.startsWith("42")).map((packet) => JSON.parse(packet.slice(2)));
  theft.entries = said.filter(([event]) => /^(message|joined|left)$/.test(event)).map(([, { id }]) => id);
  member.thefts.push(theft);
}
