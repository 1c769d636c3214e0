#!/usr/bin/env bash
# Runs Pingora's own unit tests on the patched tree, once for each group of the
# series: api alone, api and fixes, and all of it. Every test that passes on the
# published crates has to pass, and so do those that the series adds.
#
#   upstream-test.sh           with rustls for each group, and with openssl for
#                              the whole series where there is a list for it
#   upstream-test.sh baseline  write the lists of the tests that pass on the
#                              published crates: pins/upstream-tests-TLS.txt
#
# The command openssl makes keys, and Pingora builds its own OpenSSL with perl. Like
# `prerequisites.sh install`, this installs them on Debian when run as root, and
# otherwise says what to install.
set -euo pipefail

vendor=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# A folder of their own: the proxy's build has other features.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$vendor/../target}/upstream
export CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0
source=$CARGO_TARGET_DIR/source
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

die() {
    echo "vendor/upstream-test.sh: $*" >&2
    exit 1
}

missing=()
command -v openssl >/dev/null || missing+=(openssl)
command -v perl >/dev/null || missing+=(perl)
if [ ${#missing[@]} -gt 0 ]; then
    install="apt-get install -y --no-install-recommends ${missing[*]}"
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null ||
        die "these packages are missing: ${missing[*]}; on Debian: sudo $install"
    echo "Pingora's TLS tests need packages that are missing here; installing them: $install" >&2
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $install -qq >&2
fi

# They connect to public addresses, or need a network that drops or refuses
# packets to them.
needs_internet='connectors::http::tests::test_connect_h1
connectors::http::tests::test_connect_h2
connectors::http::tests::test_connect_h2_fallback_h1_reuse
connectors::http::tests::test_connect_prefer_h1
connectors::http::tests::test_custom_client_non_custom_upstream
connectors::http::v1::tests::test_connect
connectors::http::v1::tests::test_connect_tls
connectors::http::v1::tests::test_reuse_rejects_fd_mismatch
connectors::http::v2::tests::test_connect_h1
connectors::http::v2::tests::test_connect_h2
connectors::http::v2::tests::test_h2_multiple_stream
connectors::http::v2::tests::test_h2_reuse_rejects_fd_mismatch
connectors::http::v2::tests::test_h2_single_stream
connectors::l4::tests::test_conn_error_addr_not_avail
connectors::l4::tests::test_conn_timeout
connectors::tests::test_conn_timeout
connectors::tests::test_conn_timeout_with_offload
connectors::tests::test_connect_tls
connectors::tests::test_do_connect_with_total_timeout
connectors::tests::test_tls_connect_timeout_supersedes_total'

# check_out REV: the sources of a commit of vendor/pingora, always at the same
# place, so that cargo builds only what differs from the commit before
check_out() {
    local keys=$source/pingora-core/tests/keys
    [ -d "$source/.git" ] || git init --quiet "$source"
    git -C "$source" fetch --quiet --depth 1 "$vendor/pingora" "$1"
    git -C "$source" checkout --quiet --force FETCH_HEAD
    # Upstream's repository has these keys, the published crates do not.
    if [ ! -f "$keys/key.pem" ]; then
        mkdir -p "$keys"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj /CN=openrusty.org \
            -addext 'subjectAltName=DNS:openrusty.org,DNS:*.openrusty.org' \
            -keyout "$keys/key.pem" -out "$keys/server.crt" 2>"$work/openssl" ||
            die "openssl could not make a key: $(cat "$work/openssl")"
    fi
}

run() { # CRATE TLS OUTPUT [ARGUMENT...]
    local crate=$1 tls=$2 output=$3 features=() threads=8
    shift 3
    # Again, after a failure: one at a time.
    [ $# -eq 0 ] || threads=1
    case $crate in pingora-core | pingora-proxy) features=(--features "$tls") ;; esac
    # Many of them sleep, so that there is room for more threads than cores.
    cargo test --locked --quiet --manifest-path "$source/Cargo.toml" \
        --package "$crate" "${features[@]}" --lib -- \
        --format pretty --test-threads "$threads" "$@" > "$output" 2>&1 || true
    grep -q '^test result' "$output" || {
        tail -n 50 "$output" >&2
        die "$crate: its unit tests did not run"
    }
}

# names OUTPUT RESULT: the tests with this result, sorted
names() {
    sed -n "s/^test \(.*\) \.\.\. $2\$/\1/p" "$1" | sed 's/ - should panic$//' | sort -u
}

# Some of upstream's tests measure time, and this machine may be busy. A second
# run, one by one, tells a slow test from a broken one.
retry_failed() { # CRATE TLS; from output to passed and failed
    local again
    names "$work/output" FAILED | { grep -vxF "$needs_internet" || true; } > "$work/failed"
    [ -s "$work/failed" ] || return 0
    echo "$1: once more, one at a time: $(tr '\n' ' ' < "$work/failed")" >&2
    mapfile -t again < "$work/failed"
    run "$1" "$2" "$work/again" --exact "${again[@]}"
    names "$work/again" ok >> "$work/passed"
    sort -u -o "$work/passed" "$work/passed"
    names "$work/again" FAILED > "$work/failed"
}

crates="pingora-core pingora-cache pingora-proxy pingora-timeout"

baseline() {
    local tls crate
    check_out published
    for tls in rustls openssl; do
        for crate in $crates; do
            run "$crate" "$tls" "$work/output"
            names "$work/output" ok > "$work/passed"
            retry_failed "$crate" "$tls"
            sed 's/^/failed: /' "$work/failed" >&2
            grep -vxF "$needs_internet" "$work/passed" | sed "s/^/$crate /"
        done > "$vendor/pins/upstream-tests-$tls.txt"
    done
}

status=0
total=0
stage() { # TITLE REV TLS CRATE...
    local title=$1 tls=$3 crate upstream skipped internet ours
    check_out "$2"
    shift 3
    for crate in "$@"; do
        run "$crate" "$tls" "$work/output"
        names "$work/output" ok > "$work/passed"
        retry_failed "$crate" "$tls"
        sed -n "s/^$crate //p" "$vendor/pins/upstream-tests-$tls.txt" | sort -u > "$work/upstream"
        comm -23 "$work/upstream" "$work/passed" > "$work/lost"
        upstream=$(comm -12 "$work/upstream" "$work/passed" | wc -l)
        skipped=$(names "$work/output" FAILED | { grep -cxF "$needs_internet" || true; })
        internet=$(grep -cxF "$needs_internet" "$work/passed" || true)
        ours=$(($(wc -l < "$work/passed") - upstream - internet))
        total=$((total + upstream + ours + internet))
        echo "$title, $tls: $crate: $upstream of upstream's $(wc -l < "$work/upstream") tests passed, $ours of the series; needing the internet: $internet passed, $skipped failed"
        if [ -s "$work/lost" ] || [ -s "$work/failed" ]; then
            status=1
            sed 's/^/  lost: /' "$work/lost"
            sed 's/^/  failed: /' "$work/failed"
            grep -A20 '^---- ' "$work/output" | head -n 100 || true
        fi
    done
}

case "${1-}" in
baseline)
    baseline
    exit
    ;;
'') ;;
*)
    echo "usage: vendor/upstream-test.sh [baseline]" >&2
    exit 2
    ;;
esac

# pingora-timeout is patched by the fixes alone, and knows no TLS.
stage api "$("$vendor/pingora.sh" end api)" rustls pingora-core pingora-cache pingora-proxy
stage 'api + fixes' "$("$vendor/pingora.sh" end fixes)" rustls pingora-core pingora-cache pingora-proxy pingora-timeout
all=$("$vendor/pingora.sh" end carried)
stage 'api + fixes + carried' "$all" rustls pingora-core pingora-cache pingora-proxy
if [ -f "$vendor/pins/upstream-tests-openssl.txt" ]; then
    stage 'api + fixes + carried' "$all" openssl pingora-core pingora-proxy
else
    echo "openssl: not run, for lack of vendor/pins/upstream-tests-openssl.txt; vendor/upstream-test.sh baseline writes it"
fi
echo "upstream: $total passed, $status failed"
exit $status
