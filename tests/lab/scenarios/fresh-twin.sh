# shellcheck shell=bash
#: one apply takes a minimal host with two equal GPUs to a running VM that has the second one, across a reboot

boot twin
manifest <<Y
version: 1
host: labhost
gpus:
  render: { match: "$FIRST", use: host }
  work:   { match: "$SECOND", expect: { id: "10de:2684" }, use: vfio }
bridge: { name: br0 }
vms:
  desktop:
    cpus: 1
    memory: 256MiB
    gpus: [work]
    network: br0
    boot: $GUEST_BOOT
    start: boot
Y
expect_status 2 guest gpuvm plan -f host.yaml
expect_text package br0 "$SECOND" reboot desktop
apply_across_reboot 1500

step "the host after the run"
for function in "$FIRST.0:nvidia" "$FIRST.1:snd_hda_intel" "$SECOND.0:vfio-pci" "$SECOND.1:vfio-pci"; do
  expect_driver "${function%:*}" "${function##*:}"
done
expect_status 0 guest 'ip -o -4 address show dev br0; ip -o link show master br0'
expect_text "inet 10.0.2." enp0s2
expect_status 0 guest 'ip -o -4 address show dev enp0s2'
expect_no_text inet

step "the card inside the VM"
expect_status 0 vm_console desktop 240
expect_text "0x10de 0x2684" "0x10de 0x22ba" GUEST-READY

expect_status 0 guest gpuvm plan -f host.yaml
snapshot_files before
expect_status 0 guest gpuvm apply -f host.yaml --yes
snapshot_files after
same_files before after
