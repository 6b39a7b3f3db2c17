# shellcheck shell=bash
# The bare disk with dracut in place of initramfs-tools, as Ubuntu 26.04 has it, and with the drivers of both cards forced
# into the initramfs: the hardest case for early binding.
#needs bare
#< derive.sh
#< disk.sh
# shellcheck source=tests/lab/derive.sh
. "$HERE/derive.sh"
derive dracut <<'C'
apt-get update -qq
apt-get install -y -qq --no-install-recommends dracut >/dev/null
apt-get purge -y -qq initramfs-tools initramfs-tools-core >/dev/null
apt-get clean
printf 'hostonly=no\nforce_drivers+=" virtio_pci virtio_blk ext4 nvidia snd_hda_intel "\ncompress="zstd -1"\n' \
  >/etc/dracut.conf.d/lab.conf
kernel=$(ls /lib/modules)
dracut --force --kver "$kernel" "/boot/initrd.img-$kernel" >/dev/null 2>&1
C
