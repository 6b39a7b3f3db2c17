# shellcheck shell=bash
# The bare disk: the lab host's root file system behind a real firmware and GRUB, made without starting it. GRUB is a
# standalone image that finds the root file system by its label, so update-grub and initramfs have their real effect.
#needs root driver guest
#< disk.sh
# shellcheck source=tests/lab/disk.sh
. "$HERE/disk.sh"
root=$LAB/root image=$LAB/bare.img.new
kernel=$(basename "$(find "$root/lib/modules" -mindepth 1 -maxdepth 1 | sort -V | tail -n 1)")
esp_start=2048 esp_size=262144 # sectors

rm -f "$image"
truncate -s 12G "$image"
printf 'label: gpt\nstart=%s,size=%s,type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\nstart=%s,size=%s,type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n' \
  "$esp_start" "$esp_size" "$ROOT_START" "$ROOT_SIZE" | sfdisk -q "$image"
attach "$image" "$ROOT_START" "$ROOT_SIZE"
mkfs.ext4 -q -L root "$loop"
mount_root
cp -a "$root/." "$mount/"

install -Dm644 "$LAB/nvidia.ko" "$mount/lib/modules/$kernel/extra/nvidia.ko"
echo 'blacklist nouveau' >"$mount/etc/modprobe.d/lab-nouveau.conf"
chroot "$mount" depmod "$kernel"
install -d "$mount/var/lib/gpuvm-lab"
install -m644 "$LAB/guest-initrd.img" "$mount/var/lib/gpuvm-lab/guest-initrd.img"
install -m644 "$LAB/guest-vmlinuz" "$mount/var/lib/gpuvm-lab/guest-vmlinuz"

echo labhost >"$mount/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 labhost\n' >"$mount/etc/hosts"
install -d -m700 "$mount/root/.ssh"
install -m600 "$LAB/id.pub" "$mount/root/.ssh/authorized_keys"
cat >"$mount/etc/netplan/50-cloud-init.yaml" <<'Y'
network:
  version: 2
  ethernets:
    enp0s2:
      dhcp4: true
Y
chmod 600 "$mount/etc/netplan/50-cloud-init.yaml"
echo "deb $MIRROR trixie main contrib non-free non-free-firmware" >"$mount/etc/apt/sources.list"
rm -f "$mount"/etc/apt/sources.list.d/*.sources
for unit in systemd-networkd systemd-resolved ssh serial-getty@ttyS0; do
  chroot "$mount" systemctl enable -q "$unit" 2>/dev/null || true
done
# Work that starts by the clock would make two snapshots of the same host differ.
for unit in apt-daily apt-daily-upgrade dpkg-db-backup e2scrub_all fstrim; do
  chroot "$mount" systemctl disable -q "$unit.timer" 2>/dev/null || true
done
ln -sf ../run/systemd/resolve/stub-resolv.conf "$mount/etc/resolv.conf"
# no_timer_check: an emulated timer on a busy machine is too late for the kernel's own test of it, which panics.
cat >"$mount/etc/default/grub" <<'G'
GRUB_DEFAULT=0
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT="console=ttyS0,115200 quiet"
GRUB_CMDLINE_LINUX="no_timer_check"
GRUB_TERMINAL=console
G
# What this machine needs to boot, not what any might: an emulated update-initramfs takes a third of the time.
printf 'MODULES=dep\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\n' >"$mount/etc/initramfs-tools/conf.d/lab"
echo 'LABEL=root / ext4 defaults 0 1' >"$mount/etc/fstab"
mkdir -p "$mount/boot/grub"
cat >"$mount/boot/grub/grub.cfg" <<G
set timeout=0
menuentry first { linux /boot/vmlinuz-$kernel root=LABEL=root ro no_timer_check console=ttyS0,115200 quiet
initrd /boot/initrd.img-$kernel }
G
# shellcheck disable=SC2016
printf 'search --no-floppy --label root --set=root\nset prefix=($root)/boot/grub\nconfigfile /boot/grub/grub.cfg\n' \
  >"$mount/tmp/embed.cfg"
chroot "$mount" grub-mkstandalone -O x86_64-efi \
  --modules="part_gpt ext2 search search_label configfile normal linux" \
  -o /tmp/BOOTX64.EFI "boot/grub/grub.cfg=/tmp/embed.cfg"
mv "$mount/tmp/BOOTX64.EFI" "$LAB/BOOTX64.EFI"
rm -f "$mount/tmp/embed.cfg"
let_go
esp "$image" "$esp_start" "$esp_size"
mv "$image" "$LAB/bare.img"
