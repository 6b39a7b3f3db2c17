# shellcheck shell=bash
#: the bridge is made on networks that are slow, strict, tagged, bonded or broken, and the host answers all along
#long
# ROWS="delay vlan" runs some of them.

ROWS=${ROWS:-dhcp delay mac-filter vlan bond static-ipv6 silent-gateway no-dhcp killed power-cut second-file card-moved}
LIMIT_S=120

fresh() {
  GAP=0
  stop
  "$HERE/boot.sh" plain --disk baked --switch --fresh || fail "the lab host did not boot"
  put "$GPUVM" /usr/local/bin/gpuvm
  manifest <<<'{ version: 1, bridge: { name: br0 } }'
}

# netplan <<'Y': the host's network from now on, in place of what it had.
netplan() {
  guest 'cat >/etc/netplan/50-cloud-init.yaml; systemd-run -q --on-active=1 netplan apply'
}
# reachable LINK ADDRESS: the host answers, and this address is on that link.
reachable() {
  local t0=$SECONDS
  until quick "ip -o address show dev $1 | grep -q $2/"; do
    [ $((SECONDS - t0)) -lt "$LIMIT_S" ] || fail "the host is not reachable before anything was done"
  done
}

quick() { to_host -o ConnectTimeout=2 -o ServerAliveInterval=3 -o ServerAliveCountMax=2 "$@" 2>/dev/null </dev/null; }

# The apply runs without this connection.
go() {
  guest 'sha256sum /etc/netplan/*' >"$DIR/netplan.before"
  step "gpuvm apply"
  # shellcheck disable=SC2016
  guest 'systemd-run -q --unit=lab-apply --setenv=HOME=/root gpuvm apply -f /root/host.yaml --yes'
}
# Until the new files are all there, and netplan is about to make them live.
switched() {
  local t0=$SECONDS
  until quick test -e /var/lib/gpuvm/guard/switched; do
    [ $((SECONDS - t0)) -lt 120 ] || fail "the network was never switched"
  done
}

# ended: waits for the end of the run. GAP is the longest time without an answer on this host so far.
ended() {
  local last=$SECONDS now word='' t0=$SECONDS
  while [ "$word" != ended ] && [ "$word" != cut-off ]; do
    running || fail "the lab host is off"
    word=$(quick gpuvm status --output json | jq -r .state 2>/dev/null || true)
    now=$SECONDS
    if [ -n "$word" ]; then
      [ $((now - last)) -le "$GAP" ] || GAP=$((now - last))
      last=$now
    fi
    [ $((now - t0)) -lt 400 ] || fail "the run did not end (last word: \`$word\`)"
    # What it may not exceed holds while it lasts, too.
    [ $((now - last)) -le "$LIMIT_S" ] || fail "no answer for more than $LIMIT_S s"
  done
  [ "$GAP" -le "$LIMIT_S" ] || fail "no answer for $GAP s"
}

kept() {
  ended
  expect_status 0 guest gpuvm status
  expect_status 0 guest "ip -br address show dev br0; gpuvm plan -f host.yaml"
  expect_text "$(cat "$DIR/address")/24"
  told "the bridge stays"
}
reverted() { # WHY
  ended
  expect_status 1 guest gpuvm status
  expect_text "the network was put back as it was" "$1"
  guest 'sha256sum /etc/netplan/*' | diff "$DIR/netplan.before" - >&2 || fail "the netplan files are not as they were"
  expect_status 0 guest 'ip -br address; ! ip link show dev br0 2>/dev/null'
  expect_text "$(cat "$DIR/address")/24"
  told "put back: $1"
}
told() { printf '| %s | %s | %s s |\n' "$row" "$1" "$GAP" >>"$DIR/table"; }

row_dhcp() {
  fresh
  go
  kept
}
row_delay() {
  fresh
  go
  switched
  rules 'delay 30 1'
  kept
}
row_mac-filter() {
  fresh
  rules 'mac 52:54:00:4c:41:42'
  go
  kept
}
row_vlan() {
  fresh
  netplan <<'Y'
network:
  version: 2
  ethernets:
    enp0s2: {}
  vlans:
    vlan10:
      id: 10
      link: enp0s2
      addresses: [10.77.0.15/24]
      routes: [{ to: default, via: 10.77.0.1 }]
      nameservers: { addresses: [10.77.0.1] }
Y
  rules 'vlan 10'
  reachable vlan10 10.77.0.15
  go
  kept
}
row_bond() {
  fresh
  netplan <<'Y'
network:
  version: 2
  ethernets:
    enp0s2: {}
    enp0s9: {}
  bonds:
    bond0:
      interfaces: [enp0s2, enp0s9]
      parameters: { mode: active-backup, mii-monitor-interval: 100, primary: enp0s2 }
      macaddress: 52:54:00:4c:41:42
      dhcp4: true
Y
  reachable bond0 10.77.0.15
  go
  kept
}
row_static-ipv6() {
  fresh
  netplan <<'Y'
network:
  version: 2
  ethernets:
    enp0s2:
      addresses: [10.77.0.15/24, "fd77::15/64"]
      routes:
        - { to: default, via: 10.77.0.1 }
        - { to: default, via: "fd77::1" }
      nameservers: { addresses: ["fd77::1"] }
Y
  reachable enp0s2 fd77::15
  go
  kept
  expect_status 0 guest 'ip -6 -br address show dev br0; ip -6 route show default'
  expect_text fd77::15/64 "default via fd77::1"
}
# The router that DHCP names is off: it did not answer before, and is not asked for afterwards.
row_silent-gateway() {
  GATEWAY=10.77.0.254 fresh
  go
  kept
}
row_no-dhcp() {
  fresh
  rules 'drop dhcp'
  go
  reverted "address 10.77.0.15 did not answer"
}
# What it had not made live yet goes back; the run is taken up again then.
row_killed() {
  fresh
  go
  switched
  guest "pkill -9 -x gpuvm" || true
  ended
  expect_status 0 guest 'until [ -e /var/lib/gpuvm/guard/verdict ]; do sleep 1; done; cat /var/lib/gpuvm/guard/verdict'
  expect_status 0 guest gpuvm apply --resume
  kept
}
row_power-cut() {
  fresh
  go
  switched
  kill -9 "$(cat "$DIR/qemu.pid")"
  stop
  step "the power is back"
  BOOT_S=$LIMIT_S "$HERE/boot.sh" plain --disk baked --switch || fail "the host does not answer after the power cut"
  local back
  back=$(cat "$DIR/back")
  ended
  [ "$GAP" -ge "$back" ] || GAP=$back
  # shellcheck disable=SC2016 # for the lab host's shell
  # Whatever the guard has not decided yet is waited for.
  expect_status 0 guest gpuvm apply --resume
  expect_status 0 guest "ip -br address show dev br0; gpuvm plan -f host.yaml"
  told "booted, then kept"
}
# A second file has something of its own for the card, which is not live yet: both entries move.
row_second-file() {
  fresh
  guest 'cat >/etc/netplan/60-more.yaml; chmod 600 /etc/netplan/60-more.yaml' <<'Y'
network:
  version: 2
  ethernets:
    enp0s2:
      addresses: [10.77.0.16/24]
Y
  go
  kept
  expect_text 10.77.0.16/24
}
# Another card takes its slot's place: its name is another one from then on.
row_card-moved() {
  fresh
  go
  kept
  guest 'systemctl poweroff' || true
  wait_off 90
  BOOT_S=$LIMIT_S "$HERE/boot.sh" plain --disk baked --switch --card-at 8 || fail "the host does not answer with its card elsewhere"
  GAP=$(cat "$DIR/back")
  expect_status 0 guest 'ip -br address; ip -o link show master br0'
  expect_text enp0s8 "10.77.0.15/24"
  expect_status 0 guest gpuvm plan -f host.yaml
  told "answers after the boot"
}

for tool in dnsmasq:dnsmasq-base ip:iproute2; do
  command -v "${tool%%:*}" >/dev/null || apt-get install -y -qq --no-install-recommends "${tool#*:}" >/dev/null
done
: >"$DIR/table"
bad=()
for row in $ROWS; do
  step "row $row"
  if ! ("row_$row"); then
    bad+=("$row")
    printf '| %s | FAILED | |\n' "$row" >>"$DIR/table"
    cp "$DIR/serial.log" "$DIR/serial.$row.log" 2>/dev/null || true
  fi
done
say "| network | outcome | longest time without ssh |"
say "|---|---|---|"
cat "$DIR/table" >&2
[ ${#bad[@]} -eq 0 ] || fail "rows: ${bad[*]}"
