#!/usr/bin/env python3
"""Derive small checkpoints that are stored in unusual ways, with the outputs they must give.

    python make_variants.py             # all, into variants/ beside this script
    python make_variants.py --out DIR

make_reference.py must have run first: weights come from its fixtures, cut to few layers and, but
for BERT, to fewer vocabulary entries. Every variant is loaded with transformers as its
users would, and its outputs must be those of the model it was derived from. README.md lists the
variants.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from make_reference import EAGER, HERE, flatten, normal, pad_batch, write_json
from tokenizers import Tokenizer

State = dict[str, torch.Tensor]

BERT_IDS = [[2, 17, 88, 150, 41, 9, 3], [2, 60, 33, 3]]
DECODER_IDS = [[1, 17, 88, 120, 41, 9, 77], [1, 60, 33, 99]]
VOCAB = 150  # entries kept, but of BERT

# --------------------------------------------------------------------------------------
# The models that variants are made of
# --------------------------------------------------------------------------------------


def source(case: str, layers: int = 1) -> tuple[dict[str, Any], State]:
    """Config and weights of a fixture, cut down."""
    config = json.loads((HERE / case / "config.json").read_text())
    state = load_file(str(HERE / case / "model.safetensors"))
    keys = {"gpt2": ["n_layer"], "t5": ["num_layers", "num_decoder_layers"]}
    keys |= dict.fromkeys(["bart", "marian"], ["encoder_layers", "decoder_layers"])
    for key in keys.get(config["model_type"], ["num_hidden_layers"]):
        config[key] = layers
    for key in {"layer_types", "no_rope_layers"} & set(config):
        config[key] = config[key][:layers]

    def is_kept(name: str) -> bool:
        number = re.search(r"\d+", name)  # of the layer: the first in a name
        return number is None or int(number[0]) < layers

    state = {k: v for k, v in state.items() if is_kept(k)}
    if "vocab_size" in config and config["model_type"] != "bert":
        full, config["vocab_size"] = config["vocab_size"], min(config["vocab_size"], VOCAB)
        state = {k: v[:VOCAB].contiguous() if v.shape[0] == full else v for k, v in state.items()}
        state = {k: v[:, :VOCAB].contiguous() if k == "final_logits_bias" else v for k, v in state.items()}
    return config, state


def batch(config: dict[str, Any]) -> State:
    rows = BERT_IDS if config["model_type"] == "bert" else DECODER_IDS
    rows = [[id % config["vocab_size"] for id in row] for row in rows]
    width = max(map(len, rows))
    pad = config.get("pad_token_id") or 0
    out = {
        "input_ids": torch.tensor([r + [pad] * (width - len(r)) for r in rows]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]),
    }
    if config["model_type"] in ("t5", "bart", "marian"):
        out["decoder_input_ids"] = out["input_ids"].flip(1)
    if config["model_type"] == "bert":
        out["token_type_ids"] = torch.tensor([[0] * 4 + [1] * (width - 4)] * len(rows))
    return out


def outputs(model: Any, inputs: State) -> State:
    found: State = {}
    flatten(model.float().eval()(**inputs), "output", found, hidden=False)
    return found


def plain(name: str, config: dict[str, Any], state: State) -> Any:
    """The model of class `name` with exactly these weights (a tied head may be left out)."""
    cls = getattr(transformers, name)
    model = cls._from_config(cls.config_class(**config), **EAGER)
    if "lm_head.weight" in state:  # not the embedding, so it needs its own storage
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    missing, unexpected = model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    known = ("lm_head.weight", "decoder", "embed_tokens", "final_logits_bias")
    if unexpected or any(not any(part in k for part in known) for k in missing):
        raise RuntimeError(f"{name}: missing {missing}, unexpected {unexpected}")
    return model


# --------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------


def write(path: Path, config: dict[str, Any], state: State, shards: int = 1) -> None:
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    write_json(path / "config.json", config)
    if shards == 1:
        save_file(state, str(path / "model.safetensors"), metadata={"format": "pt"})
        return
    # Names are dealt out in turn, so that a layer's tensors lie in different shards.
    index: dict[str, str] = {}
    for s in range(shards):
        part = dict(list(state.items())[s::shards])
        file = f"model-{s + 1:05}-of-{shards:05}.safetensors"
        save_file(part, str(path / file), metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    size = sum(t.numel() * t.element_size() for t in state.values())
    write_json(path / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": index})


def variant(
    out: Path, id: str, cls: str, note: str, config: dict[str, Any], state: State, expected: Any, *, shards: int = 1,
    inputs: State | None = None,
) -> None:
    """Write a variant; `expected` is the model whose outputs it must give when loaded as `cls`."""
    path = out / id
    config = {**config, "architectures": [cls]}
    write(path, config, state, shards)
    inputs = inputs or batch(config)
    want = outputs(expected, inputs)
    loaded, report = getattr(transformers, cls).from_pretrained(
        str(path), dtype=torch.float32, output_loading_info=True, **EAGER
    )
    if report["missing_keys"] or report["mismatched_keys"]:
        raise RuntimeError(f"{id}: {report}")
    got = outputs(loaded, inputs)
    worst = max((got[k] - want[k]).abs().max().item() for k in want)
    if set(got) != set(want) or worst > 1e-5:
        raise RuntimeError(f"{id}: transformers computes something else, by {worst}")
    tensors = {f"input.{k}": v for k, v in inputs.items()} | want
    save_file(tensors, str(path / "reference.safetensors"))
    finish(path, {"model_class": cls, "note": note, "tensors": {k: list(v.shape) for k, v in tensors.items()}})


def finish(path: Path, info: dict[str, Any]) -> None:
    versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
    write_json(path / "reference.json", {"case": f"variants/{path.name}", "versions": versions, **info})
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    print(f"{path.name:28} {size / 1024:5.0f} KiB", flush=True)


# --------------------------------------------------------------------------------------
# Storage types, shards, names
# --------------------------------------------------------------------------------------


def storage(out: Path) -> None:
    config, state = source("bert/base")

    def stored(id: str, note: str, dtype: str, convert: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        new = {k: convert(k, v) for k, v in state.items()}
        variant(out, id, "BertModel", note, {**config, "dtype": dtype}, new, plain("BertModel", config, new))

    stored("bert-float16", "weights in float16", "float16", lambda k, v: v.half())
    stored("bert-bfloat16", "weights in bfloat16", "bfloat16", lambda k, v: v.bfloat16())

    def mixed(k: str, v: torch.Tensor) -> torch.Tensor:
        if k.startswith("embeddings"):
            return v.half()
        return v.bfloat16() if ".attention." in k else v

    stored("bert-mixed", "embeddings in float16, attention in bfloat16, the rest in float32", "float32", mixed)

    config, state = source("llama/causal")
    expected = plain("LlamaForCausalLM", config, state)
    variant(out, "llama-sharded", "LlamaForCausalLM", "three shards and an index", config, state, expected, shards=3)


def heads(out: Path) -> None:
    config, state = source("gpt2/causal")  # stored without lm_head, which is tied
    tied = plain("GPT2LMHeadModel", config, state)
    tied.tie_weights()

    own = state | {"lm_head.weight": normal((VOCAB, config["n_embd"]), "gpt2-own-head") * 0.3}
    # The flag is true by default for GPT-2 and the head is stored all the same: what is stored wins.
    variant(
        out, "gpt2-own-head", "GPT2LMHeadModel", "stores an lm_head that differs from wte; the stored one is used",
        config, own, plain("GPT2LMHeadModel", config, own),
    )
    same = state | {"lm_head.weight": state["transformer.wte.weight"].clone()}
    variant(
        out, "gpt2-repeated-head", "GPT2LMHeadModel", "stores wte a second time as lm_head", config, same, tied
    )
    bare = {k.removeprefix("transformer."): v for k, v in state.items()}
    variant(
        out, "gpt2-bare-base", "GPT2LMHeadModel", "names of the bare model, head class in config.json (as gpt2 on the hub)",
        config, bare, tied,
    )

    config, state = source("bert/sequence-classification")
    bare = {k.removeprefix("bert."): v for k, v in state.items()}
    variant(
        out, "bert-unprefixed-head", "BertForSequenceClassification", "a head, but the base without its bert. prefix",
        config, bare, plain("BertForSequenceClassification", config, state),
    )
    base = {k.removeprefix("bert."): v for k, v in state.items() if k.startswith("bert.")}
    variant(
        out, "bert-base-of-head", "BertModel", "weights of a classifier, to be loaded as the bare model",
        config, state, plain("BertModel", config, base),
    )


def names(out: Path) -> None:
    config, state = source("gpt2/causal")
    tied = plain("GPT2LMHeadModel", config, state)
    tied.tie_weights()
    both = {**config, "n_head": 1, "num_attention_heads": config["n_head"]}
    variant(
        out, "gpt2-both-names", "GPT2LMHeadModel", "n_head beside num_attention_heads, of which the latter counts", both, state, tied
    )
    config, state = source("bart/conditional-generation")
    expected = plain("BartForConditionalGeneration", config, state)
    expected.tie_weights()
    both = {**config, "encoder_attention_heads": 1, "num_attention_heads": config["encoder_attention_heads"]}
    variant(
        out, "bart-both-names", "BartForConditionalGeneration",
        "encoder_attention_heads beside num_attention_heads, of which the latter counts", both, state, expected,
    )


def old_forms(out: Path) -> None:
    config, state = source("bert/masked-lm")
    expected = plain("BertForMaskedLM", config, state)
    expected.tie_weights()

    def old(k: str) -> str:
        return k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    renamed = {old(k): v for k, v in state.items()}
    renamed["bert.embeddings.position_ids"] = torch.arange(config["max_position_embeddings"])[None]
    sizes = ("architectures", "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
             "intermediate_size", "max_position_embeddings")
    variant(
        out, "bert-old-names", "BertForMaskedLM",
        "LayerNorm.gamma and beta, an int64 position_ids, and only the sizes in config.json",
        {k: config[k] for k in sizes}, renamed, expected,
    )

    config, state = source("llama/causal-rope-llama3")
    rope = dict(config.pop("rope_parameters"))
    theta = rope.pop("rope_theta")
    for name, key, scaling in (
        ("llama-old-rope-llama3", "rope_type", {k: v for k, v in rope.items() if k != "rope_type"}),
        ("llama-old-rope-linear", "type", {"factor": 2.0}),
    ):
        kind = name.rpartition("-")[2]
        new = {**config, "rope_parameters": {"rope_type": kind, "rope_theta": theta, **scaling}}
        expected = plain("LlamaForCausalLM", new, state)
        expected.tie_weights()
        older = {**config, "rope_theta": theta, "rope_scaling": {key: kind, **scaling}}
        variant(
            out, name, "LlamaForCausalLM", f'rope_theta at top level, rope_scaling with "{key}"', older, state, expected
        )


def sometimes(out: Path) -> None:
    """Tensors that some checkpoints lack."""
    config, state = source("marian/conditional-generation")
    table = normal((config["max_position_embeddings"], config["d_model"]), "marian-own-positions") * 0.5
    state = {k: v.bfloat16() for k, v in state.items()} | {"model.encoder.embed_positions.weight": table.bfloat16()}
    expected = plain("MarianMTModel", config, state)
    expected.tie_weights()
    variant(
        out, "marian-own-positions", "MarianMTModel", "stores positions of the encoder, which are no sines, and none of the decoder",
        {**config, "dtype": "bfloat16"}, state, expected,
    )
    config, state = source("bart/conditional-generation")
    state = {k: v.bfloat16() for k, v in state.items() if k != "final_logits_bias"}
    expected = plain("BartForConditionalGeneration", config, state)
    expected.tie_weights()
    variant(
        out, "bart-no-bias", "BartForConditionalGeneration", "no final_logits_bias, which means zeros",
        {**config, "dtype": "bfloat16"}, state, expected,
    )


def settings(out: Path) -> None:
    def said(id: str, case: str, note: str, given: dict[str, Any], means: dict[str, Any], layers: int = 1) -> None:
        """A model whose config has the keys `given`, which say what `means` says plainly."""
        config, state = source(case, layers)
        cls = config["architectures"][0]
        with tempfile.TemporaryDirectory() as path:  # experts are stored one by one, so `plain` cannot take them
            write(Path(path) / "model", {**config, **means}, state)
            expected = getattr(transformers, cls).from_pretrained(f"{path}/model", dtype=torch.float32, **EAGER)
        variant(out, id, cls, note, {**config, **given}, state, expected)

    def ropes(id: str, case: str, note: str, given: dict[str, Any], means: dict[str, Any], layers: int = 1) -> None:
        said(id, case, note, given, {"rope_parameters": means}, layers)

    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    ropes(
        "llama-both-ropes", "llama/causal", "rope_scaling beside rope_parameters, of which nothing is read",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rope_scaling": yarn},
        {**yarn, "rope_theta": 10000.0},
    )
    linear = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0, "partial_rotary_factor": 0.35}
    ropes(
        "phi-rope-scaling-theta", "phi/causal", "rope_theta and partial_rotary_factor in rope_scaling",
        {"rope_parameters": None, "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "rope_scaling": linear}, linear,
    )
    full, local = {"rope_type": "linear", "rope_theta": 3000.0, "factor": 8.0}, {"rope_type": "default", "rope_theta": 100.0}
    ropes(
        "gemma3_text-both-ropes", "gemma3_text/causal", "rope_scaling changes what rope_parameters say of full attention",
        {"rope_parameters": {"full_attention": full, "sliding_attention": local}, "rope_scaling": {"factor": 3.0}},
        {"full_attention": {**full, "factor": 3.0}, "sliding_attention": local}, layers=3,
    )
    ropes(
        "modernbert-both-ropes", "modernbert/base", "rope_scaling changes what rope_parameters say of both kinds of layers",
        {"rope_parameters": {"full_attention": full, "sliding_attention": local}, "layer_types": None,
         "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
        {"full_attention": {**full, "factor": 3.0}, "sliding_attention": {**local, "rope_type": "linear", "factor": 3.0}},
        layers=2,
    )

    factors = {"short_factor": [1.0, 1.1, 1.3], "long_factor": [2.0, 4.0, 8.0]}
    longrope = {"rope_type": "longrope", "factor": 2.0, "partial_rotary_factor": 0.75, "rope_theta": 10000.0, **factors}
    ropes(
        "phi3-longrope-factor", "phi3/causal-longrope", "longrope with a factor, and two original lengths",
        {"rope_parameters": {**longrope, "original_max_position_embeddings": 16}}, longrope,
    )
    yarn = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
            "original_max_position_embeddings": 4096, "rope_theta": 150000.0}
    ropes("gpt_oss-no-rope", "gpt_oss/causal", "no settings of rope, which means yarn", {"rope_parameters": None}, yarn)

    window = {"use_sliding_window": True, "sliding_window": 4, "layer_types": None}
    said(
        "qwen2_moe-no-layer-types", "qwen2_moe/causal", "windows, but no layer_types", {**window, "max_window_layers": 2},
        {**window, "layer_types": ["sliding_attention", "full_attention", "full_attention"]}, layers=3,
    )
    said(
        "smollm3-no-layer-types", "smollm3/causal", "windows, but no layer_types", window,
        {**window, "layer_types": ["full_attention", "sliding_attention"]}, layers=2,
    )

    config, state = source("gemma/causal")
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(3)}
    config["label2id"] = {f"LABEL_{i}": i for i in range(3)}
    del config["pad_token_id"]
    state["score.weight"] = normal((3, config["hidden_size"]), "gemma-no-pad")
    cls = "GemmaForSequenceClassification"
    inputs = batch(config)
    inputs["input_ids"][0, -1] = 0
    variant(
        out, "gemma-no-pad", cls, "no pad_token_id, which means 0; a text that ends with it", config, state,
        plain(cls, {**config, "pad_token_id": 0}, state), inputs=inputs,
    )

    config, state = source("t5/conditional-generation-v1.1")
    resaved = {**config, "tie_word_embeddings": True, "scale_decoder_outputs": False}
    variant(
        out, "t5-resaved-v1.1", "T5ForConditionalGeneration", "T5 v1.1 as transformers 5 saves it: said to be tied",
        resaved, state, plain("T5ForConditionalGeneration", config, state),
    )


def towers(out: Path) -> None:
    """A tower alone, stored without its name, as transformers 5 saves it."""
    config, state = source("clip/text-projection")
    config |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # as old configs have them
    state = {k.removeprefix("text_model."): v for k, v in state.items() if k.startswith("text_model.")}
    variant(
        out, "clip-text", "CLIPTextModel", "names without text_model.; an eos_token_id of 2 means the largest id", config, state,
        plain("CLIPTextModel", config, state),
    )
    config, state = source("clip/vision-projection")
    state = {k.removeprefix("vision_model."): v for k, v in state.items() if k.startswith("vision_model.")}
    pixels = load_file(str(HERE / "clip/vision-projection/reference.safetensors"))["input.pixel_values"][:2].contiguous()
    variant(
        out, "clip-vision", "CLIPVisionModel", "names without vision_model.", config, state,
        plain("CLIPVisionModel", config, state), inputs={"pixel_values": pixels},
    )


# --------------------------------------------------------------------------------------
# Sentence embedding repositories
# --------------------------------------------------------------------------------------

TEXTS = [
    "the cat sat on the mat.",
    "hello world",
    "a quick brown fox jumps over the lazy dog while it rains in the city, or so they say",
]
MAX_LENGTH = 16  # less than the last text has, so that cutting it is tested
POOLING = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def pool(mode: str, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One pooling mode of sentence-transformers; x is [batch, tokens, width]. The mask may begin with zeros."""
    m = mask[:, :, None].to(x.dtype)
    if mode == "cls_token":
        return x[torch.arange(len(x)), mask.argmax(1)]
    if mode == "max_tokens":
        return x.masked_fill(m == 0, -1e9).max(1).values
    if mode == "mean_tokens":
        return (x * m).sum(1) / m.sum(1)
    if mode == "mean_sqrt_len_tokens":
        return (x * m).sum(1) / m.sum(1).sqrt()
    if mode == "weightedmean_tokens":  # later tokens weigh more
        w = m * torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[None, :, None]
        return (x * w).sum(1) / w.sum(1)
    if mode == "lasttoken":
        return x[torch.arange(len(x)), (mask * torch.arange(x.shape[1])).argmax(1)]
    raise ValueError(mode)


def sentence(
    out: Path, id: str, modes: tuple[str, ...], *, dense: bool = False, normalise: bool = False, v6: bool = False,
    prompt: str = "",
) -> None:
    """A repository as sentence-transformers saves it, around the tiny BERT in float16.

    With `v6` the files are those of version 6, else those of versions 2 to 5. A prompt is put before each text, and its
    tokens are left out of the pooling.
    """
    path = out / id
    config, state = source("bert/base")
    state = {k: v.half() for k, v in state.items()}
    write(path, {**config, "dtype": "float16"}, state)
    width = config["hidden_size"]

    tok = Tokenizer.from_file(str(HERE / "bert/base/tokenizer.json"))
    tok_config = json.loads((HERE / "bert/base/tokenizer_config.json").read_text())
    if v6:  # the tokenizer's files hold the length
        tok.enable_truncation(MAX_LENGTH)
        tok_config["model_max_length"] = MAX_LENGTH
        text = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
        write_json(
            path / "sentence_bert_config.json",
            {"transformer_task": "feature-extraction", "modality_config": text, "module_output_name": "token_embeddings"},
        )
    else:
        write_json(path / "sentence_bert_config.json", {"max_seq_length": MAX_LENGTH, "do_lower_case": False})
    tok.save(str(path / "tokenizer.json"))
    write_json(path / "tokenizer_config.json", tok_config)
    tok.enable_truncation(MAX_LENGTH)

    inputs = pad_batch([tok.encode(prompt + t) for t in TEXTS], config["pad_token_id"])
    mask = inputs["attention_mask"].clone()
    if prompt:
        mask[:, : len(tok.encode(prompt)) - 1] = 0  # its last token is the special one at the end
        write_json(
            path / "config_sentence_transformers.json",
            {"prompts": {"query": prompt, "document": ""}, "default_prompt_name": "query", "similarity_fn_name": "cosine"},
        )
    tokens = plain("BertModel", config, state).eval()(**inputs).last_hidden_state
    if v6:  # joined in the order of the list
        names = {"cls_token": "cls", "max_tokens": "max", "mean_tokens": "mean", "weightedmean_tokens": "weightedmean"}
        short = [names.get(m, m) for m in modes]
        pooling = {"embedding_dimension": width, "pooling_mode": short[0] if len(short) == 1 else short}
        order = modes
    else:  # joined in a fixed order
        pooling = {"word_embedding_dimension": width} | {f"pooling_mode_{m}": m in modes for m in POOLING}
        order = tuple(m for m in POOLING if m in modes)
    value = torch.cat([pool(m, tokens, mask) for m in order], -1)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    (path / "1_Pooling").mkdir()
    write_json(path / "1_Pooling" / "config.json", pooling | {"include_prompt": not prompt})

    if dense:
        given, wanted = value.shape[-1], 24
        weight, bias = normal((wanted, given), id, "weight") / given**0.5, normal((wanted,), id, "bias") * 0.2
        folder = path / f"{len(modules)}_Dense"
        folder.mkdir()
        write_json(
            folder / "config.json",
            {"in_features": given, "out_features": wanted, "bias": True,
             "activation_function": "torch.nn.modules.activation.Tanh"},
        )
        save_file({"linear.weight": weight, "linear.bias": bias}, str(folder / "model.safetensors"))
        modules.append((folder.name, "Dense"))
        value = torch.tanh(value @ weight.T + bias)
    if normalise:  # has no files
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
        value = value / value.norm(dim=-1, keepdim=True)

    def module_type(name: str) -> str:
        if not v6:
            return f"sentence_transformers.models.{name}"
        place = "sentence_transformer" if name == "Pooling" else "base"
        return f"sentence_transformers.{place}.modules.{name.lower()}.{name}"

    write_json(
        path / "modules.json",
        [{"idx": i, "name": str(i), "path": p, "type": module_type(t)} for i, (p, t) in enumerate(modules)],
    )
    tensors = {f"input.{k}": v for k, v in inputs.items()}
    tensors |= {"output.last_hidden_state": tokens, "output.sentence_embedding": value}
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(path / "expected.safetensors"))
    shapes = {k: list(v.shape) for k, v in tensors.items()}
    finish(path, {"model_class": "BertModel", "note": "sentence-transformers repository", "batch_texts": TEXTS,
                  "modules": [t for _, t in modules], "pooling": list(order), "tensors": shapes})


def sentences(out: Path) -> None:
    sentence(out, "sentence-mean", ("mean_tokens",), normalise=True)
    sentence(out, "sentence-cls-dense", ("cls_token",), dense=True, normalise=True)
    sentence(out, "sentence-max-mean", ("max_tokens", "mean_tokens"))
    sentence(out, "sentence-mean-sqrt-len", ("mean_sqrt_len_tokens",))
    sentence(out, "sentence-weightedmean", ("weightedmean_tokens",))
    sentence(out, "sentence-lasttoken", ("lasttoken",), normalise=True)
    sentence(out, "sentence-prompt", POOLING, prompt="find this: ")
    sentence(out, "sentence-v6", ("mean_tokens", "max_tokens"), dense=True, normalise=True, v6=True)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, default=HERE / "variants")
    a = ap.parse_args()
    storage(a.out)
    heads(a.out)
    names(a.out)
    old_forms(a.out)
    sometimes(a.out)
    settings(a.out)
    towers(a.out)
    sentences(a.out)


if __name__ == "__main__":
    main()
