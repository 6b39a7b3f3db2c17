//! Two network namespaces with a link between them, for tests on real links. Root only.

/// What a script begins with: ours has the link v0, the neighbour's v1 with 10.9.0.1/24; `theirs` does something over
/// there, `until_true` waits. Programs of the test's own are found in $T/bin, where there is a $T.
pub const TWO: &str = r#"
set -u
PATH=${T:+$T/bin:}/usr/sbin:/usr/bin:/sbin:/bin
ip link set lo up
ip link add v0 type veth peer name v1
unshare -n sleep 600 & neighbour=$!
trap 'kill $neighbour' EXIT
until_true() { n=0; until "$@" >/dev/null 2>&1; do n=$((n+1)); [ $n -gt 300 ] && { echo "never: $*"; exit 9; }; sleep 0.1; done; }
elsewhere() { there=$(readlink /proc/$neighbour/ns/net) && [ "$there" != "$(readlink /proc/self/ns/net)" ]; }
until_true elsewhere
ip link set v1 netns $neighbour
theirs() { nsenter -t $neighbour -n "$@"; }
theirs ip link set v1 up
theirs ip address add 10.9.0.1/24 dev v1
"#;
