#!/usr/bin/env bash
# All scenarios: the long one on one host, the others one after the other on a second. A host that boots or waits for a
# server leaves the cores to the other.
set -euo pipefail
# shellcheck source=tests/lab/lib.sh
. "$(dirname "$0")/lib.sh"

long=fresh-twin others=()
for f in "$HERE"/scenarios/*.sh; do
  name=$(basename "$f" .sh)
  # What is marked so takes long and has a run of its own; here it is done with smaller numbers, where it has them.
  [ "$name" = "$long" ] || { grep -q '^#long' "$f" && ! grep -q '^#short ' "$f"; } || others+=("$name")
done

lane() { # HOST PORT SCENARIO…
  local host=$1 port=$2
  shift 2
  # Each looks for a free port from its own on: two that begin at once would find the same one.
  # Alone, a host has two minutes to answer again; two on the same cores have twice that. What a scenario promises of an
  # apply's own reboot is its own matter.
  BACK_S=${BACK_S:-240} LAB_HOST=$host SSH_PORT=$port "$HERE/scenario.sh" "$@" 2>&1 | sed -u "s/^/$host | /" | tee "$LAB/$host.log"
}
export LAB_SHORT=1
mkdir -p "$LAB"
lane one 2230 "$long" &
first=$!
trap 'kill "$first" 2>/dev/null || true' EXIT
lane two 2330 "${others[@]}" || true
wait "$first" || true
trap - EXIT

passed=0 failed=0
for host in one two; do
  result=$(sed -n "s/^$host | \\([0-9]* passed, [0-9]* failed\\)$/\\1/p" "$LAB/$host.log" | tail -n 1)
  [ -n "$result" ] || die "the scenarios on host \`$host\` did not come to their end"
  read -r p _ f _ <<<"$result"
  passed=$((passed + p)) failed=$((failed + f))
done
grep -h '^.* | == .*: ' "$LAB/one.log" "$LAB/two.log" | sed 's/^.* | //' >&2
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
