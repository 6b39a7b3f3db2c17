# shellcheck shell=bash
#: a host that a person set up with GRUB, modprobe, netplan and virsh: init describes it with an empty plan, adopt takes its VM and a file over by a mark alone, and one changed field changes one element
#long

definition() { guest "virsh dumpxml --inactive hand"; }
# What differs between two definitions, line by line.
differs() { diff "$DIR/$1.xml" "$DIR/$2.xml" | grep '^[<>]' >"$LAST" || true; }

boot twin --disk baked
step "set up by hand"
# shellcheck disable=SC2016 # for the lab host's shell
expect_status 0 guest 'set -e
sed -i "s/^GRUB_CMDLINE_LINUX_DEFAULT=.*/GRUB_CMDLINE_LINUX_DEFAULT=\"console=ttyS0,115200 intel_iommu=on iommu=pt\"/" /etc/default/grub
update-grub 2>/dev/null
cat >/etc/modprobe.d/vfio.conf <<X
options vfio-pci ids=10de:2684,10de:22ba disable_vga=1
softdep nvidia pre: vfio-pci
softdep snd_hda_intel pre: vfio-pci
X
echo vfio-pci >>/etc/initramfs-tools/modules
update-initramfs -u
cat >/etc/netplan/50-cloud-init.yaml <<X
# the lab, third rack
network:
  version: 2
  ethernets:
    enp0s2: { dhcp4: false }
  bridges:
    br0:
      interfaces: [enp0s2]
      macaddress: 52:54:00:4c:41:42
      dhcp4: true
      parameters: { stp: false, forward-delay: 0 }
X
echo "vm.swappiness = 5" >/etc/sysctl.d/99-hand.conf
echo /etc/sysctl.d/99-hand.conf
systemctl reboot' || true
wait_back "${BACK_S:-120}" || fail "the host did not come back"
expect_driver "$SECOND.0" vfio-pci
guest "cat >/tmp/hand.xml && virsh define /tmp/hand.xml && virsh start hand" >"$LAST" 2>&1 <<X || { show_last; fail "virsh"; }
<domain type='qemu'>
  <name>hand</name>
  <title>the one in the corner</title>
  <memory unit='MiB'>256</memory>
  <vcpu placement='static'>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/var/lib/gpuvm-lab/guest-vmlinuz</kernel>
    <initrd>/var/lib/gpuvm-lab/guest-initrd.img</initrd>
    <cmdline>console=ttyS0 quiet</cmdline>
  </os>
  <features><acpi/><kvm><hidden state='on'/></kvm></features>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/></clock>
  <on_crash>preserve</on_crash>
  <devices>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source><address domain='0x0000' bus='0x02' slot='0x00' function='0x0'/></source>
      <rom bar='off'/>
    </hostdev>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source><address domain='0x0000' bus='0x02' slot='0x00' function='0x1'/></source>
    </hostdev>
    <interface type='bridge'><source bridge='br0'/><model type='virtio'/></interface>
    <console type='pty'/>
    <watchdog model='itco' action='none'/>
  </devices>
</domain>
X

step "what init says of it"
snapshot_files before
definition >"$DIR/before.xml"
expect_status 0 guest gpuvm init
expect_text "nothing would change"
expect_status 0 guest cat host.yaml
expect_text "bridge: { name: br0, existing: true }" "/etc/modprobe.d/vfio.conf" hand intel_iommu=on
expect_status 0 guest gpuvm plan -f host.yaml
expect_text "nothing to do"
expect_status 0 guest gpuvm apply -f host.yaml --yes --reboot
snapshot_files after
same_files before after

step "adopt"
expect_status 0 guest gpuvm adopt libvirt-domain/hand --save --yes
definition >"$DIR/marked.xml"
differs before marked
show_last
[ "$(grep -cvE 'metadata>|urn:gpuvm:vm:1' "$LAST")" = 0 ] || fail "more than the mark was put in"
[ "$(guest virsh domstate hand | xargs)" = running ] || fail "it does not run any more"
expect_status 0 guest gpuvm adopt file//etc/sysctl.d/99-hand.conf --save --yes
expect_status 0 guest cat /etc/sysctl.d/99-hand.conf
expect_text "vm.swappiness = 5"
expect_status 0 guest gpuvm plan -f host.yaml
expect_text "nothing to do"

step "one field"
expect_status 0 guest "sed -i 's/memory: 256MiB/memory: 320MiB/' host.yaml && grep 'memory: 320MiB' host.yaml"
status=0
guest gpuvm apply -f host.yaml --yes >"$LAST" 2>&1 </dev/null || status=$?
show_last
case $status in 0 | 3) ;; *) fail "apply ended with $status" ;; esac
definition >"$DIR/changed.xml"
differs marked changed
show_last
[ "$(grep -cvE '<(memory|currentMemory) ' "$LAST")" = 0 ] || fail "more than the memory was changed"
grep -q "327680" "$LAST" || fail "the memory was not changed"
[ "$(guest virsh domstate hand | xargs)" = running ] || fail "it does not run any more"
