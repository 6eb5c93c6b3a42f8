#!/usr/bin/env bash
# The T5 systems at the strength of their papers, and what alternation and alignment are worth.
#
#   tests/benchmarks/gpu/paper.sh t5 OUT [--KEY=VALUE ...]            TIGER and ETEGRec, one seed
#   tests/benchmarks/gpu/paper.sh ablations OUT [--KEY=VALUE ...]     Table 4, three seeds
#   tests/benchmarks/gpu/paper.sh schedules OUT [--KEY=VALUE ...]     default, paper's, frozen codes
#
# Each is a comparison, with its table in OUT (of schedules: three side by side, in OUT/NAME); the
# same command goes on with what was stopped, as it is SECONDS_LEFT seconds after its start where
# that is set. Further keys win, such as --item_head=False (codes alone), --seeds=2021 or --jobs=4,
# the runs of a comparison at a time, on all GPUs together.
set -u
what=$1 out=$2
shift 2
given=("$@")

compare() {  # the arguments are defaults
  local arguments=("${given[@]}") limit=()
  for argument in "$@" --dataset=Beauty --exclude_history=both --show_progress=False; do
    case " ${given[*]}" in *" ${argument%%=*}="*) ;; *) arguments+=("$argument") ;; esac
  done
  [ -n "${SECONDS_LEFT:-}" ] && limit=(timeout --signal=TERM --kill-after=30 "$SECONDS_LEFT")
  "${limit[@]}" recbole-etegrec compare "${arguments[@]}"
}

table4=no_sia,no_psa,no_alignment,paper_no_alternation,paper_no_end_to_end,paper_fixed_codes
case $what in
  t5)
    compare --out="$out" --models=TIGER,ETEGRec --seeds=2020 --jobs=2 \
      --precision=bf16 --max_tokens=131072 --eval_batch_size=1024 ;;
  ablations)
    compare --out="$out" --models=ETEGRecLlama --config_files=schedule/paper \
      --ablations="$table4,paper_nearest_codes,paper_shared,psa_fixed" --seeds=2020,2021,2022 --jobs=8 ;;
  schedules)
    running=()
    for name in schedule/short schedule/paper ablation/fixed_codes; do
      compare --out="$out/${name#*/}" --models=ETEGRecLlama --config_files="$name" \
        --seeds=2020,2021,2022 --jobs=3 &
      running+=($!)
    done
    failed=0
    for process in "${running[@]}"; do wait "$process" || failed=$?; done
    exit "$failed" ;;
  *)
    echo "paper.sh: t5, ablations or schedules, not '$what'" >&2
    exit 2 ;;
esac
