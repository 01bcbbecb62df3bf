"""Prints the table of gpu_check.sh's part http from the three run folders in DIR, and writes it to DIR/http.json.

    http_table.py DIR MODEL

TTFT and TPOT are defined as in `vllm bench serve`. TTFT is the time from sending a request to its first event. TPOT is
the time from the first event to the last one, divided by the number of output tokens less one. Times of events are the
kernel's receive timestamps.

A random prompt may have some tokens more or less than configured. In the runs with one request at a time, only requests
of the exact length count, and the first request is left out as a warm-up. The exit status is 1 if an answer is missing
or too short, or if fewer than half of these requests count."""
import csv
import json
import os
import sys

ROWS = []


def row(key, what, values, goal=None, stretch=None):
    """Prints and keeps a row: the median of the values, their 10% and 90% quantiles, and whether the median is within
    the limits goal and stretch."""
    v = sorted(values)
    at = lambda share: v[int(share * (len(v) - 1) + 0.5)]
    verdict = lambda limit: f"{limit:g}, {'met' if at(0.5) <= limit else 'missed'}" if limit else ""
    print(f"| {what} | {at(0.5):.3f} | {at(0.1):.3f} to {at(0.9):.3f} | {len(v)} | {verdict(goal)} "
          f"| {verdict(stretch)} |")
    ROWS.append({"key": key, "what": what, "median": at(0.5), "p10": at(0.1), "p90": at(0.9), "samples": len(v),
                 "goal": goal, "stretch": stretch})


def single(key, what, value, samples):
    """Prints and keeps a row with a value from the summary of run.json."""
    print(f"| {what} | {'-' if value is None else format(value, '.3f')} | | {samples} | | |")
    ROWS.append({"key": key, "what": what, "value": value, "samples": samples})


def read(folder):
    """The run and its requests; each request gets ttft and tpot in ms."""
    with open(os.path.join(folder, "run.json")) as f:
        run = json.load(f)
    with open(os.path.join(folder, "requests.csv"), newline="") as f:
        requests = list(csv.DictReader(f))
    for q in requests:
        if q["ok"] != "1" or q["output_tokens"] != q["asked_tokens"]:
            sys.exit(f"{folder}: request {q['request']} returned {q['output_tokens']} of {q['asked_tokens']} tokens "
                     f"(error: {q['error'] or 'none'})")
        q["ttft"] = (int(q["first_any_ns"]) - int(q["start_ns"])) / 1e6
        q["tpot"] = (int(q["last_any_ns"]) - int(q["first_any_ns"])) / 1e6 / (int(q["output_tokens"]) - 1)
    return run, requests


def alone(folder, n, goal=None, stretch=None):
    """Rows of a run with one request at a time, with prompts of n tokens."""
    _, requests = read(folder)
    exact = [q for q in requests[1:] if q["prompt_tokens"] == str(n)]
    if 2 * len(exact) < len(requests):
        sys.exit(f"{folder}: only {len(exact)} of {len(requests)} prompts have exactly {n} tokens; at least half must")
    row(f"http_ttft_{n}_ms", f"HTTP, {n} tokens alone, TTFT, ms", [q["ttft"] for q in exact], goal, stretch)
    row(f"http_tpot_{n}_ms", f"HTTP, {n} tokens alone, TPOT, ms", [q["tpot"] for q in exact])


def crowd(folder, what):
    """Rows of a run with many concurrent streams."""
    run, requests = read(folder)
    s = run["summary"]
    row("http_crowd_ttft_ms", f"{what}, TTFT, ms", [q["ttft"] for q in requests])
    row("http_crowd_tpot_ms", f"{what}, TPOT, ms", [q["tpot"] for q in requests])
    single("http_crowd_itl_p50_ms", f"{what}, ITL, ms", s["itl_ms"]["p50"], s["itl_ms"]["n"])
    single("http_crowd_itl_p99_ms", f"{what}, ITL, 99%, ms", s["itl_ms"]["p99"], s["itl_ms"]["n"])
    single("http_crowd_output_tps", f"{what}, output tokens/s", s["output_tps"], len(requests))


def main():
    folder, model = sys.argv[1:]
    big = model == "qwen3-8b"  # the goals are stated for this model
    print("\n| what | median | 10% to 90% | samples | goal | stretch |\n|---|---|---|---|---|---|")
    alone(os.path.join(folder, "alone-128"), 128, *((8, 6.5) if big else ()))
    alone(os.path.join(folder, "alone-1024"), 1024)
    crowd(os.path.join(folder, "streams-64"), "HTTP, 64 streams, 512 in, 128 out")
    with open(os.path.join(folder, "http.json"), "w") as f:
        json.dump({"model": model, "rows": ROWS}, f, indent=1)


main()
