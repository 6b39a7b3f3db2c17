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
    accel: tcg
    gpus: [work]
    network: br0
    boot: $GUEST_BOOT
    start: boot
Y
expect_status 2 guest gpuvm plan -f host.yaml
expect_text package br0 "$SECOND" reboot desktop
# What takes the cards first where nothing of ours does: their drivers, loaded before the root is there.
step "the cards' drivers are forced into the initramfs"
expect_status 0 guest 'printf "%s\n" nvidia snd_hda_intel >>/etc/initramfs-tools/modules'
# A rehearsal cannot know what a package list will say that is not there yet.
step "apt-get update"
guest apt-get update -qq
record before
apply_across_reboot 1500
[ "$BACK" -le "${ANSWERS_S:-120}" ] || fail "the host answered on ssh $BACK s after the reboot"

step "the host after the run"
for function in "$FIRST.0:nvidia" "$FIRST.1:snd_hda_intel" "$SECOND.0:vfio-pci" "$SECOND.1:vfio-pci"; do
  expect_driver "${function%:*}" "${function##*:}"
done
# shellcheck disable=SC2016  # the guest's own kernel
expect_status 0 guest 'lsinitramfs "/boot/initrd.img-$(uname -r)"'
expect_text nvidia.ko snd-hda-intel vfio-pci gpuvm
expect_status 0 guest 'ip -o -4 address show dev br0; ip -o link show master br0'
expect_text "inet 10.0.2." enp0s2
expect_status 0 guest 'ip -o -4 address show dev enp0s2'
expect_no_text inet

step "the card inside the VM"
expect_status 0 vm_console desktop 900
expect_text "0x10de 0x2684" "0x10de 0x22ba" GUEST-READY

expect_status 0 guest gpuvm plan -f host.yaml
record after
rehearsed_as_real
snapshot_files before
expect_status 0 guest gpuvm apply -f host.yaml --yes
snapshot_files after
same_files before after

# The way out at the console: one word on the kernel's command line, and nothing of ours acts.
boot_with gpuvm.off
for function in "$FIRST.0:nvidia" "$FIRST.1:snd_hda_intel" "$SECOND.0:nvidia" "$SECOND.1:snd_hda_intel"; do
  expect_driver "${function%:*}" "${function##*:}"
done

# What a plan with nothing to do asks of the system: no process for each thing.
step "what a plan costs"
guest 'update-grub >/dev/null 2>&1 && systemctl reboot' || true
wait_back "${BACK_S:-120}" || fail "the host did not come back"
guest 'apt-get install -y -qq --no-install-recommends strace >/dev/null'
expect_status 0 guest 'strace -f -e trace=execve -o /tmp/started gpuvm plan -f host.yaml &&
  strace -f -c -o /tmp/calls gpuvm plan -f host.yaml >/dev/null && grep -h -o "execve(.*\]" /tmp/started; tail -n 1 /tmp/calls'
started=$(grep -c '^execve' "$LAST")
[ "$started" -le 6 ] || fail "a plan with nothing to do started $started processes"
