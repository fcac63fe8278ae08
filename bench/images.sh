#!/usr/bin/env bash
# Makes the disks that the bench works on, out of real Debian packages.   bench/images.sh DIR
#   a.raw    a server: 4 GiB GPT disk, ext4, packages, a log, a cache of compressed archives
#   a2.raw   the same disk a day later: packages upgraded or added in place, the log grown, pages of a big file rewritten, files removed
#   b.raw    a sibling with another package set
# Each is kept if it is there. Needs root, loop devices and the tools of scripts/deps.sh.
set -euo pipefail
dir=${1:?usage: images.sh DIR}; mkdir -p "$dir"; dir=$(readlink -f "$dir"); here=$(dirname "$(readlink -f "$0")")
common=linux-image-amd64,systemd-sysv,openssh-server,python3,git,vim,perl,gcc,rsync
[ -s "$dir/a.raw" ] || { PACKAGES=$common,g++,nodejs,postgresql,nginx "$here/../scripts/root-image.sh" "$dir/a.part" 4G; mv "$dir/a.part" "$dir/a.raw"; }
[ -s "$dir/b.raw" ] || { PACKAGES=$common,php,apache2,mariadb-server,cmake "$here/../scripts/root-image.sh" "$dir/b.part" 4G; mv "$dir/b.part" "$dir/b.raw"; }
[ -s "$dir/a2.raw" ] && exit 0
cp --sparse=always "$dir/a.raw" "$dir/a2.part"
mnt=$(mktemp -d); loop=$(losetup -f --show -o 1048576 "$dir/a2.part")
trap 'umount "$mnt" 2>/dev/null || true; losetup -d "$loop" 2>/dev/null || true; rmdir "$mnt"' EXIT
mount -o discard "$loop" "$mnt"
cp -r /usr/lib/python3* "$mnt/srv/" 2>/dev/null || true                    # new files
head -c 200000000 /dev/urandom > "$mnt/var/cache/archive.bin"              # incompressible ones
for i in $(seq 1 60000); do echo "Jun 16 09:$((i%60)):$((i*11%60)) a sshd[$((i*17%30000))]: Failed password for user$((i%19)) port $((i*37%65535)) ssh2"; done >> "$mnt/var/log/auth.log"
rm -rf "$mnt/usr/share/doc" "$mnt/usr/share/man"                           # removed ones
big=$(find "$mnt/usr" -type f -size +20M | sort | head -n 1)
for i in $(seq 1 400); do dd if=/dev/urandom of="$big" bs=8192 count=1 seek=$((i*37 % 2500)) conv=notrunc status=none; done  # pages rewritten in place
find "$mnt/etc" -type f -name '*.conf' | sort | head -n 60 | while read -r f; do cp -p "$f" "$f.new"; echo "# touched" >> "$f.new"; mv "$f.new" "$f"; done
sync; fstrim "$mnt" || true
umount "$mnt"; losetup -d "$loop"; mv "$dir/a2.part" "$dir/a2.raw"
