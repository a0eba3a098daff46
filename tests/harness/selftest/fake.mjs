// A server in memory that keeps the contract for one namespace just far enough to try the harness on it, and
// that can be told to break it. `fault(message, session)` returns how often a message goes to a session.
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

export async function fakeServer({ port = 0, fault = () => 1 } = {}) {
  const sessions = new Map(); // pid -> { sid, pid, user, socket }
  const rooms = new Map(); // room -> Set of users
  const history = [];
  const mids = new Map();
  let made = 0;
  const send = (session, event, args, ack) => {
    if (session.socket?.readyState !== 1) return;
    session.socket.send(ack === undefined ? `42${JSON.stringify([event, ...args])}` : `43${ack}${JSON.stringify(args)}`);
  };
  const play = (session, message) => send(session, "message", [message, `m1.fake.${message.id}`]);
  const roomsOf = (user) => [...rooms].filter(([, users]) => users.has(user)).map(([room]) => room);

  const requests = {
    join(session, room) {
      rooms.set(room, (rooms.get(room) ?? new Set()).add(session.user));
      return { ok: true, room, count: rooms.get(room).size, users: [] };
    },
    message(session, { room, text, mid }) {
      if (mids.has(mid)) return mids.get(mid);
      const message = { room, user: session.user, text, id: (history.length + 1).toString(36).padStart(11, "0"), at: 0, mid };
      history.push(message);
      for (const each of sessions.values()) {
        if (rooms.get(room)?.has(each.user)) for (let i = fault(message, each); i > 0; i--) play(each, message);
      }
      mids.set(mid, { ok: true, id: message.id, at: 0 });
      return mids.get(mid);
    },
  };

  function connect(socket, { user, pid, offset }) {
    const known = sessions.get(pid);
    const session = known ?? { sid: `sid${++made}`, pid: `pid${made}`, user, seen: history.length };
    sessions.set(session.pid, session);
    session.socket = socket;
    socket.send(`40${JSON.stringify({ sid: session.sid, pid: session.pid })}`);
    send(session, "ready", [{ user, sid: session.sid, rooms: roomsOf(user), recovered: !!known, node: "fake" }]);
    const from = offset ? offset.split(".")[2] : "";
    if (known) for (const m of history.slice(session.seen)) if (m.id > from && rooms.get(m.room)?.has(user)) play(session, m);
    return session;
  }

  const state = { ready: true };
  const web = createServer((req, res) => {
    res.statusCode = state.ready ? 200 : 503;
    res.end(state.ready ? "ready" : "draining");
  });
  await new Promise((resolve) => web.listen(port, "127.0.0.1", resolve));
  const server = new WebSocketServer({ server: web, path: "/socket.io/" });
  server.on("connection", (socket) => {
    let session;
    socket.send(`0${JSON.stringify({ sid: "e", upgrades: [], pingInterval: 25000, pingTimeout: 20000, maxPayload: 1e6 })}`);
    socket.on("message", (data) => {
      const [, kind, ack, body] = /^4(\d)(\d*)(.*)$/s.exec(data.toString()) ?? [];
      if (kind === "0") session = connect(socket, JSON.parse(body || "{}"));
      if (kind !== "2") return;
      const [event, payload] = JSON.parse(body);
      const answer = requests[event]?.(session, payload);
      if (ack !== "") send(session, null, [answer], ack);
    });
  });
  const close = () => {
    for (const socket of server.clients) socket.terminate();
    return new Promise((resolve) => web.close(resolve));
  };
  return { port: web.address().port, state, close };
}
