"""Families that the other programs do not run, or not all of them: smelt beside transformers, taking turns, float32.

    python families.py make DIR                       random weights at real shapes, from transformers' own classes
    python families.py run DIR --smelt SMELT >> ../../docs/performance-families.jsonl
    python families.py render ../../docs/performance-families.jsonl ../../docs/performance.md

`run` appends one JSON line for each model, shape and number of threads; `render` replaces the table between its markers.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import time

# A class of transformers, how its config differs from the class's default, and the shapes that are timed.
GPT = dict(vocab_size=50000, hidden_size=768, num_hidden_layers=8, num_attention_heads=12)
MODELS = {
    "deberta-v2": ("DebertaV2Model", dict(
        vocab_size=50000, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, relative_attention=True,
        position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
        type_vocab_size=0), ("1x8", "1x128", "1x512")),
    "modernbert": ("ModernBertModel", {}, ("1x128",)),
    "vit": ("ViTModel", {}, ("images1", "images8")),
    "t5": ("T5ForConditionalGeneration", dict(
        d_model=768, d_ff=2048, num_layers=12, num_heads=12, feed_forward_proj="gated-gelu", tie_word_embeddings=False), ("prefill:512",)),
    "bart": ("BartForConditionalGeneration", dict(
        d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12, decoder_attention_heads=12, encoder_ffn_dim=3072,
        decoder_ffn_dim=3072), ("prefill:512",)),
    "qwen3": ("Qwen3ForCausalLM", dict(
        vocab_size=65536, hidden_size=1024, num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        intermediate_size=3072, tie_word_embeddings=True), ("prefill:512",)),
    "qwen2_moe": ("Qwen2MoeForCausalLM", GPT | dict(
        num_key_value_heads=4, moe_intermediate_size=512, shared_expert_intermediate_size=1024, num_experts=32), ("prefill:512",)),
    "deepseek_v3": ("DeepseekV3ForCausalLM", GPT | dict(
        num_key_value_heads=12, q_lora_rank=384, kv_lora_rank=256, qk_rope_head_dim=32, qk_nope_head_dim=64, v_head_dim=64,
        intermediate_size=2048, moe_intermediate_size=512, n_routed_experts=16, n_group=4, topk_group=2, num_experts_per_tok=4,
        first_k_dense_replace=1), ("prefill:512",)),
    "mamba": ("MambaForCausalLM", dict(num_hidden_layers=24), ("prefill:512",)),
    "mamba2": ("Mamba2ForCausalLM", dict(
        vocab_size=50280, hidden_size=768, num_hidden_layers=24, num_heads=24, head_dim=64, n_groups=1), ("prefill:512",)),
}


def chosen(args):
    return [(name, of) for name, of in MODELS.items() if args.only in (None, name)]


def make(args):
    import torch
    import transformers
    for name, (kind, config, _) in chosen(args):
        torch.manual_seed(0)
        cls = getattr(transformers, kind)
        cls(cls.config_class(**config)).float().save_pretrained(os.path.join(args.dir, name))


def by_transformers(path, kind, shape):
    """A function that computes the shape once."""
    import torch
    import transformers
    model = getattr(transformers, kind).from_pretrained(path, dtype=torch.float32).eval()
    if shape.startswith("images"):
        size = model.config.image_size
        given = dict(pixel_values=torch.zeros(int(shape.removeprefix("images")), 3, size, size))
    else:
        batch, tokens = map(int, shape.replace("prefill:", "1x").split("x"))
        given = dict(input_ids=torch.arange(tokens).repeat(batch, 1) * 7919 % 1000 + 5)
        if kind.endswith("ForConditionalGeneration"):
            given["decoder_input_ids"] = torch.zeros(batch, 1, dtype=torch.long)
        elif kind.endswith("ForCausalLM"):
            given["logits_to_keep"] = 1

    def once():
        with torch.inference_mode():
            start = time.perf_counter()
            model(**given)
            return 1e3 * (time.perf_counter() - start)
    return once


def by_smelt(args, path, shape, threads):
    command = [args.smelt, "bench", "--worker", "--model", path, "--threads", str(threads), "--dtype", "f32", shape]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    worker.stdout.readline()

    def once():
        worker.stdin.write("run\n")
        worker.stdin.flush()
        return json.loads(worker.stdout.readline())["ms"]
    return once, worker


def run(args):
    import torch
    for name, (kind, _, shapes) in chosen(args):
        for shape in shapes:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                path = os.path.join(args.dir, name)
                other, (own, worker) = by_transformers(path, kind, shape), by_smelt(args, path, shape, threads)
                # The first round does not count.
                rounds = [(other(), own()) for _ in range(args.runs + 1)][1:]
                worker.stdin.close()
                worker.wait()
                ms = dict(zip(("transformers", "smelt"), map(statistics.median, zip(*rounds))))
                print(json.dumps({"model": name, "shape": shape, "threads": threads, "ms": ms}), flush=True)


def render(args):
    with open(args.results) as f:
        lines = [json.loads(line) for line in f if line.strip()]
    shown = lambda ms: f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"
    rows = ["| model | work | one thread | two threads |", "|---|---|---|---|"]
    for name, (_, _, shapes) in MODELS.items():
        for shape in shapes:
            found = [l["ms"] for l in lines if (l["model"], l["shape"]) == (name, shape)]
            cells = [f"**{shown(ms['smelt'])}** ({ms['transformers'] / ms['smelt']:.2f}x) · {shown(ms['transformers'])}" for ms in found]
            rows.append(f"| {name} | {shape} | " + " | ".join(cells) + " |")
    with open(args.page) as f:
        page = f.read()
    page = re.sub(r"(<!-- families -->\n).*?(<!-- end -->)", lambda m: m[1] + "\n".join(rows) + "\n" + m[2], page, flags=re.S)
    with open(args.page, "w") as f:
        f.write(page)


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(required=True)
    for go in (make, run):
        p = sub.add_parser(go.__name__)
        p.add_argument("dir")
        p.add_argument("--only", help="only this model")
        p.set_defaults(go=go)
    p.add_argument("--smelt", required=True)
    p.add_argument("--runs", type=int, default=3)
    p = sub.add_parser("render")
    p.add_argument("results")
    p.add_argument("page")
    p.set_defaults(go=render)
    args = ap.parse_args()
    args.go(args)
