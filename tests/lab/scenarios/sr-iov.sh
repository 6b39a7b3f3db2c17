# shellcheck shell=bash
#: virtual functions of a network card: made, given to a VM, refused while it has one, made again at a boot, not with gpuvm.off, and gone when they leave the manifest
#long

NIC=0000:02:00.0 VF=0000:02:10.0 VF1=0000:02:10.2
number() { guest cat "/sys/bus/pci/devices/$NIC/sriov_numvfs" </dev/null; }
has() { [ "$(number)" = "$1" ] || fail "$NIC has $(number) virtual functions, not $1"; }
mac_of() { # NUMBER: the Ethernet address that the card gives one of them
  guest "ip -json link show dev \"\$(ls /sys/bus/pci/devices/$NIC/net)\"" </dev/null |
    jq -r ".[0].vfinfo_list[] | select(.vf == $1) | .address // .mac"
}
wanted() { # COUNT
  manifest <<Y
version: 1
devices:
  nic: { match: "${NIC%.*}", expect: { id: "8086:10c9" }, use: host, virtualFunctions: { count: $1, macs: ["52:54:00:aa:00:01"] } }
vms:
  one: { cpus: 1, memory: 256MiB, accel: tcg, devices: [nic/0], boot: $GUEST_BOOT, start: manual }
Y
}

unwanted() { # no virtual functions
  manifest <<Y
version: 1
devices:
  nic: { match: "${NIC%.*}", use: host }
vms:
  one: { cpus: 1, memory: 256MiB, accel: tcg, boot: $GUEST_BOOT, start: manual }
Y
}

boot sr-iov --disk baked
expect_driver "$NIC" igb
wanted 8
expect_status 1 guest gpuvm plan -f host.yaml
expect_text "7 virtual functions at most"
has 0

step "made, and given to a VM"
wanted 2
apply_across_reboot 900
has 2
expect_driver "$VF" vfio-pci
expect_driver "$VF1" vfio-pci
expect_driver "$NIC" igb
[ "$(mac_of 0)" = 52:54:00:aa:00:01 ] || fail "the first has the address $(mac_of 0)"
second=$(mac_of 1)
expect_status 0 guest gpuvm plan -f host.yaml
expect_status 0 guest gpuvm vm start one
expect_status 0 vm_console one 900
expect_text GUEST-READY "0x8086 0x10ca"
expect_status 0 guest gpuvm vm info one
expect_text nic/0

step "another number of them while the VM has one"
wanted 3
expect_status 1 guest gpuvm plan -f host.yaml
expect_text "VM \`one\` has one of them"
unwanted
expect_status 1 guest gpuvm plan -f host.yaml
expect_text "VM \`one\` has one of them"
has 2
guest virsh -q destroy one
wanted 3
apply_across_reboot 900
has 3

step "made again at a boot, before libvirt"
wanted 2
apply_across_reboot 900
guest systemctl reboot || true
wait_back "${BACK_S:-120}" || fail "the host did not come back"
has 2
expect_driver "$VF" vfio-pci
[ "$(mac_of 1)" = "$second" ] || fail "the second has the address $(mac_of 1), and had $second"
expect_status 0 guest gpuvm plan -f host.yaml
expect_status 0 guest gpuvm vm start one
guest virsh -q destroy one

step "not with gpuvm.off"
boot_with gpuvm.off
has 0
guest update-grub
guest systemctl reboot || true
wait_back "${BACK_S:-120}" || fail "the host did not come back"

step "the host's own"
guest "sed -i 's/count: 2,/count: 2, use: host,/; s/ devices: \[nic.0\],//' host.yaml"
apply_across_reboot 900
expect_driver "$VF" igbvf
[ "$(mac_of 0)" = 52:54:00:aa:00:01 ] || fail "the first has the address $(mac_of 0)"

step "they leave the manifest"
unwanted
apply_across_reboot 900
has 0
expect_status 0 guest gpuvm plan -f host.yaml
guest "! ls /etc/gpuvm/virtual-functions/nic /usr/local/lib/gpuvm/virtual-functions" || fail "something is left"
