#!/usr/bin/env python3
"""Tests `kvmark serve` with unmodified load generators. Usage: bench_clients.py KVMARK MODEL_DIR

Runs each of `guidellm`, `aiperf` and `vllm bench serve` that is on the PATH, with chats and with completions. The
tokens that the client counts must equal the server's own counters. Exits with 77, which ctest counts as skipped, if
none of the three is installed.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request

NAME, N, PROMPT, ANSWER = "tiny", 8, 100, 12
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}


def start(binary, model):
    args = [binary, "serve", "--model", model, "--port", "0", "--served-model-name", NAME, "--device", "cpu",
            "--threads", "1", "--num-gpu-blocks-override", "600", "--max-model-len", "2048"]
    server = subprocess.Popen(args, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        found = re.search(r"listening on (http://\S+)", line)
        if found:
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, found.group(1)
    raise RuntimeError("the server ended before it listened; run it by hand to see why: " + " ".join(args))


def counters(url):
    text = urllib.request.urlopen(url + "/metrics").read().decode()
    return [int(float(re.search(rf"^vllm:{name}_tokens_total\S* (\S+)", text, re.M).group(1)))
            for name in ("prompt", "generation")]


def call(args, env):
    p = subprocess.run([str(a) for a in args], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                       timeout=240)
    if p.returncode:
        raise AssertionError(f"{args[0]} ended with exit status {p.returncode}:\n{p.stdout[-3000:]}")


def read(out, file):
    with open(os.path.join(out, file), encoding="utf-8") as f:
        return json.load(f)


# Each function below runs one client. It returns the number of requests that succeeded, and the numbers of input and
# output tokens that the client counted.

def guidellm(url, model, out, chat):
    path = "/v1/chat/completions" if chat else "/v1/completions"
    call(["guidellm", "run", "--backend", f"kind=openai_http,target={url},model={NAME},request_format={path}",
          "--profile", "kind=concurrent,streams=2", "--constraint", f"kind=max_requests,count={N}",
          "--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={ANSWER}",
          "--tokenizer", f"kind=huggingface_auto,model={model}", "--output", f"kind=json,path={out}/b.json",
          "--disable-progress"], OFFLINE)
    good = read(out, "b.json")["benchmarks"][0]["requests"]["successful"]
    return len(good), sum(r["prompt_tokens"] for r in good), sum(r["output_tokens"] for r in good)


def aiperf(url, model, out, chat):
    # With HF_HUB_OFFLINE, aiperf would take the path of the tokenizer for the name of a repository.
    call(["aiperf", "profile", "--model", NAME, "--url", url, "--endpoint-type", "chat" if chat else "completions",
          "--streaming", "--tokenizer", model, "--synthetic-input-tokens-mean", PROMPT, "--output-tokens-mean", ANSWER,
          "--extra-inputs", "ignore_eos:true", "--concurrency", 2, "--request-count", N, "--use-server-token-count",
          "--artifact-dir", out, "--ui", "none"], {k: v for k, v in OFFLINE.items() if k != "HF_HUB_OFFLINE"})
    r = read(out, "profile_export_aiperf.json")
    return int(r["request_count"]["avg"]), *(round(r[f"{k}_sequence_length"]["avg"] * N) for k in ("input", "output"))


def vllm(url, model, out, chat):
    call(["vllm", "bench", "serve", "--base-url", url, "--backend", "openai-chat" if chat else "openai",
          "--endpoint", "/v1/chat/completions" if chat else "/v1/completions", "--model", NAME, "--tokenizer", model,
          "--dataset-name", "random", "--random-input-len", PROMPT, "--random-output-len", ANSWER, "--num-prompts", N,
          "--max-concurrency", 2, "--ignore-eos", "--save-result", "--result-dir", out, "--result-filename", "r.json",
          "--disable-tqdm"], OFFLINE)
    r = read(out, "r.json")
    return r["completed"], r["total_input_tokens"], r["total_output_tokens"]


def main():
    clients = [c for c in (guidellm, aiperf, vllm) if shutil.which(c.__name__)]
    if not clients:
        print("skipped: none of guidellm, aiperf and vllm is on the PATH")
        sys.exit(77)
    model = os.path.abspath(sys.argv[2])
    server, url = start(sys.argv[1], model)
    try:
        for client in clients:
            for chat in (True, False):
                with tempfile.TemporaryDirectory() as out:
                    before = counters(url)
                    good, sent, got = client(url, model, out, chat)
                    prompts, answers = (b - a for a, b in zip(before, counters(url)))
                what = f"{client.__name__}, {'chat' if chat else 'completions'}: {good} requests, {sent} tokens in " \
                       f"and {got} out; the server counts {prompts} and {answers}"
                assert good == N and got == answers == N * ANSWER, what
                assert sent == prompts and sent >= N * PROMPT, what
                print(what)
    finally:
        server.terminate()
        code = server.wait(20)
    assert code == 0, f"exit status {code}"


main()
