#!/usr/bin/env bash
# Every test there is: style, Rust, then stock Socket.IO clients against the built binary.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=
for tool in cargo node npm haproxy; do command -v "$tool" >/dev/null || missing+=" $tool"; done
if [ -n "$missing" ]; then
  echo "test.sh: missing:$missing. On Debian: apt-get install nodejs npm haproxy; cargo comes from https://rustup.rs" >&2
  exit 2
fi

node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20 ? 1 : 0)' || {
  echo "test.sh: node $(node --version) is too old; the tests need 20 or later" >&2
  exit 2
}

step() { echo "== $*"; "$@"; }

step cargo fmt --all --check
step cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" step cargo doc --workspace --no-deps --document-private-items --locked
# With the points at which tests make a store die or its disk fail; the release build is without them.
step cargo test --workspace --features moim-raft/failpoints --locked
step cargo build --release --locked
if [ -f tests/package.json ]; then
  step npm ci --prefix tests --no-audit --no-fund
  # One at a time: each test has a cluster of its own, and some measure time. What a failed test leaves open must not keep
  # the run from ending.
  step node --test --test-concurrency=1 --test-force-exit tests/harness/selftest/*.test.mjs tests/*.test.mjs
fi
echo "== all passed"
