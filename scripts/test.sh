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

step() { echo "== $*"; "$@"; }

step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked -- -D warnings
RUSTDOCFLAGS="-D warnings" step cargo doc --workspace --no-deps --document-private-items --locked
step cargo test --workspace --locked
step cargo build --release --locked
if [ -f tests/package.json ]; then
  step npm ci --prefix tests --no-audit --no-fund
  step node --test tests/*.test.mjs
fi
echo "== all passed"
