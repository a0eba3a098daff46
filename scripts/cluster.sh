#!/usr/bin/env bash
# Three nodes of moim in the background on this machine, with data and logs under .moim/.
#
#   scripts/cluster.sh start | stop | status | kill N | restart N | rolling-restart
#
# Node N has clients at 127.0.0.1:300N, admin at :310N, peers at :320N. MOIM_BIN names another binary than
# target/release/moim, which is built when it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

nodes="1 2 3"
dir=.moim
bin=${MOIM_BIN:-target/release/moim}
admin=127.0.0.1:3101,127.0.0.1:3102,127.0.0.1:3103
stop_within=40 # seconds; a node's own drain deadline is 30
ready_within=30

fail() { echo "cluster.sh: $1" >&2; exit "${2:-1}"; }
pid_of() { cat "$dir/node$1.pid" 2>/dev/null || true; }

# Whether the process of node $1 is there, and is moim: a pid can belong to somebody else by now.
is_running() {
  local pid; pid=$(pid_of "$1")
  [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q -- "--name node$1 "
}

# Runs "$@" every 0.1 s until it succeeds, for at most $1 seconds.
until_true() {
  local tries=$(($1 * 10)); shift
  while ! "$@"; do
    [ $((tries -= 1)) -gt 0 ] || return 1
    sleep 0.1
  done
}

is_gone() { ! is_running "$1"; }

is_open() { exec 3<>"/dev/tcp/127.0.0.1/$1" && exec 3>&-; } 2>/dev/null

# Whoever has one of node $1's ports would be taken for the node.
need_ports() {
  local port
  for port in "300$1" "310$1" "320$1"; do
    if (is_open "$port"); then fail "port $port, which node$1 needs, is in use; stop what listens there: ss -ltnp 'sport = :$port'" 2; fi
  done
}

is_ready() {
  exec 3<>"/dev/tcp/127.0.0.1/300$1" || return 1
  printf 'GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' >&3
  local line=; IFS= read -r -t 2 line <&3 || true
  exec 3>&-
  [[ $line == *" 200 "* ]]
} 2>/dev/null

need_binary() {
  [ -x "$bin" ] && return
  [ -z "${MOIM_BIN:-}" ] || fail "MOIM_BIN=$MOIM_BIN is not there; build it first" 2
  cargo build --release
}

launch() {
  mkdir -p "$dir"
  # stdin, stdout and stderr are not this script's: it must be able to end before its nodes.
  setsid "$bin" serve --auth open --name "node$1" --data "$dir/node$1" \
    --client "127.0.0.1:300$1" --admin "127.0.0.1:310$1" --peer "127.0.0.1:320$1" \
    --join 127.0.0.1:3201,127.0.0.1:3202,127.0.0.1:3203 --expect 3 \
    </dev/null >>"$dir/node$1.log" 2>&1 &
  echo $! >"$dir/node$1.pid"
}

has_ended() { ! kill -0 "$(pid_of "$1")" 2>/dev/null; }
is_ready_or_has_ended() { has_ended "$1" || is_ready "$1"; }

await_ready() {
  local what="is not ready after $ready_within s"
  if until_true "$ready_within" is_ready_or_has_ended "$1"; then
    has_ended "$1" || return 0
    what="has ended"
  fi
  fail "node$1 $what; the end of $dir/node$1.log: $(tail -n 3 "$dir/node$1.log" 2>/dev/null)"
}

start() {
  need_binary
  # All ports before the first process: nothing is left half started.
  for n in $nodes; do is_running "$n" || need_ports "$n"; done
  for n in $nodes; do is_running "$n" || launch "$n"; done
  for n in $nodes; do await_ready "$n"; done
  for n in $nodes; do echo "node$n http://127.0.0.1:300$n admin 127.0.0.1:310$n log $dir/node$n.log"; done
}

# All at once: a node that waited for a quorum to leave in order would wait for the others' end.
stop() {
  for n in $nodes; do if is_running "$n"; then kill -TERM "$(pid_of "$n")"; fi; done
  for n in $nodes; do end "$n"; done
}

# Waits for node $1 to end by itself and does not wait for ever.
end() {
  if ! until_true "$stop_within" is_gone "$1"; then
    echo "node$1 does not stop within $stop_within s; killing it" >&2
    kill -KILL "$(pid_of "$1")"
    until_true 5 is_gone "$1" || fail "node$1 cannot be killed"
  fi
  rm -f "$dir/node$1.pid"
}

restart() {
  need_binary
  if is_running "$1"; then kill -TERM "$(pid_of "$1")"; fi
  end "$1"
  need_ports "$1"
  launch "$1"
}

node_number() {
  local n=${1#node}
  [[ " $nodes " == *" $n "* ]] || fail "which node? one of: $nodes" 2
  echo "$n"
}

case "${1:-}" in
  start) start ;;
  stop) stop ;;
  status) need_binary; "$bin" status --admin "$admin" ;;
  kill)
    n=$(node_number "${2:-}")
    is_running "$n" || fail "node$n is not running"
    kill -KILL "$(pid_of "$n")"
    until_true 5 is_gone "$n" || fail "node$n cannot be killed"
    echo "node$n is killed; \"$0 start\" brings it back"
    ;;
  restart) n=$(node_number "${2:-}"); restart "$n"; await_ready "$n"; echo "node$n is ready" ;;
  # Only restarts; the command itself waits until the node is ready and caught up.
  restart-only) n=$(node_number "${2:-}"); restart "$n" ;;
  rolling-restart) need_binary; "$bin" rolling-restart --admin "$admin" --restart "scripts/cluster.sh restart-only {name}" ;;
  *) fail "start, stop, status, kill N, restart N or rolling-restart" 2 ;;
esac
