# shellcheck shell=bash
# The baked disk: the bare one with libvirt and QEMU.
#needs bare
#< derive.sh
#< disk.sh
# shellcheck source=tests/lab/derive.sh
. "$HERE/derive.sh"
derive baked <<'C'
apt-get update -qq
apt-get install -y -qq --no-install-recommends \
  qemu-system-x86 qemu-utils ovmf libvirt-daemon-system libvirt-clients >/dev/null
apt-get clean
C
