#!/usr/bin/env bash
# Builds the foreign programs that the tests run and Debian does not package, by exact version, once per machine, into a cache
# outside the tree, and prints the path of the program asked for.   scripts/tools.sh versitygw
# A first build takes minutes of processor time. HOLDFAST_TOOLS names another cache.
set -euo pipefail
declare -A MODULE=([versitygw]=github.com/versity/versitygw/cmd/versitygw) VERSION=([versitygw]=v1.8.0)
tool=${1:?usage: tools.sh TOOL}
[ -n "${MODULE[$tool]:-}" ] || { echo "no tool $tool; there are: ${!MODULE[*]}" >&2; exit 2; }
cache=${HOLDFAST_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/holdfast-tools}
dir=$cache/$tool@${VERSION[$tool]}
if [ ! -x "$dir/$tool" ]; then
  mkdir -p "$dir"
  exec 9>"$dir/lock"; flock 9 # two tests at once build it once
  if [ ! -x "$dir/$tool" ]; then
    echo "building $tool ${VERSION[$tool]} once" >&2
    temp=$(mktemp -d "$dir/build.XXXXXX"); trap 'rm -rf "$temp"' EXIT
    # Outside the module, so that its go.mod has no say in the tool's versions; -p 1 leaves the machine to others.
    (cd "$temp" && GOBIN=$temp GOFLAGS= CGO_ENABLED=0 nice -n 10 "${GO:-go}" install -p 1 "${MODULE[$tool]}@${VERSION[$tool]}") >&2
    mv "$temp/$tool" "$dir/$tool" # whole or not at all
  fi
fi
echo "$dir/$tool"
