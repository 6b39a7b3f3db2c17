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

boot twin --disk baked
manifest <<Y
version: 1
gpus:
  render: { match: "$FIRST", use: host }
  work:   { match: "$SECOND", expect: { id: "10de:2684" }, use: vfio }
Y
look twin
apply_across_reboot 900
expect_status 0 guest gpuvm plan -f host.yaml

step "a card is added before the others"
again twin-added
expect_driver 0000:01:00.0 nvidia
expect_driver 0000:02:00.0 nvidia
# The rule goes by the path of ports, so the card is vfio-pci's where it is now, and no other is.
expect_driver 0000:03:00.0 vfio-pci
expect_driver 0000:03:00.1 vfio-pci
guest gpuvm plan -f host.yaml >"$LAST" 2>&1 </dev/null || true
show_last
expect_text 0000:03:00
look twin-added

step "another model in its slot"
again twin-other
expect_status 1 guest gpuvm plan -f host.yaml
expect_text "10de:2204"
look twin-other

step "the other way round"
again twin-swapped
guest gpuvm plan -f host.yaml >"$LAST" 2>&1 </dev/null || true
show_last

step "as it was"
again twin
expect_driver "$SECOND.0" vfio-pci
expect_driver "$FIRST.0" nvidia
expect_status 0 guest gpuvm plan -f host.yaml
manifest <<Y
version: 1
Y
apply_across_reboot 900

for topology in amd data-centre arc sr-iov no-iommu bad-group-nic bad-group-disk; do
  step "$topology"
  again "$topology"
  look "$topology"
done
