# shellcheck shell=bash
#: CYCLES (100) starts and stops of a VM with a passed card, and REBOOTS (20) of the host, without a hand on it
#long

CYCLES=${CYCLES:-100} REBOOTS=${REBOOTS:-20}

boot twin --disk baked
manifest <<Y
version: 1
gpus:
  work: { match: "$SECOND", expect: { id: "10de:2684" }, use: vfio }
bridge: { name: br0 }
vms:
  desktop: { cpus: 1, memory: 256MiB, accel: tcg, gpus: [work], network: br0, boot: $GUEST_BOOT, start: boot }
Y
apply_across_reboot 900

# Under emulation a guest takes minutes until it hears the power button; what is looked at here is the card.
step "$CYCLES starts and stops"
for n in $(seq "$CYCLES"); do
  guest "gpuvm -q vm stop desktop --force --timeout 0 && gpuvm -q vm start desktop" >"$LAST" 2>&1 </dev/null ||
    { show_last; fail "cycle $n"; }
  [ $((n % 10)) != 0 ] || say "   $n"
done
for function in "$SECOND.0:vfio-pci" "$SECOND.1:vfio-pci"; do
  expect_driver "${function%:*}" "${function##*:}"
done
expect_status 0 guest gpuvm plan -f host.yaml

step "$REBOOTS reboots"
slowest=0
for n in $(seq "$REBOOTS"); do
  # An emulated guest does not hear the power button for minutes, which libvirt-guests would wait for.
  expect_status 0 guest gpuvm -q vm stop desktop --force --timeout 0
  guest systemctl reboot || true
  wait_back "${BACK_S:-120}" || fail "reboot $n: the host did not come back"
  [ "$BACK" -le "$slowest" ] || slowest=$BACK
  # shellcheck disable=SC2016 # for the lab host's shell
  guest 'n=0; until virsh -q domstate desktop 2>/dev/null | grep -q running; do sleep 1; n=$((n+1)); [ $n -lt 120 ] || exit 1; done' ||
    fail "reboot $n: the VM did not start"
  expect_status 0 guest gpuvm plan -f host.yaml
done
say "   $CYCLES cycles, $REBOOTS reboots; ssh answered within $slowest s each time"
