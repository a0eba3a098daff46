#!/usr/bin/env bash
# moim beside a chat on plain socketioxide and Redis (tests/peer), three nodes each, measured by the same clients in one run.
# `scripts/bench-peer.sh [connect|rooms|fanout|storm]`: one row, or all of them. Needs redis-server.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v redis-server >/dev/null || { echo "bench-peer.sh: missing: redis-server. On Debian: apt-get install redis-server" >&2; exit 2; }
cargo build --release --locked --bin moim --example peer
moim=target/release/moim
folder=$(mktemp -d)
started=()
stop() { kill "${started[@]}" 2>/dev/null || true; wait "${started[@]}" 2>/dev/null || true; rm -rf "$folder"; }
trap stop EXIT

"$moim" dev >"$folder/moim.log" 2>&1 & started+=($!)
# As durable as moim is: a membership is on disk before it is acknowledged.
redis-server --port 7399 --bind 127.0.0.1 --dir "$folder" --appendonly yes --appendfsync always --save "" >"$folder/redis.log" &
redis=$!; started+=("$redis")
until curl -sf 127.0.0.1:3001/readyz >/dev/null && curl -sf 127.0.0.1:3002/readyz >/dev/null && curl -sf 127.0.0.1:3003/readyz >/dev/null; do
  kill -0 "${started[0]}" || { cat "$folder/moim.log" >&2; exit 1; }
  sleep 0.1
done
for port in 7401 7402 7403; do
  target/release/examples/peer "$port" redis://127.0.0.1:7399/ & started+=($!)
  until curl -s "127.0.0.1:$port/" >/dev/null; do kill -0 "${started[-1]}"; sleep 0.1; done
done

ours=http://127.0.0.1:3001,http://127.0.0.1:3002,http://127.0.0.1:3003
theirs=http://127.0.0.1:7401,http://127.0.0.1:7402,http://127.0.0.1:7403
row() {
  echo "== moim $*"; "$moim" bench "$@" --url "$ours" 2>/dev/null
  echo "== peer $*"; "$moim" bench "$@" --url "$theirs" --pid "$redis" 2>/dev/null
}
wanted=${1:-all}
is_wanted() { [ "$wanted" = all ] || [ "$wanted" = "$1" ]; }
if is_wanted connect; then row connect --sockets 1000; fi
if is_wanted rooms; then row rooms --seconds 10; fi
if is_wanted fanout; then for rate in 400 2000; do row fanout --rate "$rate" --seconds 10; done; fi
if is_wanted storm; then row storm --rounds 3; fi
