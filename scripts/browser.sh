#!/usr/bin/env bash
# A browser for the tests that open pages. Where none is found, and only on Debian, as root, and with CI=true or
# LSVCR_INSTALL_BROWSER=1, Debian's chromium is installed with apt-get. Whatever happens, this ends well: without a
# browser those tests are skipped, and say so.
set -uo pipefail

SECONDS_AT_MOST=240

say() { printf '%s\n' "$*"; }

main() {
    local name log
    [ -z "${LSVCR_BROWSER:-}" ] || return 0
    for name in chromium google-chrome chrome; do
        if command -v "$name" >/dev/null; then return 0; fi
    done
    may_install || return 0
    log="$(mktemp)" || return 0
    say "== chromium, for the tests that open pages (apt-get, at most $SECONDS_AT_MOST s)"
    if ! timeout --kill-after=10 "$SECONDS_AT_MOST" bash -c "$(declare -f apt_install); apt_install" >"$log" 2>&1; then
        say "note: chromium could not be installed, tests that need a browser are skipped. The end of what apt-get said:"
        tail -n 3 "$log"
    fi
    rm -f "$log"
    return 0
}

may_install() {
    [ "${CI:-}" = true ] || [ "${LSVCR_INSTALL_BROWSER:-}" = 1 ] || return 1
    [ "$(id -u)" = 0 ] && grep -qx 'ID=debian' /etc/os-release && command -v apt-get >/dev/null
} 2>/dev/null

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq -o DPkg::Lock::Timeout=60 update &&
        apt-get -qq -o DPkg::Lock::Timeout=60 install -y --no-install-recommends chromium
} </dev/null

main
