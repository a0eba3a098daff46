#!/usr/bin/env bash
# Cuts the power of a cluster's nodes many times (200, or the first argument), each time checking that all that was
# acknowledged is there. Needs root and loop devices. CI does 15 of these.
set -euo pipefail
cd "$(dirname "$0")/.."
export MOIM_TEST_MOUNTS=1 MOIM_POWER_CUTS="${1:-200}" MOIM_POWER_SEED="${MOIM_POWER_SEED:-$RANDOM}"
exec cargo test -p moim-raft --locked --test power -- --nocapture
