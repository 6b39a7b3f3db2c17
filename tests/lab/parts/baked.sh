# shellcheck shell=bash
# The baked disk: the bare one after the packages were installed by its own apt, on the booted host.
#needs qemu bare
export LAB_HOST=bake
# shellcheck source=tests/lab/lib.sh
. "$HERE/lib.sh"
trap stop EXIT
"$HERE/boot.sh" plain --fresh
guest 'export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends \
    qemu-system-x86 qemu-utils ovmf libvirt-daemon-system libvirt-clients >/dev/null && apt-get clean
  systemctl poweroff' || true
wait_off 120
mv "$DIR/disk.qcow2" "$LAB/baked.qcow2"
"$HERE/boot.sh" plain --disk baked --fresh
guest virsh --connect qemu:///system list --all
stop
rm -rf "$DIR"
