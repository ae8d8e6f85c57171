#!/usr/bin/env python3
"""Write what `generate` of transformers makes of settings in generation_config.json: generations.json.

    python make_generations.py

Each case is a fixture, the settings, a text, and the new tokens; no sampling, one beam. Versions: requirements.txt.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

HERE = Path(__file__).parent
STEPS = 12
TEXT = "the station is near the river"

SEQ2SEQ = "marian/conditional-generation"
CAUSAL = "gpt2/causal"


def tokens(fixture: str, settings: dict) -> list[int]:
    directory = HERE / fixture
    kind = AutoModelForSeq2SeqLM if fixture == SEQ2SEQ else AutoModelForCausalLM
    model = kind.from_pretrained(directory, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig(**settings)
    ids = torch.tensor([Tokenizer.from_file(str(directory / "tokenizer.json")).encode(TEXT).ids])
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=STEPS, do_sample=False, num_beams=1
    )[0].tolist()
    prompt = 1 if fixture == SEQ2SEQ else ids.shape[1]
    eos = settings["eos_token_id"]
    new = made[prompt:]
    return new[: new.index(eos)] if eos in new else new


def cases() -> list[dict]:
    cases = []
    for fixture in (SEQ2SEQ, CAUSAL):
        config = json.loads((HERE / fixture / "config.json").read_text())
        base = {"eos_token_id": config["eos_token_id"], "pad_token_id": config.get("pad_token_id") or 0}
        if fixture == SEQ2SEQ:
            base["decoder_start_token_id"] = config["decoder_start_token_id"]
        plain = tokens(fixture, base)
        first, second = plain[0], plain[1]
        for settings in (
            {},
            {"repetition_penalty": 1.7},
            {"no_repeat_ngram_size": 1},
            {"no_repeat_ngram_size": 2},
            {"bad_words_ids": [[first], [first, second], [7, 8]]},
            {"bad_words_ids": [[first, second]]},
            {"suppress_tokens": [first, second]},
            {"begin_suppress_tokens": [first]},
            {"begin_suppress_tokens": [first], "forced_bos_token_id": 9},
            {"forced_bos_token_id": 9},
            {"forced_eos_token_id": base["eos_token_id"]},
            # A text that would end with its first token.
            {"eos_token_id": first},
            {"eos_token_id": first, "min_length": 6},
            {"eos_token_id": first, "min_new_tokens": 3},
        ):
            settings = base | settings
            cases.append({"fixture": fixture, "settings": settings, "tokens": tokens(fixture, settings)})
    return cases


if __name__ == "__main__":
    out = {"text": TEXT, "steps": STEPS, "cases": cases()}
    lines = ",\n    ".join(json.dumps(case) for case in out.pop("cases"))
    head = json.dumps(out)[:-1]
    (HERE / "generations.json").write_text(f'{head}, "cases": [\n    {lines}\n]}}\n')
