# shellcheck shell=bash
# derive NAME <<'S': the disk NAME is the bare one after these commands ran in its root file system, as its own shell would
# run them before its first boot. No service is started: policy-rc.d(8) says so.
derive() {
  local name=$1 image=$LAB/$1.img.new mount=$LAB/mnt loop='' mounted=''
  # shellcheck disable=SC2317,SC2329 # called by the trap
  tidy() {
    [ -z "$mounted" ] || umount --recursive "$mount"
    [ -z "$loop" ] || losetup -d "$loop"
  }
  trap tidy EXIT
  cp --sparse=always "$LAB/bare.img" "$image"
  loop=$(losetup -f --show -o $((ROOT_START * 512)) --sizelimit $((ROOT_SIZE * 512)) "$image")
  mkdir -p "$mount"
  mount "$loop" "$mount"
  mounted=1
  mount --rbind /dev "$mount/dev"
  mount -t proc proc "$mount/proc"
  mount -t tmpfs run "$mount/run"
  mkdir -p "$mount/run/systemd/resolve"
  cp /etc/resolv.conf "$mount/run/systemd/resolve/stub-resolv.conf"
  printf '#!/bin/sh\nexit 101\n' >"$mount/usr/sbin/policy-rc.d"
  chmod 755 "$mount/usr/sbin/policy-rc.d"
  DEBIAN_FRONTEND=noninteractive chroot "$mount" sh -eu
  rm -f "$mount/usr/sbin/policy-rc.d"
  umount --recursive "$mount"
  mounted=''
  losetup -d "$loop"
  loop=''
  trap - EXIT
  mv "$image" "$LAB/$name.img"
}
