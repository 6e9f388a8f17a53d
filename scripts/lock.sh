#!/usr/bin/env bash
# Write requirements.lock anew from the ranges in pyproject.toml, keeping pinned versions that still fit.
# For those who change a dependency: `bash scripts/lock.sh`, then `bash scripts/test.sh`. `--upgrade` takes the newest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Packages that pip must not be told about:
#   nvidia-*, cuda-*, triton   torch's own GPU packages; pip takes those that fit the torch build it finds
#   the rest                   needed on other systems than Linux only
LEFT_OUT='^(nvidia-|cuda-|triton|colorama|pyreadline3|httpx2-jsfetch)'

main() {
    [ -x "$ROOT/.venv/bin/uv" ] || fail "uv is not in .venv: run bash scripts/setup.sh first"
    cd "$ROOT"
    local pins
    pins="$(mktemp)"
    cp requirements.lock "$pins"
    printf 'uv\n' | .venv/bin/uv pip compile --universal --python-version 3.10 --no-config --no-header --no-annotate \
        --no-emit-index-url --quiet --extra llm --extra serve --extra dev "$@" -o "$pins" pyproject.toml - >/dev/null
    {
        printf '%s\n' \
            "# Every package at the version that was tested, for Python 3.10 and newer on Linux. Written by scripts/lock.sh." \
            "# torch's GPU packages (nvidia-*, triton) are not listed: pip takes those that the torch build it finds asks for," \
            "# and a CPU-only torch asks for none."
        grep -vE "$LEFT_OUT" "$pins"
    } >requirements.lock.new
    mv requirements.lock.new requirements.lock
    rm -f "$pins"
    say "requirements.lock: $(grep -cv '^#' requirements.lock) lines"
}

main "$@"
