# shellcheck shell=bash
# The disk `cloud`: the baked one with an image for guests, as distributions publish them: a small Debian 13 with
# cloud-init, QEMU's guest agent and ssh, boot loaders for UEFI and BIOS, its root the last partition, and nobody who can
# log in.
#needs baked
#< disk.sh
# shellcheck source=tests/lab/disk.sh
. "$HERE/disk.sh"
root=$LAB/cloud-root image=$LAB/cloud-image.raw
bios_start=34 bios_size=2014 esp_start=2048 esp_size=262144 sectors=4194304 # all in sectors

packages=linux-image-cloud-amd64,systemd-sysv,udev,dbus,openssh-server,iproute2,kmod,initramfs-tools,netplan.io
packages+=,systemd-resolved,cloud-init,cloud-guest-utils,fdisk,qemu-guest-agent,sudo,pciutils,procps,zstd,grub-pc-bin,grub-common
rm -rf "${root:?}"
mmdebstrap --quiet --variant=minbase --components=main --include="$packages" trixie "$root" "$MIRROR"
kernel=$(basename "$(find "$root/lib/modules" -mindepth 1 -maxdepth 1 | sort -V | tail -n 1)")

rm -f "$image"
truncate -s $(((ROOT_START + sectors + 2048) * 512)) "$image"
sfdisk -q "$image" <<P
label: gpt
first-lba: $bios_start
start=$bios_start, size=$bios_size, type=21686148-6449-6E6F-744E-656564454649
start=$esp_start, size=$esp_size, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
start=$ROOT_START, size=$sectors, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4
P
attach "$image" "$ROOT_START" "$sectors"
mkfs.ext4 -q -L root "$loop"
mount_root
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
# What grub-install does for a BIOS, which needs a device with partitions: the first sector knows where the core begins
# (at 0x5c, 8 bytes), and the core's own first sector where it goes on (at 0x1f4, 8 bytes).
cat >"$mount/tmp/embed.cfg" <<'G'
search --no-floppy --label root --set=root
set prefix=($root)/boot/grub
configfile /boot/grub/grub.cfg
G
chroot "$mount" grub-mkimage -O i386-pc -p /boot/grub -c /tmp/embed.cfg -o /tmp/core.img \
  biosdisk part_gpt ext2 search search_label configfile normal linux
little_endian() { printf '%016x' "$1" | fold -w2 | tac | tr -d '\n' | sed 's/../\\x&/g'; }
# shellcheck disable=SC2059
printf "$(little_endian $((bios_start + 1)))" | dd of="$mount/tmp/core.img" bs=1 seek=$((0x1f4)) conv=notrunc status=none
dd if="$mount/usr/lib/grub/i386-pc/boot.img" of="$image" bs=1 count=440 conv=notrunc status=none
# shellcheck disable=SC2059
printf "$(little_endian "$bios_start")" | dd of="$image" bs=1 seek=$((0x5c)) conv=notrunc status=none
dd if="$mount/tmp/core.img" of="$image" bs=512 seek="$bios_start" conv=notrunc status=none
rm -f "$mount/tmp/core.img" "$mount/tmp/embed.cfg"
let_go
esp "$image" "$esp_start" "$esp_size"
qemu-img convert -O qcow2 "$image" "$LAB/cloud-image.qcow2"
rm -rf "$image" "${root:?}"

rm -f "$LAB/cloud.img.new"
cp --sparse=always "$LAB/baked.img" "$LAB/cloud.img.new"
attach "$LAB/cloud.img.new" "$ROOT_START" "$ROOT_SIZE"
mount_root
mv "$LAB/cloud-image.qcow2" "$mount/var/lib/gpuvm-lab/debian-13-lab.qcow2"
let_go
mv "$LAB/cloud.img.new" "$LAB/cloud.img"
