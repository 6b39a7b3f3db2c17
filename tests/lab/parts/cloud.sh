# shellcheck shell=bash
# The disk `cloud`: the baked one with an image for guests, as distributions publish them: a small Debian 13 with
# cloud-init, QEMU's guest agent and ssh, a UEFI boot loader, its root the last partition, and nobody who can log in.
#needs baked
root=$LAB/cloud-root image=$LAB/cloud-image.raw mount=$LAB/mnt
esp_start=2048 esp_size=262144 sectors=4194304 # sectors

loop='' mounted=''
tidy() {
  [ -z "$mounted" ] || umount "$mount"
  [ -z "$loop" ] || losetup -d "$loop"
}
trap tidy EXIT

packages=linux-image-cloud-amd64,systemd-sysv,udev,dbus,openssh-server,iproute2,kmod,initramfs-tools,netplan.io
packages+=,systemd-resolved,cloud-init,cloud-guest-utils,fdisk,qemu-guest-agent,sudo,pciutils,procps,zstd
rm -rf "${root:?}"
mmdebstrap --quiet --variant=minbase --components=main --include="$packages" trixie "$root" "$MIRROR"
kernel=$(basename "$(find "$root/lib/modules" -mindepth 1 -maxdepth 1 | sort -V | tail -n 1)")

rm -f "$image"
truncate -s $(((ROOT_START + sectors + 2048) * 512)) "$image"
printf 'label: gpt\nstart=%s,size=%s,type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\nstart=%s,size=%s,type=0FC63DAF-8483-4772-8E79-3D69D8477DE4\n' \
  "$esp_start" "$esp_size" "$ROOT_START" "$sectors" | sfdisk -q "$image"
loop=$(losetup -f --show -o $((ROOT_START * 512)) --sizelimit $((sectors * 512)) "$image")
mkfs.ext4 -q -L root "$loop"
mkdir -p "$mount"
mount "$loop" "$mount"
mounted=1
cp -a "$root/." "$mount/"
echo 'LABEL=root / ext4 defaults 0 1' >"$mount/etc/fstab"
rm -f "$mount"/etc/ssh/ssh_host_* "$mount/etc/hostname"
: >"$mount/etc/machine-id"
for unit in systemd-networkd systemd-resolved ssh serial-getty@ttyS0; do
  chroot "$mount" systemctl enable -q "$unit" 2>/dev/null || true
done
for unit in apt-daily apt-daily-upgrade dpkg-db-backup e2scrub_all fstrim; do
  chroot "$mount" systemctl disable -q "$unit.timer" 2>/dev/null || true
done
ln -sf ../run/systemd/resolve/stub-resolv.conf "$mount/etc/resolv.conf"
# Where seeds are looked for; the image's makers say so too.
echo 'datasource_list: [ NoCloud, None ]' >"$mount/etc/cloud/cloud.cfg.d/90-lab.cfg"
mkdir -p "$mount/boot/grub"
cat >"$mount/boot/grub/grub.cfg" <<G
set timeout=0
menuentry first { linux /boot/vmlinuz-$kernel root=LABEL=root ro no_timer_check console=ttyS0,115200
initrd /boot/initrd.img-$kernel }
G
umount "$mount"
mounted=''
losetup -d "$loop"
loop=$(losetup -f --show -o $((esp_start * 512)) --sizelimit $((esp_size * 512)) "$image")
mkfs.vfat -F 32 -n ESP "$loop" >/dev/null
losetup -d "$loop"
loop=''
mmd -i "$image@@$((esp_start * 512))" ::/EFI ::/EFI/BOOT
mcopy -i "$image@@$((esp_start * 512))" "$LAB/BOOTX64.EFI" ::/EFI/BOOT/BOOTX64.EFI
qemu-img convert -O qcow2 "$image" "$LAB/cloud-image.qcow2"
rm -rf "$image" "${root:?}"

rm -f "$LAB/cloud.img.new"
cp --sparse=always "$LAB/baked.img" "$LAB/cloud.img.new"
loop=$(losetup -f --show -o $((ROOT_START * 512)) --sizelimit $((ROOT_SIZE * 512)) "$LAB/cloud.img.new")
mount "$loop" "$mount"
mounted=1
mv "$LAB/cloud-image.qcow2" "$mount/var/lib/gpuvm-lab/debian-13-lab.qcow2"
umount "$mount"
mounted=''
losetup -d "$loop"
loop=''
mv "$LAB/cloud.img.new" "$LAB/cloud.img"
