#!/bin/bash
# Checks and times the CUDA engine on a machine with an NVIDIA GPU:
#   scripts/gpu_check.sh BIN_DIR [OUT_DIR]
# BIN_DIR has kvmark, kernels_check, engine_check and cuda_bench. It is a bundle (scripts/bundle.sh) or a build folder.
# The script needs bash and python3. Parts that need PyTorch and transformers, or compute-sanitizer, are skipped with a
# message if these are not installed. Exit status 1: a check has failed.
#
# Environment:
#   MODEL      the model that is timed (default: qwen3-8b)
#   HF_MODEL   the model that is compared with transformers (default: qwen3-1.7b), "" for none. Its weights are written
#              to TMPDIR: 16 GB for qwen3-8b.
#   PARTS      the parts to run (default: all parts but copies, sanitizer and sizes):
#              kernels golden engine cache hf speed copies http yardsticks sanitizer sizes
#   DEVICE     device of the parts hf and http (default: cuda). DEVICE=cpu PARTS=http MODEL=qwen3-tiny runs the script
#              without a GPU.
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
bin=${1:?usage: gpu_check.sh BIN_DIR [OUT_DIR]}
out=${2:-gpu-check}
model=${MODEL-qwen3-8b}
hf_model=${HF_MODEL-qwen3-1.7b}
parts=${PARTS-kernels golden engine cache hf speed http yardsticks}
device=${DEVICE-cuda}
libs="$bin/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
mkdir -p "$out" || exit 1
tmp=$(mktemp -d) || exit 1
server=""
trap 'stop_server; rm -rf "$tmp"' EXIT
failed=""

# program_path NAME: prints the path of a program in a bundle or a build folder
program_path() {
    if [ -x "$bin/$1" ]; then echo "$bin/$1"; else echo "$bin/engine/cuda/$1"; fi
}
# run_program NAME ARGUMENTS...: runs a program of BIN_DIR with the bundle's libraries
run_program() {
    local p
    p=$(program_path "$1")
    shift
    LD_LIBRARY_PATH="$libs" "$p" "$@"
}
# run_part TITLE COMMAND...: runs a command, with its output on stdout and in OUT_DIR/TITLE.txt. Returns the command's
# exit status. If it fails, TITLE is added to $failed.
run_part() {
    local title=$1 start=$SECONDS rc
    shift
    echo "== $title"
    "$@" 2>&1 | tee "$out/$title.txt"
    rc=${PIPESTATUS[0]}
    echo "-- $title: $((SECONDS - start)) s"
    [ "$rc" = 0 ] || failed="$failed $title"
    return "$rc"
}
# wants PART: true if the part is in PARTS
wants() {
    case " $parts " in *" $1 "*) return 0 ;; esac
    return 1
}

# ---- hf: transformers computes vectors from weights that kvmark writes; the engine is compared with the vectors ----

# The tolerance is 0.05, less than engine_check's default of 0.2. On these weights, transformers' results in bfloat16
# differ from its results in float32 by at most 0.002.
check_hf() {
    run_part weights run_program kvmark weights "$hf_model" --seed 7 -o "$tmp/hf" &&
        run_part transformers python3 "$here/scripts/hf_logits.py" "$tmp/hf" "$out/hf.json" --device "$device" &&
        run_part against-transformers run_program engine_check golden "$tmp/hf" "$out/hf.json" 0.05
    rm -rf "$tmp/hf"
}

# ---- http: kvmark serve and kvmark run over loopback ----

# Prompts and answers are token ids, because dummy weights have no tokenizer. Prompts use the vocabulary of the small
# model, whose ids exist in every model. The prefix cache is off, because with so few different ids some random prompts
# would have a common prefix.
start_server() {
    local waited=0
    : >"$out/server.txt"
    LD_LIBRARY_PATH="$libs" "$(program_path kvmark)" serve --model "$model" --load-format dummy --device "$device" \
        --port 0 --max-num-batched-tokens 8192 --no-enable-prefix-caching >>"$out/server.txt" 2>&1 &
    server=$!
    until url=$(grep -o 'http://127.0.0.1:[0-9]*' "$out/server.txt"); do
        if [ $waited -ge 1200 ] || ! kill -0 "$server" 2>/dev/null; then
            echo "the server did not start; its log:"
            cat "$out/server.txt"
            return 1
        fi
        sleep 0.1
        waited=$((waited + 1))
    done
}
# Stops the server if it runs, and returns its exit status. After 20 s the server is killed; the status is then 137.
stop_server() {
    local pid=$server waited=0
    [ -n "$pid" ] || return 0
    server=""
    kill "$pid" 2>/dev/null
    while kill -0 "$pid" 2>/dev/null && [ $waited -lt 200 ]; do
        sleep 0.1
        waited=$((waited + 1))
    done
    kill -9 "$pid" 2>/dev/null
    wait "$pid"
}
# measure_load NAME PROMPTS INPUT OUTPUT CLIENTS: one measured run of PROMPTS requests of INPUT and OUTPUT tokens, with
# CLIENTS requests at a time. The results are in OUT_DIR/http/NAME.
measure_load() {
    rm -rf "$out/http/$1"
    cat >"$out/http/$1.json" <<END
{"filetype": "random", "generator": "new", "num_prompts": $2, "input_len": $3, "output_len": $4}
END
    run_program kvmark run "$out/http/$1.json" --url "$url" --tokenizer "$here/models/qwen3-tiny-lm" \
        --endpoint-type completions --send-token-ids --ignore-eos --max-concurrency "$5" --seed "$3" --quiet \
        -o "$out/http/$1" >"$out/http/$1.txt" 2>&1 ||
        { cat "$out/http/$1.txt"; return 1; }
}
measure_loads() {
    measure_load alone-128 61 128 16 1 && measure_load alone-1024 21 1024 16 1 &&
        measure_load streams-64 256 512 128 64 || return 1
    tail -n 2 "$out/server.txt"
    python3 "$here/scripts/http_table.py" "$out/http" "$model"
}
check_http() {
    mkdir -p "$out/http"
    start_server || { failed="$failed http"; return; }
    run_part http measure_loads
    stop_server || { echo "the server ended with status $?"; tail -n 5 "$out/server.txt"; failed="$failed server"; }
}

# ---- sizes: steps of few rows with the other dense models, all of which must fit on the GPU ----

check_sizes() {
    local size
    for size in 0.6b 1.7b 4b 14b 32b; do run_program cuda_bench "qwen3-$size" small_m || return 1; done
}

# ---- sanitizer: runs the four tools of compute-sanitizer at the same time; each has an output file and 300 s ----

check_sanitizer() {
    local tool pids="" rc any_failed=0
    for tool in memcheck racecheck initcheck synccheck; do
        LD_LIBRARY_PATH="$libs" timeout -k 10 300 "$sanitizer" --tool $tool --error-exitcode 9 \
            "$(program_path kernels_check)" small >"$out/$tool.txt" 2>&1 &
        pids="$pids $tool:$!"
    done
    for tool in $pids; do
        wait "${tool#*:}"
        rc=$?
        tool=${tool%:*}
        case $rc in
        0) echo "$tool: $(grep 'SUMMARY' "$out/$tool.txt" || echo 'no summary')" ;;
        124 | 137)
            echo "$tool: stopped after 300 s; its last line was: $(grep -v '^=' "$out/$tool.txt" | tail -n 1)"
            ;;
        *) echo "$tool: exit status $rc; $(grep 'SUMMARY' "$out/$tool.txt" || tail -n 1 "$out/$tool.txt")" ;;
        esac
        [ $rc = 0 ] && grep -q 'SUMMARY' "$out/$tool.txt" || any_failed=1
    done
    return $any_failed
}

[ "$device" = cuda ] &&
    nvidia-smi --query-gpu=name,driver_version,power.draw,clocks.sm,temperature.gpu --format=csv,noheader
have_torch=$(python3 -c 'import torch, transformers; print(1)' 2>/dev/null || true)

wants kernels && run_part kernels run_program kernels_check all
if wants golden; then
    run_part golden run_program engine_check golden "$here/models/qwen3-tiny-lm" \
        "$here/engine/test/golden-qwen3-tiny-lm.json"
fi
if wants engine; then
    run_part engine-tiny-lm run_program engine_check self "$here/models/qwen3-tiny-lm"
    run_part engine-0.6b run_program engine_check self qwen3-0.6b
fi
if wants cache; then
    run_part cache-tiny-lm run_program engine_check cache "$here/models/qwen3-tiny-lm"
    run_part cache-0.6b run_program engine_check cache qwen3-0.6b
fi
if wants hf && [ -n "$hf_model" ]; then
    if [ -n "$have_torch" ]; then check_hf; else echo "== hf: skipped, PyTorch and transformers are not installed"; fi
fi
wants speed && run_part speed run_program cuda_bench "$model" "$out/speed.json"
wants copies && run_part copies run_program cuda_bench "$model" copies
wants sizes && run_part sizes check_sizes
wants http && check_http
if wants yardsticks; then
    if [ -n "$have_torch" ]; then
        run_part yardsticks python3 "$here/scripts/gpu_yardsticks.py"
    else
        echo "== yardsticks: skipped, PyTorch and transformers are not installed"
    fi
fi
if wants sanitizer; then
    sanitizer=$(PATH="$PATH:/usr/local/cuda/bin" command -v compute-sanitizer)
    if [ -n "$sanitizer" ]; then
        run_part sanitizer check_sanitizer
    else
        echo "== sanitizer: skipped, compute-sanitizer is not installed"
    fi
fi
[ -z "$failed" ] || { echo "gpu-check: failed:$failed; the outputs are in $out"; exit 1; }
echo "gpu-check: all checks passed; the outputs are in $out"
