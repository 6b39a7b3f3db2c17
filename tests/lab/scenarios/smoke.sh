# shellcheck shell=bash
#: a minimal host without a GPU: the program starts and tells what it sees

boot plain
expect_status 0 guest gpuvm facts
expect_text labhost Debian
expect_status 0 guest gpuvm facts --output json
jq -e . "$LAST" >/dev/null || fail "facts --output json is no JSON"
