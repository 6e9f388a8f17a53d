#!/usr/bin/env bash
# The whole line on simulated data, from an empty clone to a table that says what stage one brought, and to a bundle.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
usage: bash scripts/demo.sh [KEY=VALUE ...]

Makes the environment, simulates a small video world, trains stage one with a small LLM and stage two for both tasks,
prints one table and exports a bundle to serve. Without a GPU: 2 cores, 8 GB of memory, 10 to 15 minutes. Run it again
and it takes up where it stopped; what is finished is used again.

  OUT              folder that receives everything (./demo)
  PRESET           demo (default), or tiny: a world of 60 people and a few steps, to see that all parts work
  LANGUAGE         en (default) or zh: language of titles, comments and prompts
  SEED             seed of the world and of all training (2024)
  BASE_MODEL_PATH  the LLM: smollm2-135m (default), a folder, GGUF file or hub id; tiny-random answers at once

examples:
  bash scripts/demo.sh
  bash scripts/demo.sh OUT=/tmp/smoke PRESET=tiny BASE_MODEL_PATH=tiny-random
TEXT
}

KEYS=(OUT PRESET LANGUAGE SEED BASE_MODEL_PATH)
STEPS=8
NUMBER=0
STEP="the arguments"
WATCHER=""
declare -A JOBS=() LABELS=() STARTED=()
STAGE_ONE=()
STAGE_TWO=()

main() {
    case " $* " in *" --help "* | *" -h "*) usage && exit 0 ;; esac
    OUT=./demo PRESET=demo LANGUAGE=en SEED=2024 BASE_MODEL_PATH=smollm2-135m
    read_arguments "$@"
    trap 'ended $?' EXIT
    headline "environment (the first time, some minutes of installing)"
    use_environment
    STEP=""
    choose_settings
    claim_folder
    headline "simulate: what $PRESET people watched, liked and commented ($OUT/raw)"
    unless_there "$OUT/raw/simulation.json" \
        lsvcr simulate --preset "$PRESET" --language "$LANGUAGE" --seed "$SEED" --out "$OUT/raw"
    headline "prepare: raw logs to histories, samples and splits ($OUT/data)"
    unless_there "$OUT/data/manifest.json" \
        lsvcr prepare kuaicomt --raw "$OUT/raw" --out "$OUT/data" --seed "$SEED"
    headline "vectors of all texts by the untuned LLM, for the control and the head start"
    unless_there "$OUT/data/comment_full_embs.npy" embed_untuned
    headline "stage one: $LLM teaches the SR model ($OUT/align)"
    unless_there "$OUT/align/best/comment_embs.npy" align
    headline "stage two: three models for each of two tasks, two at a time, stopped by their validation figures"
    stage_two
    headline "the table: test split, every video and every comment of the video is a candidate"
    lsvcr table --data "$OUT/data" "ids only=$OUT/ids" \
        "untuned text$CUT=$OUT/untuned" "both stages$CUT=$OUT/aligned" | tee "$OUT/table.txt"
    headline "a bundle of both stages' models, which needs neither torch nor an LLM ($OUT/bundle)"
    unless_there "$OUT/bundle/manifest.json" export_bundle
    STEP=""
    closing
}

read_arguments() {
    local EXTRA=()
    # There may be no environment yet: the system's Python names the nearest key of a misspelt one.
    python() { PYTHONPATH="$ROOT" python3 "$@" 2>/dev/null || true; }
    take_arguments "${KEYS[@]}" -- "$@"
    unset -f python
    [ "${#EXTRA[@]}" -eq 0 ] || fail "unexpected argument ${EXTRA[0]}: scripts/demo.sh takes ${KEYS[*]} as KEY=VALUE"
    case "$PRESET" in demo | tiny) ;; *) fail "PRESET=$PRESET: choose demo or tiny" ;; esac
    case "$LANGUAGE" in en | zh) ;; *) fail "LANGUAGE=$LANGUAGE: choose en or zh" ;; esac
    [[ "$SEED" =~ ^[0-9]+$ ]] || fail "SEED=$SEED: give a whole number from 0"
    [ -n "$OUT" ] && [ -n "$BASE_MODEL_PATH" ] || fail "OUT and BASE_MODEL_PATH must not be empty"
    OUT="${OUT%/}"
}

# The control must use as many layers of the LLM and tokens of a text as stage one does: both are read where it reads them.
choose_settings() {
    local VALUES=()
    STAGE_ONE=(--config "$ROOT/config/align/demo.yaml" --language "$LANGUAGE")
    STAGE_TWO=(--config "$ROOT/config/finetune/demo.yaml")
    if [ "$BASE_MODEL_PATH" = tiny-random ]; then STAGE_ONE+=(--llm_layers 0); fi
    # Letters (tiny-random) and Chinese in an English vocabulary take more tokens than the English words of the settings.
    if [ "$BASE_MODEL_PATH" = tiny-random ] || [ "$LANGUAGE" = zh ]; then STAGE_ONE+=(--max_source_length 512); fi
    # Its one sample a process is contrasted with those of other processes: a single GPU has none.
    if [ "$(count_gpus)" = 1 ]; then STAGE_ONE+=(--per_device_train_batch_size 2); fi
    if [ "$PRESET" = tiny ]; then
        STAGE_ONE+=(--max_steps 6 --save_steps 3 --eval_pool 16)
        STAGE_TWO+=(--num_train_epochs 3)
    fi
    read_settings AlignSettings "scripts/demo.sh" llm_layers max_text_length -- "${STAGE_ONE[@]}"
    LAYERS="${VALUES[0]}" TOKENS="${VALUES[1]}"
    LLM="$BASE_MODEL_PATH" CUT=""
    if [ "$LAYERS" -gt 0 ]; then LLM="the first $LAYERS layers of $BASE_MODEL_PATH" CUT=", $LAYERS layers"; fi
}

# A folder belongs to one choice of settings, or a finished step of one world would be used in another.
claim_folder() {
    local wanted there="$OUT/settings.txt"
    wanted="PRESET=$PRESET LANGUAGE=$LANGUAGE SEED=$SEED BASE_MODEL_PATH=$BASE_MODEL_PATH layers=$LAYERS tokens=$TOKENS"
    if [ -e "$there" ]; then
        [ "$(cat "$there")" = "$wanted" ] ||
            fail "$OUT holds a demo of $(cat "$there"), not of $wanted: give another OUT=..., or remove $OUT"
        return
    fi
    [ ! -e "$OUT" ] || [ -z "$(ls -A "$OUT" 2>&1)" ] ||
        fail "$OUT holds other files than a demo's: give another OUT=..., or remove it"
    mkdir -p "$OUT/logs" || fail "cannot make $OUT: give another OUT=..."
    printf '%s\n' "$wanted" >"$there"
}

# In a sub-shell: the number of processes and threads it chooses are its own.
embed_untuned() (
    NUM_GPUS=""
    choose_processes
    python -m lsvcr.utils.launch torchrun --nproc_per_node "$NUM_GPUS" --rdzv_backend c10d \
        --rdzv_endpoint localhost:0 -m lsvcr embed --checkpoint none --model_name_or_path "$BASE_MODEL_PATH" \
        --llm_layers "$LAYERS" --max_text_length "$TOKENS" --data_path "$OUT/data"
)

align() {
    bash "$ROOT/scripts/run_lora.sh" BASE_MODEL_PATH="$BASE_MODEL_PATH" DATASET_PATH="$OUT/data" \
        OUTPUT_DIR="$OUT/align" SEED="$SEED" "${STAGE_ONE[@]}"
}

# Six models, two of them at a time. Rec takes twice as long as CommRank, so it goes first: both cores end together.
stage_two() {
    local task
    STEP="stage two (logs: $OUT/logs)"
    for task in Rec CommRank; do
        train ids "$task" "ids only" none --disable_text True
        train untuned "$task" "untuned LLM text" none
        train aligned "$task" "both stages" "$OUT/align"
    done
    until_running 0
    stop_watching
}

# train FOLDER TASK LABEL CHECKPOINT FLAGS...: start one training as soon as fewer than two run; what it says goes to a log.
# Half of the cores are its own; so is its session, so that it can be ended with all its processes.
train() {
    local run="$1/$2" task="$2" label="$3, $2" checkpoint="$4" log="$OUT/logs/$1-$2.log" cores
    shift 4
    if [ -e "$OUT/$run/metrics.json" ]; then
        say "   $label: done before, used again"
        return
    fi
    until_running 1
    [ -n "$WATCHER" ] || watch
    cores="$(nproc 2>/dev/null || echo 2)"
    OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > 2 ? cores / 2 : 1))}" \
        setsid bash "$ROOT/scripts/finetune.sh" TASK="$task" DATASET_PATH="$OUT/data" PRETRAIN_CKPT="$checkpoint" \
        OUTPUT_DIR="$OUT/$run" SEED="$SEED" "${STAGE_TWO[@]}" "$@" >"$log" 2>&1 &
    JOBS[$run]=$! LABELS[$run]="$label" STARTED[$run]=$SECONDS
}

# until_running N: wait until at most N trainings are left, and say of each that ends how it went.
until_running() {
    local run
    while [ "${#JOBS[@]}" -gt "$1" ]; do
        sleep 0.5
        for run in "${!JOBS[@]}"; do
            kill -0 "${JOBS[$run]}" 2>/dev/null || ended_training "$run"
        done
    done
}

ended_training() {
    local run="$1" status=0
    wait "${JOBS[$run]}" || status=$?
    unset "JOBS[$run]"
    if [ "$status" -ne 0 ]; then
        stop_watching
        STEP="stage two, ${LABELS[$run]} (log: $OUT/logs/${run/\//-}.log)"
        tail -n 15 "$OUT/logs/${run/\//-}.log" >&2
        exit "$status"
    fi
    clear_line
    printf '   %-28s NDCG@10 %s   (%s)\n' "${LABELS[$run]}" "$(ndcg "$OUT/$run/metrics.json")" \
        "$(clock $((SECONDS - STARTED[$run])))"
}

# With users, because these are invented: histories of real people stay out of a bundle unless they are asked for.
export_bundle() {
    lsvcr export "$OUT/aligned/Rec" "$OUT/aligned/CommRank" --data "$OUT/data" --out "$OUT/bundle" \
        --with_users True --text_encoder True
}

ndcg() {
    python -c 'import json, sys
print("%.4f" % json.load(open(sys.argv[1]))["protocols"]["full"]["metrics"]["ndcg@10"]["value"])' "$1"
}

# On a terminal, one line that shows the latest epoch of any log.
watch() {
    [ -t 1 ] || return 0
    while sleep 1; do
        printf '\r\033[K   %.100s' "$(latest_epoch)"
    done &
    WATCHER=$!
}

latest_epoch() {
    local log
    log="$(ls -t "$OUT"/logs/*.log | head -n 1)"
    printf '%s: %s' "$(basename "$log" .log)" "$(sed -n 's/^[0-9:]* \(epoch .*\)/\1/p' "$log" | tail -n 1)"
}

stop_watching() {
    [ -n "$WATCHER" ] || return 0
    kill "$WATCHER" 2>/dev/null || true
    wait "$WATCHER" 2>/dev/null || true
    WATCHER=""
    clear_line
}

clear_line() { [ ! -t 1 ] || printf '\r\033[K'; }

headline() {
    NUMBER=$((NUMBER + 1)) STEP="$*"
    say "[$(clock "$SECONDS")] $NUMBER/$STEPS $*"
}

# unless_there FILE COMMAND...: every step writes its FILE last, so a step that has it is finished.
unless_there() {
    if [ -e "$1" ]; then
        say "   done before, used again"
        return
    fi
    shift
    "$@"
}

clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

ended() {
    local job
    stop_watching
    for job in "${JOBS[@]}"; do kill -- "-$job" 2>/dev/null || true; done
    [ -n "$STEP" ] || return 0
    {
        printf '\ndemo.sh stopped in this step: %s\n' "$STEP"
        case "$1" in
            # A signal that ends bash between two commands leaves the first one's status here: 0.
            0 | 130 | 143) say "It was stopped from outside. The same command takes up where it stopped." ;;
            137) say "A process was killed, most likely for want of memory: about 8 GB must be free." \
                "The same command takes up where it stopped." ;;
            *) say "What is wrong stands above. Once it is mended, the same command takes up where it stopped." ;;
        esac
    } >&2
}

closing() {
    say ""
    if [ "$PRESET" = tiny ]; then say "PRESET=tiny only shows that all parts work: its figures say nothing."; fi
    cat <<TEXT
Finished after $(clock "$SECONDS"). Everything lies in $OUT:
  raw/ data/               the simulated logs, the prepared dataset with the untuned LLM's vectors
  align/                   stage one; align/best/ has the LoRA adapter, the SR model and the text vectors
  ids/ untuned/ aligned/   stage two, Rec/ and CommRank/ in each; metrics.json has every figure
  bundle/                  both tasks, ready to serve
  table.txt logs/          the table above, what stage two said

Next:
  source $(printf %q "$ROOT")/.venv/bin/activate
  lsvcr serve $OUT/bundle
      recommendations over HTTP, with a page at http://127.0.0.1:8000/
  lsvcr evaluate $OUT/aligned/Rec --data $OUT/data
      every metric of one model
  lsvcr table --data $OUT/data --protocol sampled "ids=$OUT/ids" "untuned=$OUT/untuned" "both=$OUT/aligned"
      the table again, each target among 100 candidates as in the paper
  python scripts/measure_gain.py --data $OUT/data --aligned $OUT/align --out $OUT/gain --config config/finetune/demo.yaml
      what stage one adds, with several seeds and both sides tuned alike
  lsvcr doctor $OUT/data
      what these data are like, and whether they are sound
  lsvcr prepare --help
      your own data; README.md has an example
TEXT
}

main "$@"
