#!/usr/bin/env bash
# Stage one (alignment of the SR model with an LLM), then the text vectors of all titles and comments.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
usage: bash scripts/run_lora.sh [KEY=VALUE ...] [--flag value ...]

Stage one, then photo_embs.npy and comment_embs.npy. A key left out keeps the default of train.py (or the value
of its --config file). Keys are arguments; variables of the environment are not read.

  BASE_MODEL_PATH  hub id, folder, GGUF file, smollm2-135m (default) or tiny-random
  DATASET_PATH     prepared dataset (./data)
  OUTPUT_DIR       run folder (./ckpt/RUN_NAME); the same folder again continues an interrupted run
  RUN_NAME         names the run folder (LSVCR)
  NUM_GPUS         processes on this machine (all GPUs; 2 without a GPU)
  MASTER_PORT      port of the processes (a free one)
  NNODES NODE_RANK MASTER_ADDR   several machines: how many, which one this is, the address of number 0
  LR  SEED  EPOCHS  WARMUP  WEIGHT_DECAY
  DEV_BATCH_SIZE   samples a process and micro-step
  GRAD_ACCUMULATION_STEPS (also GRAD_ACCUMULARION_STEPS, the reference's spelling)
  NUM_WORKERS      data workers a process
  STRATEGY         when checkpoints are written: steps, epoch, no
  SAVE_EVAL_STEPS  steps between checkpoints
  DEEPSPEED        DeepSpeed configuration
  GRAD_CKPT        True: less memory, more time
  DRY_RUN=1        print the commands instead of running them (--dry_run: tell what the run will take)

Flags go to train.py; `python train.py --help` lists them. They win over keys.

examples:
  bash scripts/run_lora.sh DATASET_PATH=demo/data OUTPUT_DIR=demo/align EPOCHS=1 --llm_layers 10
  bash scripts/run_lora.sh NUM_GPUS=8 BASE_MODEL_PATH=Qwen/Qwen2.5-7B DATASET_PATH=data/kuaicomt \
      DEV_BATCH_SIZE=2 GRAD_ACCUMULATION_STEPS=8 --language zh
TEXT
}

KEYS=(
    NUM_GPUS MASTER_PORT NNODES NODE_RANK MASTER_ADDR LR SEED EPOCHS DEV_BATCH_SIZE GRAD_ACCUMULATION_STEPS
    GRAD_ACCUMULARION_STEPS NUM_WORKERS WARMUP WEIGHT_DECAY STRATEGY SAVE_EVAL_STEPS DEEPSPEED GRAD_CKPT
    BASE_MODEL_PATH DATASET_PATH RUN_NAME OUTPUT_DIR DRY_RUN
)

main() {
    case " $* " in *" --help "* | *" -h "*) usage && exit 0 ;; esac
    use_environment
    # Keys are arguments only: a SEED or LR that happens to be in the environment must not change a run.
    local "${KEYS[@]/%/=}" EXTRA=() FLAGS=() VALUES=() LAUNCH=()
    take_arguments "${KEYS[@]}" -- "$@"
    collect_flags
    read_settings AlignSettings "python train.py" data_path output_dir deepspeed dry_run -- "${FLAGS[@]}"
    local data_path="${VALUES[0]}" output_dir="${VALUES[1]}" deepspeed="${VALUES[2]:-}" rehearsal="${VALUES[3]}"
    if [ "$(locate "$deepspeed")" != "$deepspeed" ]; then FLAGS+=(--deepspeed "$(locate "$deepspeed")"); fi
    choose_processes
    choose_launch
    run python -m lsvcr.utils.launch torchrun "${LAUNCH[@]}" "$ROOT/train.py" "${FLAGS[@]}"
    if [ "$rehearsal" = True ]; then return; fi
    run python -m lsvcr.utils.launch torchrun "${LAUNCH[@]}" -m lsvcr \
        embed --checkpoint "$output_dir" --data_path "$data_path"
}

collect_flags() {
    add_flag model_name_or_path "$BASE_MODEL_PATH"
    add_flag data_path "$DATASET_PATH"
    add_flag output_dir "${OUTPUT_DIR:-${RUN_NAME:+./ckpt/$RUN_NAME}}"
    add_flag learning_rate "$LR"
    add_flag seed "$SEED"
    add_flag num_train_epochs "$EPOCHS"
    add_flag per_device_train_batch_size "$DEV_BATCH_SIZE"
    add_flag per_device_eval_batch_size "$DEV_BATCH_SIZE"
    add_flag gradient_accumulation_steps "${GRAD_ACCUMULATION_STEPS:-$GRAD_ACCUMULARION_STEPS}"
    add_flag dataloader_num_workers "$NUM_WORKERS"
    add_flag warmup_ratio "$WARMUP"
    add_flag weight_decay "$WEIGHT_DECAY"
    add_flag save_strategy "$STRATEGY"
    add_flag save_steps "$SAVE_EVAL_STEPS"
    add_flag deepspeed "$DEEPSPEED"
    add_flag gradient_checkpointing "$GRAD_CKPT"
    FLAGS+=("${EXTRA[@]}")
}

main "$@"
