#!/usr/bin/env bash
# The T5 systems at the strength of their papers, and what alternation and alignment are worth.
#
#   tests/benchmarks/gpu/paper.sh t5 OUT [--KEY=VALUE ...]            TIGER and ETEGRec, one seed
#   tests/benchmarks/gpu/paper.sh ablations OUT [--KEY=VALUE ...]     Table 4, three seeds
#   tests/benchmarks/gpu/paper.sh schedules OUT [--KEY=VALUE ...]     default, paper's, frozen codes
#
# Each is a comparison: the same command goes on with what was stopped (SECONDS_LEFT seconds after
# its start; none: never), and OUT/comparison.md is its table. JOBS runs share the GPU; DATASET is
# Beauty; further keys win, such as --item_head=True or --seeds=2021.
set -u
what=$1 out=$2
shift 2
common=(--dataset="${DATASET:-Beauty}" --exclude_history=both --show_progress=False)

compare() {
  if [ -n "${SECONDS_LEFT:-}" ]; then
    timeout --signal=TERM --kill-after=30 "$SECONDS_LEFT" recbole-etegrec compare "${common[@]}" "$@"
  else
    recbole-etegrec compare "${common[@]}" "$@"
  fi
}

case $what in
  t5)  # a part of a step may be large: rows are few tokens wide
    compare --models=TIGER,ETEGRec --seeds=2020 --jobs="${JOBS:-2}" --out="$out" \
      --precision=bf16 --max_tokens=131072 --eval_batch_size=1024 "$@" ;;
  ablations)
    compare --models=ETEGRecLlama --config_files=schedule/paper --seeds=2020,2021,2022 \
      --ablations=no_sia,no_psa,no_alignment,paper_no_alternation,no_end_to_end,paper_fixed_codes,shared,psa_fixed \
      --jobs="${JOBS:-8}" --out="$out" --max_tokens=16384 "$@" ;;
  schedules)
    for name in short paper frozen; do
      compare --models=ETEGRecLlama --config_files="schedule/$name" --seeds=2020,2021,2022 \
        --jobs="${JOBS:-3}" --out="$out/$name" --max_tokens=16384 "$@"
    done ;;
  *)
    echo "paper.sh: t5, ablations or schedules, not '$what'" >&2
    exit 2 ;;
esac
