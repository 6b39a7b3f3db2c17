# shellcheck shell=bash
# shellcheck source=tests/lab/disk.sh
. "$HERE/disk.sh"

# derive NAME <<'S': the disk NAME is the bare one after these commands ran in its root file system, as its own shell would
# run them before its first boot. No service is started: policy-rc.d(8) says so.
derive() {
  local name=$1 image=$LAB/$1.img.new
  cp --sparse=always "$LAB/bare.img" "$image"
  attach "$image" "$ROOT_START" "$ROOT_SIZE"
  mount_root
  mount --rbind /dev "$mount/dev"
  mount -t proc proc "$mount/proc"
  mount -t tmpfs run "$mount/run"
  mkdir -p "$mount/run/systemd/resolve"
  cp /etc/resolv.conf "$mount/run/systemd/resolve/stub-resolv.conf"
  printf '#!/bin/sh\nexit 101\n' >"$mount/usr/sbin/policy-rc.d"
  chmod 755 "$mount/usr/sbin/policy-rc.d"
  DEBIAN_FRONTEND=noninteractive chroot "$mount" sh -eu
  rm -f "$mount/usr/sbin/policy-rc.d"
  let_go
  mv "$image" "$LAB/$name.img"
}
