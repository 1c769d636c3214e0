#!/usr/bin/env bash
# Checks for what the build needs beyond Rust.
#
#   prerequisites.sh          exit 1 and say what is missing and how to install it
#   prerequisites.sh install  say it and install it, on Debian and its relatives when
#                             run as root
set -euo pipefail

declare -A package=([cc]=gcc [c++]=g++ [cmake]=cmake [git]=git [make]=make)
missing=()
for tool in "${!package[@]}"; do
    command -v "$tool" >/dev/null || missing+=("${package[$tool]}")
done
if ! command -v cargo >/dev/null; then
    echo "cargo is missing: install Rust 1.95 or later from https://rustup.rs" >&2
    exit 1
fi
[ ${#missing[@]} -gt 0 ] || exit 0

packages="${missing[*]} libc6-dev"
install="apt-get install -y --no-install-recommends $packages"
if [ "${1-}" != install ] || [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "the build needs packages that are missing here: ${missing[*]}; on Debian: sudo $install" >&2
    exit 1
fi
echo "the build needs packages that are missing here; installing them: $install" >&2
apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $install -qq >&2
