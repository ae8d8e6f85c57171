#!/usr/bin/env python3
"""Make tiny random Hugging Face model directories together with reference outputs.

    python make_reference.py --list
    python make_reference.py all              # every case, into the folder of this script
    python make_reference.py bert             # every case of one architecture
    python make_reference.py llama/causal     # one case
    python make_reference.py check            # reload each fixture, compare with its reference
    python make_reference.py all --out DIR    # somewhere else

Each case <architecture>/<case>/ is an ordinary model repository (config.json,
model.safetensors, tokenizer.json, ...) plus reference.safetensors and reference.json.
README.md describes the format. To add a case, add a `case(...)` line. No network access is
needed or made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

# Set before the libraries are imported, which read them once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAYON_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tools"))

from reference import Layers  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)  # the order of sums, and so the last digits, depends on it
torch.set_grad_enabled(False)

# The plain implementations: the others need aligned sizes or leave out options.
EAGER = dict(attn_implementation="eager", experts_implementation="eager")

# --------------------------------------------------------------------------------------
# Text and tokenizers
# --------------------------------------------------------------------------------------

CORPUS = [
    "the cat sat on the mat and the dog ran over the hill.",
    "a quick brown fox jumps over the lazy dog while it rains in the city.",
    "who sat on the mat? the cat sat there, and nobody asked why.",
    "hello world! this is a small text that trains a small tokenizer.",
    "rust and python walk into a bar; the compiler says: no!",
    "numbers such as 1, 23, 456 and 3.14 are text too.",
    "the rain in spain stays mainly in the plain, or so they say.",
    "one model reads the weights, another model writes the words.",
]

# Texts of the padded reference batch (three different lengths) and of the prompts.
BATCH = [
    "the cat sat on the mat.",
    "a quick brown fox jumps over it",
    "hello world",
]
PAIRS = [
    ("who sat on the mat?", "the cat sat."),
    ("hello world", "the rain in spain stays"),
    ("a dog", None),
]
PROMPTS = ["the cat sat on the mat and", "hello"]

# Texts that only test tokenization (ids, no model run).
TOKENIZATION = [
    "Hello World!",
    "the quick brown fox",
    "  two  spaces,\ttab\nand newline ",
    "naïve café Straße ÀÉÎ",
    "日本語 and 한국어 mixed",
    "emoji 🦀🔥 family 👩‍👩‍👧",
    "don't stop: 3.14159 + 1e-5",
    "unbelievablylongwordwithoutanyspaces",
    "",
]


def train_merges(words: list[list[str]], size: int, join: Callable[[str, str], str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Plain BPE training with a fixed rule for ties (the trainers of the tokenizers library have none)."""
    counts: dict[tuple[str, ...], int] = {}
    for w in words:
        counts[tuple(w)] = counts.get(tuple(w), 0) + 1
    new: list[str] = []
    merges: list[tuple[str, str]] = []
    while len(new) < size:
        pairs: dict[tuple[str, str], int] = {}
        for w, n in counts.items():
            for pair in zip(w, w[1:]):
                pairs[pair] = pairs.get(pair, 0) + n
        if not pairs:
            break
        best = min(pairs, key=lambda x: (-pairs[x], x))
        joined = join(*best)
        merges.append(best)
        if joined not in new:
            new.append(joined)
        merged: dict[tuple[str, ...], int] = {}
        for w, n in counts.items():
            out: list[str] = []
            i = 0
            while i < len(w):
                if w[i : i + 2] == best:
                    out.append(joined)
                    i += 2
                else:
                    out.append(w[i])
                    i += 1
            merged[tuple(out)] = merged.get(tuple(out), 0) + n
        counts = merged
    return new, merges


def corpus_words(tok: Tokenizer) -> list[str]:
    """The words of the corpus as the model part of `tok` sees them."""
    lines = [tok.normalizer.normalize_str(x) if tok.normalizer else x for x in CORPUS]
    return [w for line in lines for w, _ in tok.pre_tokenizer.pre_tokenize_str(line)]


def _wordpiece(specials: list[str], cls: str, sep: str, unk: str) -> Tokenizer:
    tok = Tokenizer(models.WordPiece(unk_token=unk))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = [[c if i == 0 else "##" + c for i, c in enumerate(w)] for w in corpus_words(tok)]
    alphabet = sorted({c for w in words for c in w}, key=lambda c: (c.startswith("##"), c))
    pieces, _ = train_merges(words, 203 - len(specials) - len(alphabet), lambda a, b: a + b.removeprefix("##"))
    order = list(dict.fromkeys(specials + alphabet + pieces))
    tok.model = models.WordPiece(vocab={t: i for i, t in enumerate(order)}, unk_token=unk)
    tok.add_special_tokens([AddedToken(s, special=True) for s in specials])
    ids = {t: tok.token_to_id(t) for t in (cls, sep)}
    tok.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=list(ids.items()),
    )
    tok.decoder = decoders.WordPiece(prefix="##")
    return tok


def _byte_bpe(specials: list[str], vocab: int, template: tuple[str, str] | None = None) -> Tokenizer:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = train_merges([list(w) for w in corpus_words(tok)], vocab - len(specials) - 256, str.__add__)
    order = specials + alphabet + pieces
    tok.model = models.BPE(vocab={t: i for i, t in enumerate(order)}, merges=merges)
    tok.add_special_tokens([AddedToken(s, special=True) for s in specials])
    tok.decoder = decoders.ByteLevel()
    if template:
        bos, eos = template
        tok.post_processor = processors.RobertaProcessing(
            (eos, tok.token_to_id(eos)), (bos, tok.token_to_id(bos)), add_prefix_space=False
        )
    else:
        tok.post_processor = processors.ByteLevel(trim_offsets=False)
    return tok


def _unigram(specials: list[str], unk: str, single: str, pair: str) -> Tokenizer:
    tok = Tokenizer(models.Unigram())
    tok.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=187, special_tokens=specials, unk_token=unk, show_progress=False
    )
    tok.train_from_iterator(CORPUS * 3, trainer)
    # Sort pieces of equal score by text: the trainer does not promise an order among them.
    spec = json.loads(tok.to_str())
    vocab = spec["model"]["vocab"]
    head, rest = vocab[: len(specials)], vocab[len(specials) :]
    rest = sorted(([p, round(s, 4)] for p, s in rest), key=lambda x: (-x[1], x[0]))
    spec["model"]["vocab"] = head + rest
    tok = Tokenizer.from_str(json.dumps(spec))
    names = [s for s in specials if s in single + pair]
    tok.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(n, tok.token_to_id(n)) for n in names]
    )
    tok.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return tok


def _llama_bpe() -> Tokenizer:
    """SentencePiece-style BPE with byte fallback, as in Llama 1/2, Mistral and Gemma."""
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    words = [["▁", *w] for line in CORPUS for w in line.split(" ")]
    alphabet = sorted({c for w in words for c in w})
    pieces, merges = train_merges(words, 60, str.__add__)
    tokens = specials + [f"<0x{b:02X}>" for b in range(256)] + pieces + alphabet
    tokens = tokens if len(tokens) % 2 else tokens + ["unused"]  # odd vocabulary size
    vocab = {t: i for i, t in enumerate(tokens)}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in specials])
    tok.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:0", pair="<s>:0 $A:0 <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tok


def _clip_bpe() -> Tokenizer:
    tok = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tok.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = [[*w[:-1], w[-1] + "</w>"] for w in corpus_words(tok)]
    alphabet = sorted({c.removesuffix("</w>") for w in words for c in w})
    pieces, merges = train_merges(words, 91, str.__add__)
    # As in real CLIP vocabularies, the two special tokens have the highest ids.
    specials = ["<|startoftext|>", "<|endoftext|>"]
    order = list(dict.fromkeys(alphabet + [c + "</w>" for c in alphabet] + pieces)) + specials
    tok.model = models.BPE(
        vocab={t: i for i, t in enumerate(order)}, merges=merges, end_of_word_suffix="</w>", unk_token=specials[1]
    )
    tok.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in specials])
    bos, eos = "<|startoftext|>", "<|endoftext|>"
    tok.post_processor = processors.RobertaProcessing(
        (eos, tok.token_to_id(eos)), (bos, tok.token_to_id(bos)), trim_offsets=False, add_prefix_space=False
    )
    tok.decoder = decoders.ByteLevel()
    return tok


def build_tokenizer(kind: str) -> tuple[Tokenizer, dict[str, Any]]:
    """A trained tokenizer and the special-token names for tokenizer_config.json."""
    if kind == "wordpiece":  # BERT
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        return _wordpiece(names, "[CLS]", "[SEP]", "[UNK]"), dict(
            pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
        )
    if kind == "wordpiece-mpnet":
        names = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
        return _wordpiece(names, "<s>", "</s>", "[UNK]"), dict(
            pad_token="<pad>", unk_token="[UNK]", bos_token="<s>", eos_token="</s>", cls_token="<s>",
            sep_token="</s>", mask_token="<mask>",
        )
    if kind == "bytebpe-roberta":  # RoBERTa, BART, ModernBERT-like use
        names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        return _byte_bpe(names, 331, ("<s>", "</s>")), dict(
            bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>", cls_token="<s>",
            sep_token="</s>", mask_token="<mask>",
        )
    if kind == "bytebpe-gpt2":
        return _byte_bpe(["<|endoftext|>", "<|pad|>"], 325), dict(
            bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token="<|pad|>"
        )
    if kind == "unigram-t5":
        return _unigram(["<pad>", "</s>", "<unk>"], "<unk>", "$A:0 </s>:0", "$A:0 </s>:0 $B:0 </s>:0"), dict(
            pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        )
    if kind == "unigram-albert":
        names = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
        return _unigram(names, "<unk>", "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"), dict(
            pad_token="<pad>", unk_token="<unk>", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
        )
    if kind == "unigram-xlmr":
        names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        return _unigram(names, "<unk>", "<s>:0 $A:0 </s>:0", "<s>:0 $A:0 </s>:0 </s>:0 $B:0 </s>:0"), dict(
            bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>", cls_token="<s>",
            sep_token="</s>", mask_token="<mask>",
        )
    if kind == "bpe-llama":
        return _llama_bpe(), dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    if kind == "bpe-clip":
        return _clip_bpe(), dict(
            bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>",
            pad_token="<|endoftext|>",
        )
    raise ValueError(f"unknown tokenizer kind {kind!r}")


# --------------------------------------------------------------------------------------
# Cases
# --------------------------------------------------------------------------------------


@dataclass
class Case:
    id: str  # "<architecture>/<case>"
    model: str  # transformers model class
    config: str  # transformers config class
    args: dict[str, Any]
    tok: str | None = None
    kind: str = "encoder"  # encoder (one pass, nothing generated) | causal | seq2seq | vision | speech | clip
    generate: int = 0  # greedy steps
    pairs: bool = False  # batch of text pairs with token_type_ids
    hidden: bool = True  # store every layer's hidden state
    emb_std: float = 0.6
    gain: float = 1.2
    note: str = ""
    seed: int = 0
    inputs: Callable[["Case", Any, Any], dict] | None = None  # overrides the default inputs
    prompts: list[list[int]] | None = None  # overrides the tokenized prompts
    attention: str = "eager"  # implementation of transformers that is taken for the truth
    distinct: int | None = None  # least number of different tokens a greedy run must have
    before: Callable[[Any], None] | None = None  # changes the model before it is saved
    after: Callable[[Path, Any], None] | None = None  # changes the saved files
    keep: tuple[str, ...] = ()  # parameters (by substring) whose initial value is kept
    scale: dict[str, float] = field(default_factory=dict)  # extra factor for weights, by substring

    @property
    def arch(self) -> str:
        return self.id.split("/")[0]


CASES: dict[str, Case] = {}


def case(id: str, model: str, config: str, args: dict[str, Any], **kw: Any) -> None:
    if id in CASES:
        raise ValueError(f"case {id} defined twice")
    CASES[id] = Case(id=id, model=model, config=config, args=args, **kw)


def with_(base: dict[str, Any], **over: Any) -> dict[str, Any]:
    return {**base, **over}


def register_encoders() -> None:
    heads3 = dict(num_labels=3)
    heads5 = dict(num_labels=5)

    bert = dict(
        hidden_size=40, num_attention_heads=5, num_hidden_layers=2, intermediate_size=74,
        max_position_embeddings=37, type_vocab_size=2, layer_norm_eps=1e-12,
    )
    common = dict(tok="wordpiece", pairs=True)
    case("bert/base", "BertModel", "BertConfig", bert, **common)
    case("bert/masked-lm", "BertForMaskedLM", "BertConfig", bert, **common)
    case("bert/sequence-classification", "BertForSequenceClassification", "BertConfig", with_(bert, **heads3), hidden=False, **common)
    case("bert/token-classification", "BertForTokenClassification", "BertConfig", with_(bert, **heads5), hidden=False, **common)
    case("bert/question-answering", "BertForQuestionAnswering", "BertConfig", bert, hidden=False, **common)
    case("bert/pretraining", "BertForPreTraining", "BertConfig", bert, hidden=False, **common)

    distil = dict(dim=40, n_heads=5, n_layers=2, hidden_dim=74, max_position_embeddings=37)
    common = dict(tok="wordpiece")
    case("distilbert/base", "DistilBertModel", "DistilBertConfig", distil, **common)
    case("distilbert/masked-lm", "DistilBertForMaskedLM", "DistilBertConfig", distil, hidden=False, **common)
    case("distilbert/sequence-classification", "DistilBertForSequenceClassification", "DistilBertConfig", with_(distil, **heads3), hidden=False, **common)
    case("distilbert/token-classification", "DistilBertForTokenClassification", "DistilBertConfig", with_(distil, **heads5), hidden=False, **common)
    case("distilbert/question-answering", "DistilBertForQuestionAnswering", "DistilBertConfig", distil, hidden=False, **common)

    roberta = with_(bert, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    common = dict(tok="bytebpe-roberta")
    case("roberta/base", "RobertaModel", "RobertaConfig", roberta, **common)
    case("roberta/masked-lm", "RobertaForMaskedLM", "RobertaConfig", roberta, hidden=False, **common)
    case("roberta/sequence-classification", "RobertaForSequenceClassification", "RobertaConfig", with_(roberta, **heads3), hidden=False, **common)
    case("roberta/token-classification", "RobertaForTokenClassification", "RobertaConfig", with_(roberta, **heads5), hidden=False, **common)

    albert = dict(
        embedding_size=24, hidden_size=36, num_hidden_layers=4, num_hidden_groups=2, inner_group_num=1,
        num_attention_heads=3, intermediate_size=70, max_position_embeddings=37, type_vocab_size=2,
        pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )
    common = dict(tok="unigram-albert", pairs=True)
    case("albert/base", "AlbertModel", "AlbertConfig", albert, **common)
    case("albert/masked-lm", "AlbertForMaskedLM", "AlbertConfig", with_(albert, inner_group_num=2, num_hidden_layers=2), hidden=False, note="two inner layers per group", **common)
    case("albert/sequence-classification", "AlbertForSequenceClassification", "AlbertConfig", with_(albert, num_labels=3), hidden=False, **common)

    electra = with_(bert, embedding_size=28)
    common = dict(tok="wordpiece", pairs=True)
    case("electra/base", "ElectraModel", "ElectraConfig", electra, note="embedding_size differs from hidden_size", **common)
    case("electra/base-same-size", "ElectraModel", "ElectraConfig", with_(bert, embedding_size=40), note="no embeddings_project", **common)
    case("electra/masked-lm", "ElectraForMaskedLM", "ElectraConfig", electra, hidden=False, **common)
    case("electra/discriminator", "ElectraForPreTraining", "ElectraConfig", electra, hidden=False, **common)
    case("electra/sequence-classification", "ElectraForSequenceClassification", "ElectraConfig", with_(electra, **heads3), hidden=False, **common)

    mpnet = dict(
        hidden_size=40, num_attention_heads=5, num_hidden_layers=2, intermediate_size=74,
        max_position_embeddings=37, layer_norm_eps=1e-5, relative_attention_num_buckets=32,
        pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )
    common = dict(tok="wordpiece-mpnet")
    case("mpnet/base", "MPNetModel", "MPNetConfig", mpnet, **common)
    case("mpnet/masked-lm", "MPNetForMaskedLM", "MPNetConfig", mpnet, hidden=False, **common)
    case("mpnet/sequence-classification", "MPNetForSequenceClassification", "MPNetConfig", with_(mpnet, **heads3), hidden=False, **common)

    deberta = dict(
        hidden_size=40, num_attention_heads=5, num_hidden_layers=2, intermediate_size=74,
        max_position_embeddings=37, type_vocab_size=0, layer_norm_eps=1e-7, relative_attention=True,
        max_relative_positions=-1, position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type=["p2c", "c2p"], position_biased_input=False, pad_token_id=0,
    )
    common = dict(tok="wordpiece")
    case("deberta-v2/base", "DebertaV2Model", "DebertaV2Config", deberta, note="settings of the v3 checkpoints", **common)
    case("deberta-v2/base-conv", "DebertaV2Model", "DebertaV2Config", with_(deberta, conv_kernel_size=3, conv_act="gelu"), note="convolution after the first layer (v2-xlarge)", **common)
    case("deberta-v2/base-plain", "DebertaV2Model", "DebertaV2Config", with_(deberta, share_att_key=False, position_buckets=-1, norm_rel_ebd="none", pos_att_type="c2p|p2c", position_biased_input=True, type_vocab_size=2, max_relative_positions=6), note="separate position projections, no log buckets, absolute positions added", tok="wordpiece", pairs=True)
    case("deberta-v2/masked-lm", "DebertaV2ForMaskedLM", "DebertaV2Config", deberta, hidden=False, **common)
    case("deberta-v2/sequence-classification", "DebertaV2ForSequenceClassification", "DebertaV2Config", with_(deberta, **heads3), hidden=False, **common)

    modern = dict(
        hidden_size=40, num_attention_heads=5, num_hidden_layers=4, intermediate_size=54,
        max_position_embeddings=64, local_attention=6, global_attn_every_n_layers=3, norm_eps=1e-5,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2,
    )
    common = dict(tok="bytebpe-roberta")
    case("modernbert/base", "ModernBertModel", "ModernBertConfig", modern, **common)
    case("modernbert/masked-lm", "ModernBertForMaskedLM", "ModernBertConfig", modern, hidden=False, **common)
    case("modernbert/sequence-classification", "ModernBertForSequenceClassification", "ModernBertConfig", with_(modern, classifier_pooling="mean", num_labels=3), hidden=False, **common)
    case("modernbert/token-classification", "ModernBertForTokenClassification", "ModernBertConfig", with_(modern, num_labels=5), hidden=False, **common)

    nomic = dict(
        hidden_size=40, num_attention_heads=5, head_dim=6, num_hidden_layers=3, intermediate_size=54,
        max_position_embeddings=64, type_vocab_size=2, layer_norm_eps=1e-5, pad_token_id=0,
    )
    common = dict(tok="wordpiece", pairs=True)
    case("nomic_bert/base", "NomicBertModel", "NomicBertConfig", nomic, note="explicit head_dim: heads * head_dim is 30, hidden_size 40", **common)
    case("nomic_bert/masked-lm", "NomicBertForMaskedLM", "NomicBertConfig", nomic, hidden=False, **common)
    case("nomic_bert/sequence-classification", "NomicBertForSequenceClassification", "NomicBertConfig", with_(nomic, **heads3), hidden=False, **common)
    case("nomic_bert/token-classification", "NomicBertForTokenClassification", "NomicBertConfig", with_(nomic, **heads5), hidden=False, **common)


def register_decoders() -> None:
    gpt2_ids = dict(bos_token_id=0, eos_token_id=0, pad_token_id=1)
    llama_ids = dict(bos_token_id=1, eos_token_id=2, pad_token_id=3)
    lm = dict(kind="causal", generate=10)

    gpt2 = dict(n_embd=40, n_head=5, n_layer=2, n_positions=37, n_inner=None, **gpt2_ids)
    tied = dict(emb_std=0.3, gain=2.0)  # else the embedding of the last token decides the next one
    common = dict(tok="bytebpe-gpt2", **lm, **tied)
    case("gpt2/causal", "GPT2LMHeadModel", "GPT2Config", gpt2, **common)
    case("gpt2/base", "GPT2Model", "GPT2Config", with_(gpt2, n_inner=70), kind="encoder", tok="bytebpe-gpt2", note="bare model, names without the transformer. prefix")
    case("gpt2/sequence-classification", "GPT2ForSequenceClassification", "GPT2Config", with_(gpt2, num_labels=3), kind="encoder", hidden=False, tok="bytebpe-gpt2", note="logits of the last non-padding token")

    case("gpt_neo/causal", "GPTNeoForCausalLM", "GPTNeoConfig", dict(hidden_size=40, num_heads=5, num_layers=3, attention_types=[[["global", "local"], 1], [["local"], 1]], window_size=4, max_position_embeddings=37, intermediate_size=70, **gpt2_ids), **common)
    case("gptj/causal", "GPTJForCausalLM", "GPTJConfig", dict(n_embd=40, n_head=4, n_layer=2, n_positions=37, rotary_dim=6, n_inner=70, **gpt2_ids), **common)

    opt = dict(hidden_size=40, ffn_dim=74, num_hidden_layers=2, num_attention_heads=5, max_position_embeddings=37, word_embed_proj_dim=40, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    common = dict(tok="bytebpe-roberta", **lm, **tied)
    case("opt/causal", "OPTForCausalLM", "OPTConfig", opt, **common)
    case("opt/causal-post-norm", "OPTForCausalLM", "OPTConfig", with_(opt, do_layer_norm_before=False, word_embed_proj_dim=28), note="as opt-350m: post-norm, projected embeddings, no final norm", **common)

    common = dict(tok="bytebpe-gpt2", **lm, **with_(tied, gain=4.0))
    case("bloom/causal", "BloomForCausalLM", "BloomConfig", dict(hidden_size=36, n_head=6, n_layer=2, **gpt2_ids), note="6 heads: ALiBi slopes for a count that is not a power of two", **common)

    falcon = dict(hidden_size=40, num_attention_heads=5, num_hidden_layers=2, max_position_embeddings=37, **gpt2_ids)
    case("falcon/causal-mqa", "FalconForCausalLM", "FalconConfig", falcon, note="falcon-7b: multi-query, parallel attention, rotary", **common)
    case("falcon/causal-new-decoder", "FalconForCausalLM", "FalconConfig", with_(falcon, hidden_size=48, num_attention_heads=6, num_kv_heads=2, new_decoder_architecture=True, bias=False), note="falcon-40b: grouped fused QKV, two norms", **common)
    case("falcon/causal-alibi", "FalconForCausalLM", "FalconConfig", with_(falcon, multi_query=False, parallel_attn=False, alibi=True, bias=True, ffn_hidden_size=70), attention="sdpa", note="falcon-rw: ALiBi, per-head fused QKV, sequential block; the eager code of this version adds ALiBi twice", **common)

    common = dict(tok="bpe-llama", **lm)
    case("phi/causal", "PhiForCausalLM", "PhiConfig", dict(hidden_size=48, intermediate_size=70, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, partial_rotary_factor=0.5, max_position_embeddings=37, **llama_ids), **common)

    llama = dict(hidden_size=40, intermediate_size=54, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, **llama_ids)
    case("llama/causal", "LlamaForCausalLM", "LlamaConfig", llama, **common)
    case("llama/base", "LlamaModel", "LlamaConfig", llama, kind="encoder", tok="bpe-llama", note="bare model, names without the model. prefix")
    case("llama/causal-rope-llama3", "LlamaForCausalLM", "LlamaConfig", with_(llama, tie_word_embeddings=True, rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)), note="llama3 scaling, small original length so that all three bands occur; tied head", **common)
    case("llama/sequence-classification", "LlamaForSequenceClassification", "LlamaConfig", with_(llama, num_labels=3), kind="encoder", hidden=False, tok="bpe-llama")

    both_ways = dict(kind="encoder", tok="bpe-llama")  # after `causal` by name: make_modules.py takes the first case
    case("llama/encoder", "LlamaModel", "LlamaConfig", with_(llama, is_causal=False), note="attention to both sides", **both_ways)

    case("mistral/causal", "MistralForCausalLM", "MistralConfig", with_(llama, sliding_window=4), note="sliding window of 4", **common)
    case("mistral/encoder", "MistralModel", "MistralConfig", with_(llama, sliding_window=4, is_causal=False), note="window of 4 to both sides", **both_ways)
    case("mixtral/causal", "MixtralForCausalLM", "MixtralConfig", with_(llama, intermediate_size=30, num_local_experts=5, num_experts_per_tok=2, rope_parameters=dict(rope_type="default", rope_theta=10000.0)), **common)

    qwen_ids = dict(bos_token_id=0, eos_token_id=0, pad_token_id=1)
    common = dict(tok="bytebpe-gpt2", **lm)
    qwen = with_(llama, rms_norm_eps=1e-6, **qwen_ids)
    case("qwen2/causal", "Qwen2ForCausalLM", "Qwen2Config", with_(qwen, tie_word_embeddings=True), **common)
    case("qwen3/causal", "Qwen3ForCausalLM", "Qwen3Config", with_(qwen, head_dim=14), note="explicit head_dim: heads * head_dim is 56, hidden_size 40", **common)

    common = dict(tok="bpe-llama", emb_std=0.08, gain=2.0, **lm)
    gemma = dict(hidden_size=40, intermediate_size=54, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=14, max_position_embeddings=64, **llama_ids)
    case("gemma/causal", "GemmaForCausalLM", "GemmaConfig", gemma, **common)
    case("gemma2/causal", "Gemma2ForCausalLM", "Gemma2Config", with_(gemma, num_key_value_heads=2, query_pre_attn_scalar=7, sliding_window=4, attn_logit_softcapping=5.0, final_logit_softcapping=4.0), note="both softcaps small enough to matter, sliding window of 4 on even layers", **common)
    gemma3 = with_(gemma, num_hidden_layers=3, num_key_value_heads=2, query_pre_attn_scalar=7, sliding_window=4, layer_types=["sliding_attention", "sliding_attention", "full_attention"], rope_parameters=dict(full_attention=dict(rope_type="linear", rope_theta=1000000.0, factor=8.0), sliding_attention=dict(rope_type="default", rope_theta=10000.0)))
    case("gemma3_text/causal", "Gemma3ForCausalLM", "Gemma3TextConfig", gemma3, note="two rotary settings by layer type", **common)
    case("gemma3_text/encoder", "Gemma3TextModel", "Gemma3TextConfig", with_(gemma3, sliding_window=6, use_bidirectional_attention=True), emb_std=0.08, gain=2.0, note="as EmbeddingGemma: window of 3 to both sides", **both_ways)

    case("mamba/causal", "MambaForCausalLM", "MambaConfig", dict(hidden_size=36, state_size=6, num_hidden_layers=2, expand=2, conv_kernel=4, time_step_rank=3, **gpt2_ids), tok="bytebpe-gpt2", **lm, **tied)


def _unmasked(c: Case, model: Any, tok: Tokenizer | None) -> dict[str, torch.Tensor]:
    """Without a mask: padding counts as text, as in training."""
    return {k: v for k, v in default_inputs(c, model, tok).items() if k != "attention_mask"}


def _t5_hub_style(model: Any) -> None:
    """Give the output head its own weights, as the T5 v1.1 checkpoints have."""
    new = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    fill(new, "lm_head.weight", "normal", 1.0 / model.config.d_model**0.5, "t5-v1.1-head")
    model.lm_head.weight = new
    model.config.tie_word_embeddings = False


def _two_original_lengths(path: Path, model: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config["rope_parameters"]["original_max_position_embeddings"] //= 4  # saving has made them one
    write_json(path / "config.json", config)


def _t5_hub_config(path: Path, model: Any) -> None:
    """Leave config.json as the hub has it: untied flag, none of the derived keys."""
    cfg = json.loads((path / "config.json").read_text())
    for key in ("scale_decoder_outputs", "is_gated_act", "dense_act_fn"):
        cfg.pop(key, None)
    cfg["tie_word_embeddings"] = False
    cfg["decoder_start_token_id"] = 0
    write_json(path / "config.json", cfg)


def register_others() -> None:
    t5 = dict(d_model=40, d_kv=6, d_ff=74, num_layers=3, num_decoder_layers=2, num_heads=5, relative_attention_num_buckets=8, relative_attention_max_distance=12, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    lively = dict(emb_std=0.3, gain=2.5)
    common = dict(tok="unigram-t5", kind="seq2seq", generate=8, **lively)
    case("t5/conditional-generation", "T5ForConditionalGeneration", "T5Config", t5, note="relu, tied and scaled output head; heads * d_kv is not d_model", **common)
    case("t5/conditional-generation-v1.1", "T5ForConditionalGeneration", "T5Config", with_(t5, feed_forward_proj="gated-gelu", tie_word_embeddings=False), before=_t5_hub_style, after=_t5_hub_config, note="gated gelu_new, own lm_head, config.json as hub repositories have it", **common)
    case("t5/encoder", "T5EncoderModel", "T5Config", t5, tok="unigram-t5")

    bart = dict(d_model=40, encoder_layers=3, decoder_layers=2, encoder_attention_heads=5, decoder_attention_heads=4, encoder_ffn_dim=74, decoder_ffn_dim=70, max_position_embeddings=37, bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None)
    common = dict(tok="bytebpe-roberta", kind="seq2seq", scale={"encoder_attn.out_proj": 0.15, "self_attn.out_proj": 0.5})
    case("bart/conditional-generation", "BartForConditionalGeneration", "BartConfig", bart, generate=8, note="different head counts in encoder and decoder, final_logits_bias not zero", **common)
    case("bart/base", "BartModel", "BartConfig", with_(bart, scale_embedding=True, encoder_layers=2, decoder_layers=1), note="scaled embeddings", **common)
    case("bart/sequence-classification", "BartForSequenceClassification", "BartConfig", with_(bart, num_labels=3, encoder_layers=1, decoder_layers=2), hidden=False, note="the last <eos> token is pooled; decoder input is the shifted input", **common)

    vit = dict(hidden_size=40, num_hidden_layers=2, num_attention_heads=5, intermediate_size=74, image_size=30, patch_size=6, num_channels=3)
    case("vit/base", "ViTModel", "ViTConfig", vit, kind="vision")
    case("vit/image-classification", "ViTForImageClassification", "ViTConfig", with_(vit, num_labels=7, qkv_bias=False), kind="vision", hidden=False, note="no QKV bias")

    case("whisper/conditional-generation", "WhisperForConditionalGeneration", "WhisperConfig", dict(num_mel_bins=10, d_model=40, encoder_layers=2, decoder_layers=2, encoder_attention_heads=5, decoder_attention_heads=4, encoder_ffn_dim=74, decoder_ffn_dim=70, max_source_positions=25, max_target_positions=30, bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=0, suppress_tokens=None, begin_suppress_tokens=None), tok="bytebpe-roberta", kind="speech", generate=8, **lively)

    text = dict(hidden_size=40, intermediate_size=74, num_hidden_layers=2, num_attention_heads=5, max_position_embeddings=37, projection_dim=26)
    vision = dict(hidden_size=36, intermediate_size=70, num_hidden_layers=2, num_attention_heads=3, image_size=30, patch_size=6, projection_dim=26)
    case("clip/model", "CLIPModel", "CLIPConfig", dict(text_config=text, vision_config=vision, projection_dim=26), tok="bpe-clip", kind="clip")
    case("clip/text-projection", "CLIPTextModelWithProjection", "CLIPTextConfig", text, tok="bpe-clip")
    case("clip/vision-projection", "CLIPVisionModelWithProjection", "CLIPVisionConfig", vision, kind="vision")


def register_more() -> None:
    """Types beyond those, and settings that the others leave at their defaults."""
    ids = dict(bos_token_id=0, eos_token_id=0, pad_token_id=1)
    llama_ids = dict(bos_token_id=1, eos_token_id=2, pad_token_id=3)
    lm = dict(kind="causal", generate=10)
    tied = dict(emb_std=0.3, gain=2.0)

    roberta = dict(
        hidden_size=40, num_attention_heads=5, num_hidden_layers=2, intermediate_size=74,
        max_position_embeddings=37, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )
    case("camembert/masked-lm", "CamembertForMaskedLM", "CamembertConfig", roberta, tok="bytebpe-roberta")
    case("xlm-roberta/sequence-classification", "XLMRobertaForSequenceClassification", "XLMRobertaConfig", dict(roberta, num_labels=3), tok="unigram-xlmr", hidden=False)

    common = dict(tok="bytebpe-gpt2", **lm)
    neox = dict(hidden_size=40, num_attention_heads=5, num_hidden_layers=2, intermediate_size=74, max_position_embeddings=37, rotary_pct=0.5, **ids)
    case("gpt_neox/causal", "GPTNeoXForCausalLM", "GPTNeoXConfig", neox, note="parallel residual with two norms, rotary over half of each head", **common)
    case("gpt_neox/causal-sequential", "GPTNeoXForCausalLM", "GPTNeoXConfig", dict(neox, use_parallel_residual=False, attention_bias=False), note="as other pre-norm decoders, no attention bias", **common)
    case("codegen/causal", "CodeGenForCausalLM", "CodeGenConfig", dict(n_embd=40, n_head=4, n_layer=2, n_positions=37, n_ctx=37, rotary_dim=6, n_inner=70, **ids), **common)
    case("mpt/causal", "MptForCausalLM", "MptConfig", dict(d_model=36, n_heads=6, n_layers=2, max_seq_len=37, attn_config=dict(clip_qkv=1.2), **ids), note="6 heads: ALiBi slopes for a count that is not a power of two; clamped projections", tok="bytebpe-gpt2", **lm, **with_(tied, gain=4.0))
    bigcode = dict(n_embd=40, n_head=5, n_layer=2, n_positions=37, n_inner=70, **ids)
    case("gpt_bigcode/causal", "GPTBigCodeForCausalLM", "GPTBigCodeConfig", bigcode, note="one key and value head", tok="bytebpe-gpt2", **lm, **tied)
    case("gpt_bigcode/causal-mha", "GPTBigCodeForCausalLM", "GPTBigCodeConfig", dict(bigcode, multi_query=False), note="query, key and value of each head side by side", tok="bytebpe-gpt2", **lm, **tied)

    llama = dict(hidden_size=40, intermediate_size=54, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, **llama_ids)
    common = dict(tok="bpe-llama", **lm)
    case("llama/causal-rope-yarn", "LlamaForCausalLM", "LlamaConfig", with_(llama, head_dim=16, rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16)), note="yarn scaling", **common)
    case("llama/causal-rope-original", "LlamaForCausalLM", "LlamaConfig", with_(llama, max_position_embeddings=128, original_max_position_embeddings=64, rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0)), after=_two_original_lengths, note="the original length beside the rope settings counts, not the one in them", **common)
    case("phi3/causal", "Phi3ForCausalLM", "Phi3Config", with_(llama, original_max_position_embeddings=64, sliding_window=5), note="fused projections, window of 5", **common)
    longrope = dict(rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75, short_factor=[1.0, 1.1, 1.3], long_factor=[2.0, 4.0, 8.0])
    case("phi3/causal-longrope", "Phi3ForCausalLM", "Phi3Config", with_(llama, hidden_size=32, max_position_embeddings=128, original_max_position_embeddings=32, rope_parameters=longrope), note="longrope within the original length, partial rotary", **common)
    qwen_moe = with_(llama, moe_intermediate_size=22, num_experts=5, num_experts_per_tok=2, **ids)
    common = dict(tok="bytebpe-gpt2", **lm)
    case("qwen2_moe/causal", "Qwen2MoeForCausalLM", "Qwen2MoeConfig", with_(qwen_moe, shared_expert_intermediate_size=34, num_hidden_layers=3, mlp_only_layers=[1]), note="shared expert, second layer dense", **common)
    case("qwen3_moe/causal", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", with_(qwen_moe, head_dim=14, norm_topk_prob=True), **common)
    case("olmo2/causal", "Olmo2ForCausalLM", "Olmo2Config", with_(llama, **ids), note="norms behind the blocks, over whole queries and keys", **common)
    case("olmoe/causal", "OlmoeForCausalLM", "OlmoeConfig", with_(llama, intermediate_size=22, num_experts=5, num_experts_per_tok=2, **ids), note="norms over whole queries and keys, weights of experts as the softmax gives them", **common)
    yarn = dict(rope_type="yarn", rope_theta=20000.0, factor=4.0, original_max_position_embeddings=16)
    case("olmo3/causal", "Olmo3ForCausalLM", "Olmo3Config", with_(llama, sliding_window=4, layer_types=["sliding_attention", "full_attention"], rope_parameters=dict(sliding_attention=dict(rope_type="default", rope_theta=20000.0), full_attention=yarn), **ids), note="windows, and yarn in the layers without", **common)
    common = dict(tok="bpe-llama", **lm)
    case("cohere/causal", "CohereForCausalLM", "CohereConfig", with_(llama, logit_scale=0.25, use_qk_norm=True), note="norm of each head with its own weights", tok="bpe-llama", **lm, emb_std=0.3, gain=2.0)
    case("cohere2/causal", "Cohere2ForCausalLM", "Cohere2Config", with_(llama, num_hidden_layers=3, logit_scale=0.25, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"]), note="rotary embedding only in the layers with a window", tok="bpe-llama", **lm, emb_std=0.3, gain=2.0)
    case("smollm3/causal", "SmolLM3ForCausalLM", "SmolLM3Config", with_(llama, num_hidden_layers=4, no_rope_layer_interval=2), note="every second layer without rotary embedding", **common)
    case("smollm3/causal-windows", "SmolLM3ForCausalLM", "SmolLM3Config", with_(llama, num_hidden_layers=2, sliding_window=4, layer_types=["full_attention", "sliding_attention"]), note="windows by layer types alone", **common)
    case("glm4/causal", "Glm4ForCausalLM", "Glm4Config", with_(llama, head_dim=12), note="four norms in each layer, rotary over neighbours in half of each head", **common)
    exaone = with_(llama, num_hidden_layers=3, sliding_window=4, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
    case("exaone4/causal", "Exaone4ForCausalLM", "Exaone4Config", exaone, note="norms behind the blocks; rotary embedding only where there is a window", **common)
    case("exaone4/sequence-classification", "Exaone4ForSequenceClassification", "Exaone4Config", with_(llama, num_hidden_layers=1, sliding_window=None, sliding_window_pattern=None, layer_types=["full_attention"], num_labels=3), kind="encoder", hidden=False, tok="bpe-llama", note="no window, so that all layers have rotary embedding")
    case("granite/causal", "GraniteForCausalLM", "GraniteConfig", with_(llama, embedding_multiplier=3.0, residual_multiplier=0.7, attention_multiplier=0.4, logits_scaling=2.0), **common)
    case("granitemoe/causal", "GraniteMoeForCausalLM", "GraniteMoeConfig", with_(llama, intermediate_size=22, num_local_experts=5, num_experts_per_tok=2, embedding_multiplier=3.0, residual_multiplier=0.7, attention_multiplier=0.4, logits_scaling=2.0), note="stacked experts", **common)
    biogpt = with_({k: v for k, v in llama.items() if k not in ("rms_norm_eps", "num_key_value_heads")}, max_position_embeddings=37)
    case("biogpt/causal", "BioGptForCausalLM", "BioGptConfig", biogpt, note="scaled embeddings, positions from the third row on", tok="bpe-llama", **lm, emb_std=0.1, gain=2.0)
    case("biogpt/token-classification", "BioGptForTokenClassification", "BioGptConfig", with_(biogpt, num_hidden_layers=1, scale_embedding=False, num_labels=3), kind="encoder", hidden=False, tok="bpe-llama")
    case("ernie4_5/causal", "Ernie4_5ForCausalLM", "Ernie4_5Config", with_(llama, head_dim=14, use_bias=True), note="rotary over neighbours, biases everywhere", tok="bpe-llama", **lm, emb_std=0.3, gain=2.0)
    case("seed_oss/causal", "SeedOssForCausalLM", "SeedOssConfig", with_(llama, head_dim=14), note="biases of queries, keys and values alone", **common)
    normed = {k: v for k, v in llama.items() if k != "rms_norm_eps"}
    case("starcoder2/causal", "Starcoder2ForCausalLM", "Starcoder2Config", with_(normed, sliding_window=5, norm_epsilon=1e-5), tok="bpe-llama", **lm, emb_std=0.3, gain=2.0)
    case("stablelm/causal", "StableLmForCausalLM", "StableLmConfig", with_(normed, hidden_size=64, qk_layernorm=True, use_qkv_bias=True, partial_rotary_factor=0.25), note="a norm of its own for each head, rotary over a quarter of each head", **common)
    case("stablelm/causal-parallel", "StableLmForCausalLM", "StableLmConfig", with_(normed, hidden_size=64, use_parallel_residual=True), note="parallel residual with one norm", **common)
    gpt_oss = with_(llama, head_dim=14, num_local_experts=5, num_experts_per_tok=2, sliding_window=4, rope_parameters=dict(rope_type="yarn", rope_theta=150000.0, factor=4.0, original_max_position_embeddings=16, beta_fast=32.0, beta_slow=1.0, truncate=False))
    case("gpt_oss/causal", "GptOssForCausalLM", "GptOssConfig", gpt_oss, note="sinks, window of 4 on even layers, stacked experts", **common)
    deepseek = dict(
        hidden_size=40, intermediate_size=54, moe_intermediate_size=22, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
        n_shared_experts=1, n_routed_experts=8, num_experts_per_tok=3, n_group=4, topk_group=2, first_k_dense_replace=1, routed_scaling_factor=1.5,
        kv_lora_rank=14, q_lora_rank=18, qk_rope_head_dim=6, qk_nope_head_dim=10, v_head_dim=8, max_position_embeddings=64, **llama_ids,
    )
    case("deepseek_v3/causal", "DeepseekV3ForCausalLM", "DeepseekV3Config", deepseek, note="latent attention, sigmoid routing in groups", **common)
    yarn = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0, beta_fast=32.0, beta_slow=1.0)
    case("deepseek_v3/causal-yarn", "DeepseekV3ForCausalLM", "DeepseekV3Config", with_(deepseek, q_lora_rank=None, num_hidden_layers=2, rope_parameters=yarn), note="yarn that scales the scores too, queries without a latent vector", **common)

    mt5 = dict(d_model=40, d_kv=6, d_ff=74, num_layers=2, num_heads=5, relative_attention_num_buckets=8, relative_attention_max_distance=12, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    case("mt5/conditional-generation", "MT5ForConditionalGeneration", "MT5Config", dict(mt5, tie_word_embeddings=False), tok="unigram-t5", kind="seq2seq", generate=8, emb_std=0.3, gain=1.5)
    marian = dict(d_model=40, encoder_layers=2, decoder_layers=2, encoder_attention_heads=5, decoder_attention_heads=4, encoder_ffn_dim=74, decoder_ffn_dim=70, max_position_embeddings=37, bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=None)
    common = dict(tok="bytebpe-roberta", kind="seq2seq", generate=8, keep=("embed_positions",), scale={"encoder_attn.out_proj": 0.15, "self_attn.out_proj": 0.5}, emb_std=0.3, gain=1.5, distinct=2)
    case("marian/conditional-generation", "MarianMTModel", "MarianConfig", dict(marian, activation_function="swish", scale_embedding=True), note="computed sinusoidal positions", **common)
    case("pegasus/conditional-generation", "PegasusForConditionalGeneration", "PegasusConfig", marian, note="pre-norm, computed sinusoidal positions", **common)
    case("mbart/conditional-generation", "MBartForConditionalGeneration", "MBartConfig", dict(marian, scale_embedding=True), note="pre-norm, with a norm behind the embeddings and one behind each stack", **common)

    vision = dict(hidden_size=40, num_hidden_layers=2, num_attention_heads=5, image_size=30, patch_size=6, num_channels=3)
    case("deit/image-classification", "DeiTForImageClassification", "DeiTConfig", dict(vision, intermediate_size=74, num_labels=7), kind="vision")
    case("dinov2/base", "Dinov2Model", "Dinov2Config", dict(vision, mlp_ratio=2), kind="vision")
    case("dinov2/image-classification", "Dinov2ForImageClassification", "Dinov2Config", dict(vision, use_swiglu_ffn=True, num_labels=7), kind="vision", hidden=False, note="gated MLP with a fused weight, as in the giant model")
    text = dict(hidden_size=40, num_hidden_layers=2, num_attention_heads=5, intermediate_size=74, max_position_embeddings=37, projection_size=36, bos_token_id=0, pad_token_id=1, eos_token_id=1)
    vision = dict(hidden_size=36, num_hidden_layers=3, num_attention_heads=3, intermediate_size=70, image_size=30, patch_size=6)
    case("siglip/text", "SiglipTextModel", "SiglipTextConfig", text, tok="unigram-t5", inputs=_unmasked, note="padding is attended to, and the last row pooled, whatever it is")
    case("siglip/vision", "SiglipVisionModel", "SiglipVisionConfig", vision, kind="vision")
    case("siglip/image-classification", "SiglipForImageClassification", "SiglipConfig", dict(text_config=text, vision_config=vision, num_labels=7), kind="clip", note="the mean of the patches; the pooling head is stored, but not used")
    case("siglip/model", "SiglipModel", "SiglipConfig", dict(text_config=text, vision_config=vision), tok="unigram-t5", kind="clip", inputs=_unmasked)
    small = dict(hidden_size=36, num_heads=6, head_dim=12, n_groups=3, state_size=5, num_hidden_layers=3, expand=2, conv_kernel=4, chunk_size=4, bos_token_id=0, eos_token_id=0, pad_token_id=1)
    case("mamba2/base", "Mamba2Model", "Mamba2Config", small, tok="bytebpe-gpt2")
    case("mamba2/causal", "Mamba2ForCausalLM", "Mamba2Config", dict(small, use_bias=True), tok="bytebpe-gpt2", kind="causal", generate=10)


register_encoders()
register_decoders()
register_others()
register_more()

# --------------------------------------------------------------------------------------
# Weights
# --------------------------------------------------------------------------------------


def rng(*parts: Any) -> np.random.Generator:
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))


def normal(shape: tuple[int, ...] | list[int], *parts: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(rng(*parts).standard_normal(tuple(shape)), dtype=np.float32))


def fill(p: torch.Tensor, name: str, how: str, scale: float, salt: str) -> None:
    if how == "normal":
        value = scale * normal(p.shape, salt, name)
    elif how == "one":  # around one, never one
        value = 1.0 + scale * normal(p.shape, salt, name)
    elif how == "uniform":
        value = torch.from_numpy(np.asarray(rng(salt, name).uniform(-scale, 0.0, tuple(p.shape)), dtype=np.float32))
    else:
        raise ValueError(how)
    p.copy_(value.to(p.dtype))


def randomise(model: torch.nn.Module, c: Case) -> None:
    """Give every parameter a value that makes it matter: no zero bias, no unit norm weight."""
    salt = f"{c.seed}:{c.id}"
    seen: set[int] = set()
    for mod_name, mod in model.named_modules():
        kind = type(mod).__name__
        for p_name, p in mod.named_parameters(recurse=False):
            full = f"{mod_name}.{p_name}" if mod_name else p_name
            if id(p) in seen or any(k in full for k in c.keep):
                continue
            seen.add(id(p))
            is_norm = "Norm" in kind
            if is_norm and p_name == "weight":
                fill(p, full, "normal" if kind.startswith("Gemma") else "one", 0.3, salt)
            elif p_name == "A_log":
                fill(p, full, "normal", 0.5, salt)
            elif p_name in ("D", "lambda1", "layer_scale"):
                fill(p, full, "one", 0.3, salt)
            elif full.endswith("dt_proj.bias") or p_name == "dt_bias":
                fill(p, full, "uniform", 4.0, salt)
            elif p_name in ("logit_scale", "logit_bias"):
                fill(p, full, "one", 0.2, salt)
            elif "relative_attention_bias" in full:
                fill(p, full, "normal", 0.8, salt)
            elif isinstance(mod, torch.nn.Embedding):
                fill(p, full, "normal", c.emb_std, salt)
            elif p.ndim <= 1 or p_name.endswith("bias"):
                fill(p, full, "normal", 0.2, salt)
            elif "position_embedding" in p_name or "token" in p_name or p_name in ("probe", "class_embedding"):
                fill(p, full, "normal", 0.5, salt)
            else:
                if kind == "Conv1D":  # GPT-2 layout [in, out]
                    fan_in = p.shape[0]
                elif "GptOss" in kind and p.ndim == 3:  # [experts, in, out]
                    fan_in = p.shape[1]
                elif p.ndim == 3 and "Experts" in kind:
                    fan_in = p.shape[2]
                else:
                    fan_in = int(np.prod(p.shape[1:]))
                extra = float(np.prod([f for k, f in c.scale.items() if k in full]))
                fill(p, full, "normal", c.gain * extra / fan_in**0.5, salt)
        for b_name, b in mod.named_buffers(recurse=False):
            if b_name in ("final_logits_bias", "e_score_correction_bias"):
                fill(b, f"{mod_name}.{b_name}", "normal", 0.2, salt)


# --------------------------------------------------------------------------------------
# Inputs and outputs
# --------------------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def pad_batch(encodings: list[Any], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded input_ids, attention_mask and token_type_ids."""
    width = max(len(e.ids) for e in encodings)
    ids = torch.full((len(encodings), width), pad_id, dtype=torch.long)
    mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, e in enumerate(encodings):
        n = len(e.ids)
        ids[row, :n], mask[row, :n], types[row, :n] = torch.tensor(e.ids), 1, torch.tensor(e.type_ids)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def default_inputs(c: Case, model: Any, tok: Tokenizer | None) -> dict[str, torch.Tensor]:
    cfg, salt = model.config, f"{c.seed}:{c.id}:input"
    out: dict[str, torch.Tensor] = {}
    if tok is not None and c.kind != "speech":
        pad = cfg.get_text_config().pad_token_id
        texts = PAIRS if c.pairs else [(t, None) for t in BATCH]
        enc = [tok.encode(a, b) if b is not None else tok.encode(a) for a, b in texts]
        out = pad_batch(enc, 0 if pad is None else pad)
        if not c.pairs:
            out.pop("token_type_ids")
    if c.kind in ("vision", "clip"):
        v = cfg.vision_config if c.kind == "clip" else cfg
        size = v.image_size if isinstance(v.image_size, (list, tuple)) else (v.image_size, v.image_size)
        out["pixel_values"] = normal((2, v.num_channels, *size), salt, "pixel_values")
    if c.kind == "speech":
        out["input_features"] = normal((2, cfg.num_mel_bins, 2 * cfg.max_source_positions), salt, "input_features")
    if c.kind in ("seq2seq", "speech") and not c.model.endswith("SequenceClassification"):
        gen = getattr(model, "generation_config", None)
        start = gen.decoder_start_token_id if gen is not None else c.args.get("decoder_start_token_id")
        rows = (out["input_ids"] if "input_ids" in out else out["input_features"]).shape[0]
        ids = rng(salt, "decoder_input_ids").integers(3, cfg.vocab_size, (rows, 7))
        ids[:, 0] = start if start is not None else 0
        out["decoder_input_ids"] = torch.from_numpy(ids.astype(np.int64))
    return out


SKIP = {"past_key_values", "cache_params", "attentions", "cross_attentions", "encoder_attentions", "decoder_attentions", "loss"}


def flatten(value: Any, name: str, into: dict[str, torch.Tensor], hidden: bool) -> None:
    if value is None:
        return
    if torch.is_tensor(value):
        into[name] = value.detach().clone().contiguous()
    elif isinstance(value, (tuple, list)):
        for i, v in enumerate(value):
            flatten(v, f"{name}.{i}", into, hidden)
    elif hasattr(value, "keys"):
        for k in value.keys():
            if k in SKIP or (not hidden and "hidden_states" in k):
                continue
            flatten(value[k], f"{name}.{k}", into, hidden)


def greedy(model: Any, c: Case, tok: Tokenizer | None, inputs: dict[str, torch.Tensor]) -> tuple[dict, list[float]]:
    """Greedy decoding with a cache, one unpadded prompt at a time; end-of-sequence is not obeyed."""
    out: dict[str, torch.Tensor] = {}
    gaps: list[float] = []
    saved = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = None
    prompts: list[dict[str, torch.Tensor]]
    if c.kind == "speech":
        prompts = [{"input_features": inputs["input_features"][i : i + 1]} for i in range(2)]
    else:
        prompts = []
        for row in c.prompts or [tok.encode(text).ids for text in PROMPTS]:
            ids = torch.tensor([row])
            prompts.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    for i, p in enumerate(prompts):
        extra = {}
        if c.kind == "speech":  # plain greedy search, none of the timestamp logic
            extra = {"decoder_input_ids": torch.tensor([[model.generation_config.decoder_start_token_id]])}
            res = super(type(model), model).generate(
                **p, **extra, max_new_tokens=c.generate, do_sample=False, num_beams=1, use_cache=True,
                return_dict_in_generate=True, output_logits=True,
            )
        else:
            res = model.generate(
                **p, max_new_tokens=c.generate, do_sample=False, num_beams=1, use_cache=True,
                return_dict_in_generate=True, output_logits=True,
            )
        logits = torch.cat(list(res.logits), 0)
        tokens = res.sequences[0, -c.generate :]
        if len(logits) != c.generate or not torch.equal(logits.argmax(-1), tokens):
            raise RuntimeError(f"{c.id}: generation stopped early or was not greedy")
        # The same without a cache must agree.
        if c.kind in ("seq2seq", "speech"):
            start = model.generation_config.decoder_start_token_id
            dec = torch.cat([torch.tensor([[start]]), tokens[None, :-1]], 1)
            full = model(**p, decoder_input_ids=dec).logits[0]
        else:
            seq = torch.cat([p["input_ids"], tokens[None, :-1]], 1)
            full = model(input_ids=seq, attention_mask=torch.ones_like(seq), use_cache=False).logits[0, p["input_ids"].shape[1] - 1 :]
        worst = (full - logits).abs().max().item()
        if worst > 2e-3:
            raise RuntimeError(f"{c.id}: cached and uncached logits differ by {worst}")
        if "input_ids" in p:
            out[f"generate.{i}.prompt"] = p["input_ids"][0].clone()
        out[f"generate.{i}.tokens"] = tokens.clone()
        out[f"generate.{i}.logits"] = logits.clone()
        top = logits.topk(2, -1).values
        gaps.append((top[:, 0] - top[:, 1]).min().item())
    model.generation_config.eos_token_id = saved
    return out, gaps


def tokenization(tok: Tokenizer) -> list[dict[str, Any]]:
    rows = []
    for text in TOKENIZATION + BATCH:
        e = tok.encode(text)
        rows.append({"text": text, "ids": e.ids, "tokens": e.tokens, "decoded": tok.decode(e.ids, skip_special_tokens=True)})
    a, b = PAIRS[0]
    e = tok.encode(a, b)
    rows.append({"text": a, "pair": b, "ids": e.ids, "type_ids": e.type_ids, "tokens": e.tokens})
    return rows


def outputs(model: Any, inputs: dict[str, torch.Tensor], hidden: bool) -> dict[str, torch.Tensor]:
    """What a model gives, by the names of the file; hidden states are the inputs of its layers, then the end."""
    found: dict[str, torch.Tensor] = {}
    layers = Layers(model)
    flatten(model(**inputs, **({"output_hidden_states": True} if hidden else {})), "output", found, hidden)
    return layers.finish(found)


def run(model: Any, c: Case, tok: Tokenizer | None, inputs: dict[str, torch.Tensor]) -> tuple[dict, dict]:
    """All reference tensors of a model, and facts for reference.json."""
    tensors: dict[str, torch.Tensor] = {f"input.{k}": v.clone().contiguous() for k, v in inputs.items()}
    tensors.update(outputs(model, inputs, c.hidden))
    facts: dict[str, Any] = {}
    if c.generate:
        more, gaps = greedy(model, c, tok, inputs)
        tensors.update(more)
        facts["smallest_top2_gap"] = [round(g, 5) for g in gaps]
    for name, t in tensors.items():
        if t.is_floating_point() and not torch.isfinite(t).all():
            raise RuntimeError(f"{c.id}: {name} is not finite")
    return tensors, facts


# --------------------------------------------------------------------------------------
# Build and check
# --------------------------------------------------------------------------------------


def make_config(c: Case, vocab: int | None) -> Any:
    args = json.loads(json.dumps(c.args))
    if vocab is not None:
        target = args.setdefault("text_config", {}) if "text_config" in args or c.kind == "clip" else args
        target.setdefault("vocab_size", vocab)
        if c.tok == "bpe-clip":
            target.setdefault("bos_token_id", vocab - 2)
            target.setdefault("eos_token_id", vocab - 1)
            target.setdefault("pad_token_id", vocab - 1)
    return getattr(transformers, c.config)(**args)


def build_model(c: Case, vocab: int | None) -> Any:
    config = make_config(c, vocab)
    torch.manual_seed(0)
    model = getattr(transformers, c.model)._from_config(config, **(EAGER | {"attn_implementation": c.attention})).eval()
    if getattr(model, "generation_config", None) is not None and c.kind in ("seq2seq", "speech"):
        # These keys are dropped by the config classes but expected in generation_config.json.
        for key in ("decoder_start_token_id",):
            if key in c.args:
                setattr(model.generation_config, key, c.args[key])
    randomise(model, c)
    if c.before:
        c.before(model)
    return model.eval()


def save_tokenizer(tok: Tokenizer, names: dict[str, Any], path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tok, **names).save_pretrained(str(path))


def usable(c: Case, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> bool:
    """Greedy decoding must not hang on near ties, nor say the same token for ever."""
    if "smallest_top2_gap" not in facts:
        return True
    spread = tensors["output.logits"].std().item()
    if min(facts["smallest_top2_gap"]) < min(0.02, 0.02 * spread):
        return False
    runs = [v for k, v in tensors.items() if k.endswith(".tokens")]
    return all(v.unique().numel() >= (c.distinct or min(4, v.numel() // 2)) for v in runs)


def build(c: Case, out: Path) -> Path:
    """Build one fixture; of the seeds c.seed, c.seed + 1, ... the first usable one is taken."""
    first = c.seed
    for attempt in range(60):
        c.seed = first + attempt
        path, tensors, facts = build_once(c, out)
        if usable(c, tensors, facts):
            c.seed = first
            return path
    raise RuntimeError(f"{c.id}: no usable seed")


def build_once(c: Case, out: Path) -> tuple[Path, dict[str, torch.Tensor], dict[str, Any]]:
    path = out / c.id
    tok, names = build_tokenizer(c.tok) if c.tok else (None, {})
    model = build_model(c, tok.get_vocab_size() if tok else None)
    inputs = (c.inputs or default_inputs)(c, model, tok)
    if "token_type_ids" in inputs:
        names = names | {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    tensors, facts = run(model, c, tok, inputs)  # before anything is written: a case may be refused
    path.mkdir(parents=True, exist_ok=True)
    for old in path.iterdir():
        old.unlink()
    model.save_pretrained(str(path))
    if tok is not None:
        save_tokenizer(tok, names, path)
    if c.after:
        c.after(path, model)
    save_file(tensors, str(path / "reference.safetensors"))
    info: dict[str, Any] = {
        "architecture": c.arch,
        "case": c.id,
        "model_class": c.model,
        "kind": c.kind,
        "note": c.note,
        "seed": c.seed,
        "attention": c.attention,
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]},
        "tensors": {k: list(v.shape) for k, v in tensors.items()},
        **facts,
    }
    if tok is not None:
        info["batch_texts"] = [list(p) for p in PAIRS] if c.pairs else BATCH
        if c.generate and c.kind != "speech" and c.prompts is None:
            info["prompts"] = PROMPTS
        info["tokenization"] = tokenization(tok)
    write_json(path / "reference.json", info)
    return path, tensors, facts


def check(path: Path) -> float:
    """Reload a fixture the ordinary way and return the largest difference from its reference."""
    info = json.loads((path / "reference.json").read_text())
    ref = load_file(str(path / "reference.safetensors"))
    cls = getattr(transformers, info["model_class"])
    how = EAGER | {"attn_implementation": info.get("attention", "eager")}
    model, report = cls.from_pretrained(str(path), **how, output_loading_info=True)
    for key in ("missing_keys", "mismatched_keys"):
        if report[key]:
            raise RuntimeError(f"{info['case']}: {key} {sorted(report[key])}")
    model = model.float().eval()
    inputs = {k[len("input.") :]: v for k, v in ref.items() if k.startswith("input.")}
    hidden = any("hidden_states" in k for k in ref if not k.endswith("last_hidden_state"))
    got = outputs(model, inputs, hidden)
    want = {k: v for k, v in ref.items() if k.startswith("output.")}
    if set(got) != set(want):
        raise RuntimeError(f"{info['case']}: outputs differ in kind: {sorted(set(got) ^ set(want))}")
    return max((got[k].float() - want[k].float()).abs().max().item() for k in want)


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", nargs="?", help="architecture, case id, 'all' or 'check'")
    ap.add_argument("--out", type=Path, default=HERE, help="folder of the fixtures")
    ap.add_argument("--list", action="store_true", help="list the cases")
    a = ap.parse_args()
    if a.list or not a.what:
        for c in CASES.values():
            print(f"{c.id:42} {c.model:36} {c.note}")
        return 0
    if a.what == "check":
        bad = 0
        known = (a.out / case / "reference.json" for case in CASES)
        for ref in sorted(path for path in known if path.exists()):
            worst = check(ref.parent)
            bad += worst > 1e-5
            print(f"{str(ref.parent.relative_to(a.out)):42} largest difference {worst:.2e}")
        return 1 if bad else 0
    chosen = [c for c in CASES.values() if a.what in ("all", c.arch, c.id)]
    if not chosen:
        print(f"unknown architecture or case {a.what!r}; see --list", file=sys.stderr)
        return 2
    for c in chosen:
        path = build(c, a.out)
        size = sum(f.stat().st_size for f in path.iterdir())
        info = json.loads((path / "reference.json").read_text())
        print(f"{c.id:42} {size / 1024:7.0f} KiB  {info.get('smallest_top2_gap', '')}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
