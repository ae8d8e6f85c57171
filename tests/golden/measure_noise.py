#!/usr/bin/env python3
"""Measure how far transformers itself, in float32, is from exact: its difference from the same model in float64.

    python measure_noise.py .          # writes noise.json

The tests compare with 1e-4. Where transformers' own rounding error is of that size, nothing that computes in float32 can
agree to 1e-4; for those outputs noise.json states the error, and the tests allow twice as much.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

from make_reference import EAGER, outputs

# Outputs that are less noisy than this are compared with the ordinary tolerance.
LEAST = 5e-5


def noise(path: Path) -> dict[str, float]:
    info = json.loads((path / "reference.json").read_text())
    reference = load_file(str(path / "reference.safetensors"))
    cls = getattr(transformers, info["model_class"])
    how = EAGER | {"attn_implementation": info["attention"]}
    model = cls.from_pretrained(str(path), **how).double().eval()
    inputs = {k[len("input.") :]: v for k, v in reference.items() if k.startswith("input.")}
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    hidden = any("hidden_states." in k for k in reference)
    found = outputs(model, inputs, hidden)
    result = {}
    for name, value in sorted(found.items()):
        error = (value.double() - reference[name].double()).abs()
        mask = inputs.get("attention_mask")
        of_decoder = "input.decoder_input_ids" in reference and "encoder" not in name
        if mask is not None and not of_decoder and error.shape[:2] == mask.shape:
            error = error * mask.reshape(*mask.shape, *[1] * (error.dim() - 2))
        if error.max() > LEAST:
            result[name.removeprefix("output.")] = float(f"{error.max().item():.2g}")
    for i in range(len(reference)):
        if f"generate.{i}.tokens" in reference:
            error = (greedy_logits(model, reference, i) - reference[f"generate.{i}.logits"].double()).abs().max()
            if error > LEAST:
                result[f"generate.{i}.logits"] = float(f"{error.item():.2g}")
    return result


def greedy_logits(model: torch.nn.Module, reference: dict[str, torch.Tensor], i: int) -> torch.Tensor:
    """The logits of greedy run i, computed at once from its tokens."""
    tokens = reference[f"generate.{i}.tokens"][None]
    start = reference["input.decoder_input_ids"][:1, :1] if "input.decoder_input_ids" in reference else None
    if "input.input_features" in reference:
        audio = reference["input.input_features"][i : i + 1].double()
        return model(input_features=audio, decoder_input_ids=torch.cat([start, tokens[:, :-1]], 1)).logits[0]
    prompt = reference[f"generate.{i}.prompt"][None]
    if start is not None:
        return model(input_ids=prompt, decoder_input_ids=torch.cat([start, tokens[:, :-1]], 1)).logits[0]
    return model(input_ids=torch.cat([prompt, tokens[:, :-1]], 1)).logits[0, prompt.shape[1] - 1 :]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    found = {}
    for path in sorted(p.parent for p in folder.glob("*/*/reference.safetensors") if p.parent.parent.name != "variants"):
        try:
            case = noise(path)
        except RuntimeError as e:  # some models do not compute in float64
            print(f"{path}: {e}", file=sys.stderr)
            continue
        if case:
            found[str(path.relative_to(folder))] = case
    (folder / "noise.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
