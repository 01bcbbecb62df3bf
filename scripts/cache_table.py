"""Measures what the cache layer gives and costs on a GPU, over HTTP, with the same client for every server.

    cache_table.py BIN_DIR OUT_DIR PART...      PART: hits decode planner miss

BIN_DIR has kvmark (a bundle of bundle.sh, or a build folder). Every part starts the servers that it needs, with dummy
weights of MODEL (environment, default qwen3-8b), and sends prompts as token ids. A server that runs already is measured
beside kvmark if its URL is in PEER_URL and a name for it in PEER (part hits only).

A hit is measured like this: a run sends prompts that nobody sent before, and the layer stores their KV. Then the KV pool
is reset, but not the layer, and a second run sends the same prompts. The second run counts only if every request was
answered in full and at least half of its prompt was cached (the planner may compute the rest while the load runs).

miss compares two servers on one GPU, one with the layer and one without, by turns (A B B A ...), with prompts that are
never sent twice. Each line gives the mean of the log ratios and its 95% confidence interval by Student's t.

Prompts are runs of consecutive ids. With few ids, two prompts may have a common prefix, so TOKENIZER (environment)
should be the folder of a tokenizer with the model's vocabulary; the default is the small one in models/.

OUT_DIR must not exist, and gets the run folders and cache.json."""
import csv
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODEL = os.environ.get("MODEL", "qwen3-8b")
DEVICE = os.environ.get("DEVICE", "cuda")
DRAM = os.environ.get("DRAM", "40GiB")
SCALE = float(os.environ.get("SCALE", "1"))  # multiplies prompt lengths, for a small model on a CPU
TOKENIZER = os.environ.get("TOKENIZER", os.path.join(HERE, "models/qwen3-tiny-lm"))
BIN, OUT = sys.argv[1:3]
RATES = [float(r) for r in os.environ.get("RATES", "0.05 0.2 1 5 20 50").split()]
ROWS = []
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 11: 2.20, 12: 2.18,
       13: 2.16, 14: 2.14, 15: 2.13, 17: 2.11, 19: 2.09, 23: 2.07, 29: 2.05}


def t95(df):
    return T95[max(k for k in T95 if k <= df)]


def program(name):
    for p in (os.path.join(BIN, name), os.path.join(BIN, "harness", "cli", name)):
        if os.access(p, os.X_OK) and not os.path.isdir(p):
            return os.path.abspath(p)
    sys.exit(f"{BIN} has no program {name}")


def environment():
    env = dict(os.environ)
    env["LD_LIBRARY_PATH"] = os.path.join(os.path.abspath(BIN), "lib") + ":" + env.get("LD_LIBRARY_PATH", "")
    return env


class Server:
    """kvmark serve with the given flags, on a free port."""

    def __init__(self, name, *flags):
        self.name, self.log = name, open(os.path.join(OUT, f"server-{name}.txt"), "w+")
        start = time.time()
        self.process = subprocess.Popen(
            [program("kvmark"), "serve", "--model", MODEL, "--load-format", "dummy", "--device", DEVICE, "--port", "0",
             "--max-num-batched-tokens", "8192", *flags], stderr=self.log, stdout=self.log, env=environment())
        while True:
            self.log.flush()
            with open(self.log.name) as f:
                found = re.search(r"http://127\.0\.0\.1:\d+", f.read())
            if found:
                break
            if self.process.poll() is not None or time.time() - start > 300:
                sys.exit(f"the server {name} did not start:\n" + open(self.log.name).read())
            time.sleep(0.05)
        self.url, self.start_s = found.group(), time.time() - start

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            rc = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            rc = self.process.wait()
        if rc:
            sys.exit(f"the server {self.name} ended with status {rc}:\n" + open(self.log.name).read()[-2000:])


def reset(url, external=False):
    """Empties the KV pool's prefix cache, and with `external` the cache layer, too."""
    body = b'{"reset_external": true}' if external else b""
    for _ in range(50):
        try:
            urllib.request.urlopen(urllib.request.Request(url + "/reset_prefix_cache", data=body, method="POST"),
                                   timeout=60).read()
            return
        except urllib.error.HTTPError:
            time.sleep(0.2)
    sys.exit(f"{url} did not reset its cache in 10 s")


def metrics(url):
    """The cache layer's counters of a server's /metrics, by name and labels."""
    text = urllib.request.urlopen(url + "/metrics", timeout=60).read().decode()
    return {m[1]: float(m[2]) for m in re.finditer(r"^((?:kvmark_|vllm:external)\S+) ([-+.eE\d]+)$", text, re.M)}


def load_seconds(url):
    """The time of all loads so far; None if the server does not tell it."""
    values = [v for k, v in metrics(url).items() if k.startswith("kvmark_cache_load_seconds_total")]
    return values[0] if values else None


def wait_full(url):
    """Waits until the layer's memory has its full size, and nothing is on its way to a tier."""
    for _ in range(1200):
        growing = [v for k, v in metrics(url).items() if re.match(r"kvmark_cache_tier_(growing|queued_puts)", k)]
        if not any(growing):
            return
        time.sleep(0.1)
    sys.exit("the layer's memory did not reach its full size in 120 s")


def measure(url, name, prompts, length, output, clients, seed, model=None):
    """One run of kvmark's client; returns its requests and its summary."""
    folder, length = os.path.join(OUT, "runs", name), int(length * SCALE)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with open(folder + ".json", "w") as f:
        json.dump({"filetype": "random", "generator": "new", "num_prompts": prompts, "input_len": length,
                   "output_len": output}, f)
    done = subprocess.run(
        [program("kvmark"), "run", folder + ".json", "--url", url, "--tokenizer",
         TOKENIZER, "--endpoint-type", "completions", "--send-token-ids", "--ignore-eos",
         "--max-concurrency", str(clients), "--seed", str(seed), "--quiet", "-o", folder] +
        (["--served-model-name", model] if model else []),
        env=environment(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: kvmark run failed:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
    with open(os.path.join(folder, "requests.csv"), newline="") as f:
        requests = list(csv.DictReader(f))
    with open(os.path.join(folder, "run.json")) as f:
        run = json.load(f)
    for q in requests:
        if q["ok"] != "1":
            sys.exit(f"{name}: request {q['request']} failed: {q['error']}")
        q["ttft"] = (int(q["first_any_ns"]) - int(q["start_ns"])) / 1e6
        q["n"], q["cached"] = int(q["prompt_tokens"]), int(q["cached_tokens"] or 0)
    return requests, run


def row(key, what, values, unit="ms"):
    v = sorted(values)
    at = lambda share: v[int(share * (len(v) - 1) + 0.5)]
    print(f"| {what} | {at(0.5):.2f} {unit} | {at(0.1):.2f} to {at(0.9):.2f} | {len(v)} |", flush=True)
    ROWS.append({"key": key, "what": what, "unit": unit, "median": at(0.5), "mean": statistics.mean(v),
                 "p10": at(0.1), "p90": at(0.9), "samples": len(v)})
    return at(0.5)


def interval(key, what, logs):
    """The mean of log ratios, as a change in percent, and its 95% confidence interval."""
    mean = statistics.mean(logs)
    half = t95(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    pct = [100 * (math.exp(x) - 1) for x in (mean, mean - half, mean + half)]
    print(f"| {what} | {pct[0]:+.2f}% | {pct[1]:+.2f} to {pct[2]:+.2f}% | {len(logs)} pairs |", flush=True)
    ROWS.append({"key": key, "what": what, "unit": "%", "mean": pct[0], "low": pct[1], "high": pct[2],
                 "pairs": len(logs)})


def check_hits(name, requests):
    for q in requests:
        if q["cached"] < q["n"] // 2:
            sys.exit(f"{name}: only {q['cached']} of {q['n']} prompt tokens of request {q['request']} were cached")


def hits_of(url, who, length, prompts, rounds, model=None, seed=11):
    cold, _ = measure(url, f"{who}-cold-{length}", prompts, length, 2, 1, seed + length, model)
    if any(q["cached"] > 64 for q in cold):
        sys.exit(f"{who}: a prompt of {length} tokens was sent before")
    time.sleep(1)
    row(f"{who}_cold_{length}", f"{who}: {length} tokens, never sent before, TTFT", [q["ttft"] for q in cold[1:]])
    hit, before = [], load_seconds(url)
    for i in range(rounds):
        reset(url)
        got, _ = measure(url, f"{who}-hit-{length}-{i}", prompts, length, 2, 1, seed + length, model)
        if model is None:
            check_hits(f"{who}-hit-{length}", got)
        hit += [q["ttft"] for q in got[1:]]
    row(f"{who}_hit_{length}", f"{who}: {length} tokens, hit in DRAM, TTFT", hit)
    if before is not None:
        mean = 1e3 * (load_seconds(url) - before) / (rounds * prompts)
        print(f"  of which the load, from its submission to its end: mean {mean:.2f} ms", flush=True)
        ROWS.append({"key": f"{who}_load_{length}", "what": f"{who}: mean time of these loads", "unit": "ms",
                     "mean": mean})


def part_hits():
    server = Server("hits", "--kv-cache", f"dram={DRAM}", *os.environ.get("FLAGS", "").split())
    print(f"start to serving {server.start_s:.1f} s")
    t = time.time()
    wait_full(server.url)
    print(f"host memory at its full size {time.time() - t:.1f} s later")
    peer = (os.environ.get("PEER_URL"), os.environ.get("PEER"))
    for length, prompts in ((5000, 12), (20000, 8)):
        hits_of(server.url, "kvmark", length, prompts, 4)
    before = metrics(server.url)
    eight(server.url, "kvmark")
    after = metrics(server.url)
    for k in sorted(after):
        if "request_" not in k and after[k] != before.get(k, 0):
            print(f"  {k}: {after[k] - before.get(k, 0):g}")
    server.stop()
    if peer[0]:
        for length, prompts in ((5000, 12), (20000, 8)):
            hits_of(peer[0], peer[1], length, prompts, 4, "q")
        eight(peer[0], peer[1], "q")


def eight(url, who, model=None):
    measure(url, f"{who}-eight-cold", 8, 20000, 2, 1, 77, model)
    time.sleep(1)
    means = []
    for i in range(4):
        reset(url)
        got, _ = measure(url, f"{who}-eight-{i}", 8, 20000, 2, 8, 77, model)
        if model is None:
            check_hits(f"{who}-eight", got)
        means.append(statistics.mean(q["ttft"] for q in got))
    row(f"{who}_eight", f"{who}: eight hits of 20000 tokens at once, mean TTFT", means)


def part_miss():
    flags = ["--num-gpu-blocks-override", "3000"]
    servers = [Server("miss-without", "--kv-cache", "none", *flags),
               Server("miss-with", "--kv-cache", f"dram={DRAM}", *flags)]
    wait_full(servers[1].url)
    for length, prompts in ((1000, 64), (8000, 10), (20000, 4)):
        pairs = int(os.environ.get("PAIRS", "8"))
        tps, ttft = [], []
        for i in range(-1, pairs):
            got = {}
            for j in ((0, 1) if i % 2 else (1, 0)):
                reset(servers[j].url, True)
                requests, run = measure(servers[j].url, f"miss-{length}-{i}-{j}", prompts, length, 4, 4,
                                        1000 + 2 * i + j * 7919 + length)
                if any(q["cached"] > 64 for q in requests):
                    sys.exit("a prompt of part miss was cached")
                got[j] = run["summary"]["input_tps"], run["summary"]["ttft_ms"]["mean"]
            if i >= 0:
                tps.append(math.log(got[1][0] / got[0][0]))
                ttft.append(math.log(got[1][1] / got[0][1]))
        interval(f"miss_tps_{length}", f"{length} tokens never sent before: change of Input TPS by the layer", tps)
        interval(f"miss_ttft_{length}", f"{length} tokens never sent before: change of mean TTFT", ttft)
    for s in servers:
        s.stop()


def part_decode():
    """Decode of 32 streams while another client loads and stores: TPOT and ITL against the same without traffic."""
    server = Server("decode", "--kv-cache", f"dram={DRAM}", "--num-gpu-blocks-override", "9000")
    wait_full(server.url)
    measure(server.url, "decode-fill", 12, 5000, 2, 1, 501)
    base, busy = [], []
    for i in range(4):
        _, run = measure(server.url, f"decode-quiet-{i}", 32, 500, 400, 32, 600 + i)
        base.append(run["summary"]["itl_ms"])
        reset(server.url)
        folder = os.path.join(OUT, "runs", f"decode-traffic-{i}")
        with open(folder + ".json", "w") as f:
            json.dump({"filetype": "random", "generator": "new", "num_prompts": 12, "input_len": int(5000 * SCALE),
                       "output_len": 2}, f)
        loader = subprocess.Popen(
            [program("kvmark"), "run", folder + ".json", "--url", server.url, "--tokenizer",
             TOKENIZER, "--endpoint-type", "completions", "--send-token-ids",
             "--ignore-eos", "--max-concurrency", "1", "--seed", "501", "--quiet", "-o", folder],
            env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, run = measure(server.url, f"decode-busy-{i}", 32, 500, 400, 32, 700 + i)
        loader.wait()
        busy.append(run["summary"]["itl_ms"])
    for p in ("p50", "p99"):
        row(f"itl_{p}_quiet", f"ITL {p} of 32 streams, no traffic", [b[p] for b in base])
        row(f"itl_{p}_busy", f"ITL {p} of 32 streams beside loads of 5000 tokens", [b[p] for b in busy])
    server.stop()


def part_planner():
    flags = ["--num-gpu-blocks-override", "4000"]
    curve = []

    def one(planner, rate, samples):
        server = Server(f"planner-{planner}-{rate:g}", "--kv-cache", "dram=12GiB", "--kv-planner", planner, *flags,
                        *(["--kv-throttle", f"{rate:g}GB/s"] if rate else []))
        wait_full(server.url)
        measure(server.url, f"planner-{planner}-{rate:g}-cold", samples + 1, 20000, 2, 1, 91)
        ttft = []
        for i in range(2):
            reset(server.url)
            got, _ = measure(server.url, f"planner-{planner}-{rate:g}-{i}", samples + 1, 20000, 2, 1, 91)
            ttft += [q["ttft"] for q in got[1:]]
        server.stop()
        return row(f"planner_{planner}_{rate:g}", f"planner {planner}, {rate or 54:g} GB/s: TTFT of a hit of 20000",
                   ttft)

    compute = one("compute", 0, 3)
    for rate in RATES:
        load = one("load", rate, 3) if rate >= 1 else float("nan")  # at 0.2 GB/s one load takes 15 s
        auto = one("auto", rate, 3)
        curve.append((rate, compute, load, auto))
        print(f"  {rate} GB/s: auto is {auto / compute:.3f} of compute, {auto / load:.3f} of load", flush=True)
    with open(os.path.join(OUT, "planner.dat"), "w") as f:
        f.write("# GB/s  compute  load  auto: TTFT in ms of a hit of 20,000 tokens\n")
        f.writelines("%g %.2f %.2f %.2f\n" % c for c in curve)


os.makedirs(OUT, exist_ok=True)
for part in sys.argv[3:]:
    t0 = time.time()
    print(f"== {part}", flush=True)
    {"hits": part_hits, "miss": part_miss, "decode": part_decode, "planner": part_planner}[part]()
    print(f"-- {part}: {time.time() - t0:.0f} s", flush=True)
    with open(os.path.join(OUT, "cache.json"), "w") as f:
        json.dump({"model": MODEL, "device": DEVICE, "dram": DRAM, "rows": ROWS}, f, indent=1)
