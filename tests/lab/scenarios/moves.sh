# shellcheck shell=bash
#: a card goes into a VM and back: ROUNDS (20) times; while it is held, does not answer or its driver never lets go; killed at PLACES (12) places; while libvirt restarts; while the VM runs
#long
#short ROUNDS=2 PLACES=2 STEP_MS=3000 RESTARTS=1

# A whole attach takes some ten seconds under emulation: the kills are spread over it.
ROUNDS=${ROUNDS:-20} PLACES=${PLACES:-12} STEP_MS=${STEP_MS:-1000}
HOST="nvidia snd_hda_intel" VFIO="vfio-pci vfio-pci"

drivers() { echo "$(driver "$SECOND.0") $(driver "$SECOND.1")"; }
expect_drivers() { # WORDS
  local now
  now=$(drivers)
  [ "$now" = "$1" ] || fail "the card's functions are on \`$now\`, not on \`$1\`"
}
# The slot is in one hand: both functions are the host's or both are vfio-pci's.
whole() {
  local now
  now=$(drivers)
  case $now in "$HOST" | "$VFIO") say "   whole: $now" ;; *) fail "half of the slot moved: $now" ;; esac
}
passed() { guest "virsh dumpxml --inactive tiny | grep -c '<hostdev '" || true; }
attach() { guest gpuvm -q gpu attach tiny "$SECOND" --yes; }
detach() { guest gpuvm -q gpu detach tiny "$SECOND" --yes; }

boot twin --disk baked
manifest <<Y
version: 1
gpus:
  render: { match: "$FIRST", use: host }
  work:   { match: "$SECOND", use: host }
networks:
  nat: { libvirt: default }
vms:
  tiny: { cpus: 1, memory: 256MiB, accel: tcg, network: nat, boot: $GUEST_BOOT, start: manual }
Y
expect_status 0 guest gpuvm apply -f host.yaml --yes
expect_drivers "$HOST"
expect_status 0 guest gpuvm gpu list

step "$ROUNDS times in and out"
for n in $(seq "$ROUNDS"); do
  attach >"$LAST" 2>&1 </dev/null || { show_last; fail "attach, round $n"; }
  expect_drivers "$VFIO"
  [ "$(passed)" = 2 ] || fail "round $n: the VM does not have both functions"
  detach >"$LAST" 2>&1 </dev/null || { show_last; fail "detach, round $n"; }
  expect_drivers "$HOST"
  [ "$(passed)" = 0 ] || fail "round $n: the VM still has a function"
done
expect_status 0 guest gpuvm gpu detach tiny "$SECOND" --yes
expect_text "nothing to do"

step "somebody holds it"
node=$(guest "ls /sys/bus/pci/devices/$SECOND.0/misc")
guest "systemd-run -q --unit=holder sleep infinity && systemctl stop holder
  systemd-run -q --unit=holder sh -c 'exec sleep infinity </dev/$node'"
expect_status 1 guest gpuvm gpu attach tiny "$SECOND" --yes
expect_text holder.service "systemctl stop" "nothing is changed"
expect_drivers "$HOST"
guest systemctl stop holder

step "it does not answer"
touch "$DIR/s/gpu2v.ones"
expect_status 1 guest gpuvm gpu attach tiny "$SECOND" --yes
expect_text "does not answer"
expect_drivers "$HOST"
rm "$DIR/s/gpu2v.ones"

step "its driver never lets go"
guest 'echo 1 >/sys/module/nvidia/parameters/stuck'
t0=$SECONDS
expect_status 1 guest gpuvm gpu attach tiny "$SECOND" --yes
[ $((SECONDS - t0)) -lt 180 ] || fail "the answer took $((SECONDS - t0)) s"
[ "$(passed)" = 0 ] || fail "the VM has a card that the host still holds"
guest 'echo 0 >/sys/module/nvidia/parameters/stuck'
# The verb, said again, ends what was begun.
expect_status 0 guest gpuvm gpu attach tiny "$SECOND" --yes
expect_drivers "$VFIO"
expect_status 0 guest gpuvm gpu detach tiny "$SECOND" --yes
expect_drivers "$HOST"

step "killed at $PLACES places of each way"
for way in attach detach; do
  for n in $(seq "$PLACES"); do
    # The other way first, where the last round ended it.
    if [ "$way" = attach ]; then detach; else attach; fi >"$LAST" 2>&1 </dev/null || { show_last; fail "before $way $n"; }
    guest "gpuvm -q gpu $way tiny $SECOND --yes >/dev/null 2>&1 & sleep $((n * STEP_MS / 1000)).$(printf %03d $((n * STEP_MS % 1000)))
      pkill -KILL -x gpuvm; wait" || true
    # One that was cut off ends with a status of its own.
    status=$({ guest gpuvm status --output json </dev/null || true; } | jq -r .state)
    say "   $way, killed after $((n * STEP_MS)) ms: $status, $(drivers), the VM has $(passed)"
    case $status in
      cut-off) guest gpuvm -q apply --abandon --yes >"$LAST" 2>&1 </dev/null || { show_last; fail "abandon"; } ;;
      ended | none) ;;
      *) fail "status says \`$status\`" ;;
    esac
    if [ "$way" = attach ]; then attach; else detach; fi >"$LAST" 2>&1 </dev/null || { show_last; fail "$way $n, again"; }
    whole
    case $way in
      attach) [ "$(passed)" = 2 ] || fail "the VM does not have both functions" ;;
      detach) [ "$(passed)" = 0 ] || fail "the VM still has a function" ;;
    esac
  done
done
expect_drivers "$HOST"

step "libvirt restarts meanwhile"
for n in $(seq "${RESTARTS:-4}"); do
  guest "(sleep 0.$((n * 2)); systemctl restart libvirtd virtqemud 2>/dev/null) & gpuvm -q gpu attach tiny $SECOND --yes; wait" >"$LAST" 2>&1 </dev/null || show_last
  whole
  attach >"$LAST" 2>&1 </dev/null || { show_last; fail "attach after the restart"; }
  expect_drivers "$VFIO"
  detach >"$LAST" 2>&1 </dev/null || { show_last; fail "detach after the restart"; }
done
expect_drivers "$HOST"

# A guest that starts under emulation takes minutes.
[ -z "${LAB_SHORT:-}" ] || return 0
step "while the VM runs"
expect_status 0 guest gpuvm vm start tiny
expect_status 0 vm_console tiny 900
expect_text GUEST-READY
expect_no_text "0x10de 0x2684"
# Its machine has ports to spare: both functions come as one card, live, and go as one.
expect_status 0 guest gpuvm gpu attach tiny "$SECOND" --yes
expect_drivers "$VFIO"
for n in 1 2 3; do
  expect_status 0 vm_console tiny 900
  ! grep -q "0x10de 0x2684" "$LAST" || break
done
expect_text "0x10de 0x2684" "0x10de 0x22ba"
expect_status 0 guest gpuvm vm info tiny
expect_status 0 guest gpuvm gpu detach tiny "$SECOND" --yes
expect_drivers "$HOST"
expect_status 0 vm_console tiny 900
expect_no_text "0x10de 0x2684"
expect_status 0 guest gpuvm vm stop tiny --force --timeout 60
