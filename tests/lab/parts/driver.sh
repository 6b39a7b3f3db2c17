# shellcheck shell=bash
# The module that plays the GPU's host driver, built for the lab host's kernel in a chroot of its own.
#needs root
#< hostdriver
kernel=$(basename "$(find "$LAB/root/lib/modules" -mindepth 1 -maxdepth 1 | sort -V | tail -n 1)")
if [ ! -d "$LAB/kbuild/usr/src/linux-headers-$kernel" ] || [ ! -x "$LAB/kbuild/usr/bin/busybox" ]; then
  rm -rf "${LAB:?}/kbuild"
  mmdebstrap --quiet --variant=apt --components=main --include="linux-headers-$kernel,make,busybox-static" \
    trixie "$LAB/kbuild" "$MIRROR"
fi
rm -rf "${LAB:?}/kbuild/src"
cp -r "$HERE/hostdriver" "$LAB/kbuild/src"
chroot "$LAB/kbuild" make -s -C "/lib/modules/$kernel/build" M=/src modules
cp "$LAB/kbuild/src/nvidia.ko" "$LAB/nvidia.ko"
