# shellcheck shell=bash
#: an uplink of ifupdown is refused before any change; VMs, bridges and netplan entries of others stay as they are

boot twin --ifupdown
manifest <<'Y'
version: 1
bridge: { name: br0 }
Y
expect_status 1 guest gpuvm plan -f host.yaml
expect_text ifupdown enp0s2
snapshot_files before
expect_status 1 guest gpuvm apply -f host.yaml --yes --reboot
snapshot_files after
same_files before after
stop

boot twin --disk baked
step "what others made"
guest 'set -e
  cat >/etc/netplan/70-theirs.yaml
  chmod 600 /etc/netplan/70-theirs.yaml' <<'Y'
network:
  version: 2
  bridges:
    br7:            # of the lab next door
      dhcp4: false
      addresses: [192.0.2.1/24]
      optional: true
Y
guest 'cat >>/etc/netplan/50-cloud-init.yaml' <<'Y'
    # theirs: a second card, not here today
    enp9s0:
      addresses: [ "198.51.100.7/24" ]   # written by hand
      optional: true
    # theirs ends
Y
guest 'cat >/tmp/theirs.xml' <<'X'
<domain type='qemu'>
  <name>theirs</name>
  <metadata><owner xmlns='urn:example:owner'>somebody   else</owner></metadata>
  <memory unit='KiB'>131072</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices><serial type='pty'/></devices>
</domain>
X
guest 'set -e
  netplan apply
  virsh -q define /tmp/theirs.xml
  virsh -q start theirs
  sleep 5'
theirs() {
  guest "cat /etc/libvirt/qemu/theirs.xml /etc/netplan/70-theirs.yaml
    sed -n '/# theirs:/,/# theirs ends/p' /etc/netplan/50-cloud-init.yaml
    virsh domstate theirs; virsh domid theirs; virsh domuuid theirs
    ip -o link show br7 | grep -o 'br7:.* link/ether .*' | sed 's/^.*link/link/'; ip -o -4 address show br7"
}
theirs >"$DIR/theirs.before"
[ "$(grep -c theirs "$DIR/theirs.before")" -ge 3 ] || fail "what others made is not there"
manifest <<Y
version: 1
gpus:
  work: { match: "$SECOND", use: vfio }
bridge: { name: br0 }
vms:
  desktop:
    cpus: 1
    memory: 256MiB
    network: br0
    boot: $GUEST_BOOT
    start: manual
Y
expect_status 2 guest gpuvm plan -f host.yaml
# Their lines stand around ours in a difference; none is added or taken away.
if grep -E '^ *[-+~].*(theirs|br7|enp9s0)' "$LAST"; then fail "the plan touches what is theirs"; fi
# Without a reboot: their VM has to be the same process afterwards.
expect_status 3 guest gpuvm apply -f host.yaml --yes
theirs >"$DIR/theirs.after"
diff "$DIR/theirs.before" "$DIR/theirs.after" >&2 || fail "what others made was changed"
expect_status 0 guest 'ip -o -4 address show dev br0; virsh list --all'
expect_text "inet 10.0.2." desktop theirs
