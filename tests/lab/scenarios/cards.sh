# shellcheck shell=bash
#: cards are added, swapped and exchanged between boots: the binding follows its card or is refused, never another one; and each kind of card has its verdict
#long

expected=$HERE/expected/cards
# look TOPOLOGY: what is said of its GPUs, compared with what was read and found true. UPDATE_CARDS=1 writes it anew.
look() {
  expect_status 0 guest gpuvm gpu list
  cp "$LAST" "$DIR/look"
  guest gpuvm gpu list --output json </dev/null | jq -r '.[].slot' >"$DIR/slots"
  while read -r slot; do
    echo
    guest gpuvm gpu explain "$slot" </dev/null 2>&1 || true
  done <"$DIR/slots" >>"$DIR/look"
  if [ -n "${UPDATE_CARDS:-}" ]; then
    mkdir -p "$expected"
    cp "$DIR/look" "$expected/$1.txt"
  fi
  diff "$expected/$1.txt" "$DIR/look" >&2 || fail "other words than in $expected/$1.txt"
}
again() { # TOPOLOGY
  guest systemctl poweroff || true
  wait_off 120
  BOOT_S=${BACK_S:-120} "$HERE/boot.sh" "$1" --disk baked || fail "the host did not come back"
}

# wanted MATCH-OF-RENDER MATCH-OF-WORK [WORD-OF-THE-VM]
wanted() {
  manifest <<Y
version: 1
gpus:
  render: { match: $1, use: host }
  work:   { match: $2, expect: { id: "10de:2684" }, use: vfio }
vms:
  one: { cpus: 1, memory: 256MiB, accel: tcg, gpus: [work], boot: $GUEST_BOOT, start: manual${3:-} }
Y
}
by_path() { wanted '{ slot: "pcie:11.0/0" }' '{ slot: "pcie:12.0/0" }' "$@"; }

boot twin --disk baked
look twin
wanted "\"$FIRST\"" "\"$SECOND\""
apply_across_reboot 900
expect_status 0 guest gpuvm plan -f host.yaml

step "a card is added before the others"
again twin-added
expect_driver 0000:01:00.0 nvidia
expect_driver 0000:02:00.0 nvidia
# The rule goes by the path of ports, so the card is vfio-pci's where it is now, and no other is.
expect_driver 0000:03:00.0 vfio-pci
expect_driver 0000:03:00.1 vfio-pci
look twin-added
# The manifest's address is another card's, and so is the VM's.
expect_status 1 guest gpuvm plan -f host.yaml
expect_text "the addresses have changed" 'slot: "pcie:12.0/0"'
expect_status 1 guest virsh -q start one
expect_text "the addresses have changed"
by_path
expect_status 2 guest gpuvm plan -f host.yaml
expect_no_text "vfio-binding" "reboot,"
expect_status 0 guest gpuvm apply -f host.yaml --yes
expect_status 0 guest gpuvm plan -f host.yaml
expect_status 0 guest virsh -q start one
expect_status 0 guest virsh dumpxml one
expect_text "bus='0x03'"
guest virsh -q destroy one

step "another model in its slot"
again twin-other
expect_driver 0000:02:00.0 nvidia
expect_status 1 guest gpuvm plan -f host.yaml
expect_text "10de:2204"
expect_status 1 guest virsh -q start one
look twin-other

step "the other way round"
again twin-swapped
expect_driver 0000:01:00.0 nvidia
expect_driver 0000:02:00.0 vfio-pci

step "as it was"
again twin
expect_driver "$FIRST.0" nvidia
expect_driver "$SECOND.0" vfio-pci
expect_status 0 guest gpuvm apply -f host.yaml --yes
expect_status 0 guest gpuvm plan -f host.yaml
by_path ", absent: true"
expect_status 0 guest gpuvm apply -f host.yaml --yes
manifest <<Y
version: 1
Y
apply_across_reboot 900

for topology in amd data-centre arc sr-iov no-iommu bad-group-nic bad-group-disk; do
  step "$topology"
  again "$topology"
  look "$topology"
done
