#!/usr/bin/env bash
# Runs the tests of tape/sgio on real /dev/sg files: in a small Debian guest whose kernel logs in to tgt on its own loopback interface.
#   scripts/tape-guest.sh [FOLDER for kernel and disk, default bin/tape-guest, kept for the next time]
# Needs root for making the disk, and the tools of scripts/deps.sh guest. The guest has no network and runs without hardware help: minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-bin/tape-guest}; mkdir -p "$dir"; dir=$(cd "$dir" && pwd)
export PATH=$PATH:/sbin:/usr/sbin
if [ ! -f "$dir/root.img" ]; then
  mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true; } | awk '/^URIs:/{print $2} /^deb /{print $2}' | grep -v security | head -n 1)
  [ -n "$mirror" ] || { echo "no Debian mirror in this machine's apt configuration" >&2; exit 1; }
  tree=$(mktemp -d); trap 'rm -rf "$tree"' EXIT
  mmdebstrap --quiet --mode=root --variant=minbase --components=main --include=linux-image-cloud-amd64,open-iscsi,tgt,kmod,iproute2,procps \
    --aptopt='Acquire::Check-Valid-Until false' bookworm "$tree" "$mirror"
  cat > "$tree/guest-init" <<'INIT'
#!/bin/sh
# The first and only process: bring up what the tests need, run them from the second disk, switch off.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sys /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp; mount -t tmpfs run /run
ip link set lo up
modprobe -a sg st iscsi_tcp
echo "InitiatorName=iqn.2024-01.test.holdfast:guest" > /etc/iscsi/initiatorname.iscsi
mkdir -p /run/lock && iscsid
head -c "$(sed 's/.*hf_size=\([0-9]*\).*/\1/' /proc/cmdline)" /dev/vdb > /tmp/sgio.test && chmod +x /tmp/sgio.test
cd /tmp && ./sgio.test -test.v -test.timeout 15m && echo GUEST-TESTS-PASS || { dmesg | tail -n 20; echo GUEST-TESTS-FAIL; }
echo o > /proc/sysrq-trigger; sleep 60
INIT
  chmod +x "$tree/guest-init"
  cp "$tree"/boot/vmlinuz-* "$dir/vmlinuz"; cp "$tree"/boot/initrd.img-* "$dir/initrd.img"
  rm -rf "$tree"/boot/* "$tree"/usr/share/doc "$tree"/usr/share/locale "$tree"/var/cache/apt
  truncate -s 1000M "$dir/root.part"
  mke2fs -q -F -t ext4 -O ^has_journal -d "$tree" "$dir/root.part"
  mv "$dir/root.part" "$dir/root.img"
fi
CGO_ENABLED=0 ${GO:-go} vet -tags guest ./tape/sgio
CGO_ENABLED=0 ${GO:-go} test -c -tags guest -o "$dir/sgio.test" ./tape/sgio
size=$(stat -c %s "$dir/sgio.test")
cp "$dir/sgio.test" "$dir/sgio.disk"; truncate -s %4096 "$dir/sgio.disk"
for try in 1 2 3; do # now and then a guest without hardware help stops early in its start
  timeout 900 qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max -m 1024 -smp 2 -nographic -no-reboot -net none \
    -kernel "$dir/vmlinuz" -initrd "$dir/initrd.img" -append "console=ttyS0 panic=-1 root=/dev/vda rw init=/guest-init hf_size=$size" \
    -drive "file=$dir/root.img,format=raw,if=virtio,snapshot=on" -drive "file=$dir/sgio.disk,format=raw,if=virtio,readonly=on" </dev/null >"$dir/console.log" 2>&1 || true
  tr -d '\r' <"$dir/console.log" | sed -n '/^=== RUN/,$p' | grep -v '^\[ '
  grep -q GUEST-TESTS-PASS "$dir/console.log" && exit 0
  grep -q GUEST-TESTS-FAIL "$dir/console.log" && exit 1
  echo "the guest did not come to the tests (try $try); its console is in $dir/console.log" >&2
done
exit 1
