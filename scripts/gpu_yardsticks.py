"""Times other implementations on this GPU at the shapes of Qwen3-8B: GEMMs of cuBLAS, attention of cuDNN and
FlashAttention-2, and transformers. Needs PyTorch and transformers.

Weights are random, with the scale of a trained model. Prints a Markdown table with median, 10th and 90th percentile."""
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attention


def time_calls(call, n=15, warm=3):
    """Sorted durations of n calls in ms, after `warm` warm-up calls."""
    for _ in range(warm):
        call()
    out = []
    for _ in range(n):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        call()
        b.record()
        torch.cuda.synchronize()
        out.append(a.elapsed_time(b))
    out.sort()
    return out


def print_row(what, values, unit):
    """Prints a row of the table. values: sorted samples."""
    n = len(values) - 1
    low, median, high = values[n // 10], values[n // 2], values[n - n // 10]
    print(f"| {what} | {median:.3f} | {low:.3f} to {high:.3f} | {unit} |", flush=True)


def rates(ms, amount):
    """Sorted rates of work of `amount` per ms."""
    return sorted(amount / v for v in ms)


def main():
    torch.manual_seed(1)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}\n")
    print("| yardstick | median | 10% to 90% | unit |\n|---|---|---|---|")
    shapes = [(6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288)]  # qkv, o, gate and up, down: N, K
    n_weights = sum(n * k for n, k in shapes)
    ws = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * 0.02 for n, k in shapes]
    for m in (1, 64, 256, 5000, 8192):
        xs = [torch.randn(m, k, device="cuda", dtype=torch.bfloat16) for _, k in shapes]
        # With few rows the time is that of reading the weights: four copies of them, so that no cache holds them.
        copies = [[w] + [w.clone() for _ in range(3)] for w in ws] if m <= 256 else [[w] for w in ws]

        def layers():
            for c in range(len(copies[0])):
                for x, w in zip(xs, copies):
                    torch.matmul(x, w[c].T)

        ms = [v / len(copies[0]) for v in time_calls(layers)]
        del copies
        if m <= 256:
            print_row(f"cuBLAS, the four GEMMs of a layer, M = {m}", rates(ms, 2e-9 * n_weights), "TB/s of weights")
        else:
            print_row(f"cuBLAS, the four GEMMs of a layer, M = {m}", rates(ms, 2e-9 * m * n_weights), "TFLOP/s")
    a = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    print_row("device copy, read and write", rates(time_calls(lambda: b.copy_(a)), 2 * a.numel() / 1e9), "TB/s")
    del a, b
    for n in (2048, 5000, 8192, 20480):
        q = torch.randn(1, 32, n, 128, device="cuda", dtype=torch.bfloat16)
        k = torch.randn(1, 8, n, 128, device="cuda", dtype=torch.bfloat16)
        v = torch.randn(1, 8, n, 128, device="cuda", dtype=torch.bfloat16)
        for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttention-2", SDPBackend.FLASH_ATTENTION)):
            try:
                with sdpa_kernel(backend):
                    ms = time_calls(lambda: attention(q, k, v, is_causal=True, enable_gqa=True))
                flops = 2.0 * 32 * 128 * n * n
                print_row(f"{name}, causal attention, {n} tokens, contiguous", rates(ms, flops / 1e9), "TFLOP/s")
            except RuntimeError as e:
                print(f"| {name}, {n} tokens | not available: {str(e).splitlines()[0][:80]} | | |")
    time_transformers()


@torch.no_grad()
def time_transformers():
    import transformers
    config = transformers.Qwen3Config(vocab_size=151936, hidden_size=4096, intermediate_size=12288,
                                      num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
                                      head_dim=128, max_position_embeddings=40960, tie_word_embeddings=False)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.eval()
    name = f"transformers {transformers.__version__}"
    for n in (128, 5000, 20000):
        ids = torch.randint(0, model.config.vocab_size, (1, n), device="cuda")
        ms = time_calls(lambda: model(ids, logits_to_keep=1, use_cache=True), n=5, warm=2)
        print_row(f"{name}, prefill of {n} tokens", ms, "ms")
    for batch in (1, 64):
        ids = torch.randint(0, model.config.vocab_size, (batch, 640), device="cuda")
        out = model(ids, logits_to_keep=1, use_cache=True)
        cache, token, steps = out.past_key_values, out.logits[:, -1:].argmax(-1), []
        for i in range(14):
            torch.cuda.synchronize()
            t = time.perf_counter()
            out = model(token, past_key_values=cache, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
            torch.cuda.synchronize()
            if i > 3:  # the first steps are the warm-up
                steps.append((time.perf_counter() - t) * 1e3)
        print_row(f"{name}, decode, batch {batch}, context 640", sorted(steps), "ms a step")


main()
