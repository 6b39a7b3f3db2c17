# shellcheck shell=bash
#: a GPU that shares its IOMMU group with the uplink's card is refused, and nothing is written

boot bad-group-nic
card=0000:02:01 neighbour=0000:02:02.0
group=$(guest "readlink /sys/bus/pci/devices/$card.0/iommu_group")
[ "$group" = "$(guest "readlink /sys/bus/pci/devices/$neighbour/iommu_group")" ] || fail "GPU and NIC are in two groups"
guest "test -d /sys/bus/pci/devices/$neighbour/virtio*/net/enp0s2" || fail "$neighbour is not the uplink"
manifest <<Y
version: 1
gpus:
  work: { match: "$card", use: vfio }
Y
expect_status 1 guest gpuvm plan -f host.yaml
expect_text "IOMMU group" "$neighbour" uplink
snapshot_files before
expect_status 1 guest gpuvm apply -f host.yaml --yes --reboot
snapshot_files after
same_files before after

# To name the neighbour does not help: the host needs it.
manifest <<Y
version: 1
gpus:
  work: { match: "$card", use: vfio }
devices:
  nic: { match: "${neighbour%.*}", use: vfio }
Y
expect_status 1 guest gpuvm plan -f host.yaml
expect_text "$neighbour" uplink
expect_status 1 guest gpuvm apply -f host.yaml --yes --reboot
snapshot_files after
same_files before after
expect_driver "$card.0" nvidia
