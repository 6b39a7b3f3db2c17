# shellcheck shell=bash
#: NVIDIA's driver from a repository in its layout: install, change of branch, a way back only where it is declared, no index that is not to be trusted
#long

step "a repository of NVIDIA's kind"
boot twin
KERNEL=$(guest uname -r)
KEY=$(HEADERS="$KERNEL amd64" "$HERE/apt-repo/make" "$DIR/nvidia")
put "$DIR/nvidia/key.asc" /root/nvidia.asc
# No other source: the lists of a mirror are not what this is about.
guest ': >/etc/apt/sources.list; rm -rf /var/lib/apt/lists/*'

# serve: the repository as it is now, on the host's own loopback.
serve() {
  # shellcheck disable=SC2016 # for the lab host's shell
  tar -C "$DIR/nvidia" -c repo | guest 'rm -rf /srv/nvidia && mkdir -p /srv/nvidia && tar -C /srv/nvidia -x
    systemctl is-active -q nvidia-repo || systemd-run -q --unit nvidia-repo python3 -m http.server --bind 127.0.0.1 --directory /srv/nvidia 8000
    for i in $(seq 50); do python3 -c "import urllib.request as u; u.urlopen(\"http://127.0.0.1:8000/repo/Release\")" 2>/dev/null && exit; sleep 0.2; done
    echo "the repository is not served"; exit 1'
}
# wanted FIELDS: a manifest with these fields of NVIDIA's driver.
wanted() {
  manifest <<Y
version: 1
drivers:
  nvidia: { $1, source: { url: "http://127.0.0.1:8000/repo/", key: nvidia.asc, fingerprint: $KEY } }
Y
}
# runs VERSION: the kernel's module and dpkg agree that it runs, and nothing is left to do.
runs() {
  expect_status 0 guest cat /sys/module/nvidia/version
  expect_text "$1"
  expect_driver "$FIRST.0" nvidia
  expect_driver "$SECOND.0" nvidia
  expect_status 0 guest gpuvm plan -f host.yaml -v
  expect_text "nothing to do" "driver[nvidia]" "$1"
}
packages() { guest "dpkg-query -W -f '\${Package} \${Version} \${Status}\n'" | grep -E 'nvidia|cuda'; }

serve
wanted 'branch: "575"'
expect_status 2 guest gpuvm plan -f host.yaml
expect_text "apt-source[nvidia]" "$KEY" "which is fetched first" "reboot, for driver[nvidia]"
apply_across_reboot 900
runs 575.57.08

step "to another branch"
serve
wanted 'branch: "580"'
expect_status 2 guest gpuvm plan -f host.yaml
expect_text "[package-removal]" "nvidia-open-580: 580.95.05-1" "nvidia-open-575: 575.57.08-1 →"
apply_across_reboot 900
runs 580.95.05
packages | grep -q '^nvidia-open-575 .* installed$' && fail "the old branch is still installed"

step "to a branch that a pinning package holds"
serve
wanted 'branch: "590"'
expect_status 2 guest gpuvm plan -f host.yaml
expect_text "package[pinning]" "nvidia-driver-pinning-590" "may replace or remove"
apply_across_reboot 900
runs 590.48.01

step "back to an older branch"
serve
wanted 'branch: "580"'
packages >"$DIR/packages.before"
expect_status 1 guest gpuvm plan -f host.yaml
expect_text "590.48.01 is installed, and 580 is older" allowDowngrade
expect_status 1 guest gpuvm apply -f host.yaml --yes --reboot
packages | diff "$DIR/packages.before" - >&2 || fail "a refused way back changed packages"
wanted 'branch: "580", allowDowngrade: true'
expect_status 2 guest gpuvm plan -f host.yaml
expect_text "[package-removal]" "nvidia-driver-pinning-590"
apply_across_reboot 900
runs 580.95.05

step "an older version within the same packages"
serve
wanted 'version: 595.71.05'
apply_across_reboot 900
runs 595.71.05
serve
wanted 'version: 590.48.01'
expect_status 1 guest gpuvm plan -f host.yaml
expect_text "595.71.05 is installed, and 590.48.01 is older"
wanted 'version: 590.48.01, allowDowngrade: true'
apply_across_reboot 900
runs 590.48.01

for how in broken expired other not; do
  step "an index whose signature is: $how"
  # Without the section its source goes; what came from it stays.
  manifest <<Y
version: 1
Y
  expect_status 0 guest gpuvm apply -f host.yaml --yes
  guest 'rm -rf /var/lib/apt/lists/*'
  "$HERE/apt-repo/make" "$DIR/nvidia" sign "$how"
  serve
  packages >"$DIR/packages.before"
  wanted 'branch: "595"'
  expect_status 1 guest gpuvm apply -f host.yaml --yes --reboot
  expect_text "not to be trusted" "no package was changed"
  packages | diff "$DIR/packages.before" - >&2 || fail "packages changed although the index is not to be trusted"
  # The next try is the way on once the index is well again.
  expect_status 2 guest gpuvm plan -f host.yaml
  expect_text "apt-source[nvidia]"
done
"$HERE/apt-repo/make" "$DIR/nvidia" sign well
serve
apply_across_reboot 900
runs 595.71.05
