# shellcheck shell=bash
# A QEMU with vfio-user-pci (10.1 and later) in a chroot, so that the machine's own packages stay as they are.
rm -rf "${LAB:?}/qroot"
mmdebstrap --quiet --variant=essential --aptopt='APT::Default-Release "trixie-backports"' \
  --include=qemu-system-x86,ovmf,seabios,ipxe-qemu trixie "$LAB/qroot" \
  "deb $MIRROR trixie main" "deb $MIRROR trixie-backports main"
mkdir -p "$LAB/qroot/lab"
