#!/bin/bash
# Everything a machine with an NVIDIA card should verify and time, in one command:
#   scripts/gpu_check.sh BIN_DIR [OUT_DIR]
# BIN_DIR holds kvmark, kernels_check, engine_check and speed: a bundle (scripts/bundle.sh) or a build folder. Checks that need
# PyTorch and transformers are left out, visibly, where those are not installed. Exit 1 when a check fails.
#   MODEL=qwen3-8b    what is timed            HF_MODEL=qwen3-1.7b   what is compared with transformers; "" for neither
#   PARTS="kernels golden engine hf speed yardsticks"   what runs
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
bin=${1:?usage: gpu_check.sh BIN_DIR [OUT_DIR]}
out=${2:-gpu-check}
model=${MODEL-qwen3-8b}
hf_model=${HF_MODEL-qwen3-1.7b}
parts=${PARTS-kernels golden engine hf speed yardsticks}
mkdir -p "$out"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
bad=""

# ours NAME ARGUMENTS...: a program of the bundle, with the bundle's libraries, or of a build folder
ours() {
    local p="$bin/$1"
    [ -x "$p" ] || p="$bin/engine/cuda/$1"
    shift
    LD_LIBRARY_PATH="$bin/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$p" "$@"
}
# part TITLE COMMAND...: its output on stdout and in a file, its failure remembered
part() {
    local title=$1
    shift
    echo "== $title"
    "$@" 2>&1 | tee "$out/$title.txt"
    [ "${PIPESTATUS[0]}" = 0 ] || bad="$bad $title"
}
wants() {
    case " $parts " in *" $1 "*) return 0 ;; esac
    return 1
}

nvidia-smi --query-gpu=name,driver_version,power.draw,clocks.sm,temperature.gpu --format=csv,noheader
have_torch=$(python3 -c 'import torch, transformers; print(1)' 2>/dev/null || true)

wants kernels && part kernels ours kernels_check all
if wants golden; then
    part golden ours engine_check golden "$here/models/qwen3-tiny-lm" "$here/engine/test/golden-qwen3-tiny-lm.json"
fi
if wants engine; then
    part engine-tiny-lm ours engine_check self "$here/models/qwen3-tiny-lm"
    part engine-0.6b ours engine_check self qwen3-0.6b
fi
if wants hf && [ -n "$hf_model" ]; then
    if [ -n "$have_torch" ]; then
        part weights ours kvmark weights "$hf_model" --seed 7 -o "$tmp/hf"
        part transformers python3 "$here/scripts/hf_logits.py" "$tmp/hf" "$out/hf.json"
        part "against-transformers" ours engine_check golden "$tmp/hf" "$out/hf.json"
        rm -rf "$tmp/hf"
    else
        echo "== transformers: skipped, PyTorch and transformers are not installed"
    fi
fi
wants speed && part speed ours speed "$model" "$out/speed.json"
if wants yardsticks; then
    if [ -n "$have_torch" ]; then
        part yardsticks python3 "$here/scripts/gpu_yardsticks.py"
    else
        echo "== yardsticks: skipped, PyTorch and transformers are not installed"
    fi
fi
[ -z "$bad" ] || { echo "gpu-check: failed:$bad"; exit 1; }
echo "gpu-check: all good; the outputs are in $out"
