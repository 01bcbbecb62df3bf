"""Computes vectors for engine_check: runs a model folder with transformers, and writes the results in the format of
engine/test/golden-*.json.

    hf_logits.py MODEL_DIR OUT.json [--lengths 1,2,5,17,...] [--steps 16] [--device cuda]

Prompts are random token ids. The vectors are computed in float32 from the stored weights. The script also prints by
how much transformers' results in bfloat16 differ from the vectors, as a scale for other implementations."""
import argparse
import json

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging


def load(path, dtype, device):
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa").to(device).eval()


@torch.no_grad()
def last_logprobs(model, ids):
    """The log-probabilities of all ids after the last of `ids`."""
    logits = model(torch.tensor([ids], device=model.device), logits_to_keep=1).logits[0, -1]
    return torch.log_softmax(logits.double(), -1)


@torch.no_grad()
def make_vector(model, ids, steps):
    """The vector of a prompt: the top 8 after the prompt, then `steps` greedy ids and the gaps of their top 2."""
    logprobs = last_logprobs(model, ids)
    top = logprobs.topk(8)
    top8 = [[i, v] for i, v in zip(top.indices.tolist(), top.values.tolist())]
    out = {"prompt_ids": ids, "last_top8": top8, "greedy_ids": [], "greedy_gap": []}
    now = list(ids)
    for _ in range(steps):
        two = logprobs.topk(2)
        now.append(int(two.indices[0]))
        out["greedy_ids"].append(now[-1])
        out["greedy_gap"].append(float(two.values[0] - two.values[1]))
        logprobs = last_logprobs(model, now)
    return out


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("out")
    p.add_argument("--lengths", default="1,2,5,17,40,90,128,300,700,1200,2000")
    p.add_argument("--steps", type=int, default=16)
    p.add_argument("--device", default="cuda")
    a = p.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    logging.disable_progress_bar()
    model = load(a.model, torch.float32, a.device)
    rng = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, model.config.vocab_size, (int(n),), generator=rng).tolist()
               for n in a.lengths.split(",")]
    vectors = [make_vector(model, p, a.steps) for p in prompts]
    del model
    torch.cuda.empty_cache()
    model = load(a.model, torch.bfloat16, a.device)
    differences = []  # relative to the log-probability if it is below -1, as in engine_check
    for v in vectors:
        logprobs = last_logprobs(model, v["prompt_ids"])
        differences += [abs(float(logprobs[i]) - x) / max(1, abs(x)) for i, x in v["last_top8"]]
    worst, rms = max(differences), (sum(d * d for d in differences) / len(differences)) ** 0.5
    print(f"transformers, {len(vectors)} prompts: log-probabilities in bfloat16 differ from those in float32 by at "
          f"most {worst:.4f}, root mean square {rms:.4f}")
    with open(a.out, "w") as f:
        json.dump({"source": "transformers, float32", "bfloat16_worst": worst, "bfloat16_rms": rms,
                   "vectors": vectors}, f)


main()
