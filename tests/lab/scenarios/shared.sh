# shellcheck shell=bash
#: a GPU that host and VMs share: handed over by gpuvm and virsh, its service stopped and started again; swapped; held; a driver that never lets go; the script killed at PLACES (8) places of each way; a crash of the host
#long

PLACES=${PLACES:-8}
HOST="nvidia snd_hda_intel" VFIO="vfio-pci vfio-pci"

drivers() { echo "$(driver "$SECOND.0") $(driver "$SECOND.1")"; }
# is DRIVERS WORKER: waits a minute for a give that nobody waits for.
is() {
  local now i
  for i in {1..60}; do
    now="$(drivers), $(guest systemctl is-active worker.service </dev/null || true), $(guest systemctl is-active idle.service </dev/null || true)"
    [ "$now" != "$1, $2, inactive" ] || return 0
    # Another unit's end: there is no event to be waited for from here.
    [ "$i" = 60 ] || sleep 1
  done
  fail "it is \`$now\`, not \`$1, $2, inactive\`"
}
cut() { guest virsh -q destroy "$1"; }

boot twin --disk baked
manifest <<Y
version: 1
gpus:
  render: { match: "$FIRST", use: host }
  spare:  { match: "$SECOND", use: shared, release: [worker.service, idle.service] }
networks:
  nat: { libvirt: default }
vms:
  one: { cpus: 1, memory: 256MiB, accel: tcg, gpus: [spare], network: nat, boot: $GUEST_BOOT, start: manual }
  two: { cpus: 1, memory: 256MiB, accel: tcg, gpus: [spare], network: nat, boot: $GUEST_BOOT, start: manual }
Y
apply_across_reboot 900
node=$(guest "ls /sys/bus/pci/devices/$SECOND.0/misc")
guest "cat >/etc/systemd/system/worker.service <<U
[Service]
ExecStart=/bin/sh -c 'exec sleep infinity </dev/$node'
[Install]
WantedBy=multi-user.target
U
printf '[Service]\nExecStart=/bin/sleep infinity\n' >/etc/systemd/system/idle.service
systemctl daemon-reload && systemctl enable --now worker.service"
is "$HOST" active
expect_status 0 guest gpuvm plan -f host.yaml

step "by gpuvm"
expect_status 0 guest gpuvm vm start one
is "$VFIO" inactive
expect_status 0 guest gpuvm plan -f host.yaml
expect_status 0 guest gpuvm gpu status spare -f host.yaml
expect_text "VM one has it; stopped for it: worker.service"
cut one
is "$HOST" active

step "by virsh, and a VM that ends in whichever way"
expect_status 0 guest virsh -q start one
is "$VFIO" inactive
expect_status 0 vm_console one 900
expect_text GUEST-READY "0x10de 0x2684"
guest "kill -KILL \$(cat /run/libvirt/qemu/one.pid)"
is "$HOST" active
expect_status 0 guest virsh -q start one
is "$VFIO" inactive

step "the second is refused, or takes its place"
expect_status 1 guest virsh -q start two
expect_text "VM one has spare"
expect_status 1 guest gpuvm vm start two
expect_text "VM \`one\`" "--swap"
is "$VFIO" inactive
expect_status 0 vm_console one 900
expect_status 0 guest gpuvm vm start two --swap
expect_status 0 guest virsh list --name
expect_text two
expect_no_text one
is "$VFIO" inactive
cut two
is "$HOST" active

step "somebody else holds it"
guest "systemd-run -q --unit=holder sh -c 'exec sleep infinity </dev/$node'"
expect_status 1 guest virsh -q start one
expect_text holder.service
is "$HOST" active
guest systemctl stop holder

step "it does not answer"
touch "$DIR/s/gpu2v.ones"
expect_status 1 guest virsh -q start one
expect_text "does not answer"
rm "$DIR/s/gpu2v.ones"
is "$HOST" active

step "its driver never lets go"
guest 'echo 1 >/sys/module/nvidia/parameters/stuck'
t0=$SECONDS
expect_status 1 guest virsh -q start one
expect_text "has not come back from the kernel"
[ $((SECONDS - t0)) -lt 240 ] || fail "the answer took $((SECONDS - t0)) s"
guest 'echo 0 >/sys/module/nvidia/parameters/stuck'
guest "flock -w 120 /run/gpuvm/shared/write/$SECOND.0 true"
expect_status 0 guest gpuvm apply -f host.yaml --yes
is "$HOST" active

step "killed at $PLACES places of each way"
for n in $(seq "$PLACES"); do
  guest "systemctl start --no-block gpuvm-take@spare:one; sleep 0.$((n * 10 / PLACES))$((n % 10)); systemctl kill -s KILL gpuvm-take@spare:one" || true
  say "   take: $(drivers)"
  # Another VM's start does not wait for what was cut off for ever, and gpuvm knows that the VM is off.
  expect_status 0 guest gpuvm apply -f host.yaml --yes
  is "$HOST" active
  expect_status 0 guest virsh -q start one
  is "$VFIO" inactive
  guest "virsh -q destroy one; sleep 0.$((n * 10 / PLACES))$((n % 10)); systemctl kill -s KILL gpuvm-give@spare" || true
  say "   give: $(drivers)"
  expect_status 0 guest gpuvm apply -f host.yaml --yes
  is "$HOST" active
done

step "the host crashes while the VM has it"
guest systemctl disable worker.service
expect_status 0 guest virsh -q start one
is "$VFIO" inactive
guest 'echo b >/proc/sysrq-trigger' </dev/null || true
wait_back "${BACK_S:-300}" || fail "the host did not come back"
# Nothing but what is owed starts it.
is "$HOST" active
expect_status 0 guest gpuvm plan -f host.yaml
expect_status 0 guest virsh -q start one
is "$VFIO" inactive
