#!/usr/bin/env bash
# Two GPUs of one machine: their tests with NCCL, and Llama-2-7B with LoRA on one and on both.
#
#   tests/benchmarks/gpu/two_cards.sh OUT DATA_PATH [--KEY=VALUE ...]
#
# OUT/tests.log has what pytest says, OUT/one.json, OUT/ddp.json and OUT/fsdp.json the rows of the
# section train: tokens_per_second of two cards is to be 1.7 times that of one or more.
set -u
out=$1 data=$2
shift 2
mkdir -p "$out"
python -m pytest -m gpu tests/test_two_gpus.py -v 2>&1 | tee "$out/tests.log"
rows=(-m tests.benchmarks.gpu --sections=train --data_path="$data" "$@")
CUDA_VISIBLE_DEVICES=0 python "${rows[@]}" --out="$out/one.json"
for way in ddp fsdp; do
  accelerate launch --config_file "properties/accelerate/${way}_bf16.yaml" --num_processes 2 \
    "${rows[@]}" --out="$out/$way.json"
done
