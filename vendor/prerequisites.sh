#!/usr/bin/env bash
# Checks for what the build needs beyond Rust, and installs it on Debian and its
# relatives when run as root. Otherwise says exactly what to install.
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

install="apt-get install -y --no-install-recommends ${missing[*]} libc6-dev"
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "these packages are missing: ${missing[*]}; on Debian: sudo $install" >&2
    exit 1
fi
echo "installing ${missing[*]}" >&2
apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $install -qq >&2
