#!/usr/bin/env bash
# Materialises the patched Pingora under vendor/pingora, as a git repository with
# one commit for the published sources and one for each patch of the series.
#
# The series has three groups, applied in this order, each in a folder of patches/
# with its own numbers and cover letter (README.md): api, fixes, carried.
#
#   pingora.sh sync     fetch the pinned crates and apply patches/; does nothing
#                       when the tree is already that of the pins and the series
#   pingora.sh refresh  write the commits of vendor/pingora back to patches/. A
#                       commit stays in the group of the patch with its subject; a
#                       new one is put in the group of the commit before it
#   pingora.sh check    exit 1 and say what differs unless tree = pins + series
#   pingora.sh end GROUP
#                       print the last commit of a group in vendor/pingora
#   pingora.sh export [--tls BACKEND] [DIR]
#                       the same crates for the package in the current folder:
#                       writes them to DIR (default: vendor/pingora below the
#                       current folder), and prints the lines for Cargo.toml.
#                       BACKEND: rustls (default), openssl, boringssl, s2n, none
#
# Cargo fetches and verifies the crates (vendor/pins/Cargo.toml and Cargo.lock
# pin them); they are verified here once more, against the same checksums,
# because cargo does not look again at a crate that it has unpacked before.
set -euo pipefail

vendor=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
patches=$(cd "$vendor/.." && pwd)/patches
tree=$vendor/pingora
crates="pingora-cache pingora-core pingora-proxy pingora-rustls pingora-timeout"
groups="api fixes carried"
# Kept inside .git, so that it is never part of the tree itself.
stamp=$tree/.git/pingora-sendfile-stamp

die() {
    printf 'vendor/pingora.sh: %s\n' "$*" >&2
    exit 1
}

for tool in cargo flock git sha256sum tar; do
    command -v "$tool" >/dev/null || die "$tool is missing; on Debian: apt-get install git util-linux coreutils tar, and cargo from https://rustup.rs"
done

# git in the tree, deaf to the user's configuration and to a surrounding hook's
# environment; the commits then have the same ids everywhere.
tree_git() {
    local dir=$1
    shift
    env -u GIT_DIR -u GIT_WORK_TREE -u GIT_INDEX_FILE \
        GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 \
        git -C "$dir" \
        -c user.name='pingora-sendfile' -c user.email='pingora-sendfile@localhost' \
        -c core.autocrlf=false -c core.fileMode=false -c core.hooksPath=/dev/null \
        -c commit.gpgSign=false -c gc.auto=0 -c advice.detachedHead=false "$@"
}

# The patches of all groups, or of one, in the order in which they are applied
series() { # [GROUP]
    local group
    for group in ${1:-$groups}; do
        [ ! -d "$patches/$group" ] ||
            find "$patches/$group" -maxdepth 1 -name '*.patch' | LC_ALL=C sort
    done
}

# What the tree is made from; a change in any of it makes the tree out of date.
inputs_key() {
    {
        sha256sum < "$vendor/pins/Cargo.lock"
        sha256sum < "$vendor/pins/upstream.lock"
        sha256sum < "${BASH_SOURCE[0]}"
        series | while read -r patch; do
            echo "${patch#"$patches"/}"
            sha256sum < "$patch"
        done
    } | sha256sum | cut -d' ' -f1
}

# name -> "version checksum" from the lock file
pin() {
    awk -v name="$1" '
        $0 == "name = \"" name "\"" { found = 1 }
        found && /^version = /      { gsub(/"/, "", $3); version = $3 }
        found && /^checksum = /     { gsub(/"/, "", $3); print version, $3; exit }
    ' "$vendor/pins/Cargo.lock"
}

crate_file() {
    find "${CARGO_HOME:-$HOME/.cargo}/registry/cache" -name "$1-$2.crate" 2>/dev/null | head -n 1
}

# materialise DIR: the published sources and the series, in a new directory
materialise() {
    local dir=$1 name version checksum file
    mkdir -p "$dir"
    cargo fetch --locked --quiet --manifest-path "$vendor/pins/Cargo.toml" ||
        die "cargo could not fetch the crates that vendor/pins/Cargo.lock pins; is the package registry reachable?"
    for name in $crates; do
        read -r version checksum < <(pin "$name") || die "vendor/pins/Cargo.lock pins no $name"
        file=$(crate_file "$name" "$version")
        [ -n "$file" ] || die "$name-$version.crate is not in cargo's registry cache although cargo fetched it; is a source replacement configured for crates.io? Without it: cargo fetch --manifest-path vendor/pins/Cargo.toml"
        printf '%s  %s\n' "$checksum" "$file" | sha256sum --check --quiet >&2 ||
            die "$file does not have the pinned checksum $checksum; delete it and run again"
        mkdir -p "$dir/$name"
        # The .cargo* files and the crate's own Cargo.lock come from publishing,
        # not from the upstream repository.
        tar -xzf "$file" -C "$dir/$name" --strip-components=1 --no-same-owner \
            --exclude='*/.cargo_vcs_info.json' --exclude="$name-$version/Cargo.lock"
    done
    workspace > "$dir/Cargo.toml"
    tree_git "$dir" init --quiet --initial-branch=main
    cp "$vendor/pins/upstream.lock" "$dir/Cargo.lock"
    tree_git "$dir" add --all --force .
    GIT_AUTHOR_DATE='2026-01-01T00:00:00Z' GIT_COMMITTER_DATE='2026-01-01T00:00:00Z' \
        tree_git "$dir" commit --quiet -m "Pingora $version as published"
    tree_git "$dir" tag published
    local all=()
    mapfile -t all < <(series)
    if [ ${#all[@]} -gt 0 ]; then
        tree_git "$dir" am --quiet --keep-non-patch --committer-date-is-author-date "${all[@]}" >&2 ||
            die "the series does not apply to Pingora $version; see the message above"
    fi
}

# The patched crates' own workspace, in which upstream's unit tests run. It is
# not that of the proxy: upstream's code is not linted by our rules.
workspace() {
    local name
    printf '[workspace]\nresolver = "2"\nmembers = ["pingora-*"]\n\n[patch.crates-io]\n'
    for name in $crates; do
        printf '%s = { path = "%s" }\n' "$name" "$name"
    done
}

# Whether somebody has edited the tree since it was written.
edited() {
    [ -n "$(tree_git "$tree" status --porcelain)" ] ||
        [ "$(tree_git "$tree" rev-parse HEAD)" != "$(sed -n 2p "$stamp")" ]
}

write_stamp() { # DIR
    { inputs_key; tree_git "$1" rev-parse HEAD; } > "$1/.git/pingora-sendfile-stamp"
}

sync() {
    [ "$(sed -n 1p "$stamp" 2>/dev/null)" != "$(inputs_key)" ] || return 0
    if [ -f "$stamp" ] && edited; then
        die "vendor/pingora has edits or commits that are not in patches/; commit them there and run 'make vendor-refresh', or delete vendor/pingora to drop them"
    fi
    # Built beside the old tree and renamed at the end: an interruption leaves
    # either the old tree or the new one, and a leftover that the next run removes.
    rm -rf "$vendor"/.pingora-new "$vendor"/.pingora-old
    materialise "$vendor/.pingora-new"
    keep_times "$tree" "$vendor/.pingora-new"
    write_stamp "$vendor/.pingora-new"
    [ ! -e "$tree" ] || mv "$tree" "$vendor/.pingora-old"
    mv "$vendor/.pingora-new" "$tree"
    rm -rf "$vendor/.pingora-old"
    echo "vendor/pingora: Pingora $(pin pingora-core | cut -d' ' -f1) with $(series | wc -l) patches" >&2
}

# Files that did not change keep their modification time, or cargo would build
# all of Pingora again.
keep_times() { # OLD NEW
    [ -d "$1" ] || return 0
    (cd "$2" && find . -path ./.git -prune -o -type f -print) | while read -r file; do
        if cmp -s "$1/$file" "$2/$file"; then touch -r "$1/$file" "$2/$file"; fi
    done
}

# "GROUP subject" of each patch in patches/
patch_subjects() {
    local group
    for group in $groups; do
        series "$group" | while read -r patch; do
            awk -v group="$group" '
                /^Subject: /         { subject = $0; sub(/^Subject: (\[PATCH\] )?/, "", subject); next }
                subject && /^[ \t]/  { sub(/^[ \t]+/, ""); subject = subject " " $0; next }
                subject              { print group, subject; exit }
            ' "$patch"
        done
    done
}

# "COMMIT GROUP" of each commit of the series in a tree
group_commits() { # DIR
    local dir=$1 commit subject group=${groups%% *} found
    local -A of=()
    while read -r found subject; do
        of[$subject]=$found
    done < <(patch_subjects)
    while read -r commit subject; do
        found=${of[$subject]-$group}
        case " ${groups#*"$group"} " in
        *" $found "*) group=$found ;;
        *) [ "$found" = "$group" ] ||
            die "the commit \"$subject\" of group $found comes after one of group $group; move it with git rebase, or its patch to patches/$group" ;;
        esac
        echo "$commit $group"
    done < <(tree_git "$dir" log --reverse --format='%H %s' published..HEAD)
}

# The last commit of each group that has commits, "GROUP COMMIT"
group_ends() { # DIR
    group_commits "$1" | awk '{ end[$2] = $1; if (!seen[$2]++) order[++n] = $2 }
        END { for (i = 1; i <= n; i++) print order[i], end[order[i]] }'
}

format_series() { # DIR OUT
    local group commit base=published ends
    ends=$(group_ends "$1")
    for group in $groups; do mkdir -p "$2/$group"; done
    while read -r group commit; do
        [ -n "$group" ] || continue
        tree_git "$1" format-patch --quiet --zero-commit --no-signature --no-numbered \
            --full-index --no-renames --output-directory "$2/$group" "$base..$commit"
        base=$commit
    done <<< "$ends"
}

refresh() {
    [ -d "$tree/.git" ] || die "there is no vendor/pingora; run 'make vendor' first"
    [ -z "$(tree_git "$tree" status --porcelain)" ] ||
        die "vendor/pingora has uncommitted edits; commit them there first (one commit a patch)"
    local out group
    out=$(mktemp -d "$vendor/.pingora-series.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$out'" EXIT
    format_series "$tree" "$out"
    for group in $groups; do
        mkdir -p "$patches/$group"
        find "$patches/$group" -maxdepth 1 -name '*.patch' -delete
        find "$out/$group" -name '*.patch' -exec mv {} "$patches/$group"/ \;
    done
    write_stamp "$tree"
    series | sed "s|^$patches/|patches/|"
}

check() {
    [ -d "$tree/.git" ] || die "there is no vendor/pingora; run 'make vendor' first"
    local work status=0 stray
    work=$(mktemp -d "$vendor/.pingora-check.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    stray=$(find "$patches" -name '*.patch' | LC_ALL=C sort | comm -23 - <(series | LC_ALL=C sort))
    [ -z "$stray" ] || die "these patches are in no group: $stray"
    materialise "$work/tree"
    if ! diff -r --brief --exclude=.git \
        --label 'pins and series' "$work/tree" "$tree" > "$work/differs"; then
        status=1
        echo "vendor/pingora is not pins + series:" >&2
        sed "s|$work/tree|pins+series|g; s|$vendor/||g; s/^/  /" "$work/differs" >&2
    fi
    format_series "$tree" "$work/series"
    if ! diff -r --brief --exclude=README.md "$patches" "$work/series" > "$work/differs"; then
        status=1
        echo "the commits in vendor/pingora are not the series in patches/:" >&2
        sed "s|$work/series|commits|g; s|$patches|patches|g; s/^/  /" "$work/differs" >&2
    fi
    if [ $status -ne 0 ]; then
        die "run 'make vendor-refresh' to take the tree's commits into patches/, or delete vendor/pingora and run 'make vendor'"
    fi
    echo "vendor/pingora = Pingora $(pin pingora-core | cut -d' ' -f1) + $(series | wc -l) patches"
}

end() { # GROUP
    local end
    [ -d "$tree/.git" ] || die "there is no vendor/pingora; run 'make vendor' first"
    end=$(group_ends "$tree" | sed -n "s/^$1 //p")
    [ -n "$end" ] || die "no commit of vendor/pingora is in group $1; the groups are $groups"
    echo "$end"
}

# An exported folder is no git repository: it is to be committed in the project
# that it is for. This file in it says whose it is, from which pins and series,
# and what was written.
mark=.pingora-sendfile-export

# What is in an exported folder, except what building there leaves.
contents() { # DIR
    (cd "$1" && find . -path ./target -prune -o -type f ! -path "./$mark" -print0 |
        LC_ALL=C sort -z | xargs -0 sha256sum) | sha256sum | cut -d' ' -f1
}

export_to() { # DIR
    local dir=$1 key
    key=$(inputs_key)
    if [ -f "$dir/$mark" ]; then
        [ "$(sed -n 2p "$dir/$mark")" = "$(contents "$dir")" ] ||
            die "$dir has been edited since it was exported; keep what you need from it, delete it and run again"
    elif [ -e "$dir" ] && [ -n "$(ls -A "$dir")" ]; then
        die "$dir is not empty and was not written by 'pingora.sh export'; name another folder"
    fi
    if [ "$(sed -n 1p "$dir/$mark" 2>/dev/null)" != "$key" ]; then
        mkdir -p "$(dirname "$dir")"
        # Not local: the trap runs when the function is left.
        work=$(mktemp -d "$dir.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        materialise "$work/new"
        keep_times "$dir" "$work/new"
        rm -rf "$work/new/.git"
        { echo "$key"; contents "$work/new"; } > "$work/new/$mark"
        [ ! -e "$dir" ] || mv "$dir" "$work/old"
        mv "$work/new" "$dir"
        echo "$dir: Pingora $(pin pingora-core | cut -d' ' -f1) with $(series | wc -l) patches" >&2
    fi
}

# The workspace of the package in the current folder: [patch] and [workspace] are read
# only there. The current folder, if there is no package yet.
workspace_root() {
    local manifest
    if manifest=$(cargo locate-project --workspace --message-format plain 2>/dev/null); then
        dirname "$manifest"
    else
        pwd -P
    fi
}

# The version of a crate in a lock file.
locked() { # CRATE LOCK
    sed -n "/^name = \"$1\"\$/{n;s/^version = \"\(.*\)\"\$/\1/p}" "$2" | head -n 1
}

manifest_lines() { # DIR TLS
    local dir=$1 tls=$2 here root checkout name version old=''
    here=$(pwd -P)
    root=$(workspace_root)
    checkout=$(realpath "$vendor/..")
    [ "$root" = "$here" ] || printf '# In Cargo.toml of the package:\n'
    printf '[dependencies]\nasync-trait = "0.1"\n'
    printf '# One TLS backend for all: rustls, openssl, boringssl, s2n, or none.\n'
    for name in $crates pingora-http; do
        read -r version _ < <(pin "$name")
        case $name:$tls in
        # It comes with pingora-core.
        pingora-rustls:*) ;;
        pingora-core:none | pingora-proxy:none) printf '%s = "=%s"\n' "$name" "$version" ;;
        pingora-core:* | pingora-proxy:*)
            printf '%s = { version = "=%s", features = ["%s"] }\n' "$name" "$version" "$tls"
            ;;
        *) printf '%s = "=%s"\n' "$name" "$version" ;;
        esac
        if [ -f "$root/Cargo.lock" ]; then
            case $(locked "$name" "$root/Cargo.lock") in
            '' | "$version") ;;
            *) old="$old$name " ;;
            esac
        fi
    done
    printf '# The disk cache and the rules of HTTP caching. To send files, leave this line out.\n'
    printf 'pingora-sendfile = { path = "%s" }\n' "$(realpath --relative-to=. "$checkout")"
    printf '\n'
    if [ "$root" != "$here" ]; then
        printf '# In Cargo.toml of the workspace, %s:\n' \
            "$(realpath --relative-to=. "$root/Cargo.toml")"
    fi
    printf '[patch.crates-io]\n'
    for name in $crates; do
        # Cargo warns of a patch that nothing uses.
        [ "$name:$tls" = pingora-rustls:rustls ] || [ "$name" != pingora-rustls ] || continue
        printf '%s = { path = "%s" }\n' "$name" "$(realpath --relative-to="$root" "$dir/$name")"
    done
    case $checkout/ in
    "$root"/*)
        printf '\n# Otherwise Cargo takes the checkout for a member of this workspace.\n'
        printf '[workspace]\nexclude = ["%s"]\n' "$(realpath --relative-to="$root" "$checkout")"
        ;;
    esac
    if [ -n "$old" ]; then
        printf '\n# Cargo.lock has another version of Pingora, for which Cargo ignores the patches\n'
        printf '# ("was not used in the crate graph"). Run this once:\n'
        for name in $old; do
            printf '#   cargo update %s --precise %s\n' "$name" "$version"
        done
    fi
}

usage() {
    echo "usage: vendor/pingora.sh sync|refresh|check" >&2
    echo "       vendor/pingora.sh end ${groups// /|}" >&2
    echo "       vendor/pingora.sh export [--tls rustls|openssl|boringssl|s2n|none] [DIR]" >&2
    exit 2
}

case "${1-}" in
sync | refresh | check)
    [ $# -eq 1 ] || usage
    exec 9> "$vendor/.pingora-lock"
    flock 9
    "$1"
    ;;
end)
    [ $# -eq 2 ] || usage
    end "$2"
    ;;
export)
    shift
    tls=rustls
    if [ "${1-}" = --tls ]; then
        tls=${2-}
        shift "$((2 < $# ? 2 : $#))"
    fi
    case $tls in
    rustls | openssl | boringssl | s2n | none) ;;
    *) usage ;;
    esac
    [ $# -le 1 ] || usage
    exec 9> "$vendor/.pingora-lock"
    flock 9
    dir=$(realpath --canonicalize-missing "${1-vendor/pingora}")
    export_to "$dir"
    manifest_lines "$dir" "$tls"
    ;;
*)
    usage
    ;;
esac
