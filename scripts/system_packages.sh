#!/usr/bin/env bash
# Programs that the tests drive and pip does not have: a real Prometheus, a real browser. What is there already is used.
#
#     scripts/system_packages.sh [--venv .venv] [prometheus] [chromium]
#
# Debian and Ubuntu. Prometheus is unpacked into the virtual environment and not installed, because the package would
# start a server on port 9090; that needs no root. Chromium needs libraries of the system, so it is installed, which
# needs root or sudo without a password.
set -euo pipefail

venv=.venv
wanted=()
while [ $# -gt 0 ]; do
    case "$1" in
        --venv) venv="$2"; shift 2 ;;
        prometheus | chromium) wanted+=("$1"); shift ;;
        *) echo "[setup] $1 is not known here; allowed: --venv DIR, prometheus, chromium" >&2; exit 2 ;;
    esac
done
[ ${#wanted[@]} -gt 0 ] || wanted=(prometheus chromium)
mkdir -p "$venv/bin"
venv="$(cd "$venv" && pwd)"
export PATH="$venv/bin:$PATH"

say() { echo "[setup] $*"; }

give_up() { # program, what a person can do
    echo "[setup] $1 is missing and could not be had: $2" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

have_lists() { # package: apt knows where it is; asked for anew where it does not
    apt-cache show "$1" >/dev/null 2>&1 || { as_root apt-get update -q && apt-cache show "$1" >/dev/null 2>&1; }
}

get_prometheus() {
    if command -v prometheus >/dev/null && command -v promtool >/dev/null; then return; fi
    local hint="put prometheus and promtool on the PATH (https://prometheus.io/download)"
    command -v apt-get >/dev/null || give_up prometheus "this is no Debian; $hint"
    say "unpacking Debian's prometheus into $venv/opt/prometheus (the tests query a real one)"
    have_lists prometheus >&2 || give_up prometheus "apt does not know it; $hint"
    local folder
    folder="$(mktemp -d)"
    (cd "$folder" && apt-get download -q prometheus >/dev/null 2>&1) || give_up prometheus "apt could not fetch it; $hint"
    mkdir -p "$venv/opt/prometheus"
    dpkg-deb -x "$folder"/prometheus_*.deb "$venv/opt/prometheus"
    rm -rf "$folder"
    ln -sf ../opt/prometheus/usr/bin/prometheus ../opt/prometheus/usr/bin/promtool "$venv/bin/"
}

get_chromium() {
    if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then return; fi
    local hint="install Chromium and its driver, for example with: sudo apt-get install chromium chromium-driver"
    command -v apt-get >/dev/null || give_up chromium "this is no Debian; $hint"
    say "installing Debian's chromium and chromium-driver (the tests drive the page in it)"
    have_lists chromium >&2 || give_up chromium "apt does not know it; $hint"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium chromium-driver >/dev/null ||
        give_up chromium "apt could not install it; $hint"
}

for program in "${wanted[@]}"; do "get_$program"; done
