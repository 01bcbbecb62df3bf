"""Computes vectors for engine_check with transformers from a model folder, in the format of engine/test/golden-*.json.

    hf_logits.py MODEL_DIR OUT.json [--lengths 1,2,5,17,...] [--steps 16] [--device cuda]

Prompts are random token ids. The reference is float32 arithmetic on the stored weights. The distance of transformers' own
bfloat16 from the reference is printed, as a scale for the distance of other implementations."""
import argparse
import json

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging


def load(path, dtype, device):
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa").to(device).eval()


@torch.no_grad()
def last_logprobs(model, ids):
    logits = model(torch.tensor([ids], device=model.device), logits_to_keep=1).logits[0, -1]
    return torch.log_softmax(logits.double(), -1)


@torch.no_grad()
def vector(model, ids, steps):
    at = last_logprobs(model, ids)
    top = at.topk(8)
    out = {"prompt_ids": ids, "last_top8": [[i, v] for i, v in zip(top.indices.tolist(), top.values.tolist())], "greedy_ids": [], "greedy_gap": []}
    now = list(ids)
    for _ in range(steps):
        two = at.topk(2)
        now.append(int(two.indices[0]))
        out["greedy_ids"].append(now[-1])
        out["greedy_gap"].append(float(two.values[0] - two.values[1]))
        at = last_logprobs(model, now)
    return out


def main():
    a = argparse.ArgumentParser()
    a.add_argument("model")
    a.add_argument("out")
    a.add_argument("--lengths", default="1,2,5,17,40,90,128,300,700,1200,2000")
    a.add_argument("--steps", type=int, default=16)
    a.add_argument("--device", default="cuda")
    a = a.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    logging.disable_progress_bar()
    model = load(a.model, torch.float32, a.device)
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, model.config.vocab_size, (int(n),), generator=draw).tolist() for n in a.lengths.split(",")]
    vectors = [vector(model, p, a.steps) for p in prompts]
    del model
    torch.cuda.empty_cache()
    model = load(a.model, torch.bfloat16, a.device)
    off = []
    for v in vectors:
        at = last_logprobs(model, v["prompt_ids"])
        off += [abs(float(at[i]) - x) / max(1, abs(x)) for i, x in v["last_top8"]]
    worst, rms = max(off), (sum(d * d for d in off) / len(off)) ** 0.5
    print(f"transformers in bfloat16 is within {worst:.4f} of its float32, root mean square {rms:.4f} (as engine_check measures it), on these {len(vectors)} prompts")
    with open(a.out, "w") as f:
        json.dump({"source": "transformers, float32", "bfloat16_worst": worst, "bfloat16_rms": rms, "vectors": vectors}, f)


main()
