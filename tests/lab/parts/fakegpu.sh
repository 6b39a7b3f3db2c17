# shellcheck shell=bash
# The server of the simulated PCI functions.
#< fakegpu
CARGO_TARGET_DIR="$LAB/fakegpu-target" \
  cargo build --profile lab --quiet --locked --manifest-path "$HERE/fakegpu/Cargo.toml"
cp "$LAB/fakegpu-target/lab/fakegpu" "$LAB/fakegpu"
