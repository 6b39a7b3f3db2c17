# shellcheck shell=bash
#: libvirt's hook at each start: the right card passes; another card, a lost list and a silent card are refused, with the reason where a person looks; VMs without our devices start in any case
#long

boot twin --disk baked
manifest <<Y
version: 1
gpus:
  work: { match: "$SECOND", expect: { id: "10de:2684" }, use: vfio }
networks:
  nat: { libvirt: default }
vms:
  desktop: { cpus: 1, memory: 256MiB, accel: tcg, gpus: [work], network: nat, boot: $GUEST_BOOT, start: manual }
  plain:   { cpus: 1, memory: 256MiB, accel: tcg, network: nat, boot: $GUEST_BOOT, start: manual }
Y
# Somebody's own hook is there before, and goes on being asked.
# shellcheck disable=SC2016 # for the lab host's shell
guest 'mkdir -p /etc/libvirt/hooks/qemu.d
  printf "%s\n" "#!/bin/sh" "echo \"\$1 \$2 \$3\" >>/run/their-hook" >/etc/libvirt/hooks/qemu.d/10-theirs
  chmod 755 /etc/libvirt/hooks/qemu.d/10-theirs'
apply_across_reboot 900
for function in "$SECOND.0:vfio-pci" "$SECOND.1:vfio-pci"; do
  expect_driver "${function%:*}" "${function##*:}"
done

cut() { guest "virsh -q destroy $1"; }
refused() { # TEXT…
  step "desktop does not start"
  expect_status 1 guest gpuvm vm start desktop
  expect_text "$@"
  expect_status 0 guest gpuvm vm info desktop
  expect_text "$@"
  expect_status 0 guest tail -n 5 /var/log/libvirt/qemu/desktop.log
  expect_text "gpuvm refuses to start it" "$@"
  expect_status 1 guest virsh -q start desktop
  expect_text "$@"
}

step "the right card"
expect_status 0 guest gpuvm vm start desktop
cut desktop
expect_status 0 guest 'cat /run/their-hook; ls /var/lib/gpuvm/seen'
expect_text "desktop prepare begin" "desktop release end" 10de

step "a silent card"
touch "$DIR/s/gpu2v.ones"
refused "does not answer"
rm "$DIR/s/gpu2v.ones"

step "the list of what was meant is lost"
guest mv /etc/gpuvm/devices /root/devices
refused "/etc/gpuvm/devices is not there"
expect_status 0 guest virsh -q start plain
cut plain
guest mv /root/devices /etc/gpuvm/devices

step "gpuvm itself is gone"
guest 'mv /usr/local/bin/gpuvm /root/gpuvm; ! command -v gpuvm'
for name in plain desktop; do
  expect_status 0 guest virsh -q start "$name"
  cut "$name"
done
guest mv /root/gpuvm /usr/local/bin/gpuvm

step "another card is in the slot"
guest systemctl poweroff || true
wait_off 120
BOOT_S=${BACK_S:-120} "$HERE/boot.sh" twin-other --disk baked || fail "the host did not come back"
refused "another device" "10de:2684"
expect_status 0 guest virsh -q start plain
cut plain
expect_status 1 guest gpuvm plan -f host.yaml
expect_text "10de:2204"

step "and back"
guest systemctl poweroff || true
wait_off 120
BOOT_S=${BACK_S:-120} "$HERE/boot.sh" twin --disk baked || fail "the host did not come back"
expect_status 0 guest gpuvm vm start desktop
cut desktop
expect_status 0 guest gpuvm vm info desktop
expect_no_text refuse
expect_status 0 guest gpuvm plan -f host.yaml
