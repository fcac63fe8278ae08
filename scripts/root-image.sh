#!/usr/bin/env bash
# Makes a Debian root disk out of real packages: GPT, one ext4 partition.   scripts/root-image.sh OUT.raw [SIZE, default 3G]
# Needs root and the tools of scripts/deps.sh; the package mirror is the one in the machine's own apt configuration.
set -euo pipefail
out=${1:?usage: root-image.sh OUT.raw [SIZE]}; size=${2:-3G}
export SOURCE_DATE_EPOCH=1750000000 LC_ALL=C.UTF-8
mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true; } | awk '/^URIs:/{print $2} /^deb /{print $2}' | grep -v security | head -n 1)
[ -n "$mirror" ] || { echo "no Debian mirror in this machine's apt configuration" >&2; exit 1; }
tree=$(mktemp -d); trap 'rm -rf "$tree"' EXIT
mmdebstrap --quiet --mode=root --variant=minbase --components=main --include="${PACKAGES:-linux-image-amd64,systemd-sysv,python3,gcc,git,perl,vim,openssh-server}" \
  --aptopt='Acquire::Check-Valid-Until false' bookworm "$tree" "$mirror"
rm -f "$out"; truncate -s "$size" "$out"
printf 'label: gpt\nstart=2048, type=L\n' | sfdisk -q "$out"
mke2fs -q -t ext4 -b 4096 -E offset=1048576,lazy_itable_init=0,lazy_journal_init=0,nodiscard -d "$tree" "$out" $(( ($(stat -c %s "$out") - 2097152) / 4096 ))
