#!/usr/bin/env bash
# Make .venv with everything LSVCR needs, at the versions of requirements.lock. Run it as often as you like: when
# nothing has changed it does nothing. Works as an ordinary user and asks for no rights.
#
#   bash scripts/setup.sh                    python3, or the newest python3.X found
#   PYTHON=python3.12 bash scripts/setup.sh  this interpreter
#   bash scripts/setup.sh --quiet            says nothing when there is nothing to do
#
# Packages come from wherever pip is set up to look (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf).
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV="$ROOT/.venv"
STAMP="$VENV/lsvcr-installed"
UNFINISHED="$VENV/lsvcr-unfinished"
LOG="$VENV/lsvcr-install.log"
# What torch with its GPU libraries and everything else takes, with room to unpack; CPU-only torch needs half.
NEED_GB="${LSVCR_MIN_DISK_GB:-6}"
QUIET=""

say() { printf '%s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

main() {
    case "${1:-}" in
        "") ;;
        --quiet) QUIET=1 ;;
        --help | -h) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
        *) fail "unknown argument $1: scripts/setup.sh takes --quiet or --help" ;;
    esac
    if is_current; then
        if [ -z "$QUIET" ]; then say "environment is ready: $VENV"; fi
        return
    fi
    check_writable
    wait_for_others
    # Another run may have finished the work while this one waited.
    if is_current; then return; fi
    make_venv
    : >"$UNFINISHED"
    install_packages
    fingerprint >"$STAMP.new"
    mv "$STAMP.new" "$STAMP"
    rm -f "$UNFINISHED"
    say "environment is ready: $VENV"
}

# What the environment depends on: the locks, the project file, the interpreter and the folder (scripts inside a
# virtual environment carry its path).
fingerprint() {
    sha256sum <"$ROOT/requirements.lock"
    sha256sum <"$ROOT/requirements-nodeps.lock"
    sha256sum <"$ROOT/pyproject.toml"
    "$VENV/bin/python" -c 'import sys; print(sys.version)'
    printf '%s\n' "$VENV"
}

is_current() {
    [ -f "$STAMP" ] && [ ! -e "$UNFINISHED" ] || return 1
    [ -z "${PYTHON:-}" ] || [ "$(python_version "$PYTHON")" = "$(python_version "$VENV/bin/python")" ] || return 1
    [ "$(fingerprint 2>/dev/null)" = "$(cat "$STAMP")" ]
}

python_version() { "$1" -c 'import sys; print(sys.version)' 2>/dev/null || printf 'none of %s' "$1"; }

check_writable() {
    [ -w "$ROOT" ] || fail "$ROOT cannot be written to by $(id -un): clone the repository into a folder of your own"
    if [ -e "$VENV" ] && [ ! -w "$VENV" ]; then
        fail "$VENV belongs to somebody else: remove it, or clone the repository into a folder of your own"
    fi
}

# Two scripts started at once must not install into one folder at once.
wait_for_others() {
    command -v flock >/dev/null || return 0
    exec 9<"$ROOT"
    flock -n 9 || { say "waiting for another setup of this folder ..." && flock 9; }
}

check_space() {
    local free_kb
    free_kb="$(df -Pk "$ROOT" | awk 'NR == 2 { print $4 }')"
    [[ "$free_kb" =~ ^[0-9]+$ ]] || return 0
    [ "$free_kb" -ge $((NEED_GB * 1024 * 1024)) ] || fail \
        "about $NEED_GB GB of disk space are needed in $ROOT, $((free_kb / 1024)) MB are free: free some, or clone" \
        "elsewhere. (Where pip finds a CPU-only torch, 3 GB do: LSVCR_MIN_DISK_GB=3 bash scripts/setup.sh)"
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

# Prints the interpreter to use: PYTHON if given, else the first of the usual names that is new enough.
find_python() {
    local name
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not an interpreter that can be run"
        is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON is $("$PYTHON" -V 2>&1); Python 3.10 or newer is needed"
        printf '%s' "$PYTHON"
        return
    fi
    for name in python3 python python3.13 python3.12 python3.11 python3.10; do
        if command -v "$name" >/dev/null && is_new_enough "$name"; then
            printf '%s' "$name"
            return
        fi
    done
    command -v python3 >/dev/null || fail "no Python found: Python 3.10 or newer is needed (Debian, Ubuntu: package python3)"
    fail "Python 3.10 or newer is needed, python3 is $(python3 -V 2>&1):" \
        "install a newer one and name it, as in PYTHON=/path/to/python3.11 bash scripts/setup.sh"
}

make_venv() {
    local python
    python="$(find_python)"
    # An environment that works, and whose last installation was not cut off, is brought up to date in place.
    if [ ! -e "$UNFINISHED" ] && [ -f "$VENV/pyvenv.cfg" ] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        local moved=""
        if [ -f "$STAMP" ] && ! grep -qxF "$VENV" "$STAMP"; then moved=1; fi
        if [ -z "$moved" ] && is_new_enough "$VENV/bin/python" && same_as_asked; then return; fi
    fi
    "$python" -c 'import venv, ensurepip' 2>/dev/null || fail \
        "$python has no venv module (Debian and Ubuntu ship it apart: package python3-venv, or" \
        "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')); install it, or name another Python with PYTHON=..."
    if [ -e "$VENV" ]; then
        say "making $VENV anew: it is unfinished, broken, moved or of another Python ..."
        rm -rf "$VENV"
    fi
    check_space
    say "making $VENV with $("$python" -V 2>&1) ..."
    mkdir "$VENV"
    : >"$UNFINISHED"
    "$python" -m venv "$VENV" || fail "$python could not make $VENV (its message is above)"
}

same_as_asked() { [ -z "${PYTHON:-}" ] || [ "$(python_version "$PYTHON")" = "$(python_version "$VENV/bin/python")" ]; }

install_packages() {
    local uv_version
    PIP_SETTINGS="$("$VENV/bin/python" -m pip config list 2>/dev/null || true)"
    say "installing packages (one to five minutes; details in .venv/lsvcr-install.log) ..."
    hint_about_gpu_libraries
    : >"$LOG"
    uv_version="$(sed -n 's/^uv==\([^ ]*\).*/\1/p' "$ROOT/requirements.lock")"
    logged pip_install "uv==$uv_version" || explain_failure
    # uv reads the same lock several times faster. pip is the fallback: it knows settings that uv does not.
    export_pip_settings
    if ! install_with uv_install; then
        say "uv could not install them; trying pip, which takes longer ..."
        install_with pip_install || explain_failure
    fi
    logged first_imports || explain_failure
}

# Sees that the packages load. uv leaves byte code to the first import, and where Python is told to write none (as in
# many containers) every start of every process would compile all of it anew: 5 s each.
first_imports() {
    env -u PYTHONDONTWRITEBYTECODE "$VENV/bin/python" -c 'import accelerate.commands.launch, torch.distributed.run
import transformers.models.llama.modeling_llama, transformers.models.auto.tokenization_auto, deepspeed
import lsvcr.cli, lsvcr.training.align, lsvcr.training.embed, lsvcr.training.rank, lsvcr.experiments.table'
}

install_with() {
    logged "$1" -r "$ROOT/requirements.lock" &&
        logged "$1" --no-deps -r "$ROOT/requirements-nodeps.lock" &&
        logged "$1" --no-deps --no-build-isolation -e "$ROOT"
}

logged() { "$@" >>"$LOG" 2>&1; }

pip_install() { "$VENV/bin/python" -m pip install --disable-pip-version-check "$@"; }

uv_install() { "$VENV/bin/uv" pip install --no-config --python "$VENV/bin/python" "$@"; }

# Tell uv what pip is set up to do, so that both look in the same places.
export_pip_settings() {
    export UV_PYTHON_DOWNLOADS=never UV_INDEX_STRATEGY=unsafe-best-match
    pass_on index-url UV_DEFAULT_INDEX
    pass_on extra-index-url UV_INDEX
    pass_on find-links UV_FIND_LINKS ,
    pass_on trusted-host UV_INSECURE_HOST
    pass_on cert SSL_CERT_FILE
    pass_on proxy ALL_PROXY
    if [ -n "$(pip_setting no-index)" ]; then export UV_NO_INDEX=1; fi
}

# pip's value of a setting; one from the environment (`:env:`) wins over one from a file. pip prints several values
# with blanks, or with \n, between them.
pip_setting() {
    printf '%s\n' "$PIP_SETTINGS" |
        sed -n "s/^\([^=]*\)\.$1='\(.*\)'\$/\1 \2/p" |
        awk '/^:env:/ { env = 1; sub(/^[^ ]* /, ""); print; exit } { sub(/^[^ ]* /, ""); other = $0 }
             END { if (!env && other != "") print other }' |
        sed 's/\\n/ /g; s/^ *//; s/ *$//'
}

pass_on() {
    local value
    value="$(pip_setting "$1")"
    if [ -n "$value" ] && [ -z "${!2:-}" ]; then export "$2=${value// /${3:- }}"; fi
}

hint_about_gpu_libraries() {
    if [ -e /dev/nvidiactl ] || command -v nvidia-smi >/dev/null || [ -e /dev/kfd ]; then return; fi
    if [ -n "$(pip_setting find-links)$(pip_setting index-url)$(pip_setting extra-index-url)" ]; then return; fi
    say "note: no GPU here, yet torch from the default index brings GPU libraries (some 3 GB). To spare them, stop" \
        "(Ctrl-C), set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels and start again."
}

explain_failure() {
    local reason="packages could not be installed; the end of the log is above"
    if grep -qiE "no space left|disk quota" "$LOG"; then
        reason="the disk is full: free some space and run this again (it starts afresh by itself)"
    elif grep -qiE "name resolution|failed to resolve|connection (refused|reset|error)|NewConnectionError|timed out|network is unreachable|dns error|error sending request|proxyerror|client error|SSL|certificate|distribution found for uv==" "$LOG"; then
        reason="the package index cannot be reached: check the network (or proxy) of this machine, or point pip at a mirror (PIP_INDEX_URL, PIP_FIND_LINKS), and run this again"
    elif grep -qiE "no matching distribution|no solution found" "$LOG"; then
        reason="a package of requirements.lock has no build for $("$VENV/bin/python" -V) on this machine, or the package index lacks it; try another Python with PYTHON=..."
    fi
    tail -n 15 "$LOG" >&2
    fail "$reason. Full log: $LOG"
}

main "$@"
