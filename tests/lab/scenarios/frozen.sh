# shellcheck shell=bash
#: libvirtd hangs (SIGSTOP), or is stopped: whatever is asked ends by itself, says so and changes nothing; it hangs in the middle of an apply, a start, a stop, an attach, a detach and at a console: each ends, and goes on to the same end once libvirt is back
#long

HOST="nvidia snd_hda_intel" VFIO="vfio-pci vfio-pci"
drivers() { echo "$(driver "$SECOND.0") $(driver "$SECOND.1")"; }
expect_drivers() { # WORDS
  local now
  now=$(drivers)
  [ "$now" = "$1" ] || fail "the card's functions are on \`$now\`, not on \`$1\`"
}
passed() { guest "virsh dumpxml --inactive tiny | grep -c '<hostdev '" || true; }
runs() { guest "gpuvm history --output json" | jq length; }

# The daemon goes away by itself when nobody needs it: it is asked something before it is stopped.
freeze() {
  # shellcheck disable=SC2016 # for the lab host's shell
  guest 'virsh -q list >/dev/null && pkill -STOP -x libvirtd && ps -o stat= -C libvirtd | grep -q ^T' || fail "libvirtd is not stopped"
}
thaw() { guest pkill -CONT -x libvirtd || fail "there is no libvirtd"; }
# freeze_at PLACE: libvirtd is stopped by somebody's own hook, which it runs itself and waits for.
freeze_at() { guest "touch /run/freeze.$1"; }
was_frozen() { guest "[ ! -e /run/freeze.$1 ] && ps -o stat= -C libvirtd | grep -q ^T" || fail "libvirtd was not stopped at $1"; }

# hangs LIMIT STATUS COMMAND…: it ends within so many seconds, and says why.
hangs() {
  local limit=$1 wanted=$2 t0=$SECONDS
  shift 2
  expect_status "$wanted" guest "timeout -k 5 $((limit * 2)) $*"
  say "   after $((SECONDS - t0)) s"
  [ $((SECONDS - t0)) -le "$limit" ] || fail "the answer took $((SECONDS - t0)) s"
  expect_text "libvirt did not answer within"
}

boot twin --disk baked
# shellcheck disable=SC2016 # for the lab host's shell
guest 'mkdir -p /etc/libvirt/hooks/qemu.d /etc/libvirt/hooks/network.d
  printf "%s\n" "#!/bin/sh" "f=/run/freeze.\$1.\$2" "[ -e \$f ] || exit 0" "rm \$f" "kill -STOP \$PPID" >/etc/libvirt/hooks/qemu.d/10-freeze
  chmod 755 /etc/libvirt/hooks/qemu.d/10-freeze
  cp /etc/libvirt/hooks/qemu.d/10-freeze /etc/libvirt/hooks/network.d/10-freeze
  # It looks for hooks when it starts.
  systemctl stop libvirtd.service'
manifest <<Y
version: 1
gpus:
  render: { match: "$FIRST", use: host }
  work:   { match: "$SECOND", use: host }
networks:
  nat: { libvirt: default }
vms:
  tiny:  { cpus: 1, memory: 256MiB, accel: tcg, network: nat, boot: $GUEST_BOOT, start: manual }
  other: { cpus: 1, memory: 256MiB, accel: tcg, network: nat, boot: $GUEST_BOOT, start: manual }
Y

step "in the middle of an apply"
freeze_at default.start
hangs 240 1 gpuvm apply -f host.yaml --yes
was_frozen default.start
hangs 60 1 gpuvm plan -f host.yaml
thaw
expect_status 0 guest gpuvm apply -f host.yaml --yes
expect_status 0 guest gpuvm plan -f host.yaml
expect_text "nothing to do"
expect_drivers "$HOST"

step "before anything"
expect_status 0 guest gpuvm vm start other
before=$(runs)
freeze
for verb in "plan -f host.yaml" "apply -f host.yaml --yes" "vm list" "vm info tiny" "vm start tiny" "vm stop other --timeout 5" \
  "vm restart other" "vm delete tiny --yes" "vm snapshot create tiny one" "vm console other" \
  "gpu attach tiny $SECOND --yes" "gpu detach tiny $SECOND --yes" "undo --yes"; do
  hangs 60 1 gpuvm "$verb"
  expect_text "systemctl restart libvirtd"
  expect_no_text "was changed since"
done
[ "$(runs)" = "$before" ] || fail "a run was begun"
# What does not need libvirt is told all the same.
for verb in "gpu list" facts status history; do
  expect_status 0 guest gpuvm "$verb"
done
# As was said: it can be restarted, and the VM runs on.
qemu=$(guest cat /run/libvirt/qemu/other.pid)
expect_status 0 guest systemctl restart libvirtd
expect_status 0 guest gpuvm vm list
[ "$(guest cat /run/libvirt/qemu/other.pid)" = "$qemu" ] || fail "the VM is another"
expect_status 0 guest gpuvm plan -f host.yaml
expect_text "nothing to do"

step "at a console"
# The key that leaves it is heard, whatever hangs.
t0=$SECONDS
expect_status 0 guest '(sleep 5; pkill -STOP -x libvirtd; printf "lost\r\035") | timeout 120 gpuvm vm console other'
[ $((SECONDS - t0)) -le 60 ] || fail "it took $((SECONDS - t0)) s to leave it"
thaw

step "in the middle of a start"
freeze_at tiny.prepare
hangs 240 1 gpuvm vm start tiny
was_frozen tiny.prepare
expect_text "systemctl restart libvirtd"
thaw
expect_status 0 guest gpuvm vm start tiny
expect_status 0 guest gpuvm vm list
expect_text "running"

step "in the middle of a stop"
freeze_at tiny.stopped
hangs 240 1 gpuvm vm stop tiny --force --timeout 5
was_frozen tiny.stopped
thaw
expect_status 0 guest gpuvm vm stop tiny --force --timeout 5
expect_status 0 guest gpuvm plan -f host.yaml
expect_text "nothing to do"

# A driver that takes its time to let go: until then libvirt is not needed, and afterwards it hangs.
for way in attach detach; do
  step "in the middle of \`$way\`"
  [ "$way" = attach ] && guest 'echo 1 >/sys/module/nvidia/parameters/stuck'
  guest "gpuvm -q gpu $way tiny $SECOND --yes >/run/said 2>&1; echo \$? >/run/ended" &
  move=$!
  t0=$SECONDS
  # Once the run has begun a step, whichever it is.
  guest "runs=$(runs); until [ \$(ls /var/lib/gpuvm/runs | wc -l) -gt \$runs ] && grep -qs begins /var/lib/gpuvm/runs/\$((runs + 1))/journal.jsonl; do
      sleep 0.1; done; pkill -STOP -x libvirtd"
  guest 'echo 0 >/sys/module/nvidia/parameters/stuck'
  wait "$move" || true
  say "   ended with $(guest cat /run/ended) after $((SECONDS - t0)) s; $(drivers); the card"
  guest cat /run/said >"$LAST"
  show_last
  [ $((SECONDS - t0)) -le 240 ] || fail "the answer took $((SECONDS - t0)) s"
  [ "$(guest cat /run/ended)" = 1 ] || fail "it did not need libvirt"
  expect_text "libvirt did not answer within"
  thaw
  expect_status 0 guest gpuvm gpu "$way" tiny "$SECOND" --yes
  case $way in
    attach) expect_drivers "$VFIO"; [ "$(passed)" = 2 ] || fail "the VM does not have both functions" ;;
    detach) expect_drivers "$HOST"; [ "$(passed)" = 0 ] || fail "the VM still has a function" ;;
  esac
done

step "stopped, its sockets too"
guest systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service
for verb in "vm list" "vm start tiny" "gpu attach tiny $SECOND --yes"; do
  expect_status 1 guest gpuvm "$verb"
  expect_text "systemctl start libvirtd.socket"
done
expect_status 2 guest gpuvm plan -f host.yaml
expect_text "libvirtd.socket"
expect_status 0 guest gpuvm apply -f host.yaml --yes
expect_status 0 guest gpuvm plan -f host.yaml
expect_text "nothing to do"
expect_status 0 guest gpuvm vm stop other --force --timeout 5
