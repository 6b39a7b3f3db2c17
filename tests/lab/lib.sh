# shellcheck shell=bash
# Shared by the lab's scripts: where things are, and how the running lab host is reached and ended.

# shellcheck disable=SC2034 # used by those that source this
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
LAB=${LAB:-/tmp/gpuvm-lab}
# Several hosts can run beside each other from one build, each under a name of its own.
LAB_HOST=${LAB_HOST:-host}
DIR=$LAB/hosts/$LAB_HOST
# Where the root file system lies on a disk, in sectors.
# shellcheck disable=SC2034
ROOT_START=264192 ROOT_SIZE=24899584

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# Whether this host's QEMU runs. The id alone is not enough: after the machine was restarted it may be another's.
running() {
  local pid
  pid=$(cat "$DIR/qemu.pid" 2>/dev/null) && [ -n "$pid" ] && grep -qs qemu "/proc/$pid/cmdline"
}

# Behind a switch, the host is known by its address in the switch's network namespace; else by a port of the loopback.
to_host() { # OPTION… COMMAND…
  local way=() at=()
  if [ -f "$DIR/address" ]; then
    way=(ip netns exec "$NETNS") at=("root@$(cat "$DIR/address")")
  elif [ -f "$DIR/port" ]; then
    at=(-p "$(cat "$DIR/port")" root@127.0.0.1)
  else
    die "no lab host \`$LAB_HOST\` was booted: tests/lab/run boot TOPOLOGY"
  fi
  "${way[@]}" ssh -q -i "$LAB/id" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "${at[@]}" "$@"
}

guest() { to_host -o ConnectTimeout=5 -o ServerAliveInterval=5 -o ServerAliveCountMax=12 "$@"; }

# A network of the host's own: a namespace with a switch, a neighbour that is its gateway, DHCP and name server, and
# nothing behind it. The host's first card has a lease of its own.
NETNS=gpuvm-lab-$LAB_HOST
switch_up() {
  local i
  switch_down
  rm -f "$DIR/s/switch.rules" "$DIR"/s/n*.switch
  ip netns add "$NETNS"
  setsid ip netns exec "$NETNS" "$HERE/switch.py" "$DIR/s" n0 n1 >"$DIR/switch.log" 2>&1 </dev/null &
  echo $! >"$DIR/switch.pid"
  for i in {1..100}; do
    ip -n "$NETNS" link show lan0 >/dev/null 2>&1 && break
    [ "$i" -lt 100 ] || die "the switch ended: $DIR/switch.log"
    sleep 0.1
  done
  for i in "address add 10.77.0.1/24 dev lan0" "address add fd77::1/64 dev lan0 nodad" "link set lo up" "link set lan0 up"; do
    # shellcheck disable=SC2086
    ip -n "$NETNS" $i
  done
  echo 10.77.0.15 >"$DIR/address"
  dhcp_up
}
# GATEWAY: the router that it names.
dhcp_up() {
  dhcp_down
  setsid ip netns exec "$NETNS" dnsmasq --keep-in-foreground --conf-file=/dev/null --interface=lan0 --bind-interfaces \
    --except-interface=lo --dhcp-range=10.77.0.50,10.77.0.99,1h --dhcp-host=52:54:00:4c:41:42,10.77.0.15 --no-resolv \
    --dhcp-leasefile="$DIR/leases" --pid-file= --user=root --dhcp-option="3,${GATEWAY:-10.77.0.1}" >"$DIR/dnsmasq.log" 2>&1 </dev/null &
  echo $! >"$DIR/dnsmasq.pid"
}
dhcp_down() { end dnsmasq; }
switch_down() {
  end dnsmasq
  end switch
  ip netns delete "$NETNS" 2>/dev/null || true
  rm -f "$DIR/address"
}
# rules LINE…: the switch's rules from now on.
rules() {
  printf '%s\n' "$@" >"$DIR/switch.rules.new"
  mv "$DIR/switch.rules.new" "$DIR/s/switch.rules"
}

# put FILE DEST: copies a file to the lab host, with its mode.
put() {
  local mode
  mode=$(stat -c %a "$1")
  guest "cat >'$2' && chmod $mode '$2'" <"$1"
}

boot_id() { to_host -o ConnectTimeout=5 -o ServerAliveInterval=5 cat /proc/sys/kernel/random/boot_id 2>/dev/null </dev/null; }

# wait_back SECONDS: waits for ssh on a boot that is not the one seen last; the seconds that it took are in BACK.
wait_back() {
  local limit=$1 t0=$SECONDS last id
  last=$(cat "$DIR/boot_id" 2>/dev/null || true)
  while :; do
    running || { say "the lab host is off"; return 1; }
    ! grep -qs "Kernel panic" "$DIR/serial.log" || { say "the lab host's kernel panicked: $DIR/serial.log"; return 1; }
    id=$(boot_id || true)
    [ -z "$id" ] || [ "$id" = "$last" ] || break
    if [ $((SECONDS - t0)) -ge "$limit" ]; then
      say "no new boot answered on ssh within $limit s"
      return 1
    fi
    sleep 1
  done
  echo "$id" >"$DIR/boot_id"
  BACK=$((SECONDS - t0))
  echo "$BACK" >"$DIR/back"
  say "ssh after $BACK s"
}

# wait_off SECONDS: waits for the lab host to power itself off.
wait_off() {
  local t0=$SECONDS
  while running; do
    [ $((SECONDS - t0)) -lt "$1" ] || { say "still on after $1 s"; return 1; }
    sleep 1
  done
  stop
}

# end NAME: ends a process of this host's by its own id.
end() {
  local pid i
  pid=$(cat "$DIR/$1.pid" 2>/dev/null) || return 0
  if grep -qs "$1" "/proc/$pid/cmdline"; then
    kill "$pid" 2>/dev/null || true
    for i in {1..50}; do
      [ -d "/proc/$pid" ] || break
      [ "$i" -lt 50 ] || kill -9 "$pid" 2>/dev/null || true
      sleep 0.1
    done
  fi
  rm -f "$DIR/$1.pid"
}

# Ends this host, its simulated functions and its switch.
stop() {
  end qemu
  end fakegpu
  [ ! -f "$DIR/address" ] || switch_down
}
