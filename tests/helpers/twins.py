"""Tiny random checkpoints in the shape of public ones, written by the library that those were written by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from audiolm_cli.mimi.codec import transformers
from audiolm_cli.public.layout import CODEBOOK_SIZE, FAMILIES, Family

SODA, LLAMA_MIMI = FAMILIES
TEXT = 50  # tokens in front of those of audio
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def vocabulary(family: Family, quantizers: int) -> dict[str, int]:
    """Names and ids: SODA's codes stand quantizer by quantizer, those of Llama-Mimi here code by code."""
    names = [f"text{n}" for n in range(TEXT)]
    names[7] = family.header[0]
    if family is SODA:
        names += ["<|text_start|>", "<|text_end|>", family.header[1], family.end]
        names += [family.code(q, code) for q in range(quantizers) for code in range(CODEBOOK_SIZE)]
    else:
        names += [family.code(q, code) for code in range(CODEBOOK_SIZE) for q in range(quantizers)]
        names += [family.header[1], family.end]
    return {name: id for id, name in enumerate(names)}


def write_tokenizer(folder: Path, ids: dict[str, int]) -> None:
    """A tokenizer.json as a text tokenizer leaves it to which tokens were added."""
    added = [{"id": id, "content": name, "special": False} for name, id in ids.items() if id >= TEXT]
    text = {name: id for name, id in ids.items() if id < TEXT}
    value = {"version": "1.0", "added_tokens": added, "model": {"type": "BPE", "vocab": text, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(value))


def write_soda(folder: Path, seed: int = 0, quantizers: int = 8, **sizes: Any) -> Path:
    """A twin of SODA: Qwen3, matrices tied unless asked otherwise."""
    ids = vocabulary(SODA, quantizers)
    given = {**SIZES, "tie_word_embeddings": True, "vocab_size": len(ids), **sizes}
    _write(folder, transformers().Qwen3ForCausalLM, transformers().Qwen3Config(**given), seed)
    write_tokenizer(folder, ids)
    return folder


def write_llama_mimi(folder: Path, seed: int = 0, quantizers: int = 4, **sizes: Any) -> Path:
    """A twin of Llama-Mimi: Llama with stretched positions, an output matrix of its own, several files."""
    ids = vocabulary(LLAMA_MIMI, quantizers)
    given = {**SIZES, "rope_parameters": LLAMA3, "tie_word_embeddings": False, "vocab_size": len(ids), **sizes}
    config = transformers().LlamaConfig(**given, num_quantizers=quantizers)
    _write(folder, transformers().LlamaForCausalLM, config, seed, max_shard_size="500KB")
    write_tokenizer(folder, ids)
    return folder


def _write(folder: Path, kind: Any, config: Any, seed: int, **how: Any) -> None:
    torch.manual_seed(seed)
    model = kind(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(8)  # lively logits
        else:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    transformers().utils.logging.disable_progress_bar()
    model.save_pretrained(folder, **how)


def write_mimi(folder: Path, seed: int = 0, quantizers: int = 9, **sizes: Any) -> Path:
    """A twin of Mimi, with a window of 0.8 s."""
    torch.manual_seed(seed)
    given = {
        **{"hidden_size": 16, "num_filters": 2, "codebook_dim": 8, "vector_quantization_hidden_dimension": 8},
        **{"num_hidden_layers": 2, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2},
        **{"head_dim": 8, "sliding_window": 20, "upsample_groups": 16, "num_quantizers": quantizers},
        "layer_scale_initial_scale": 0.5,
        **sizes,
    }
    library = transformers()
    model = library.MimiModel(library.MimiConfig(**given))
    for name, tensor in model.state_dict().items():
        if name.endswith("embed_sum"):
            tensor.normal_(std=0.1)
        elif "transformer" in name and tensor.ndim == 2:
            tensor.mul_(10)  # else attention would hardly count
    library.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return folder
