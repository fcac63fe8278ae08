#!/usr/bin/env bash
# Runs every fuzz target of the module for a while each, one on each core (or FUZZ_JOBS at once).
#   scripts/fuzz.sh [TIME, default 20s; 1000000x for a number of executions]
# Go's fuzzer takes one target a run; the targets are found by name.
set -euo pipefail
cd "$(dirname "$0")/.."
export TIME=${1:-20s}
one() {
  local out; out=$(mktemp)
  if go test "$1" -run '^$' -fuzz "^$2\$" -fuzztime "$TIME" -fuzzminimizetime 10x -parallel 1 >"$out" 2>&1; then
    echo "ok    $1 $2  $(grep 'elapsed' "$out" | tail -n 1 | sed 's/^fuzz: //')"
  elif grep -q 'context deadline exceeded' "$out" && grep -q 'elapsed' "$out" && ! grep -qE 'Failing input|panic|_test\.go:' "$out"; then
    # The time ran out in the middle of an execution, which Go's fuzzer reports as a failure without an input.
    echo "ok    $1 $2  $(grep 'elapsed' "$out" | tail -n 1 | sed 's/^fuzz: //'), ended in the middle of an execution"
  else
    echo "FAIL  $1 $2"; cat "$out"; rm -f "$out"; return 1
  fi
  rm -f "$out"
}
export -f one
targets=$(git ls-files -co --exclude-standard '*_test.go' | xargs grep -nE '^func Fuzz' |
  sed -E 's#^(([^:]*)/)?[^:/]*:[0-9]+:func (Fuzz[A-Za-z0-9_]*).*#./\2 \3#' | sort)
# Test binaries are built before, two builds at once would only wait for each other.
go vet $(cut -d' ' -f1 <<<"$targets" | sort -u)
xargs -P "${FUZZ_JOBS:-$(nproc)}" -L 1 bash -c 'one "$0" "$1"' <<<"$targets"
echo "$(wc -l <<<"$targets") fuzz targets"
