#!/usr/bin/env bash
# Runs Pingora's own unit tests on the patched tree, once for each group of the
# series: api alone, api and fixes, and all of it. Every test that passes on the
# published crates has to pass, and so do those that the series adds.
#
#   upstream-test.sh           with rustls for each group, and with openssl for
#                              the whole series where there is a list for it
#   upstream-test.sh baseline  write the lists of the tests that pass on the
#                              published crates: pins/upstream-tests-TLS.txt
#   upstream-test.sh each      compile the crates and their tests after each patch,
#                              with rustls; a warning is an error
#
# The command openssl makes keys, and the tests with openssl link the system's library.
# Like `prerequisites.sh install`, this installs them on Debian when run as root, and
# otherwise says what to install.
set -euo pipefail

vendor=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# The proxy's own folder: many dependencies are the same.
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-$vendor/../target}")
export CARGO_TARGET_DIR
export CARGO_PROFILE_DEV_DEBUG=0 CARGO_PROFILE_TEST_DEBUG=0
# The stages differ so much that incremental compilation costs more than it saves.
export CARGO_INCREMENTAL=0
# The system's OpenSSL: building one takes long.
export OPENSSL_NO_VENDOR=1
source=$CARGO_TARGET_DIR/upstream/source
work=$(mktemp -d)
running=
trap '[ -z "$running" ] || kill "$running" 2>/dev/null || true
      rm -rf "$work"' EXIT

die() {
    echo "vendor/upstream-test.sh: $*" >&2
    exit 1
}

missing=()
command -v openssl >/dev/null || missing+=(openssl)
pkg-config --exists openssl 2>/dev/null || missing+=(libssl-dev pkg-config)
if [ ${#missing[@]} -gt 0 ]; then
    install="apt-get install -y --no-install-recommends ${missing[*]}"
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null ||
        die "these packages are missing: ${missing[*]}; on Debian: sudo $install"
    echo "Pingora's TLS tests need packages that are missing here; installing them: $install" >&2
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $install -qq >&2
fi

crates="pingora-core pingora-cache pingora-proxy pingora-timeout"

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

# trim CRATE: drops the dev-dependencies that its sources do not name, which are for its benchmarks,
# examples and integration tests. The lock then names more than there is, so that cargo runs without
# --locked; it takes what is left from the lock all the same. trace.rs is for a feature that is off.
trim() {
    local manifest=$source/$1/Cargo.toml name
    sed -n 's/^\[.*dev-dependencies\.\(.*\)\]$/\1/p' "$manifest" | while read -r name; do
        grep -rqE --exclude=trace.rs "\\b${name//-/_}::" "$source/$1/src" ||
            sed -i "/^\\[.*dev-dependencies\\.$name\\]\$/,/^\$/d" "$manifest"
    done
}

# check_out REV: the sources of a commit of vendor/pingora, always at the same
# place, so that cargo builds only what differs from the commit before
checked_out=
check_out() {
    local keys=$source/pingora-core/tests/keys crate
    [ "$1" != "$checked_out" ] || return 0
    [ -d "$source/.git" ] || git init --quiet "$source"
    git -C "$source" fetch --quiet --depth 1 "$vendor/pingora" "$1"
    git -C "$source" checkout --quiet --force FETCH_HEAD
    for crate in $crates; do
        trim "$crate"
    done
    # Upstream's repository has these keys, the published crates do not.
    if [ ! -f "$keys/key.pem" ]; then
        mkdir -p "$keys"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj /CN=openrusty.org \
            -addext 'subjectAltName=DNS:openrusty.org,DNS:*.openrusty.org' \
            -keyout "$keys/key.pem" -out "$keys/server.crt" 2>"$work/openssl" ||
            die "openssl could not make a key: $(cat "$work/openssl")"
    fi
    checked_out=$1
}

# build REV TLS FOLDER CRATE...: the unit tests of these crates, as FOLDER/CRATE
build() {
    local tls=$2 folder=$3 crate packages=() features=()
    check_out "$1"
    shift 3
    for crate in "$@"; do
        packages+=(--package "$crate")
        case $crate in pingora-core | pingora-proxy) features+=(--features "$crate/$tls") ;; esac
    done
    mkdir -p "$folder"
    cargo test --manifest-path "$source/Cargo.toml" --lib --no-run \
        "${packages[@]}" "${features[@]}" 2> "$folder/log" || {
        tail -n 50 "$folder/log" >&2
        die "the unit tests of $* do not compile"
    }
    for crate in "$@"; do
        # Cargo names each: "Executable unittests src/lib.rs (PATH)".
        cp "$(sed -n "s|^ *Executable .*(\(.*/${crate//-/_}-[0-9a-f]*\))\$|\1|p" "$folder/log")" "$folder/$crate"
    done
}

run() { # FOLDER CRATE OUTPUT [ARGUMENT...]
    local program=$1/$2 crate=$2 output=$3 threads=8
    shift 3
    # Again, after a failure: one at a time.
    [ $# -eq 0 ] || threads=1
    # Many of them sleep, so that there is room for more threads than cores.
    (cd "$source/$crate" && CARGO_MANIFEST_DIR=$PWD exec "$program" --test-threads "$threads" "$@") > "$output" 2>&1 || true
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
retry_failed() { # FOLDER CRATE; from output to passed and failed
    local again folder=$1
    names "$folder/output" FAILED | { grep -vxF "$needs_internet" || true; } > "$folder/failed"
    [ -s "$folder/failed" ] || return 0
    echo "$2: once more, one at a time: $(tr '\n' ' ' < "$folder/failed")" >&2
    mapfile -t again < "$folder/failed"
    run "$folder" "$2" "$folder/again" --exact "${again[@]}"
    names "$folder/again" ok >> "$folder/passed"
    sort -u -o "$folder/passed" "$folder/passed"
    names "$folder/again" FAILED > "$folder/failed"
}

baseline() {
    local tls crate folder
    for tls in rustls openssl; do
        folder=$work/$tls
        # shellcheck disable=SC2086
        build published "$tls" "$folder" $crates
        for crate in $crates; do
            run "$folder" "$crate" "$folder/output"
            names "$folder/output" ok > "$folder/passed"
            retry_failed "$folder" "$crate"
            sed 's/^/failed: /' "$folder/failed" >&2
            grep -vxF "$needs_internet" "$folder/passed" | sed "s/^/$crate /"
        done > "$vendor/pins/upstream-tests-$tls.txt"
    done
}

# test_stage TITLE TLS FOLDER CRATE...: runs what build has made. The last line says how many
# passed, and whether something is lost.
test_stage() {
    local title=$1 tls=$2 folder=$3 crate upstream skipped internet ours total=0 status=0
    shift 3
    for crate in "$@"; do
        run "$folder" "$crate" "$folder/output"
        names "$folder/output" ok > "$folder/passed"
        retry_failed "$folder" "$crate"
        sed -n "s/^$crate //p" "$vendor/pins/upstream-tests-$tls.txt" | sort -u > "$folder/upstream"
        comm -23 "$folder/upstream" "$folder/passed" > "$folder/lost"
        upstream=$(comm -12 "$folder/upstream" "$folder/passed" | wc -l)
        skipped=$(names "$folder/output" FAILED | { grep -cxF "$needs_internet" || true; })
        internet=$(grep -cxF "$needs_internet" "$folder/passed" || true)
        ours=$(($(wc -l < "$folder/passed") - upstream - internet))
        total=$((total + upstream + ours + internet))
        echo "$title, $tls: $crate: $upstream of upstream's $(wc -l < "$folder/upstream") tests passed, $ours of the series; needing the internet: $internet passed, $skipped failed"
        if [ -s "$folder/lost" ] || [ -s "$folder/failed" ]; then
            status=1
            sed 's/^/  lost: /' "$folder/lost"
            sed 's/^/  failed: /' "$folder/failed"
            grep -A20 '^---- ' "$folder/output" | head -n 100 || true
        fi
    done
    echo "$total $status" > "$folder/result"
}

# The tests of one stage run while the next one is compiled: they mostly wait. Some use fixed
# ports, so that no two stages are tested at a time.
results=()
finish() {
    [ -n "$running" ] || return 0
    wait "$running" || die "a stage was not tested"
    running=
}

stage() { # TITLE REV TLS CRATE...
    local title=$1 rev=$2 tls=$3 folder=$work/stage-${#results[@]}
    shift 3
    build "$rev" "$tls" "$folder" "$@"
    finish
    results+=("$folder/result")
    test_stage "$title" "$tls" "$folder" "$@" &
    running=$!
}

# each: the published crates compile without a warning in the files that the series touches.
each() {
    local commit subject packages failed=0
    while read -r commit subject; do
        check_out "$commit"
        packages=()
        for crate in $crates; do
            packages+=(--package "$crate")
        done
        if cargo check --quiet --manifest-path "$source/Cargo.toml" --lib --profile test \
            "${packages[@]}" --features pingora-core/rustls,pingora-proxy/rustls 2> "$work/log" &&
            [ ! -s "$work/log" ]; then
            echo "ok: $subject"
        else
            failed=1
            echo "failed: $subject"
            cat "$work/log"
        fi
    done < <(git -C "$vendor/pingora" log --reverse --format='%H %s' published..HEAD)
    return "$failed"
}

case "${1-}" in
baseline)
    baseline
    exit
    ;;
each)
    each
    exit
    ;;
'') ;;
*)
    echo "usage: vendor/upstream-test.sh [baseline|each]" >&2
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
finish
cat "${results[@]}" | {
    total=0 status=0
    while read -r passed failed; do
        total=$((total + passed)) status=$((status + failed))
    done
    echo "upstream: $total passed, $status failed"
    exit "$status"
}
