#!/usr/bin/env python3
"""Change the settings of the cases, one at a time, and compare smelt with transformers.

    python vary_settings.py --smelt ../../target/release/smelt            # all cases, half an hour on one core
    python vary_settings.py --smelt ../../target/release/smelt llama t5   # the cases of these architectures
    python vary_settings.py --smelt SMELT --refused bert/base             # say what is refused, too
    python vary_settings.py --smelt SMELT --together 3                    # three settings at once, at random
    python vary_settings.py --smelt SMELT --arch my.yaml distilbert       # a description that is not built in

Every key of config.json gets other values of its type, is left out once, and rope is set in the ways of
older versions. What transformers cannot build or compute is left out, and so is what would be large. For the rest
smelt must compute the same or refuse the model: a setting that is ignored, or has another default, shows.
Settings for which that is not so are printed; the exit status is 1 if one of them is not in `KNOWN`.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from make_reference import CASES, EAGER, Case, build_tokenizer, default_inputs, make_config, outputs, randomise
from reference import noise

Config = dict[str, Any]

# More parameters than this are not built.
LARGE = 8_000_000

TOLERANCE = 5e-4

ACTIVATIONS = ["gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "leaky_relu", "linear", "mish", "quick_gelu", "relu",
               "relu2", "sigmoid", "silu", "tanh"]

# Other values of keys that are words.
WORDS = {
    "position_embedding_type": ["absolute", "alibi", "relative_key", "rope"],
    "rope_type": ["default", "dynamic", "linear", "llama3", "longrope", "proportional", "yarn"],
}

# Keys that say what is run, and not what is computed.
FIXED = {
    "_experts_implementation", "architectures", "bos_token_id", "chunk_size_feed_forward", "decoder_start_token_id",
    "dtype", "eos_token_id", "id2label", "initializer_range", "is_encoder_decoder", "label2id", "model_type",
    "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "sep_token_id",
    "transformers_version", "use_cache", "vocab_size",
}

# Added to `rope_parameters` that are not by kinds of layers.
ROPE: list[Config] = [
    {"rope_theta": 777.0},
    {"partial_rotary_factor": 0.5},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "mscale": 0.7, "mscale_all_dim": 0.4,
     "truncate": False},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.3,
     "beta_fast": 20.0, "beta_slow": 2.0},
    {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 16, "low_freq_factor": 1.0,
     "high_freq_factor": 4.0},
]

# Beside other settings instead of those, as before version 5.
OLD_ROPE: list[Config] = [
    {"rope_theta": 500.0},
    {"rope_theta": 500.0, "rope_scaling": None},
    {"rope_theta": 500.0, "partial_rotary_factor": 0.5},
    {"rope_theta": 500.0, "rotary_pct": 0.5},
    {"rotary_emb_base": 500.0, "rotary_pct": 0.5},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_theta": 500.0, "rope_scaling": ROPE[3]},
    {"rope_theta": 500.0, "rope_scaling": ROPE[4]},
    {"rope_theta": 500.0, "rope_scaling": {"type": "llama3", **ROPE[7]}},
]

# Differences that stay, and why.
KNOWN = {
    ("falcon", "alibi = true"): "eager attention of transformers adds the bias twice; smelt computes what sdpa does",
    ("mpt", "max_seq_len = 1"): "one slope for all distances, by broadcasting",
    ("deepseek_v3", "head_dim = 1"): "one angle for all columns, by broadcasting",
}


def values(key: str, value: Any) -> list[Any]:
    """Other values that a key may have."""
    if key in FIXED or key.startswith("_") or isinstance(value, dict):
        return []
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return sorted({value * 2, value + 1, max(1, value // 2), 1, 0, -1} - {value})
    if isinstance(value, float):
        return [v for v in (value * 2 + 0.25, value * 0.5, 0.0, 1.0) if v != value]
    if isinstance(value, str):
        words = ACTIVATIONS if "act" in key or value in ACTIVATIONS else WORDS.get(key, [])
        return [word for word in words if word != value]
    if value is None:
        return [1, 4, 0.5, True, False]
    if value and all(isinstance(v, str) for v in value):
        kinds = sorted({*value, *(["full_attention", "sliding_attention"] if "attention" in value[0] else [])})
        return [[random.choice(kinds) for _ in value] for _ in range(2)] + [value[::-1]]
    return [value[::-1], value[:-1], []] if value else [[0]]


def changed(config: Config, at: list[str], **to: Any) -> Config:
    """A config with another value of a key, `to`, or without the key."""
    config = copy.deepcopy(config)
    inner = config
    for key in at[:-1]:
        inner = inner[key]
    del inner[at[-1]]
    inner.update({at[-1]: value for value in to.values()})
    return config


def changes(config: Config) -> Iterator[tuple[str, Config]]:
    """Configs that differ in one setting, with what differs."""

    def of(part: Config, at: list[str]) -> Iterator[tuple[str, Config]]:
        for key, value in part.items():
            path = [*at, key]
            name = ".".join(path)
            for other in values(key, value):
                yield f"{name} = {json.dumps(other)}", changed(config, path, to=other)
            if isinstance(value, dict) and key not in FIXED:
                yield from of(value, path)
                if key == "rope_parameters" and "rope_type" in value:
                    for more in ROPE:
                        yield f"{name} += {json.dumps(more)}", changed(config, path, to=value | more)
            if key not in ("architectures", "dtype", "model_type"):
                yield f"without {name}", changed(config, path)

    yield from of(config, [])
    if "rope_type" in (config.get("rope_parameters") or {}):
        rest = {k: v for k, v in config.items() if k != "rope_parameters"}
        for more in OLD_ROPE:
            yield f"rope_parameters -> {json.dumps(more)}", rest | more


def several(config: Config, together: int) -> Iterator[tuple[str, Config]]:
    """As many configs as `changes` makes, with so many changes each, by chance."""
    for _ in list(changes(config)):
        names, other = [], config
        for _ in range(together):
            name, other = random.choice(list(changes(other)))
            names.append(name)
        yield "; ".join(names), other


def write(c: Case, base: Any, config: Config, path: Path) -> bool:
    """Writes the model of a config and what transformers computes with it, if it does."""
    tok = build_tokenizer(c.tok)[0] if c.tok else None
    cls = getattr(transformers, c.model)
    try:
        made = type(base).from_dict(copy.deepcopy(config))
        with torch.device("meta"):
            if sum(p.numel() for p in cls(copy.deepcopy(made)).parameters()) > LARGE:
                return False
        torch.manual_seed(0)
        model = cls._from_config(made, **(EAGER | {"attn_implementation": c.attention})).eval()
        randomise(model, c)
        if c.before:
            c.before(model)
        model.eval()
        inputs = (c.inputs or default_inputs)(c, model, tok)
        with torch.no_grad():
            found = outputs(model, inputs, c.hidden)
        if not all(t.float().isfinite().all() for t in found.values()):
            return False
        model.save_pretrained(str(path))
        # How far transformers itself is from exact.
        exact = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        with torch.no_grad():
            found |= noise(outputs(model.double(), exact, c.hidden), found, inputs.get("attention_mask"))
    except Exception:  # whatever it is that transformers does not like about the config
        return False
    # As it was changed, not as transformers understood it.
    as_said = {k: v for k, v in config.items() if k != "dtype"}
    as_said |= {"architectures": [c.model], "model_type": base.model_type}
    (path / "config.json").write_text(json.dumps(as_said))
    tensors = {f"input.{name}": t.clone().contiguous() for name, t in inputs.items()} | found
    save_file(tensors, str(path / "reference.safetensors"))
    return True


def verify(smelt: Path, path: Path, arch: Path | None = None) -> str:
    """`same`, `refused: WHY` or `differs: HOW MUCH`."""
    command = [str(smelt), "verify", "--model", str(path), str(path / "reference.safetensors")]
    command += ["--arch", str(arch)] if arch else []
    run = subprocess.run([*command, "--json", "--threads", "1", "--tolerance", str(TOLERANCE)], capture_output=True, text=True)
    if run.returncode == 0:
        return "same"
    if not run.stdout:
        if "panicked" in run.stderr or run.returncode < 0:
            return f"differs: it crashes: {run.stderr.strip()}"
        return "refused: " + run.stderr.strip().splitlines()[0].removeprefix("error: ")
    # Sums that grow large have a rounding error of that size.
    far = []
    for o in json.loads(run.stdout)["outputs"]:
        largest, magnitude = o["largest"], o["magnitude"]
        # A word where it is not finite.
        if isinstance(largest, str) or largest > max(TOLERANCE * max(1, magnitude), 2 * o["noise"]):
            far.append(f"{o['name']} by {largest} of {magnitude}")
    return "differs: " + ", ".join(far[:2]) if far else "same"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smelt", type=Path, required=True, help="the program")
    parser.add_argument("--arch", type=Path, help="the description; the built-in one by default")
    parser.add_argument("--refused", action="store_true", help="say what is refused")
    parser.add_argument("--together", type=int, default=1, help="how many settings are changed at once")
    parser.add_argument("cases", nargs="*", help="architectures or cases; all if none is named")
    a = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    unexplained = 0
    for c in CASES.values():
        if a.cases and not {c.id, c.arch} & set(a.cases):
            continue
        random.seed(c.id)
        base = make_config(c, build_tokenizer(c.tok)[0].get_vocab_size() if c.tok else None)
        counts = {"same": 0, "refused": 0, "differs": 0, "left out": 0}
        settings = base.to_dict()
        for what, config in changes(settings) if a.together == 1 else several(settings, a.together):
            with tempfile.TemporaryDirectory() as folder:
                is_there = write(c, base, config, Path(folder))
                result = verify(a.smelt, Path(folder), a.arch) if is_there else "left out"
            counts[result.split(":")[0]] += 1
            if result.startswith("differs"):
                why = next((KNOWN[c.arch, one] for one in what.split("; ") if (c.arch, one) in KNOWN), None)
                unexplained += why is None
                print(f"{c.id}: {what}: {result}" + (f" ({why})" if why else ""), flush=True)
            elif result.startswith("refused") and a.refused:
                print(f"{c.id}: {what}: {result}", flush=True)
        print(f"{c.id}: " + ", ".join(f"{n} {name}" for name, n in counts.items()), flush=True)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
