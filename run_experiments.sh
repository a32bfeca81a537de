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

# perplexities FILE: one line for each side and dataset, from JSON with one value a line
perplexities() {
    awk '
        /^  "(dense|pruned)": [{]/ { split($0, part, "\""); side = part[2] }
        /": [{]$/ { split($0, part, "\""); name = part[2] }
        /"perplexity": [0-9]/ { sub(/,$/, "", $2); printf "  %-8s %s %.2f\n", side, name, $2 }
    ' "$1"
}

note_on() {
    case " ${failed[*]-} " in *" $1 "*) echo " (failed this time; these figures are from an earlier run)" ;; esac
}

compare() {
    local name analysis layer
    for name in "${experiments[@]}"; do
        analysis=$OUTPUT/$name/analysis
        echo
        if [ ! -f "$analysis/pruning_summary_by_layer.txt" ]; then
            echo "$name: no result in $OUTPUT/$name"
            continue
        fi
        echo "$name$(note_on "$name")"
        for layer in 2 3 4; do
            grep "Layer $layer " "$analysis/pruning_summary_by_layer.txt" | sed 's/^/  /'
        done
        echo "  raw gradients:$(grep -h '"mean_ratio"' "$analysis/gradient_diagnosis.json" | tr -d ',' | tr -s ' ')"
        if [ -f "$OUTPUT/$name/evaluation/evaluation_results.json" ]; then
            echo "  perplexity"
            perplexities "$OUTPUT/$name/evaluation/evaluation_results.json" | sed 's/^/  /'
        fi
    done
}

for name in "${experiments[@]}"; do
    run "$name" "$@"
done

echo
echo "=== Layers 2-4, raw gradient ratio and perplexity of the ${#experiments[@]} experiments"
compare
echo
if [ "${#failed[@]}" -gt 0 ]; then
    echo "${#failed[@]} of ${#experiments[@]} experiments failed: ${failed[*]}" >&2
    exit 1
fi
echo "All ${#experiments[@]} experiments finished. The one to keep has the lowest perplexity at equal size."
