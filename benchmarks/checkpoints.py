"""Language models over Mimi's codes: our engine beside `transformers`' own `generate`, on the same random weights.

    python benchmarks/checkpoints.py --sizes soda-135m --tokens 80 --json FILE
    python benchmarks/checkpoints.py --folder FOLDER --device cuda --dtype bfloat16     # what was downloaded

Both sample behind the same prompt with the family's settings, prefill included, in one process that takes turns; of
several runs the least seconds of processor time count, on a GPU of the wall clock. The sizes of Llama-Mimi are those of
Llama 3.2 1B; SODA's config.json was not at hand: its shape here is a guess of that many weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from audiolm_cli import native
from audiolm_cli.config import StageSampling
from audiolm_cli.language_models import engine
from audiolm_cli.language_models.sampling import Noise
from audiolm_cli.mimi.codec import transformers
from audiolm_cli.mimi.continuing import item
from audiolm_cli.mimi.int8 import load_int8
from audiolm_cli.mimi.weights import load_decoder
from audiolm_cli.public.config import read_config
from audiolm_cli.public.layout import CODEBOOK_SIZE, FAMILIES, Family, read_layout

SODA, LLAMA_MIMI = FAMILIES
FRAME_RATE = 12.5
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
}
Size = tuple[Family, int, dict[str, Any]]  # quantizers, config


def sizes(width: int, inner: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        **{"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers},
        **{"num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": 4096},
        **more,
    }


SIZES: dict[str, Size] = {
    "tiny": (SODA, 8, sizes(64, 128, 2, 4, 2, head_dim=16)),
    "soda-135m": (SODA, 8, sizes(768, 3072, 16, 12, 4, head_dim=64)),
    "soda-600m": (SODA, 8, sizes(1536, 4608, 20, 12, 4, head_dim=128)),
    "soda-1.7b": (SODA, 8, sizes(2048, 6144, 32, 16, 8, head_dim=128)),
    "llama-mimi": (LLAMA_MIMI, 4, sizes(2048, 8192, 16, 32, 8, head_dim=64, rope_parameters=LLAMA3)),
}
TEXT = 128256  # ids of Llama 3's text, in front


def vocabulary(family: Family, quantizers: int, text: int) -> dict[str, int]:
    codes = [family.code(q, code) for q in range(quantizers) for code in range(CODEBOOK_SIZE)]
    names = [family.header[0], *(f"text{n}" for n in range(text - 1)), family.header[1], family.end, *codes]
    return {name: id for id, name in enumerate(names)}


def write(folder: Path, name: str, dtype: torch.dtype) -> None:
    """A checkpoint of random weights in a folder, as the library writes it."""
    family, quantizers, config = SIZES[name]
    library, ids = transformers(), vocabulary(family, quantizers, 256 if name == "tiny" else TEXT)
    config = {**config, "vocab_size": len(ids), "tie_word_embeddings": True}
    torch.manual_seed(0)
    with torch.device("cpu"):
        if family is SODA:
            model = library.Qwen3ForCausalLM(library.Qwen3Config(**config))
        else:
            model = library.LlamaForCausalLM(library.LlamaConfig(**config, num_quantizers=quantizers))
    model.to(dtype).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": ids}}))


def least(call: Callable[[], object], device: torch.device, runs: int) -> float:
    """Seconds, of several runs the least, the first not counted."""
    clock, found = time.perf_counter if device.type == "cuda" else time.process_time, []
    for _ in range(runs + 1):
        start = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(clock() - start)
    return min(found[1:])


@torch.inference_mode()
def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    device, int8 = torch.device(options.device), options.dtype == "int8"
    dtype = torch.float32 if int8 else getattr(torch, options.dtype)
    config = read_config(folder)
    layout = read_layout(folder, config)
    family, quantizers = layout.family, layout.quantizers
    before, frames = options.prompt // quantizers, options.tokens // quantizers
    known = torch.randint(CODEBOOK_SIZE, (quantizers, before), generator=torch.Generator().manual_seed(0))

    if int8:
        ours = load_int8(folder, config, layout, native.required("--dtype int8"))
    else:
        ours = load_decoder(folder, config, layout, device, dtype)
        ours.pack()
    numbers = Noise(0, 0, 0).numbers(1, before, frames, 0, quantizers)
    wanted = item(ours, torch.cat([known, known.new_full((quantizers, frames), -1)], 1), numbers)
    sampling = StageSampling(family.temperature, family.top_k, family.top_p)

    theirs = transformers().AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(device)
    flat = torch.from_numpy(layout.codes)[torch.arange(quantizers)[:, None], known].T.reshape(-1)
    prompt = torch.cat([torch.tensor(layout.header), flat])[None].to(device)
    how = {"do_sample": True, "temperature": family.temperature, "top_k": family.top_k, "top_p": family.top_p}
    how |= {"max_new_tokens": frames * quantizers, "min_new_tokens": frames * quantizers, "pad_token_id": 0}

    seconds = {
        "audiolm": least(lambda: engine.generate(ours, [wanted], sampling, 1), device, options.runs),
        "transformers": least(lambda: theirs.generate(prompt, **how), device, options.runs),
    }
    made = frames / FRAME_RATE
    return {
        "weights": config.parameters,
        "tokens": frames * quantizers,
        **{f"{name}_real_time_factor": value / made for name, value in seconds.items()},
        **{f"{name}_tokens_per_second": frames * quantizers / value for name, value in seconds.items()},
        "ratio": seconds["transformers"] / seconds["audiolm"],
        "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="soda-135m", help=f"of {', '.join(SIZES)}, separated by commas")
    parser.add_argument("--folder", type=Path, help="a downloaded checkpoint instead")
    parser.add_argument("--tokens", type=int, default=80, help="new ones")
    parser.add_argument("--prompt", type=int, default=80, help="tokens before them")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="with int8 transformers has float32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers().utils.logging.set_verbosity_error()
    transformers().utils.logging.disable_progress_bar()
    found = {}
    for name in [str(options.folder)] if options.folder else options.sizes.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            if not options.folder:
                write(Path(temporary), name, torch.bfloat16)
            found[name] = measured(options.folder or Path(temporary), options)
        print(name, ", ".join(f"{key} {value:.4g}" for key, value in found[name].items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
