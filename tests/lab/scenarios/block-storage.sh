# shellcheck shell=bash
#: disks in an LVM thin pool and a volume group, by LVM itself: an image written once, also by a run that was killed in it; grown, never shrunk, never another's; gone with their VM
#long

boot plain --disk baked
step "a volume group with a thin pool, as a person makes it"
# shellcheck disable=SC2016 # for the lab host's shell
guest 'set -e; export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends lvm2 thin-provisioning-tools
  truncate -s 4G /srv/pv.img; loop=$(losetup -f --show /srv/pv.img)
  vgcreate -q vg0 "$loop"; lvcreate -q --type thin-pool -L 1G -n vms vg0
  lvcreate -q -L 64M -n theirs vg0; lvcreate -q -V 64M -T vg0/vms -n db-0
  echo "what they wrote" | tee /dev/vg0/theirs >/dev/vg0/db-0
  qemu-img create -q -f qcow2 /root/small.qcow2 96M
  # Incompressible, so that nothing of it is skipped; its digest is what has to be on the volume.
  head -c 80M /dev/urandom >/root/small.raw; qemu-img convert -q -f raw -O qcow2 /root/small.raw /root/small.qcow2' >"$LAST" 2>&1 ||
  { show_last; fail "no volume group"; }

wanted() { # SIZE-OF-THE-FIRST [VM [STORAGE]]
  manifest <<Y
version: 1
images:
  small: { path: /root/small.qcow2 }
storage:
  fast: { lvmThin: vg0/vms }
  slow: { lvm: vg0 }
vms:
  ${2:-web}:
    image: small
    cpus: 1
    memory: 256MiB
    accel: tcg
    disks: [{ size: $1, pool: ${3:-fast} }, { size: 100MiB, pool: slow }]
    boot: $GUEST_BOOT
    start: boot
Y
}
volume() { guest "lvs --noheadings -o lv_size,lv_tags --units m --nosuffix vg0/$1"; } # NAME
has_image() { # VOLUME: it begins with what the image holds
  expect_status 0 guest "cmp -n \$(stat -c %s /root/small.raw) /root/small.raw /dev/vg0/$1"
}

step "made, with the image on the first"
wanted 200MiB
expect_status 0 guest gpuvm apply -f host.yaml --yes
volume web-0 >"$LAST"
expect_text 200.00 gpuvm.vm:web gpuvm.image:small
expect_no_text gpuvm.begun
volume web-1 >"$LAST"
expect_text 100.00 gpuvm.vm:web
has_image web-0
expect_status 0 guest virsh domblklist web
expect_text /dev/vg0/web-0 /dev/vg0/web-1
expect_status 0 guest virsh domstate web
expect_text running
expect_status 0 guest gpuvm plan -f host.yaml
expect_text "nothing to do"

step "grown while its VM runs, never shrunk, never moved"
wanted 300MiB
expect_status 0 guest gpuvm apply -f host.yaml --yes
volume web-0 >"$LAST"
expect_text 300.00
has_image web-0
expect_status 0 guest virsh domblkinfo web vda
expect_text 314572800
wanted 200MiB
expect_status 1 guest gpuvm apply -f host.yaml --yes
expect_text "never shrunk"
wanted 300MiB web slow
expect_status 1 guest gpuvm apply -f host.yaml --yes
volume web-0 >"$LAST"
expect_text 300.00
wanted 300MiB

step "a pool that is nearly full is named"
guest 'lvcreate -q -V 900M -T vg0/vms -n filler && dd if=/dev/zero of=/dev/vg0/filler bs=1M count=870 oflag=direct' >"$LAST" 2>&1 || fail "no filler"
expect_status 0 guest gpuvm plan -f host.yaml
expect_text "vg0/vms is nearly full"
guest 'lvremove -q -y vg0/filler' >"$LAST" 2>&1 || fail "the filler stays"

step "what is another's by that name is left as it is"
guest cp host.yaml mine.yaml
wanted 100MiB db
expect_status 1 guest gpuvm apply -f host.yaml --yes
expect_text db-0
expect_status 0 guest "head -c 15 /dev/vg0/db-0"
expect_text "what they wrote"
guest "lvremove -q -y vg0/db-0" >"$LAST" 2>&1 || fail "db-0 stays"

step "killed while the image is written"
expect_status 2 guest gpuvm plan -f host.yaml
# shellcheck disable=SC2016 # for the lab host's shell
guest 'gpuvm apply -f host.yaml --yes >/root/killed.log 2>&1 </dev/null &
  n=0; until copy=$(pgrep -f "qemu-im[g] convert .*vg0/db-0"); do sleep 0.02; n=$((n+1)); [ $n -lt 5000 ] || exit 1; done
  kill -9 "$copy" $(pgrep -x gpuvm); wait; lvs --noheadings -o lv_tags vg0/db-0' >"$LAST" 2>&1 ||
  { show_last; fail "nothing was written"; }
expect_text gpuvm.begun
expect_status 0 guest gpuvm apply --resume
volume db-0 >"$LAST"
expect_text 100.00 gpuvm.vm:db
expect_no_text gpuvm.begun
has_image db-0
expect_status 0 guest gpuvm plan -f host.yaml

step "a VM goes with its volumes, and nothing else does"
expect_status 0 guest gpuvm vm stop web --force --timeout 0 --yes
expect_status 0 guest gpuvm vm delete web --yes
expect_text "lvremove --yes vg0/web-0"
guest "lvs --noheadings -o lv_name vg0" >"$LAST"
expect_text theirs vms db-0
expect_no_text web-0 web-1

step "so does what an undo with the data takes back"
wanted 100MiB again
expect_status 0 guest gpuvm apply -f host.yaml --yes
expect_status 0 guest gpuvm vm stop again --force --timeout 0 --yes
# The stop is a run of its own, behind it.
run=$(guest gpuvm history --output json | jq '.runs[1].run')
expect_status 0 guest gpuvm undo "$run" --with-data --yes
guest "lvs --noheadings -o lv_name vg0" >"$LAST"
expect_text theirs vms
expect_no_text again-0 again-1
expect_status 0 guest "head -c 15 /dev/vg0/theirs"
expect_text "what they wrote"
