#!/usr/bin/env python3
"""Write tokenizers.json: what AutoTokenizer makes of the tokenizers of some cases with other settings beside them.

    python make_tokenizers.py

A line is a directory to be made: a copy of `case` with the keys of `tokenizer` put into tokenizer.json (first that of `from`, if there
is one), and `settings` as tokenizer_config.json; `names` is special_tokens_map.json. `ids` and `decoded` are what the texts become.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import AutoTokenizer  # noqa: E402

HERE = Path(__file__).resolve().parent
TEXTS = [
    "hello world! this is a small text.",
    "  two  spaces,\n\tlines and 12  345 numbers ",
    "HÉLLO Ｗide e\u0301 ``quoted'' don't",
    "a <mask> b<s>c</s> [MASK] d<|endoftext|>e",
    "it 's here , isn 't it ?",
]


def byte_level(prefix: bool) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}


def digits_apart() -> dict:
    digits = {"type": "Digits", "individual_digits": True}
    return {"type": "Sequence", "pretokenizers": [digits, byte_level(False)]}


def cases() -> list[dict]:
    found = []

    def case(name: str, settings: dict, tokenizer: dict | None = None, **other) -> None:
        found.append({"case": name, "settings": settings, "tokenizer": tokenizer or {}, **other})

    # The prefix of byte-level BPE, and a pre-tokenizer that the class drops.
    for prefix in (False, True):
        case("gpt2/base", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": prefix})
        case("roberta/base", {"add_prefix_space": prefix})
        case("bart/base", {"tokenizer_class": "BartTokenizer", "add_prefix_space": prefix})
        case("phi/causal", {"tokenizer_class": "CodeGenTokenizer", "add_prefix_space": prefix}, **{"from": "gpt2/base"})
        case("gpt_neox/causal", {"add_prefix_space": prefix})
        case("qwen3/causal", {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": prefix})
        case("cohere/causal", {"add_prefix_space": prefix, "bos_token": "<|endoftext|>"}, **{"from": "gpt2/base"})
    case("roberta/base", {"tokenizer_class": "RobertaTokenizer"}, {"pre_tokenizer": byte_level(True)})
    case("starcoder2/causal", {"tokenizer_class": "GPT2Tokenizer"}, {"pre_tokenizer": digits_apart()}, **{"from": "gpt2/base"})
    case("qwen2/causal", {"tokenizer_class": "PreTrainedTokenizerFast"})
    case("modernbert/base", {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True})
    # A word's end is part of the vocabulary.
    case("clip/model", {"tokenizer_class": "CLIPTokenizer"}, {"normalizer": None})
    # SentencePiece's BPE: the space in front.
    for settings in ({}, {"legacy": True}, {"legacy": None}, {"add_prefix_space": False}):
        case("llama/base", {"tokenizer_class": "LlamaTokenizer", **settings})
    case("llama/base", {"tokenizer_class": "CodeLlamaTokenizer"})
    case("llama/base", {"tokenizer_class": "LlamaTokenizerFast"}, **{"from": "gpt2/base"})
    case("mistral/causal", {"tokenizer_class": "LlamaTokenizer", "legacy": True})
    case("gemma/causal", {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"})
    # Unigram: normalizers, spaces and the template.
    spaces = {"normalizer": None, "post_processor": None}
    case("t5/encoder", {"tokenizer_class": "T5Tokenizer", "extra_ids": 0})
    case("t5/encoder", {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}, spaces)
    case("xlm-roberta/sequence-classification", {}, spaces)
    case("xlm-roberta/sequence-classification", {"add_prefix_space": False})
    for settings in ({}, {"do_lower_case": False}, {"keep_accents": True}, {"add_prefix_space": False}):
        case("albert/base", settings)
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "tokenizer_class": "DebertaV2Tokenizer"}
    for settings in ({}, {"do_lower_case": True}, {"split_by_punct": True}, {"add_prefix_space": False}):
        case("deberta-v2/base", {**names, **settings}, **{"from": "albert/base"})
    case("pegasus/conditional-generation", {"offset": 2}, **{"from": "t5/encoder"})
    # WordPiece.
    for settings in ({}, {"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}):
        case("bert/base", {"tokenizer_class": "BertTokenizer", **settings})
    case("distilbert/base", {"tokenizer_class": "DistilBertTokenizer"}, {"normalizer": {"type": "Lowercase"}})
    case("mpnet/base", {"tokenizer_class": "MPNetTokenizer", "do_lower_case": False})
    # Special tokens that tokenizer.json does not list, or lists otherwise.
    listed = {"3": {"content": "<mask>", "lstrip": True, "special": True}}
    case("roberta/base", {"mask_token": "<mask>"}, {"added_tokens": []})
    case("roberta/base", {"tokenizer_class": "PreTrainedTokenizerFast", "mask_token": "<mask>"}, {"added_tokens": []})
    case("roberta/base", {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": listed})
    case("roberta/base", {"added_tokens_decoder": listed})
    case("roberta/base", {}, names={"sep_token": "<pad>", "mask_token": {"content": "<mask>", "lstrip": True}})
    case("gpt2/base", {"additional_special_tokens": ["this is"], "image_token": "small"})
    case("gpt2/base", {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True})
    # Spaces in decoded texts.
    for name in ("xlm-roberta/sequence-classification", "bert/base", "gpt2/base"):
        case(name, {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True})
    return found


def main() -> None:
    lines = []
    for case in cases():
        source = HERE / case.get("from", case["case"]) / "tokenizer.json"
        tokenizer = json.loads(source.read_text()) | copy.deepcopy(case["tokenizer"])
        with tempfile.TemporaryDirectory() as made:
            write = lambda file, value: (Path(made) / file).write_text(json.dumps(value))  # noqa: E731
            write("tokenizer.json", tokenizer)
            write("tokenizer_config.json", case["settings"])
            write("config.json", json.loads((HERE / case["case"] / "config.json").read_text()))
            if "names" in case:
                write("special_tokens_map.json", case["names"])
            tok = AutoTokenizer.from_pretrained(made)
            case["class"] = type(tok).__name__
            case["ids"] = [tok(text)["input_ids"] for text in TEXTS] + [tok(TEXTS[0], TEXTS[4])["input_ids"]]
            # Nothing decodes texts of CLIP: that its class takes `</w>` out is not done.
            decoded = [tok.decode(ids, skip_special_tokens=True) for ids in case["ids"]]
            case["decoded"] = None if "CLIP" in case["class"] else decoded
        lines.append(json.dumps(case, ensure_ascii=False))
    texts = json.dumps(TEXTS, ensure_ascii=False)
    whole = '{"texts": ' + texts + ',\n"cases": [\n' + ",\n".join(lines) + "\n]}\n"
    (HERE / "tokenizers.json").write_text(whole)


if __name__ == "__main__":
    main()
