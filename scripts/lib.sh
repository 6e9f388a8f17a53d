# Shared by the scripts of this folder; sourced, never run.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

say() { printf '%s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# The environment of this folder, made if it is not there (nothing to do takes a few milliseconds).
use_environment() {
    bash "$ROOT/scripts/setup.sh" --quiet
    # shellcheck disable=SC1091
    source "$ROOT/.venv/bin/activate"
}

# take_arguments KEYS... -- ARGUMENTS...
# Sets the variable of every KEY=VALUE; everything else goes, in order, to the array EXTRA. A word of the form
# NAME=VALUE whose NAME is no key is an error, except behind a flag, whose value it may be.
take_arguments() {
    local keys=() word name after_flag=""
    while [ "$1" != "--" ]; do keys+=("$1"); shift; done
    shift
    EXTRA=()
    for word in "$@"; do
        name="${word%%=*}"
        if [ "$name" != "$word" ] && is_key "$name" "${keys[@]}"; then
            printf -v "$name" '%s' "${word#*=}"
        elif [ -z "$after_flag" ] && [[ "$word" =~ ^[A-Za-z_][A-Za-z_0-9]*= ]]; then
            fail "unknown key $name; $(nearest_of "$name" "${keys[@]}")\`bash $0 --help\` lists the keys"
        else
            EXTRA+=("$word")
            if [[ "$word" == --* ]]; then after_flag=1; fi
        fi
    done
}

is_key() {
    local wanted="$1" key
    shift
    for key in "$@"; do [ "$key" = "$wanted" ] && return 0; done
    return 1
}

# `did you mean X? `, or nothing when no word is close.
nearest_of() {
    python -c 'import sys
from lsvcr.utils.arguments import nearest
found = nearest(sys.argv[1], sys.argv[2:])
print(found, end=" " if found else "")' "$@"
}

# add_flag NAME VALUE: appends to the array FLAGS unless the value is empty, so that what a user leaves out keeps
# the default of the program or of its --config file.
add_flag() { if [ -n "$2" ]; then FLAGS+=("--$1" "$2"); fi; }

# read_settings CLASS PROGRAM FIELDS... -- ARGUMENTS...
# Checks the arguments as the program will (a wrong one ends here, before any process is started) and puts the
# value of each field, in order, into the array VALUES.
read_settings() {
    local text
    text="$(python -c 'import sys
import lsvcr.settings
from lsvcr.utils.arguments import parse_settings
from lsvcr.utils.errors import exit_code
words = sys.argv[1:]
cut = words.index("--")
kind, program, fields = words[0], words[1], words[2:cut]
def show():
    settings = parse_settings(getattr(lsvcr.settings, kind), words[cut + 1:], program)
    print("\n".join(str(getattr(settings, field)) for field in fields))
sys.exit(exit_code(show))' "$@")" || exit $?
    mapfile -t VALUES <<<"$text"
}

has_flag() {
    local wanted="$1" word
    shift
    for word in "$@"; do
        case "$word" in "--$wanted" | "--$wanted="* | "--${wanted//_/-}" | "--${wanted//_/-}="*) return 0 ;; esac
    done
    return 1
}

# Processes of this machine: NUM_GPUS if given, else one a GPU, else 2 on the CPU; and cores for each.
choose_processes() {
    local gpus
    gpus="$(count_gpus)"
    if [ -z "${NUM_GPUS:-}" ]; then
        NUM_GPUS=$((gpus > 0 ? gpus : 2))
    fi
    [[ "$NUM_GPUS" =~ ^[1-9][0-9]*$ ]] || fail "NUM_GPUS wants a whole number from 1, not '$NUM_GPUS'"
    if [ "$gpus" -gt 0 ] && [ "$NUM_GPUS" -gt "$gpus" ]; then
        fail "NUM_GPUS=$NUM_GPUS, but this machine shows $gpus GPU(s); ask for at most that many"
    fi
    share_cores "$gpus" "$NUM_GPUS"
}

# share_cores GPUS PROCESSES: on a machine without a GPU, an equal part of the cores for every process. Without it the
# launchers give one core to each.
share_cores() {
    if [ "$1" -eq 0 ] && [ -z "${OMP_NUM_THREADS:-}" ]; then
        local cores
        cores="$(nproc 2>/dev/null || echo "$2")"
        export OMP_NUM_THREADS=$((cores > $2 ? cores / $2 : 1))
    fi
}

# Asking torch takes seconds, so it is asked only where a device file (NVIDIA, AMD, WSL) says there may be a GPU.
count_gpus() {
    if compgen -G "/dev/nvidia[0-9]*" >/dev/null || [ -e /dev/kfd ] || [ -e /dev/dxg ]; then
        python -c 'import torch; print(torch.cuda.device_count())'
    else
        echo 0
    fi
}

# A port given by hand must be free; the message is clearer than the launcher's.
check_port() {
    [ -n "$1" ] || return 0
    [[ "$1" =~ ^[0-9]{1,5}$ ]] && [ "$1" -ge 1 ] && [ "$1" -le 65535 ] || fail "MASTER_PORT=$1 is no port (1 to 65535)"
    python -c 'import socket, sys
with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("", int(sys.argv[1])))
    except OSError as refused:
        sys.exit(f"error: MASTER_PORT={sys.argv[1]} cannot be used ({refused.strerror.lower()}): "
                 "another run has it? Choose another, or leave MASTER_PORT out to get a free one")' "$1" || exit 2
}

free_port() {
    python -c 'import socket
with socket.socket() as probe:
    probe.bind(("", 0))
    print(probe.getsockname()[1])'
}

# torchrun's own arguments, into the array LAUNCH, from NUM_GPUS, MASTER_PORT and, for several machines, NNODES,
# NODE_RANK and MASTER_ADDR.
choose_launch() {
    LAUNCH=(--nproc_per_node "$NUM_GPUS")
    if [ "${NNODES:-1}" != "1" ]; then
        [ -n "$NODE_RANK" ] && [ -n "$MASTER_ADDR" ] && [ -n "$MASTER_PORT" ] ||
            fail "NNODES=$NNODES needs NODE_RANK, MASTER_ADDR and MASTER_PORT too, the last two the same on all machines"
        LAUNCH+=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
    elif [ -n "$MASTER_PORT" ]; then
        check_port "$MASTER_PORT"
        LAUNCH+=(--master_port "$MASTER_PORT")
    else
        # The launcher takes a free port by itself, without the gap between looking and using.
        LAUNCH+=(--rdzv_backend c10d --rdzv_endpoint localhost:0)
    fi
}

# The first existing of PATH as given (from the caller's folder) and PATH in the repository.
locate() { if [ ! -e "$1" ] && [ -e "$ROOT/$1" ]; then printf '%s' "$ROOT/$1"; else printf '%s' "$1"; fi; }

# Run a command, or with DRY_RUN=1 print it, ready to be pasted into a shell.
run() {
    if [ "${DRY_RUN:-0}" = "1" ]; then
        printf '%q ' "$@"
        printf '\n'
    else
        "$@"
    fi
}
