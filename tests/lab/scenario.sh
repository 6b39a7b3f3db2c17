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
for name; do
  t0=$SECONDS
  say "== $name"
  stop
  rm -f "$DIR/disk.qcow2"
  if bash "$HERE/steps.sh" "$HERE/scenarios/$name.sh" 2>&1 | tee "$DIR/output.log"; then
    passed=$((passed + 1)) word=passed
    stop
    rm -rf "${LAB:?}/failed/$name"
  else
    failed=$((failed + 1)) word=FAILED
    stop
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
