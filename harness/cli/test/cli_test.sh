#!/bin/sh
# The program as a user runs it: generate, run with and without the cache layer, compare, report, bench, and bad input.
#   cli_test.sh KVMARK SOURCE_DIR
# The two runs must give the same answer to every request, with the cache's counters showing that it was used.
set -u
kvmark=$1
src=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
bad=0

fail() {
    echo "FAILED: $*" >&2
    bad=1
}
# expect STATUS WORDS COMMAND...: fails unless the command exits with STATUS and prints WORDS on stdout or stderr
expect() {
    want=$1 words=$2
    shift 2
    "$@" >"$dir/out" 2>&1
    got=$?
    [ $got = "$want" ] || { fail "exit $got instead of $want: $*"; sed 's/^/    /' "$dir/out" >&2; }
    grep -qF -e "$words" "$dir/out" || { fail "no \"$words\" from: $*"; sed 's/^/    /' "$dir/out" >&2; }
}
# number FILE KEY: prints the first value of a key in a JSON file with one key per line
number() {
    sed -n "s/^[[:space:]]*\"$2\":[[:space:]]*\([0-9.e+-]*\),*$/\1/p" "$1" | head -n 1
}

cat >"$dir/small.json" <<'JSON'
{"filetype": "generate_conversations", "num_conversations": 4, "text_files": ["none.txt"], "print_stats": false,
 "prompt_input": {"num_turns": {"distribution": "constant", "value": 6},
                  "common_prefix_num_tokens": {"distribution": "constant", "value": 40},
                  "prefix_num_tokens": {"distribution": "uniform", "min": 300, "max": 500},
                  "num_tokens": {"distribution": "uniform", "min": 60, "max": 80}},
 "prompt_output": {"num_tokens": {"distribution": "constant", "value": 12}}}
JSON
model="$src/models/qwen3-tiny-lm"
common="--model $model --device cpu --dtype float32 --text builtin --num-clients 4 --no-early-stop --num-gpu-blocks-override 80 --quiet"

expect 0 "4 conversations, 12 requests" "$kvmark" gen "$dir/small.json" --tokenizer "$model" --text builtin -o "$dir/made.json"
grep -q '"CONV_ID_3"' "$dir/made.json" || fail "gen wrote no conversation 3"
expect 0 "12 ok, 0 failed" "$kvmark" run "$dir/small.json" $common -o "$dir/a"
expect 0 "12 ok, 0 failed" "$kvmark" run "$dir/small.json" $common --kv-cache dram=256MiB --chunk-size 64 -o "$dir/b"
for f in run.json requests.csv tokens.bin env.json; do
    [ -s "$dir/a/$f" ] || fail "no $f in the run's folder"
done

grep -q '"cache":	null' "$dir/a/run.json" || fail "a run without a layer has statistics of one"
for k in ready_s complete '"dram"'; do
    grep -q "$k" "$dir/b/run.json" || fail "no $k in run.json of a run with the layer"
done

# A disk tier serves a later process: c stores, and d finds the chunks of c's prompts.
disk="--kv-cache disk=$dir/kv:64MiB --chunk-size 64"
expect 0 "12 ok, 0 failed" "$kvmark" run "$dir/small.json" $common $disk -o "$dir/c"
expect 0 "12 ok, 0 failed" "$kvmark" run "$dir/small.json" $common $disk -o "$dir/d"
found=$(sed -n '/"disk"/,$p' "$dir/d/run.json" | sed -n 's/.*"hit_tokens":[[:space:]]*\([0-9]*\).*/\1/p' | head -n 1)
[ "${found:-0}" -gt 1000 ] || fail "the disk tier gave ${found:-no} tokens to a second run"

# conversation, turn and the answer's hash, in order
for r in a b c d; do
    awk -F, 'NR > 1 { print $2 "," $4 "," $28 }' "$dir/$r/requests.csv" | sort >"$dir/$r.answers"
done
[ "$(wc -l <"$dir/a.answers")" = 12 ] || fail "not 12 answers"
for r in b c d; do
    cmp -s "$dir/a.answers" "$dir/$r.answers" || fail "the cache layer changed an answer of run $r"
done
loaded=$(number "$dir/b/run.json" kvmark_cache_loaded_tokens_total)
[ "${loaded:-0}" -gt 0 ] || fail "the cache layer loaded nothing (\"$loaded\"), so equal answers prove nothing"
[ -z "$(number "$dir/a/run.json" kvmark_cache_loaded_tokens_total | grep -v '^0$')" ] || fail "the run without a layer loaded from one"
a=$(number "$dir/a/run.json" kvmark_computed_tokens_total) b=$(number "$dir/b/run.json" kvmark_computed_tokens_total)
[ "${b:-0}" -lt "${a:-0}" ] || fail "with the layer $b tokens were computed, without it $a"

expect 0 "| Input TPS |" "$kvmark" compare "$dir/a" "$dir/b"
expect 0 "report.html" "$kvmark" report "$dir/a"
cat >"$dir/suite.json" <<JSON
{"schema": "kvmark.suite.1", "title": "T", "pairs": 1,
 "defaults": {"model": "$model", "device": "cpu", "text": "builtin", "num-clients": 2, "num-conversations": 2},
 "tables": [{"id": "t", "title": "Table", "shape": "configurations", "workload": "small.json", "baseline": "A",
             "rows": [{"id": "a", "label": "A", "flags": {"kv-cache": "none"}},
                      {"id": "b", "label": "B", "flags": {"kv-cache": "dram=64MiB", "chunk-size": 64}}],
             "columns": [{"title": "Input TPS", "metric": "input_tps", "delta": true}]}]}
JSON
expect 0 "| A |" "$kvmark" bench "$dir/suite.json" -o "$dir/s"
[ -s "$dir/s/tables.md" ] && [ -s "$dir/s/report.html" ] || fail "bench left no tables or no report"
expect 0 "| B |" "$kvmark" bench "$dir/suite.json" -o "$dir/s" # nothing left to do: only the tables again

# Plans: the memory that serve would allocate, and the error message of serve where it would not start.
plan="$kvmark info --plan --model $model --device cpu"
expect 0 "80 blocks of 16 tokens" $plan --num-gpu-blocks-override 80 --max-model-len 512 --kv-cache dram=64MiB --chunk-size 64
grep -q "total  *[0-9]" "$dir/out" || fail "a plan without a total"
grep -q "chunks, .* MiB of host memory" "$dir/out" || fail "a plan without the cache layer's memory"
expect 0 "Host memory of the cache layer" $plan --gpu-memory-limit 300MiB --kv-cache dram=64MiB
expect 1 "are available to this process" $plan --gpu-memory-limit 300MiB --kv-cache dram=900TiB
planned=$(grep "error:" "$dir/out" | sed 's/only .* are/only X are/') # the available memory changes all the time
expect 1 "are available to this process" "$kvmark" serve --model "$model" --device cpu --gpu-memory-limit 300MiB --kv-cache dram=900TiB
[ "$planned" = "$(grep "error:" "$dir/out" | sed 's/only .* are/only X are/')" ] || fail "info --plan and serve refuse a cache layer in different words"
expect 0 '"fits":	true' $plan --gpu-memory-limit 300MiB --json
total=$(number "$dir/out" host) limit=$((300 << 20)) block=$(number "$dir/out" block_bytes)
[ "${total:-0}" -le $limit ] && [ $((${total:-0} + ${block:-0})) -gt $limit ] || fail "a plan of ${total:-no} bytes for $limit"
expect 1 '"fits":	false' $plan --gpu-memory-limit 20MiB --json
expect 1 "limit       --gpu-memory-limit" $plan --gpu-memory-limit 20MiB
planned=$(grep "error:" "$dir/out")
expect 1 "the memory limit is 20 MiB" "$kvmark" serve --model "$model" --device cpu --gpu-memory-limit 20MiB
[ "$planned" = "$(grep "error:" "$dir/out")" ] || fail "info --plan and serve refuse in different words"
expect 1 "or raise the memory limit" $plan --num-gpu-blocks-override 8 --max-model-len 129
expect 2 "one chunk of 256 tokens" $plan --gpu-memory-limit 300MiB --kv-cache dram=1MiB
expect 2 "must be auto, cuda or cpu" "$kvmark" info --plan --model "$model" --device gpu
expect 2 "--model is missing" "$kvmark" info --plan
expect 2 "belong to info --plan" "$kvmark" info --model "$model"
expect 1 'no model "nowhere"' "$kvmark" info --plan nowhere
"$kvmark" info --plan qwen3-8b --device cuda >"$dir/out" 2>&1
if grep -q "this build has no CUDA" "$dir/out"; then
    expect 1 "this build has no CUDA" "$kvmark" info --plan qwen3-8b --device cuda --gpu-memory-limit 24GiB
elif grep -q "to plan without a" "$dir/out"; then
    expect 1 "--gpu-memory-limit 24GiB" "$kvmark" info --plan qwen3-8b --device cuda
    expect 0 "Context      40960 tokens" "$kvmark" info --plan qwen3-8b --device cuda --gpu-memory-limit 24GiB
    expect 1 "no memory for the KV pool: the limit is 12 GiB" "$kvmark" info --plan qwen3-8b --device cuda --gpu-memory-limit 12GiB
fi

expect 2 "or a list of: dram=SIZE" "$kvmark" serve --model "$model" --kv-cache tape=/dev/st0
expect 2 "give one of them" "$kvmark" serve --model "$model" --kv-cache dram=1GiB --kv-config x.yaml
expect 2 "write for example 25GB/s" "$kvmark" serve --model "$model" --kv-cache dram=1GiB --kv-throttle 25G
expect 2 "multiple of --block-size" "$kvmark" serve --model "$model" --kv-cache dram=1GiB --chunk-size 100
expect 2 'did you mean "serve"' "$kvmark" serv
expect 2 "did you mean --num-clients?" "$kvmark" run x.json --num-client 3
expect 2 "already holds a run" "$kvmark" run "$dir/small.json" $common -o "$dir/a"
expect 2 "--model is missing" "$kvmark" serve
expect 1 'no model "nowhere"' "$kvmark" serve --model nowhere
expect 1 "make data" "$kvmark" run "$src/workloads/generate_multi_turn.json" --model "$model" --text-dir "$dir" -o "$dir/none"
expect 1 "but the server's context is" "$kvmark" run "$dir/small.json" --model "$model" --device cpu --text builtin --num-gpu-blocks-override 4 -o "$dir/none"
expect 1 "no server is ready" "$kvmark" run "$dir/small.json" --url http://127.0.0.1:9 --tokenizer "$model" --text builtin --ready-check-timeout-sec 0.2 -o "$dir/none"
[ ! -e "$dir/none" ] || fail "a refused run left something behind"
expect 0 "Serve a Qwen3 model" "$kvmark" help serve
expect 0 "--gpu-memory-limit SIZE needs no" "$kvmark" help info
mkdir "$dir/man"
"$kvmark" help --man "$dir/man" || fail "the man pages were not written"
expect 0 "plan" cat "$dir/man/kvmark-info.1"
expect 0 "kvmark\\-bench (1)" cat "$dir/man/kvmark.1"

[ $bad = 0 ] && echo "all checks passed"
exit $bad
