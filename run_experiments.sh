#!/usr/bin/env bash
# Three runs on one model and their comparison: a baseline, log normalisation, correction by the block prior.
#
#   bash run_experiments.sh                                        the embedded model, offline
#   MODEL=mistralai/Mistral-7B-v0.1 DATASET=wikitext2 bash run_experiments.sh --num_samples 64
#
# Whatever follows the script's name goes to every run. Paths are relative to the folder you call it from.
# A failed experiment does not stop the others; the exit status is then 1. --overwrite replaces earlier results.
set -uo pipefail

MODEL=${MODEL:-demo}                  # hub id, folder, or demo (the embedded model)
RATIO=${RATIO:-0.2}                   # fraction of the model's parameters to remove
METHOD=${METHOD:-taylor}              # taylor, taylor_2nd, fisher, wanda, magnitude
DATASET=${DATASET:-pydoc}             # calibration text: pydoc needs no network; c4, wikitext2, ptb or a path
OUTPUT=${OUTPUT:-results/experiments} # one folder an experiment is made below it

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x "$here/.venv/bin/python" ] && PYTHON=$here/.venv/bin/python
fi

experiments=(baseline norm_log temperature_1)
failed=()
trap 'echo "interrupted" >&2; exit 130' INT

flags_of() {
    case $1 in
        baseline) ;;
        norm_log) echo --enable_grad_norm --norm_method log ;;
        temperature_1) echo --temperature 1.0 --tau 0.0 ;;
    esac
}

run() {
    local name=$1
    shift
    local flags
    read -ra flags <<<"$(flags_of "$name")"
    echo
    echo "=== $name ${flags[*]-}"
    "$PYTHON" "$here/run_global_pruning.py" \
        --base_model "$MODEL" --pruning_ratio "$RATIO" --importance_method "$METHOD" --dataset "$DATASET" \
        "$@" ${flags[@]+"${flags[@]}"} --output "$OUTPUT/$name"
    local status=$?
    if [ "$status" -ne 0 ]; then
        echo "=== $name FAILED (exit status $status)" >&2
        failed+=("$name")
    fi
}

note_on() {
    case " ${failed[*]-} " in *" $1 "*) echo " (failed this time; these figures are from an earlier run)" ;; esac
}

# One table over all experiments that left results; -P, so that the folder this is called from is not searched.
compare() {
    local name folders=()
    for name in "${experiments[@]}"; do
        if [ -f "$OUTPUT/$name/analysis/pruning_comparison.json" ]; then
            folders+=("$OUTPUT/$name")
            [ -n "$(note_on "$name")" ] && echo "$name$(note_on "$name")"
        else
            echo "$name: no result in $OUTPUT/$name"
        fi
    done
    [ "${#folders[@]}" -gt 0 ] || return 0
    PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" -P -m diagnostics.compare \
        "${folders[@]}" --output "$OUTPUT/comparison" --overwrite
}

for name in "${experiments[@]}"; do
    run "$name" "$@"
done

echo
echo "=== Layers 2-4, raw gradient ratio and perplexity of the ${#experiments[@]} experiments"
compare
compared=$?
echo
if [ "${#failed[@]}" -gt 0 ]; then
    echo "${#failed[@]} of ${#experiments[@]} experiments failed: ${failed[*]}" >&2
    exit 1
fi
if [ "$compared" -ne 0 ]; then
    echo "All ${#experiments[@]} experiments finished, but they could not be compared" >&2
    exit 1
fi
echo "All ${#experiments[@]} experiments finished. The one to keep has the lowest perplexity at equal size."
