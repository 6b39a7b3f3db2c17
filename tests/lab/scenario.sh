#!/usr/bin/env bash
# Runs scenarios, each on a fresh disk and in a process of its own; says at the end how many passed.
set -euo pipefail
# shellcheck source=tests/lab/lib.sh
. "$(dirname "$0")/lib.sh"

[ $# -gt 0 ] || die "which scenario? tests/lab/run list"
if [ "$1" = all ]; then
  set --
  for f in "$HERE"/scenarios/*.sh; do set -- "$@" "$(basename "$f" .sh)"; done
fi
for name; do
  [ -f "$HERE/scenarios/$name.sh" ] || die "there is no scenario \`$name\`: tests/lab/run list"
done
export GPUVM=${GPUVM:-$HERE/../../target/debug/gpuvm}
[ -x "$GPUVM" ] || die "there is no program $GPUVM: cargo build, or set GPUVM"

passed=0 failed=0
trap stop EXIT
mkdir -p "$DIR"
# An emulator that ends by an assertion of its own says nothing about gpuvm.
emulator_failed() { grep -qs '^Bail out!' "$DIR/qemu.log"; }

attempt() { # NAME
  stop
  rm -f "$DIR/disk.qcow2" "$DIR/qemu.log"
  bash "$HERE/steps.sh" "$HERE/scenarios/$1.sh" 2>&1 | tee "$DIR/output.log"
}

for name; do
  t0=$SECONDS
  say "== $name"
  word=passed
  if ! attempt "$name"; then
    word=FAILED
    if emulator_failed; then
      say "QEMU failed, not the scenario: $(grep '^Bail out!' "$DIR/qemu.log"). Once more."
      if attempt "$name"; then word='passed, the second time'; fi
    fi
  fi
  stop
  if [ "$word" != FAILED ]; then
    passed=$((passed + 1))
    rm -rf "${LAB:?}/failed/$name"
  else
    failed=$((failed + 1))
    kept=$LAB/failed/$name
    rm -rf "$kept"
    mkdir -p "$kept"
    for f in disk.qcow2 vars.fd serial.log serial.log.before qemu.log fakegpu.log output.log last; do
      [ ! -e "$DIR/$f" ] || mv "$DIR/$f" "$kept/"
    done
    say "kept: $kept"
  fi
  say "== $name: $word ($((SECONDS - t0)) s)"
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
