# shellcheck shell=bash
#: what was changed by hand afterwards is named and repaired; what was added to a VM by hand stays

boot twin --disk baked
manifest <<Y
version: 1
packages: [tree]
gpus:
  work: { match: "$SECOND", expect: { id: "10de:2684" }, use: vfio }
files:
  /etc/sysctl.d/60-gpuvm-lab.conf:
    content: |
      net.ipv4.conf.all.log_martians = 1
vms:
  desktop:
    cpus: 1
    memory: 256MiB
    accel: tcg
    gpus: [work]
    boot: $GUEST_BOOT
    start: boot
Y
apply_across_reboot 900
expect_status 0 guest gpuvm plan -f host.yaml
snapshot_files before

step "by hand"
guest "set -e
  virsh -q destroy desktop
  echo '$SECOND.0' >/sys/bus/pci/devices/$SECOND.0/driver/unbind
  echo '# by hand' >>/etc/sysctl.d/60-gpuvm-lab.conf
  for rule in /etc/udev/rules.d/*gpuvm*; do sed -i 's/$SECOND\.1/0000:07:00.1/' \"\$rule\"; done
  DEBIAN_FRONTEND=noninteractive apt-get remove -y -qq tree >/dev/null
  rm -rf /var/lib/apt/lists/*
  virsh dumpxml --inactive desktop >/tmp/desktop.xml
  sed -i 's|<vcpu\([^>]*\)>1</vcpu>|<vcpu\1>2</vcpu><cputune><shares>1717</shares></cputune>|' /tmp/desktop.xml
  grep -q 1717 /tmp/desktop.xml
  virsh -q define /tmp/desktop.xml"
expect_status 2 guest gpuvm plan -f host.yaml
expect_text /etc/sysctl.d/60-gpuvm-lab.conf tree "$SECOND" desktop
grep -qE '(cpus|vcpu)' "$LAST" || fail "the plan does not name the changed field of the VM"

apply_across_reboot 900
expect_status 0 guest gpuvm plan -f host.yaml
expect_driver "$SECOND.0" vfio-pci
expect_driver "$SECOND.1" vfio-pci
expect_status 0 guest virsh dumpxml --inactive desktop
expect_text "<shares>1717</shares>" ">1</vcpu>"
expect_status 0 guest 'cat /etc/sysctl.d/60-gpuvm-lab.conf; dpkg -s tree'
expect_text "install ok installed"
expect_no_text "by hand"
snapshot_files after
# The definition has the added element, the VM that was stopped by hand stays so, the initramfs is made anew, dpkg keeps
# its books, and `tree` is unpacked anew.
for when in before after; do
  sed -i -E '/ (\/etc\/libvirt\/qemu\/desktop\.xml|\/etc\/apparmor\.d\/libvirt\/libvirt-[^ ]*\.files|\/boot\/initrd\.img-[^ ]*|\/var\/lib\/dpkg\/.*|\/var\/lib\/apt\/.*|\/usr\/[^ ]*\/tree[^ ]*)$/d' "$DIR/files.$when"
done
same_files before after
