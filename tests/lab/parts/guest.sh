# shellcheck shell=bash
# The initramfs of the nested guest: busybox, a script, and the modules that make the power button an input device.
#needs root driver
#< guest-init
kernel=$(basename "$(find "$LAB/root/lib/modules" -mindepth 1 -maxdepth 1 | sort -V | tail -n 1)")
tree=$LAB/guest-root
rm -rf "${tree:?}"
mkdir -p "$tree"/{bin,dev,proc,sys,modules}
cp "$LAB/kbuild/usr/bin/busybox" "$tree/bin/busybox"
install -m755 "$HERE/guest-init" "$tree/init"
for module in acpi/button input/evdev; do
  found=$(find "$LAB/root/lib/modules/$kernel/kernel/drivers/${module%/*}" -name "${module#*/}.ko*" | head -n 1)
  case $found in
    '') ;; # built in
    *.xz) xz -dc "$found" >"$tree/modules/${module#*/}.ko" ;;
    *.zst) zstd -qdc "$found" >"$tree/modules/${module#*/}.ko" ;;
    *) cp "$found" "$tree/modules/" ;;
  esac
done
(cd "$tree" && find . | cpio -o -H newc --quiet --owner=+0:+0 | gzip -9) >"$LAB/guest-initrd.img"
cp "$LAB/root/boot/vmlinuz-$kernel" "$LAB/guest-vmlinuz"
