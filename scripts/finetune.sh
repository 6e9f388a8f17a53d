#!/usr/bin/env bash
# Stage two: the SR model alone, on one task.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
usage: bash scripts/finetune.sh TASK=Rec|CommRank [KEY=VALUE ...] [--flag value ...]

Stage two. A key left out keeps the default of finetune.py (or the value of its --config file). Keys are
arguments; variables of the environment are not read.

  TASK             Rec (default): the next video; CommRank: the comments of the video being watched
  PRETRAIN_CKPT    stage-one run folder (./ckpt/LSVCR), or an official adapter_model.bin; none trains without stage one
  DATASET_PATH     prepared dataset (./data)
  OUTPUT_DIR       run folder (./ckpt/finetune/RUN_NAME-TASK)
  RUN_NAME         names the run folder (FtLSVCR)
  PEMB  CEMB       text vectors of videos and comments (those of PRETRAIN_CKPT; with none the untuned LLM's,
                   made first where the dataset has none)
  BASE_MODEL_PATH  with PRETRAIN_CKPT=none: the LLM that makes them (smollm2-135m)
  ACCELERATE       configuration of accelerate (config/accelerate_config.yaml; _ddp.yaml for several processes)
  MIXED_PRECISION  no, bf16 or fp16, if other than that file says; bf16 is faster on processors that know it
  NUM_GPUS         processes, if other than the configuration says
  MASTER_PORT      port of several processes (a free one)
  LR  SEED  EPOCHS  WARMUP  WEIGHT_DECAY  SCHEDULER_TYPE
  DEV_BATCH_SIZE   samples a process and micro-step
  GRAD_ACCUMULATION_STEPS (also GRAD_ACCUMULARION_STEPS, the reference's spelling)
  NUM_WORKERS      data workers a process
  EVAL_STEPS       epochs between validations (also EVAL_STEPs, the reference's spelling)
  HIS_LEN          length of both histories, and rows of the position tables
  TEST_CAND_NUM    candidates of the sampled protocol
  NEG              CommRank: negatives of one positive
  W                weight of the id-text contrast
  DRY_RUN=1        print the commands instead of running them

Flags go to finetune.py; `python finetune.py --help` lists them. They win over keys.

examples:
  bash scripts/finetune.sh TASK=Rec DATASET_PATH=demo/data PRETRAIN_CKPT=demo/align OUTPUT_DIR=demo/rec
  bash scripts/finetune.sh TASK=CommRank DATASET_PATH=demo/data PRETRAIN_CKPT=none EPOCHS=20 --patience 3
TEXT
}

KEYS=(
    TASK PRETRAIN_CKPT DATASET_PATH OUTPUT_DIR RUN_NAME PEMB CEMB BASE_MODEL_PATH ACCELERATE MIXED_PRECISION NUM_GPUS
    MASTER_PORT LR SEED EPOCHS WARMUP WEIGHT_DECAY SCHEDULER_TYPE DEV_BATCH_SIZE GRAD_ACCUMULATION_STEPS
    GRAD_ACCUMULARION_STEPS NUM_WORKERS EVAL_STEPS EVAL_STEPs HIS_LEN TEST_CAND_NUM NEG W DRY_RUN
)

main() {
    case " $* " in *" --help "* | *" -h "*) usage && exit 0 ;; esac
    use_environment
    # Keys are arguments only: a TASK or W that happens to be in the environment must not change a run.
    local "${KEYS[@]/%/=}" EXTRA=() FLAGS=() VALUES=() LAUNCH=() PROCESSES=1
    take_arguments "${KEYS[@]}" -- "$@"
    collect_flags
    read_settings RankSettings "python finetune.py" data_path pretrain_checkpoint photo_emb_file disable_text \
        -- "${FLAGS[@]}"
    local data_path="${VALUES[0]}" checkpoint="${VALUES[1]}" video_vectors="${VALUES[2]}" without_text="${VALUES[3]}"
    choose_launch
    if [ "$checkpoint" = "none" ] && [ -z "$video_vectors" ] && [ "$without_text" = "False" ] &&
        [ ! -e "$data_path/photo_full_embs.npy" ]; then
        (embed_untuned "$data_path")
    fi
    share_cores "$(count_gpus)" "${PROCESSES:-1}"
    run python -m lsvcr.utils.launch accelerate "${LAUNCH[@]}" "$ROOT/finetune.py" "${FLAGS[@]}"
}

collect_flags() {
    # A --config file decides by itself what it does not leave to flags.
    if ! has_flag config "${EXTRA[@]}"; then
        if [ -z "$TASK" ] && ! has_flag finetune_task "${EXTRA[@]}"; then TASK=Rec; fi
        if [ -z "$PRETRAIN_CKPT" ] && ! has_flag pretrain_checkpoint "${EXTRA[@]}"; then PRETRAIN_CKPT=./ckpt/LSVCR; fi
        if [ -z "$OUTPUT_DIR" ] && ! has_flag output_dir "${EXTRA[@]}"; then
            OUTPUT_DIR="./ckpt/finetune/${RUN_NAME:-FtLSVCR}-${TASK:-Rec}"
        fi
    fi
    add_flag finetune_task "$TASK"
    add_flag pretrain_checkpoint "$PRETRAIN_CKPT"
    add_flag data_path "$DATASET_PATH"
    add_flag output_dir "$OUTPUT_DIR"
    add_flag photo_emb_file "$PEMB"
    add_flag comment_emb_file "$CEMB"
    add_flag learning_rate "$LR"
    add_flag seed "$SEED"
    add_flag num_train_epochs "$EPOCHS"
    add_flag warmup_ratio "$WARMUP"
    add_flag weight_decay "$WEIGHT_DECAY"
    add_flag lr_scheduler_type "$SCHEDULER_TYPE"
    add_flag per_device_train_batch_size "$DEV_BATCH_SIZE"
    add_flag per_device_eval_batch_size "$DEV_BATCH_SIZE"
    add_flag gradient_accumulation_steps "${GRAD_ACCUMULATION_STEPS:-$GRAD_ACCUMULARION_STEPS}"
    add_flag dataloader_num_workers "$NUM_WORKERS"
    add_flag eval_steps "${EVAL_STEPS:-$EVAL_STEPs}"
    if [ -n "${EVAL_STEPS:-$EVAL_STEPs}" ]; then add_flag evaluation_strategy steps; fi
    add_flag max_position "$HIS_LEN"
    add_flag max_phis_len "$HIS_LEN"
    add_flag max_chis_len "$HIS_LEN"
    add_flag max_candidate_num "$TEST_CAND_NUM"
    add_flag neg_comment_num "$NEG"
    add_flag id_text_loss_weight "$W"
    FLAGS+=("${EXTRA[@]}")
}

choose_launch() {
    local file
    file="$(locate "${ACCELERATE:-config/accelerate_config.yaml}")"
    [ -f "$file" ] || fail "ACCELERATE=$file is not there: name a file that \`accelerate config\` wrote"
    LAUNCH=(--config_file "$file")
    if [ -n "$NUM_GPUS" ]; then
        [[ "$NUM_GPUS" =~ ^[1-9][0-9]*$ ]] || fail "NUM_GPUS wants a whole number from 1, not '$NUM_GPUS'"
        LAUNCH+=(--num_processes "$NUM_GPUS")
    fi
    case "$MIXED_PRECISION" in
        "") ;;
        no | bf16 | fp16) LAUNCH+=(--mixed_precision "$MIXED_PRECISION") ;;
        *) fail "MIXED_PRECISION=$MIXED_PRECISION: choose no, bf16 or fp16" ;;
    esac
    PROCESSES="${NUM_GPUS:-$(sed -n 's/^num_processes: *\([0-9][0-9]*\).*/\1/p' "$file")}"
    check_port "$MASTER_PORT"
    LAUNCH+=(--main_process_port "${MASTER_PORT:-$(free_port)}")
}

# The control without stage one needs text vectors of the LLM as it is. Called in a sub-shell: the number of
# processes and threads it chooses are its own.
embed_untuned() {
    choose_processes
    run python -m lsvcr.utils.launch torchrun --nproc_per_node "$NUM_GPUS" \
        --rdzv_backend c10d --rdzv_endpoint localhost:0 \
        -m lsvcr embed --checkpoint none --model_name_or_path "${BASE_MODEL_PATH:-smollm2-135m}" --data_path "$1"
}

main "$@"
