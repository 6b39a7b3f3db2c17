# shellcheck shell=bash
#: without an IOMMU nothing is given to a VM, and nothing is written

boot no-iommu
manifest <<Y
version: 1
gpus:
  work: { match: "$SECOND", expect: { id: "10de:2684" }, use: vfio }
Y
expect_status 1 guest gpuvm plan -f host.yaml
expect_text IOMMU
snapshot_files before
expect_status 1 guest gpuvm apply -f host.yaml --yes --reboot
snapshot_files after
same_files before after
expect_driver "$SECOND.0" nvidia
expect_driver "$SECOND.1" snd_hda_intel
