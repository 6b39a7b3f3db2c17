# shellcheck shell=bash
#: with dracut and the cards' drivers forced into the initramfs, the second card is vfio-pci's all the same; gpuvm.off undoes it
#long

boot twin --disk dracut
manifest <<Y
version: 1
gpus:
  work: { match: "$SECOND", expect: { id: "10de:2684" }, use: vfio }
Y
expect_driver "$SECOND.0" nvidia
apply_across_reboot 900
for function in "$FIRST.0:nvidia" "$FIRST.1:snd_hda_intel" "$SECOND.0:vfio-pci" "$SECOND.1:vfio-pci"; do
  expect_driver "${function%:*}" "${function##*:}"
done
expect_status 0 guest gpuvm plan -f host.yaml

boot_with gpuvm.off
for function in "$SECOND.0:nvidia" "$SECOND.1:snd_hda_intel"; do
  expect_driver "${function%:*}" "${function##*:}"
done

step "taken out of the manifest"
manifest <<Y
version: 1
Y
apply_across_reboot 900
expect_status 0 guest 'find /etc /usr/lib/dracut /usr/lib/udev -path "*gpuvm*"; lsinitrd 2>/dev/null | grep gpuvm || true'
expect_no_text gpuvm
for function in "$SECOND.0:nvidia" "$SECOND.1:snd_hda_intel"; do
  expect_driver "${function%:*}" "${function##*:}"
done
