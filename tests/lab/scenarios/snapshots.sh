# shellcheck shell=bash
#: snapshots of a VM that is off and of one that runs, gone back to and taken away with libvirt's own QEMU; killed at PLACES (6) places; clones, whole and linked; a template; what others made stays
#long

# What a guest would write is written from outside while its VM is off, and looked for again.
PLACES=${PLACES:-6} STEP_MS=${STEP_MS:-700}
POOL=/var/lib/libvirt/images

top() { guest "virsh domblklist --details $1 | awk '\$2 == \"disk\" { print \$4; exit }'"; }
mark() { # VM NUMBER
  local file
  file=$(top "$1")
  guest "qemu-io -f qcow2 -c 'write -P $2 1M 64k' '$file'" >"$LAST" 2>&1 || { show_last; fail "marking $file"; }
}
marked() { # VM NUMBER
  local file
  file=$(top "$1")
  guest "qemu-io -U -r -f qcow2 -c 'read -P $2 1M 64k' '$file'" >"$LAST" 2>&1 || true
  if grep -q 'Pattern verification failed' "$LAST" || ! grep -q '^read 65536/65536' "$LAST"; then
    show_last
    fail "$1 does not have mark $2 on $file"
  fi
  say "   $1 has mark $2 on $file"
}
nvram() { guest "sha256sum /var/lib/libvirt/qemu/nvram/tiny_VARS.fd | cut -c 1-12"; }
snap() { expect_status 0 guest gpuvm vm snapshot "$@"; }
whole() {
  guest "for f in $POOL/*.qcow2; do qemu-img check -q -U \$f || { echo \$f; exit 1; }; done" >"$LAST" 2>&1 || { show_last; fail "a disk is damaged"; }
}
names() { guest "virsh snapshot-list --name tiny" | sort | xargs; }
in_sync() { expect_status 0 guest gpuvm plan -f host.yaml; expect_text "nothing to do"; }

boot twin --disk baked
manifest <<Y
version: 1
networks:
  nat: { libvirt: default }
vms:
  tiny: { cpus: 1, memory: 256MiB, accel: tcg, disks: [1GiB], network: nat, boot: $GUEST_BOOT, start: manual }
Y
expect_status 0 guest gpuvm apply -f host.yaml --yes
expect_status 0 guest gpuvm vm start tiny
expect_status 0 vm_console tiny 900
expect_text GUEST-READY
expect_status 0 guest gpuvm vm stop tiny
mark tiny 1

step "off: there and back"
variables=$(nvram)
snap create tiny one
[ "$(names)" = one ] || fail "libvirt lists: $(names)"
in_sync
mark tiny 2
guest "printf x | dd of=/var/lib/libvirt/qemu/nvram/tiny_VARS.fd bs=1 seek=4000 conv=notrunc status=none"
guest "virsh dumpxml --inactive tiny | sed 's/>1<\\/vcpu>/>2<\\/vcpu>/' >/tmp/x && virsh define /tmp/x" >"$LAST" 2>&1 || { show_last; fail "define"; }
snap restore tiny one --yes
marked tiny 1
[ "$(nvram)" = "$variables" ] || fail "the UEFI variables are not as they were"
guest "virsh dumpxml --inactive tiny" | grep -q '>1</vcpu>' || fail "the definition is not as it was"
in_sync
mark tiny 3
snap restore tiny before-one --keep three --yes
marked tiny 2
snap restore tiny three --discard --yes
marked tiny 3
[ "$(names)" = "before-one one three" ] || fail "libvirt lists: $(names)"
whole

step "others go, and their states stay"
snap delete tiny one --yes
marked tiny 3
snap restore tiny before-one --discard --yes
marked tiny 2
snap restore tiny three --discard --yes
marked tiny 3
snap delete tiny before-one --yes
snap delete tiny three --yes
marked tiny 3
[ "$(top tiny)" = "$POOL/tiny-0.qcow2" ] || fail "its disk is $(top tiny)"
guest "ls $POOL" | grep -q '+' && fail "a layer is left: $(guest "ls $POOL" | xargs)"
[ -z "$(names)" ] || fail "libvirt lists: $(names)"
whole

step "while it runs"
expect_status 0 guest gpuvm vm start tiny
snap create tiny live
expect_text "no agent answers"
snap create tiny later
expect_status 1 guest gpuvm vm snapshot restore tiny live --yes
expect_text "gpuvm vm stop tiny"
expect_status 1 guest gpuvm vm snapshot delete tiny live --yes
expect_text "only while it is off"
snap delete tiny later --yes
[ "$(guest virsh domstate tiny | xargs)" = running ] || fail "it does not run any more"
[ "$(top tiny)" = "$POOL/tiny-0+1.qcow2" ] || fail "its disk is $(top tiny)"
# libvirt made its AppArmor profile anew after that.
expect_status 1 guest gpuvm vm snapshot delete tiny live --yes
expect_text "AppArmor lets its QEMU only read"
expect_status 0 vm_console tiny 900
expect_text GUEST-READY
expect_status 0 guest gpuvm vm stop tiny
snap delete tiny live --yes
[ "$(top tiny)" = "$POOL/tiny-0.qcow2" ] || fail "its disk is $(top tiny)"
marked tiny 3
in_sync
whole

step "killed at $PLACES places of each"
snap create tiny base
mark tiny 4
for way in "create tiny next" "restore tiny base --keep kept --yes" "delete tiny base --yes"; do
  for n in $(seq "$PLACES"); do
    guest "gpuvm -q vm snapshot $way >/dev/null 2>&1 & sleep $((n * STEP_MS / 1000)).$(printf %03d $((n * STEP_MS % 1000)))
      pkill -KILL -x gpuvm; wait" || true
    status=$({ guest gpuvm status --output json </dev/null || true; } | jq -r .state)
    say "   $way, killed after $((n * STEP_MS)) ms: $status, snapshots: $(names)"
    case $status in
      cut-off) guest gpuvm -q apply --resume >"$LAST" 2>&1 </dev/null || { show_last; fail "resume"; } ;;
      ended | none) ;;
      *) fail "status says \`$status\`" ;;
    esac
    whole
    # As it was before, whatever came of it.
    case $way in
      create*)
        marked tiny 4
        guest "gpuvm -q vm snapshot delete tiny next --yes" >"$LAST" 2>&1 </dev/null || true
        ;;
      restore*)
        if guest "virsh snapshot-list --name tiny" | grep -q '^kept$'; then
          guest "gpuvm -q vm snapshot restore tiny kept --discard --yes && gpuvm -q vm snapshot delete tiny kept --yes" >"$LAST" 2>&1 </dev/null || { show_last; fail "back from restore"; }
        fi
        marked tiny 4
        ;;
      delete*)
        marked tiny 4
        guest "virsh snapshot-list --name tiny" | grep -q '^base$' || snap create tiny base
        ;;
    esac
  done
done
for name in $(names); do snap delete tiny "$name" --yes; done
marked tiny 4

step "clones"
snap create tiny gold
mark tiny 5
expect_status 0 guest gpuvm vm clone tiny copy --yes
expect_status 0 guest gpuvm vm clone tiny linked --linked --snapshot gold --yes
marked copy 5
marked linked 4
mark linked 6
expect_status 1 guest gpuvm vm snapshot delete tiny gold --yes
expect_text linked-0.qcow2
for vm in tiny copy linked; do expect_status 0 guest gpuvm vm start "$vm"; done
for vm in copy linked; do
  expect_status 0 vm_console "$vm" 1200
  expect_text GUEST-READY
done
# shellcheck disable=SC2016 # for the lab host's shell
macs=$(guest 'for vm in tiny copy linked; do virsh domiflist $vm | grep -o "52:54:[0-9a-f:]*"; done' | sort -u | wc -l)
[ "$macs" = 3 ] || fail "the three VMs have $macs addresses"
for vm in tiny copy linked; do expect_status 0 guest gpuvm vm stop "$vm"; done
marked tiny 5
marked copy 5
marked linked 6
whole
for vm in copy linked; do expect_status 0 guest gpuvm vm delete "$vm" --yes; done
snap delete tiny gold --yes
marked tiny 5

step "a template"
guest "cp host.yaml keep.yaml; ssh-keygen -q -t ed25519 -N '' -f /root/key </dev/null"
expect_status 0 guest gpuvm vm template save tiny golden --yes
expect_status 0 guest gpuvm vm template list
expect_text golden
expect_status 0 guest gpuvm vm template use golden desk --user op --key file:/root/key.pub --cpus 1 --memory 256MiB --disk 1GiB --no-start --yes
marked desk 5
expect_status 0 guest gpuvm vm template export golden /root/golden.qcow2
expect_text "path: \"/root/golden.qcow2\""
expect_status 0 guest gpuvm image prune -f host.yaml --yes
expect_status 0 guest gpuvm vm template list
expect_text golden
expect_status 0 guest gpuvm vm delete desk --yes
guest mv keep.yaml host.yaml

step "what others made stays"
guest "virsh snapshot-create-as tiny theirs --disk-only" >"$LAST" 2>&1 || { show_last; fail "virsh"; }
expect_status 1 guest gpuvm vm snapshot create tiny mine
expect_text theirs "was not made by gpuvm"
in_sync
expect_status 1 guest gpuvm vm delete tiny --yes
guest "virsh snapshot-delete tiny theirs --metadata && virsh dumpxml --inactive tiny | sed 's/tiny-0.theirs/tiny-0.qcow2/' >/tmp/x && virsh define /tmp/x && rm $POOL/tiny-0.theirs && virsh pool-refresh default" >"$LAST" 2>&1 || { show_last; fail "virsh"; }
marked tiny 5

step "a member of the group libvirt"
guest "id op >/dev/null 2>&1 || useradd -m -G libvirt op"
expect_status 0 guest "runuser -u op -- gpuvm vm snapshot create tiny theirs"
expect_text "only root may read them"
expect_status 1 guest "runuser -u op -- gpuvm vm snapshot delete tiny theirs --yes"
expect_text sudo
expect_status 0 guest gpuvm vm delete tiny --yes
expect_text "its snapshots go with it: theirs"
guest "ls $POOL" | grep -q tiny && fail "something of it is left: $(guest "ls $POOL" | xargs)"
say "   $(guest "virsh list --all --name" | xargs)"
