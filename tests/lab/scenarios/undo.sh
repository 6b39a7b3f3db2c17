# shellcheck shell=bash
#: undo of the whole twin host, VM and bridge included, across a reboot: every file as before, both cards on their drivers
#long

boot twin --disk baked
manifest <<Y
version: 1
host: labhost
kernelArgs: [hpet=disable]
packages: [tree]
gpus:
  render: { match: "$FIRST", use: host }
  work:   { match: "$SECOND", expect: { id: "10de:2684" }, use: vfio }
files:
  /etc/motd: { content: "of gpuvm\n", takeOver: true }
bridge: { name: br0 }
vms:
  desktop: { cpus: 1, memory: 256MiB, accel: tcg, disks: [64MiB], gpus: [work], network: br0, boot: $GUEST_BOOT, start: boot }
Y
# What update-grub makes of this host, and not of the folder that its disk was made in.
guest update-grub >"$LAST" 2>&1
snapshot_files before
apply_across_reboot 900
expect_status 0 guest gpuvm plan -f host.yaml
# A guest that is still booting does not hear the power button.
expect_status 0 vm_console desktop 900
expect_text GUEST-READY

expect_status 2 guest gpuvm undo --plan
expect_text "libvirt-domain[desktop]" "bridge[br0]" "vfio-binding[work]" reboot
undo_across_reboot 900
expect_status 2 guest gpuvm plan -f host.yaml
for function in "$FIRST.0:nvidia" "$FIRST.1:snd_hda_intel" "$SECOND.0:nvidia" "$SECOND.1:snd_hda_intel"; do
  expect_driver "${function%:*}" "${function##*:}"
done
expect_status 0 guest 'ip -br address; ! ip link show dev br0 2>/dev/null; ! virsh -q list --all --name | grep .; cat /proc/cmdline'
expect_text "10.0.2.15/24"
expect_no_text hpet br0 desktop
# What an initramfs is made of is the same, and the time of its making is in it. The disk is a person's data: it stays. What
# netplan (its Python, compiled) and libvirt (a profile, its autostart folder) wrote for themselves is theirs.
snapshot_files after
for name in before after; do
  sed -i -E '\#/boot/initrd\.img|/var/lib/(dpkg|apt|ucf|libvirt)/|/var/lib/ucf|/etc/libvirt/storage|mandb|/usr/(share|bin).*tree|/__pycache__/|/etc/apparmor.d/libvirt/|/etc/libvirt/qemu/autostart/#d' "$DIR/files.$name"
done
same_files before after

step "the disk goes by its own word"
expect_status 0 guest ls /var/lib/libvirt/images
expect_text desktop-0.qcow2
