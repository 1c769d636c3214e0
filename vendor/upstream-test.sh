#!/usr/bin/env bash
# Runs Pingora's own unit tests on the patched tree. Every test that passes on
# the published crates (vendor/pins/upstream-tests.txt) has to pass, and so do
# those that the series adds.
set -euo pipefail

vendor=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$vendor/../target}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# They connect to public addresses, or need a network that drops or refuses
# packets to them.
needs_internet='connectors::http::v1::tests::test_connect
connectors::http::v1::tests::test_reuse_rejects_fd_mismatch
connectors::l4::tests::test_conn_error_addr_not_avail
connectors::l4::tests::test_conn_timeout'

run() { # CRATE OUTPUT [ARGUMENT...]
    local crate=$1 output=$2
    shift 2
    cargo test --locked --quiet --manifest-path "$vendor/pingora/Cargo.toml" \
        --package "$crate" --lib -- --format pretty "$@" > "$output" 2>&1 || true
    grep -q '^test result' "$output" || {
        tail -n 50 "$output" >&2
        echo "$crate: its unit tests did not run" >&2
        exit 1
    }
}

# names OUTPUT RESULT: the tests with this result, sorted
names() {
    sed -n "s/^test \(.*\) \.\.\. $2\$/\1/p; s/^test \(.*\) - should panic \.\.\. $2\$/\1/p" "$1" |
        sed 's/ - should panic$//' | sort -u
}

status=0
total=0
for crate in pingora-core pingora-cache pingora-proxy pingora-timeout; do
    run "$crate" "$work/output"
    names "$work/output" ok > "$work/passed"
    names "$work/output" FAILED | { grep -vxF "$needs_internet" || true; } > "$work/failed"
    if [ -s "$work/failed" ]; then
        # Some of upstream's tests measure time, and this machine may be busy.
        # A second run, one by one, tells a slow test from a broken one.
        echo "$crate: once more, one at a time: $(tr '\n' ' ' < "$work/failed")"
        mapfile -t again < "$work/failed"
        run "$crate" "$work/again" --exact --test-threads 1 "${again[@]}"
        names "$work/again" ok >> "$work/passed"
        sort -u -o "$work/passed" "$work/passed"
        names "$work/again" FAILED > "$work/failed"
    fi
    sed -n "s/^$crate //p" "$vendor/pins/upstream-tests.txt" | sort -u > "$work/upstream"
    comm -23 "$work/upstream" "$work/passed" > "$work/lost"
    upstream=$(comm -12 "$work/upstream" "$work/passed" | wc -l)
    skipped=$(names "$work/output" FAILED | { grep -cxF "$needs_internet" || true; })
    internet=$(grep -cxF "$needs_internet" "$work/passed" || true)
    ours=$(($(wc -l < "$work/passed") - upstream - internet))
    total=$((total + upstream + ours + internet))
    echo "$crate: $upstream of upstream's $(wc -l < "$work/upstream") tests passed, $ours of the series; needing the internet: $internet passed, $skipped failed"
    if [ -s "$work/lost" ] || [ -s "$work/failed" ]; then
        status=1
        sed 's/^/  lost: /' "$work/lost"
        sed 's/^/  failed: /' "$work/failed"
        grep -A20 '^---- ' "$work/output" | head -n 100 || true
    fi
done
echo "upstream: $total passed, $status failed"
exit $status
