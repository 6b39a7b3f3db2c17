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

guest() {
  [ -f "$DIR/port" ] || die "no lab host \`$LAB_HOST\` was booted: tests/lab/run boot TOPOLOGY"
  ssh -q -i "$LAB/id" -p "$(cat "$DIR/port")" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
    -o ConnectTimeout=5 -o ServerAliveInterval=5 -o ServerAliveCountMax=12 root@127.0.0.1 "$@"
}

# put FILE DEST: copies a file to the lab host, with its mode.
put() {
  local mode
  mode=$(stat -c %a "$1")
  guest "cat >'$2' && chmod $mode '$2'" <"$1"
}

boot_id() { timeout 20 ssh -q -i "$LAB/id" -p "$(cat "$DIR/port")" -o StrictHostKeyChecking=no \
  -o UserKnownHostsFile=/dev/null -o ConnectTimeout=5 root@127.0.0.1 cat /proc/sys/kernel/random/boot_id \
  2>/dev/null </dev/null; }

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

# Ends this host and its simulated functions, by their own process ids.
stop() {
  local f pid i
  for f in qemu fakegpu; do
    pid=$(cat "$DIR/$f.pid" 2>/dev/null) || continue
    if grep -qs "$f" "/proc/$pid/cmdline"; then
      kill "$pid" 2>/dev/null || true
      for i in {1..50}; do
        [ -d "/proc/$pid" ] || break
        [ "$i" -lt 50 ] || kill -9 "$pid" 2>/dev/null || true
        sleep 0.1
      done
    fi
    rm -f "$DIR/$f.pid"
  done
}
