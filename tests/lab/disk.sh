# shellcheck shell=bash
# What the parts that make disks share: a file system of an image is attached and mounted, and let go of however that ends.
mount=$LAB/mnt
loop='' mounted=''
let_go() {
  [ -z "$mounted" ] || umount --recursive "$mount"
  mounted=''
  [ -z "$loop" ] || losetup -d "$loop"
  loop=''
}
trap let_go EXIT

attach() { # IMAGE START SECTORS: that part of it is the device `loop`
  loop=$(losetup -f --show -o $(($2 * 512)) --sizelimit $(($3 * 512)) "$1")
}

mount_root() { # what is attached, at `mount`
  mkdir -p "$mount"
  mount "$loop" "$mount"
  mounted=1
}

esp() { # IMAGE START SECTORS: a file system for the firmware, with GRUB where any firmware looks
  attach "$@"
  mkfs.vfat -F 32 -n ESP "$loop" >/dev/null
  let_go
  mmd -i "$1@@$(($2 * 512))" ::/EFI ::/EFI/BOOT
  mcopy -i "$1@@$(($2 * 512))" "$LAB/BOOTX64.EFI" ::/EFI/BOOT/BOOTX64.EFI
}
