#!/usr/bin/env bash
# A rolling restart under 1,000 stock clients, of moim and of a chat on plain socketioxide and Redis (tests/peer), in one run.
# Fails when moim's p99 gap is more than 1.2 times the peer's, or when a client of moim misses or doubles anything. Arguments
# go to tests/bench/roll.mjs. Needs redis-server and haproxy.
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in redis-server haproxy node npm; do
  command -v "$tool" >/dev/null || { echo "bench-roll.sh: missing: $tool. On Debian: apt-get install redis-server haproxy nodejs npm" >&2; exit 2; }
done
cargo build --release --locked --bin moim --example peer
[ -d tests/node_modules ] || npm ci --prefix tests --no-audit --no-fund
export MOIM_BIN=$PWD/target/release/moim
exec node tests/bench/roll.mjs --peer target/release/examples/peer --max p99_ratio=1.2 --max lost=0 --max doubled=0 "$@"
