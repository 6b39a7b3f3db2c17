# shellcheck shell=bash
#: a GPU that shares its IOMMU group with the root disk's controller is refused, and nothing is written

boot bad-group-disk
card=0000:02:01 neighbour=0000:02:02.0
group=$(guest "readlink /sys/bus/pci/devices/$card.0/iommu_group")
[ "$group" = "$(guest "readlink /sys/bus/pci/devices/$neighbour/iommu_group")" ] || fail "GPU and disk are in two groups"
guest "test -d /sys/bus/pci/devices/$neighbour/virtio*/block" || fail "$neighbour has no disk"
manifest <<Y
version: 1
gpus:
  work: { match: "$card", use: vfio }
Y
expect_status 1 guest gpuvm plan -f host.yaml
expect_text "IOMMU group" "$neighbour" "the file system /"
snapshot_files before
expect_status 1 guest gpuvm apply -f host.yaml --yes --reboot
snapshot_files after
same_files before after

manifest <<Y
version: 1
gpus:
  work: { match: "$card", use: vfio }
devices:
  disk: { match: "${neighbour%.*}", use: vfio }
Y
expect_status 1 guest gpuvm plan -f host.yaml
expect_text "$neighbour" "the file system /"
expect_status 1 guest gpuvm apply -f host.yaml --yes --reboot
snapshot_files after
same_files before after
expect_driver "$card.0" nvidia
