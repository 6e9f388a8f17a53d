#!/usr/bin/env bash
# Every check: environment, lint, format, types, tests. `bash scripts/test.sh [PYTEST ARGUMENTS]` passes on what
# follows, as in `bash scripts/test.sh tests/utils -x`. Tests of pages need a browser and are skipped without one;
# scripts/browser.sh says when one is installed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

main() {
    use_environment
    bash "$ROOT/scripts/browser.sh"
    cd "$ROOT"
    # Two test processes share two cores, so each may have one thread; and what needs more must not be measured here.
    export OMP_NUM_THREADS=1
    step "ruff check" ruff check .
    step "ruff format" ruff format --check .
    step "mypy" mypy
    say "== pytest"
    pytest -n 2 --dist worksteal "$@"
}

step() {
    say "== $1"
    shift
    "$@" || fail "$* found something (above); \`ruff check --fix . && ruff format .\` mends what can be mended by itself"
}

main "$@"
