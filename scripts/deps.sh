#!/usr/bin/env bash
# Installs what the tests and the bench need from Debian, when it is missing. Needs root (or sudo) only then.
#   scripts/deps.sh [test|bench|guest]
set -euo pipefail
declare -A PROGRAM=([qemu-img]=qemu-utils [qemu-io]=qemu-utils [nbdcopy]=libnbd-bin [nbdinfo]=libnbd-bin [mmdebstrap]=mmdebstrap
  [mke2fs]=e2fsprogs [sfdisk]=fdisk [jq]=jq [gcc]=gcc [unshare]=util-linux [tgtd]=tgt [promtool]=prometheus)
[ "${1:-test}" = guest ] && PROGRAM+=([qemu-system-x86_64]=qemu-system-x86)
[ "${1:-test}" = bench ] && PROGRAM+=([restic]=restic [borg]=borgbackup [zstd]=zstd [time]=time)
missing=()
for p in "${!PROGRAM[@]}"; do
  PATH=$PATH:/sbin:/usr/sbin type -P "$p" >/dev/null || missing+=("${PROGRAM[$p]}")
done
[ ${#missing[@]} -eq 0 ] && exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
command -v apt-get >/dev/null || { echo "missing: ${missing[*]}; install them by hand on a system without apt-get" >&2; exit 1; }
sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get -qq update
$sudo apt-get -qq -y install --no-install-recommends "${missing[@]}" >/dev/null
