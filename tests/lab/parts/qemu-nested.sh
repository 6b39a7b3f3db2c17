# shellcheck shell=bash
# The QEMU of Debian 13, for topologies without simulated cards: under emulation it runs nested guests with KVM, at the
# speed of emulation, where the later one was seen to end by an assertion of its own (bql_locked).
rm -rf "${LAB:?}/qroot-nested"
mmdebstrap --quiet --variant=essential --include=qemu-system-x86,ovmf,seabios,ipxe-qemu trixie "$LAB/qroot-nested" \
  "deb $MIRROR trixie main"
mkdir -p "$LAB/qroot-nested/lab"
