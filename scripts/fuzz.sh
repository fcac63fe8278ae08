#!/usr/bin/env bash
# Runs every fuzz target of the module for a while each.   scripts/fuzz.sh [TIME, default 20s]
# Go's fuzzer takes one target a run; the targets are found by name.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-20s}; n=0
while IFS=: read -r file _ rest; do
  name=$(sed -E 's/^func (Fuzz[A-Za-z0-9_]*).*/\1/' <<<"$rest")
  echo "fuzz ./$(dirname "$file") $name $time"
  go test "./$(dirname "$file")" -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 10x >/tmp/fuzz.$$ 2>&1 || { cat /tmp/fuzz.$$; exit 1; }
  tail -n 2 /tmp/fuzz.$$ | head -n 1; n=$((n+1))
done < <(git ls-files -co --exclude-standard '*_test.go' | xargs grep -nE '^func Fuzz' | sort)
rm -f /tmp/fuzz.$$
echo "$n fuzz targets"
