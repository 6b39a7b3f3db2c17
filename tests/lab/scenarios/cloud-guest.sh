# shellcheck shell=bash
#: a real Debian with cloud-init: its user, key, address, disk and card as declared; a snapshot gone back to, a clone, a template, each looked at inside the guest
#long

# A guest that boots under emulation takes minutes, and many when the machine has other work.
READY_S=${READY_S:-1200}
inside() { # VM COMMAND…: a line for the guest's shell, as the user that the manifest gave it
  local vm=$1
  shift
  expect_status 0 guest "gpuvm vm ssh $vm -- $(printf '%q ' "$*")"
}
ready() { # VM
  expect_status 0 guest gpuvm vm wait "$1" --for ssh --timeout "$READY_S"
  # At a first boot cloud-init starts ssh anew once it has said who gets in.
  local n
  for n in {1..60}; do
    guest "gpuvm -q vm ssh $1 -- true" >"$LAST" 2>&1 </dev/null && break
    [ "$n" -lt 60 ] || { show_last; fail "nobody gets into $1"; }
    sleep 5
  done
  inside "$1" sudo cloud-init status --wait
  expect_text "status: done"
}

MEM=6144 boot display --disk cloud
guest "ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519 </dev/null"
manifest <<Y
version: 1
images:
  lab: { path: /var/lib/gpuvm-lab/debian-13-lab.qcow2 }
gpus:
  small: { match: "0000:01:00", use: vfio }
bridge: { name: br0 }
vms:
  web:
    image: lab
    cpus: 1
    memory: 1GiB
    firmware: bios   # UEFI ends the emulated processor: see README.md
    disks: [6GiB]
    user: { name: alice, sshKeys: ["file:/root/.ssh/id_ed25519.pub"] }
    network: { name: br0, address: 10.0.2.50/24, gateway: 10.0.2.2 }
    gpus: [small]
    cloudInit:
      files:
        /etc/motd: { content: "made by a manifest" }
      commands: ["touch /root/commanded"]
    start: boot
Y
apply_across_reboot 1500
expect_driver "0000:01:00.0" vfio-pci

step "inside the guest"
ready web
inside web id
expect_text alice sudo
inside web hostname
expect_text web
inside web cat /etc/motd
expect_text "made by a manifest"
inside web sudo ls /root
expect_text commanded
inside web ip -o -4 address show
expect_text "10.0.2.50/24"
inside web df --output=size -B1M /
size=$(tail -n 1 "$LAST" | tr -d ' ')
[ "$size" -gt 5000 ] || fail "the root file system has $size MiB of a disk of 6 GiB"
inside web lspci -n
expect_text 1234:1111
inside web systemctl is-active qemu-guest-agent
expect_text active
# Nobody has a password: the second field of each account is none that a password could match.
inside web sudo cut -d: -f2 /etc/shadow
expect_no_text '$'
expect_status 0 guest gpuvm vm info web
expect_text 10.0.2.50 "guest agent" small
expect_status 0 guest gpuvm ip list
expect_text 10.0.2.50
expect_status 0 guest gpuvm plan -f host.yaml
expect_text "nothing to do"

step "a snapshot of the VM that runs, and back"
inside web 'echo before >state && sync'
# The card's state cannot be kept, its disk's can: what the guest's agent holds still is whole.
expect_status 0 guest gpuvm vm snapshot create web good --yes
inside web 'echo after >state && sync'
expect_status 0 guest gpuvm vm stop web --timeout "$READY_S"
expect_status 0 guest gpuvm vm snapshot restore web good --discard --yes
expect_status 0 guest gpuvm vm start web
ready web
inside web cat state
expect_text before
expect_status 0 guest gpuvm vm stop web --timeout "$READY_S"

step "a clone, beside it"
expect_status 0 guest gpuvm vm clone web twin --linked --snapshot good --yes
expect_status 0 guest gpuvm vm start twin
ready twin
inside twin cat state
expect_text before
inside twin hostname
expect_text twin
inside twin cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub
cp "$LAST" "$DIR/twin.identity"
expect_status 0 guest gpuvm vm start web
ready web
inside web cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub
! cmp -s "$LAST" "$DIR/twin.identity" || fail "the clone is the same machine to others"
expect_status 0 guest gpuvm vm stop twin --timeout "$READY_S"
expect_status 0 guest gpuvm vm delete twin --yes

step "a template, and a VM of it"
expect_status 0 guest gpuvm vm stop web --timeout "$READY_S"
expect_status 0 guest gpuvm vm template save web golden --yes
expect_status 0 guest gpuvm vm template use golden desk --user bob --key file:/root/.ssh/id_ed25519.pub --cpus 1 --memory 1GiB --disk 7GiB --network br0 --yes
ready desk
inside desk id
expect_text bob
inside desk df --output=size -B1M /
size=$(tail -n 1 "$LAST" | tr -d ' ')
[ "$size" -gt 6000 ] || fail "the root file system has $size MiB of a disk of 7 GiB"
expect_status 0 guest gpuvm vm stop desk --timeout "$READY_S"
expect_status 0 guest gpuvm vm delete desk --yes

step "and it goes"
for name in $(guest "virsh snapshot-list --name web"); do
  expect_status 0 guest gpuvm vm snapshot delete web "$name" --yes
done
expect_status 0 guest gpuvm vm delete web --yes
guest "ls /var/lib/libvirt/images /var/lib/libvirt/qemu/nvram" >"$LAST"
expect_no_text web desk
