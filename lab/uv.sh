#!/usr/bin/env bash
# Runs uv at the project's version, in the checkout; installs it, and Debian's Python >= 3.11 if the machine has none, first.
set -euo pipefail
cd "$(dirname "$0")/.."
UV_VERSION=0.13.9
CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/finetune-operator"

if ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "python3 >= 3.11 with venv is missing: installing Debian's"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 python3-venv >/dev/null
fi
UV="$CACHE/uv-$UV_VERSION/bin/uv"
if ! "$UV" --version >/dev/null 2>&1; then
    echo "installing uv $UV_VERSION"
    rm -rf "$CACHE/uv-$UV_VERSION"
    python3 -m venv "$CACHE/uv-$UV_VERSION"
    "$CACHE/uv-$UV_VERSION/bin/pip" install --quiet --disable-pip-version-check "uv==$UV_VERSION"
fi
exec "$UV" "$@"
