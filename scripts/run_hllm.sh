#!/usr/bin/env bash
# HLLM with both LLMs in training: an item LLM reads texts, a user LLM reads the items of a history.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
usage: bash scripts/run_hllm.sh [KEY=VALUE ...] [--flag value ...]

Trains, keeps the best checkpoint and tests it. A key left out keeps the default of `lsvcr hllm` (or the value of its
--config file). Keys are arguments; variables of the environment are not read.

  BASE_MODEL_PATH  item LLM: hub id, folder, GGUF file, smollm2-135m (default) or tiny-random
  USER_MODEL_PATH  user LLM (the item LLM's, with weights of its own)
  DATASET_PATH     prepared dataset (./data)
  OUTPUT_DIR       run folder (./ckpt/hllm); the same folder again continues an interrupted run
  NUM_GPUS         processes on this machine (all GPUs; 2 without a GPU)
  MASTER_PORT      port of the processes (a free one)
  NNODES NODE_RANK MASTER_ADDR   several machines: how many, which one this is, the address of number 0
  LR  SEED  EPOCHS  WARMUP  WEIGHT_DECAY
  DEV_BATCH_SIZE   users a process and micro-step
  GRAD_ACCUMULATION_STEPS
  NUM_WORKERS      data workers a process
  STRATEGY         when checkpoints are written: steps, epoch, no
  SAVE_STEPS       steps between checkpoints with STRATEGY=steps
  DEEPSPEED        DeepSpeed configuration
  GRAD_CKPT        True: less memory, more time
  DRY_RUN=1        print the command instead of running it

Flags go to `lsvcr hllm`; `lsvcr hllm --help` lists them. They win over keys.

examples:
  bash scripts/run_hllm.sh DATASET_PATH=demo/data OUTPUT_DIR=ckpt/hllm EPOCHS=2 --llm_layers 6 --user_layers 4
  bash scripts/run_hllm.sh NUM_GPUS=8 BASE_MODEL_PATH=TinyLlama/TinyLlama_v1.1 DATASET_PATH=data/prepared \
      DEV_BATCH_SIZE=8 --lora_r 0 --config config/hllm/published.yaml
TEXT
}

KEYS=(
    NUM_GPUS MASTER_PORT NNODES NODE_RANK MASTER_ADDR LR SEED EPOCHS DEV_BATCH_SIZE GRAD_ACCUMULATION_STEPS
    NUM_WORKERS WARMUP WEIGHT_DECAY STRATEGY SAVE_STEPS DEEPSPEED GRAD_CKPT BASE_MODEL_PATH USER_MODEL_PATH
    DATASET_PATH OUTPUT_DIR DRY_RUN
)

main() {
    case " $* " in *" --help "* | *" -h "*) usage && exit 0 ;; esac
    use_environment
    # Keys are arguments only: a SEED or LR that happens to be in the environment must not change a run.
    local "${KEYS[@]/%/=}" EXTRA=() FLAGS=() VALUES=() LAUNCH=()
    take_arguments "${KEYS[@]}" -- "$@"
    collect_flags
    read_settings HllmSettings "lsvcr hllm" deepspeed -- "${FLAGS[@]}"
    local deepspeed="${VALUES[0]}"
    if [ "$(locate "$deepspeed")" != "$deepspeed" ]; then FLAGS+=(--deepspeed "$(locate "$deepspeed")"); fi
    choose_processes
    choose_launch
    run python -m lsvcr.utils.launch torchrun "${LAUNCH[@]}" -m lsvcr hllm "${FLAGS[@]}"
}

collect_flags() {
    add_flag model_name_or_path "$BASE_MODEL_PATH"
    add_flag user_model_name_or_path "$USER_MODEL_PATH"
    add_flag data_path "$DATASET_PATH"
    add_flag output_dir "$OUTPUT_DIR"
    add_flag learning_rate "$LR"
    add_flag seed "$SEED"
    add_flag num_train_epochs "$EPOCHS"
    add_flag per_device_train_batch_size "$DEV_BATCH_SIZE"
    add_flag gradient_accumulation_steps "$GRAD_ACCUMULATION_STEPS"
    add_flag dataloader_num_workers "$NUM_WORKERS"
    add_flag warmup_ratio "$WARMUP"
    add_flag weight_decay "$WEIGHT_DECAY"
    add_flag save_strategy "$STRATEGY"
    add_flag save_steps "$SAVE_STEPS"
    add_flag deepspeed "$DEEPSPEED"
    add_flag gradient_checkpointing "$GRAD_CKPT"
    FLAGS+=("${EXTRA[@]}")
}

main "$@"
