# shellcheck shell=bash
# The server of the simulated PCI functions.
#< fakegpu
CARGO_TARGET_DIR="$LAB/fakegpu-target" \
  cargo build --release --quiet --locked --manifest-path "$HERE/fakegpu/Cargo.toml"
cp "$LAB/fakegpu-target/release/fakegpu" "$LAB/fakegpu"
