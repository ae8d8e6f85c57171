#!/usr/bin/env python3
"""Write what transformers computes for a model, module by module, for `smelt verify`.

    python reference.py --model DIR --out reference.safetensors
    python reference.py --model DIR --out FILE --text "the cat sat." --text "hello world"
    python reference.py --model DIR --out FILE --ids "1 2 3" --ids "1 5"
    python reference.py --model DIR --out FILE --random 2 --text "a cat" --text "two dogs"   # random images or spectra
    python reference.py --model DIR --out FILE --inputs OLD.safetensors      # the inputs of another reference
    python reference.py --model DIR --out FILE --only "*.layers.0.*" --tokens 8

The model is loaded from a local directory in float32 with the plain ("eager") attention and run on
one batch, padded on the right. The file holds

    input.NAME             what the model was given
    output.NAME            the fields of its output, hidden states included
    generate.P.*           greedy continuations of the rows, with --generate N
    module.NAME.output     the first tensor that the module NAME gave
    module.NAME.input      the first tensor that it took
    module.NAME.calls      [when, how often]: number of its first call among all, and count of calls
    noise.TENSOR           how far transformers' float32 is from its float64, with --noise

of every module with parameters, under the name that its weight is stored by, or else the one that
`named_modules` gives it: some models are loaded under other names than they are stored. A module that is called
more than once is recorded the first time. Recorded are tensors of [batch, n, cols] or [batch, cols], and
what is one of these in another shape: [1, seq, cols], [batch * seq, cols] and [batch, seq, heads, cols]. Hidden states are what
enters each layer, then the end, also of models that list what each layer gives. Nothing is downloaded. Made for
transformers 5.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

EAGER = dict(attn_implementation="eager", experts_implementation="eager")
TEXTS = ["The cat sat on the mat and looked at the dog.", "Hello world!"]
# What changes which token is taken, beside the logits.
OBEYED = (
    "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
    "no_repeat_ngram_size", "repetition_penalty", "min_length", "min_new_tokens",
)
SKIP = {"past_key_values", "attentions", "cross_attentions", "encoder_attentions", "decoder_attentions", "loss", "router_logits"}


def first_tensor(value: Any) -> torch.Tensor | None:
    if torch.is_tensor(value):
        return value
    if hasattr(value, "values"):
        value = value.values()
    if isinstance(value, (tuple, list)) or hasattr(value, "__iter__"):
        return next((t for t in map(first_tensor, value) if t is not None), None)
    return None


def as_rows(t: torch.Tensor | None, sizes: list[tuple[int, int]]) -> torch.Tensor | None:
    """The tensor as [batch, seq, cols] or [batch, cols], if it is one of these; `sizes` are [batch, seq]."""
    if t is None or not t.is_floating_point():
        return None
    batch = sizes[0][0]
    for size in sizes:
        if t.ndim in (3, 4) and tuple(t.shape[:2]) == size:
            return t.flatten(2)
        if t.ndim == 3 and tuple(t.shape[:2]) == (1, size[1]):  # positions are looked up once for all rows
            return t.expand(batch, -1, -1)
        if t.ndim == 2 and t.shape[0] == size[0] * size[1] and size[1] > 1:
            return t.view(*size, -1)
        if t.ndim == 2 and t.shape[0] == size[1] and size[1] != batch:
            return t.expand(batch, -1, -1)
        if size[1] == 0 and t.ndim == 3 and t.shape[0] == size[0]:  # the rows of images and sounds
            return t
    return t if t.ndim == 2 and t.shape[0] == batch else None


def stored_names(model: torch.nn.Module, directory: str) -> dict[str, str]:
    """For modules whose weight is stored under another name: the stored name, found by what the weight holds."""
    stored: dict[Any, list[str]] = {}
    names: set[str] = set()
    key = lambda t: (tuple(t.shape), t.flatten()[:64].float().numpy().tobytes())
    for file in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                if name.endswith(".weight"):
                    names.add(name.removesuffix(".weight"))
                    stored.setdefault(key(tensors.get_tensor(name)), []).append(name.removesuffix(".weight"))
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        known = any(name == other or name.endswith(f".{other}") or other.endswith(f".{name}") for other in names)
        if torch.is_tensor(weight) and not known and len(stored.get(key(weight), [])) == 1:
            found[name] = stored[key(weight)][0]
    # A tied weight is stored once, under the name of another module that is recorded too: both keep their own names.
    modules = [f".{name}" for name, _ in model.named_modules()]
    return {name: other for name, other in found.items() if not any(m.endswith(f".{other}") for m in modules)}


class Layers:
    """Hooks on the first of the layers, wherever there are some: what it takes and gives."""

    def __init__(self, model: torch.nn.Module):
        self.seen: list[tuple[int, Any, Any]] = []
        self.hooks = [
            part[0].register_forward_hook(
                lambda of, args, kwargs, out, n=len(part): self.see(n, first_tensor([args, kwargs]), first_tensor(out)),
                with_kwargs=True,
            )
            for part in model.modules()
            if isinstance(part, torch.nn.ModuleList) and len(part)
        ]

    def see(self, n: int, *tensors: torch.Tensor | None) -> None:
        self.seen.append((n, *(t if t is None else t.clone() for t in tensors)))  # some are changed in place later

    def finish(self, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`found` with hidden states that are inputs of layers where the model lists their outputs."""
        for hook in self.hooks:
            hook.remove()
        stems = {name.rsplit(".", 1)[0] for name in found if name.rsplit(".", 1)[0].endswith("hidden_states")}
        for stem in stems:
            states = [found[f"{stem}.{i}"] for i in range(sum(name.rsplit(".", 1)[0] == stem for name in found))]
            is_given = lambda out: torch.is_tensor(out) and out.shape == states[0].shape and torch.equal(out, states[0])
            for n, taken, given in self.seen:
                if n + 1 == len(states) and is_given(given) and not is_given(taken):
                    states = [taken, *states[:-2], states[-1]]
                    found = found | {f"{stem}.{i}": state for i, state in enumerate(states)}
                    break
        return found


class Recorder:
    """Hooks on every module with parameters."""

    def __init__(self, model: torch.nn.Module, sizes: list[tuple[int, int]], only: list[str], names: dict[str, str]):
        self.sizes, self.tensors, self.calls, self.now = sizes, {}, {}, 0
        self.hooks = []
        for name, module in model.named_modules():
            chosen = not only or any(fnmatch.fnmatchcase(name, pattern) for pattern in only)
            if name and chosen and any(True for _ in module.parameters()):
                hook = lambda of, args, kwargs, out, name=names.get(name, name): self.record(name, of, [args, kwargs], out)
                self.hooks.append(module.register_forward_hook(hook, with_kwargs=True))

    def record(self, name: str, module: torch.nn.Module, given: Any, out: Any) -> None:
        if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d)):  # a row for each place, as everywhere else
            given, out = None, out.flatten(2).transpose(1, 2)
        self.now += 1
        if name in self.calls:
            self.calls[name][1] += 1
            return
        self.calls[name] = [self.now, 1]
        for what, value in (("input", given), ("output", out)):
            rows = as_rows(first_tensor(value), self.sizes)
            if rows is not None:
                self.tensors[f"module.{name}.{what}"] = rows.clone()  # some are changed in place later

    def finish(self) -> dict[str, torch.Tensor]:
        for hook in self.hooks:
            hook.remove()
        recorded = {key.removesuffix(".output") for key in self.tensors if key.endswith(".output")}
        for name, calls in self.calls.items():
            if f"module.{name}" in recorded:
                self.tensors[f"module.{name}.calls"] = torch.tensor(calls)
        # Without its output a module cannot be compared.
        return {k: v for k, v in self.tensors.items() if k.rsplit(".", 1)[0] in recorded}


def flatten(value: Any, name: str, into: dict[str, torch.Tensor]) -> None:
    if torch.is_tensor(value):
        into[name] = value
    elif isinstance(value, (tuple, list)):
        for i, v in enumerate(value):
            flatten(v, f"{name}.{i}", into)
    elif hasattr(value, "keys"):
        for k in value.keys():
            if k not in SKIP:
                flatten(value[k], f"{name}.{k}", into)


def pad(rows: list[list[int]], id: int) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def random_items(config: Any, n: int) -> dict[str, torch.Tensor]:
    """Images or spectra of the size that the config names, the same ones every time."""
    draw = torch.Generator().manual_seed(1)
    seen = getattr(config, "vision_config", config)
    if hasattr(seen, "image_size"):
        size = seen.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return {"pixel_values": torch.randn(n, getattr(seen, "num_channels", 3), height, width, generator=draw)}
    if hasattr(seen, "num_mel_bins"):
        return {"input_features": torch.randn(n, seen.num_mel_bins, 2 * seen.max_source_positions, generator=draw)}
    raise SystemExit("--random: config.json names neither `image_size` nor `num_mel_bins`")


def make_inputs(a: argparse.Namespace, model: Any) -> dict[str, torch.Tensor]:
    config = model.config
    id = getattr(config, "pad_token_id", None) or 0
    if a.inputs:
        stored = load_file(a.inputs)
        return {k.removeprefix("input."): v for k, v in stored.items() if k.startswith("input.") or "." not in k}
    if a.random and not (a.ids or a.text):
        inputs = {}
    elif a.ids:
        inputs = pad([[int(i) for i in row.replace(",", " ").split()] for row in a.ids], id)
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(a.model)
        encoded = [tokenizer(text) for text in a.text or TEXTS]
        inputs = pad([list(e["input_ids"]) for e in encoded], id)
    if a.tokens:
        inputs = {k: v[:, : a.tokens].contiguous() for k, v in inputs.items()}
    if a.types and inputs:
        mask = inputs["attention_mask"]
        inputs["token_type_ids"] = mask * (2 * mask.cumsum(1) > mask.sum(1, keepdim=True)).long()
    if a.random:
        inputs |= random_items(config, a.random)
    # A classifier gives its decoder the tokens of the input.
    is_classifier = type(model).__name__.endswith("ForSequenceClassification")
    if getattr(config, "is_encoder_decoder", False) and not is_classifier and "decoder_input_ids" not in inputs:
        keys = [(c, key) for key in ("decoder_start_token_id", "bos_token_id") for c in (getattr(model, "generation_config", None), config)]
        start = next((x for x in (getattr(c, key, None) for c, key in keys) if x is not None), 0)
        rows = len(next(iter(inputs.values())))
        # Any tokens do; masked ones of the input too.
        ids = inputs["input_ids"][:, :6].clone() if "input_ids" in inputs else torch.arange(5, 11).repeat(rows, 1)
        inputs["decoder_input_ids"] = torch.cat([torch.full_like(ids[:, :1], start), ids], 1)
    return inputs


def generate(model: Any, inputs: dict[str, torch.Tensor], steps: int) -> dict[str, torch.Tensor]:
    """Greedy decoding of each row alone: always the largest logit, whatever else the settings of generation say."""
    out: dict[str, torch.Tensor] = {}
    for name in ("eos_token_id", *OBEYED):
        setattr(model.generation_config, name, None)
    decoder = inputs.get("decoder_input_ids")
    for i, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])))):
        prompt = ids[mask == 1][None]
        start = {} if decoder is None else {"decoder_input_ids": decoder[i : i + 1, :1]}
        result = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=steps, do_sample=False, num_beams=1,
            return_dict_in_generate=True, output_logits=True, **start,
        )
        out[f"generate.{i}.prompt"] = prompt[0]
        out[f"generate.{i}.tokens"] = result.sequences[0, -steps:]
        out[f"generate.{i}.logits"] = torch.cat(list(result.logits), 0)
    return out


def compute(model: Any, inputs: dict[str, torch.Tensor], hidden_states: bool, recorder: Recorder | None) -> dict[str, torch.Tensor]:
    """Outputs, and what modules take and give, by the names of the file."""
    layers, found = Layers(model), {}
    flatten(model(**inputs, output_hidden_states=hidden_states), "output", found)
    return layers.finish(found) | (recorder.finish() if recorder else {})


def noise(exact: dict[str, torch.Tensor], found: dict[str, torch.Tensor], mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The largest differences of two runs, over what is not padding."""
    largest = {}
    for name, value in found.items():
        if name.endswith(".calls") or not value.is_floating_point() or name not in exact:
            continue
        error = (value.double() - exact[name].double()).abs()
        if mask is not None and error.shape[:2] == mask.shape:
            error = error[mask == 1]
        largest[f"noise.{name}"] = error.max() if error.numel() else torch.zeros(())
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory with config.json and *.safetensors")
    parser.add_argument("--out", required=True, type=Path, help="the file to write")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", action="append", help="one row of the batch; repeatable")
    source.add_argument("--ids", action="append", help='one row as token ids, "1 2 3"; repeatable')
    source.add_argument("--inputs", help="safetensors with the inputs, as another reference has them")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="N random images or spectra, beside --text or --ids")
    parser.add_argument("--types", action="store_true", help="with token_type_ids: the second half of each row is of type 1")
    parser.add_argument("--class", dest="cls", help="transformers class; what config.json says by default")
    parser.add_argument("--tokens", type=int, help="cut the rows of --text or --ids to so many tokens")
    parser.add_argument("--only", action="append", default=[], help="record modules of this pattern only; repeatable")
    parser.add_argument("--no-modules", action="store_true", help="record outputs only")
    parser.add_argument("--attention", default="eager", help="implementation of attention; eager by default")
    parser.add_argument("--no-hidden-states", action="store_true", help="leave out what enters each layer")
    parser.add_argument("--noise", action="store_true", help="compute in float64 too, and write how far float32 is off")
    parser.add_argument("--generate", type=int, default=0, metavar="N", help="greedy steps for each row")
    a = parser.parse_args()

    torch.set_grad_enabled(False)
    config = transformers.AutoConfig.from_pretrained(a.model)
    cls = getattr(transformers, a.cls or (config.architectures or ["AutoModel"])[0])
    model = cls.from_pretrained(a.model, dtype=torch.float32, **EAGER | {"attn_implementation": a.attention}).eval()
    inputs = make_inputs(a, model)
    tokens = [inputs[k] for k in ("input_ids", "decoder_input_ids") if k in inputs]
    sizes = [tuple(t.shape) for t in tokens]
    sizes += [(len(inputs[k]), 0) for k in ("pixel_values", "input_features") if k in inputs]
    names = {} if a.no_modules else stored_names(model, a.model)
    recorder = lambda: None if a.no_modules else Recorder(model, sizes, a.only, names)
    found = compute(model, inputs, not a.no_hidden_states, recorder())
    tensors = {f"input.{name}": value for name, value in inputs.items()} | found
    if a.generate:
        tensors |= generate(model, inputs, a.generate)
    if a.noise:
        model.double()
        exact = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
        tensors |= noise(compute(model, exact, not a.no_hidden_states, recorder()), found, inputs.get("attention_mask"))
    # Some modules give back what they were given: each tensor needs memory of its own.
    stored = lambda t: (t.float() if t.is_floating_point() else t).detach().clone().contiguous()
    save_file({name: stored(t) for name, t in tensors.items()}, a.out)
    modules = sum(name.startswith("module.") and name.endswith(".output") for name in tensors)
    print(f"{a.out}: {modules} modules, {a.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
