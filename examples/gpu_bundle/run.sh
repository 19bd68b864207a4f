#!/usr/bin/env bash
# Uses the parts of a bundle that have arrived beside this file: `bash bundle/run.sh [unpack|tests|bench] [arguments]`.
#
#   unpack   install wheels, join weights, lay out data: once after each part, whatever is missing
#   tests    tests/gpu                                      (arguments: pytest's)
#   bench    the GPU benchmarks, as far as their data are here (arguments: those of `python -m examples.benchmarks.gpu`)
#   nothing  all three, the tests for three minutes at most
#
# Results lie in bundle/results, and in $OUT while it is set: a run that is stopped keeps what it has, and the next continues.
set -euo pipefail
bundle=$(cd "$(dirname "$0")" && pwd)
cd "$bundle/.."
python=${PYTHON:-python3}
results=$bundle/results
mkdir -p "$results"
export PYTHONPATH="$bundle/site-packages:$PWD" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export TRL_EXBIAS_CACHE="$bundle/cache" TRL_EXBIAS_DATA="$bundle/data"

has_packages() {
    local problem
    if ! problem=$("$python" -c "import peft, datasets, trl" 2>&1); then
        echo "Not all packages are here yet (${problem##*$'\n'}): carry the other parts, and run \`bash bundle/run.sh unpack\`."
        return 1
    fi
}

unpack() {
    local weights
    weights=$("$python" examples/gpu_bundle/unpack.py "$bundle")
    if ! has_packages; then
        return
    elif [ -n "$weights" ]; then
        "$python" -m trl_exbias.demo.embedded_model "$weights"
    else
        echo "The weights of SmolLM2 are not complete: what needs them is left out."
    fi
}

keep() {
    # Figures (*.json) and logs (*.log); not the models that a part trains on the way.
    if [ -n "${OUT:-}" ]; then find "$results" -maxdepth 1 -type f -exec cp {} "$OUT/" \;; fi
}

keep_going() {
    # Whoever stops this does so without warning: what is finished goes out as it comes.
    if [ -n "${OUT:-}" ]; then
        while sleep 3; do keep; done &
        trap "kill $! 2>/dev/null || true" EXIT
    fi
}

tests() {
    local status=0
    timeout "${TESTS_SECONDS:-180}" "$python" -m pytest tests/gpu -q -p no:cacheprovider "$@" 2>&1 | tee "$results/tests.log" || status=$?
    keep
    return "$status"
}

bench() {
    local status=0
    "$python" -m examples.benchmarks.gpu --output "$results" "$@" || status=$?
    keep
    return "$status"
}

case "${1:-all}" in
unpack) unpack ;;
tests | bench)
    has_packages || exit
    keep_going
    "$@"
    ;;
all)
    unpack
    has_packages || exit
    keep_going
    failed=0
    tests || failed=$?
    bench
    exit "$failed"
    ;;
*)
    sed -n '2,9p' "$0"
    exit 2
    ;;
esac
