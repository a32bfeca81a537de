#!/usr/bin/env bash
# Eight runs on one model and their comparison: a baseline, six remedies, and another calibration text.
#
#   bash run_experiments.sh                                        the embedded model, offline
#   MODEL=mistralai/Mistral-7B-v0.1 DATASET=wikitext2 OTHER_DATASET=c4 bash run_experiments.sh --num_samples 64
#
# Whatever follows the script's name goes to every run. Paths are relative to the folder you call it from.
# A failed experiment does not stop the others; the exit status is then 1. Called again, it skips what is finished with
# the same options and goes on with the rest; --overwrite runs and replaces all. Gradients and priors are measured once
# for all runs on one text and kept in OUTPUT/cache. All are judged by perplexity on DATASET's held-out text alone; append
# --run_evaluation or --eval_datasets for more. Nothing is repaired, since that hides part of what tells the experiments
# apart; append --reconstruct least_squares to repair all.
set -uo pipefail

MODEL=${MODEL:-demo}                         # hub id, folder, or demo (the embedded model)
RATIO=${RATIO:-0.2}                          # fraction of the model's parameters to remove
METHOD=${METHOD:-taylor}                     # taylor, taylor_2nd, fisher, obs, wanda, magnitude
DATASET=${DATASET:-pydoc}                    # calibration text: pydoc, self (no network); c4, wikitext2, ptb, a path, a mixture
OTHER_DATASET=${OTHER_DATASET:-python-code}  # of the eighth: the same, or python-code, made from Python's own library
OUTPUT=${OUTPUT:-results/experiments}        # one folder an experiment is made below it

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x "$here/.venv/bin/python" ] && PYTHON=$here/.venv/bin/python
fi

experiments=(
    baseline norm_log norm_minmax clip norm_log_clip temperature_1 temperature_1_norm_log other_dataset
)
failed=()
trap 'echo "interrupted" >&2; exit 130' INT

flags_of() {
    case $1 in
        baseline | other_dataset) ;;
        norm_log) echo --enable_grad_norm --norm_method log ;;
        norm_minmax) echo --enable_grad_norm --norm_method minmax ;;
        clip) echo --enable_grad_clip ;;
        norm_log_clip) echo --enable_grad_norm --norm_method log --enable_grad_clip ;;
        temperature_1) echo --temperature 1.0 --tau 0.0 ;;
        temperature_1_norm_log) echo --temperature 1.0 --tau 0.0 --enable_grad_norm --norm_method log ;;
    esac
}

# ours MODULE ARGUMENT...: one of the project's modules, whatever folder this is called from
ours() {
    PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" -P -m "$@"
}

# other_text: the path or name of the other calibration text, made where it is not there yet
other_text() {
    if [ "$OTHER_DATASET" != python-code ]; then
        echo "$OTHER_DATASET"
    elif [ -f "$OUTPUT/python_code.txt" ]; then
        echo "$OUTPUT/python_code.txt"
    else
        ours calibration.code_file "$OUTPUT/python_code.txt"
    fi
}

run() {
    local name=$1 text=$DATASET overwrite=() flags arguments status=0
    shift
    read -ra flags <<<"$(flags_of "$name")"
    echo
    echo "=== $name ${flags[*]-}"
    if [ "$name" = other_dataset ]; then
        text=$(other_text) || status=$?
    fi
    arguments=(
        --base_model "$MODEL" --pruning_ratio "$RATIO" --importance_method "$METHOD" --dataset "$text" --reconstruct none
        --run_evaluation ppl --eval_datasets "$DATASET" --cache_dir "$OUTPUT/cache" "$@" ${flags[@]+"${flags[@]}"}
        --output "$OUTPUT/$name"
    )
    if [ "$status" -eq 0 ] && [ -d "$OUTPUT/$name" ]; then
        case " $* " in
            *" --overwrite "*) ;;
            *)
                if [ ! -f "$OUTPUT/$name/run.json" ]; then
                    echo "$OUTPUT/$name holds an unfinished run, which is replaced"
                    overwrite=(--overwrite)
                elif ours cli.finished "${arguments[@]}"; then
                    echo "finished before with the same options: skipped"
                    return
                fi
                ;;
        esac
    fi
    if [ "$status" -eq 0 ]; then
        "$PYTHON" "$here/run_global_pruning.py" ${overwrite[@]+"${overwrite[@]}"} "${arguments[@]}" || status=$?
    fi
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
