"""Tiny random models of many architectures: a base and fine-tunes of it, saved once per session."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.sources.checkpoints import Checkpoint
from evomerge.merging.sources.source import Source
from tests.merging.tiny import TINY

HEADS = {"head_dim": 8}

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**TINY),
    "llama_tied": lambda: LlamaConfig(**TINY, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**TINY),
    "qwen3": lambda: Qwen3Config(**TINY, **HEADS, use_sliding_window=True, sliding_window=3, max_window_layers=2),
    "mistral": lambda: MistralConfig(**TINY, **HEADS),
    "gemma": lambda: GemmaConfig(**TINY, **HEADS),
    "gemma2": lambda: Gemma2Config(**TINY, **HEADS, sliding_window=3, query_pre_attn_scalar=8),
    "gemma3": lambda: Gemma3TextConfig(
        **TINY,
        **HEADS,
        sliding_window=3,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**{key: value for key, value in TINY.items() if key != "num_key_value_heads"}),
    "gpt2": lambda: GPT2Config(
        n_embd=32, n_layer=4, n_head=4, vocab_size=64, n_positions=32, bos_token_id=1, eos_token_id=2
    ),
}
FAMILIES = tuple(CONFIGS)


@dataclass(frozen=True)
class Family:
    """A base and its fine-tunes on disk, opened."""

    name: str
    references: tuple[str, ...]
    checkpoints: dict[str, Source]

    @property
    def base(self) -> str:
        return self.references[0]

    @property
    def layers(self) -> int:
        return self.checkpoints[self.base].layout.num_layers

    def engine(self, **options: object) -> MergeEngine:
        return MergeEngine(self.checkpoints, base=self.base, **options)  # type: ignore[arg-type]

    def tensors(self, index: int) -> dict[str, torch.Tensor]:
        """One model's weights, read by transformers."""
        return parameters_of(load(self.references[index]))


def load(path: str | Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto")


def parameters_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.data for name, parameter in module.named_parameters()}


def in_float32(base: str | Path, folder: Path) -> str:
    """Copy a model that is stored in one file, with its weights in float32; return the folder's name."""
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: values.float() for name, values in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return str(folder)


def save_models(
    folder: Path, config: PretrainedConfig, count: int, *, dtype: torch.dtype = torch.bfloat16
) -> tuple[str, ...]:
    """Save a random base and fine-tunes of it; the deltas are small beside the weights."""
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    base = {name: parameter.data.clone() for name, parameter in module.named_parameters()}
    paths = []
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.01
            # norms and biases start at exact ones and zeros: move the base as well
            parameter.data.copy_(base[name] + (noise if index else noise * 5))
        if index == 0:
            base = {name: parameter.data.clone() for name, parameter in module.named_parameters()}
        path = folder / ("base" if index == 0 else f"expert{index}")
        module.to(dtype).save_pretrained(path)
        module.to(torch.float32)
        paths.append(str(path))
    return tuple(paths)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text in the zoo's languages, to calibrate on."""
    path = tmp_path / "text.txt"
    path.write_text("sort nul unu du = nul unu du\nreverse one two three = three two one\n" * 40, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def zoo() -> dict[str, Source]:
    """The zoo's base and two experts, opened, by reference."""
    folder = Path(__file__).parents[2] / "experiments" / "zoo" / "models"
    return {str(folder / name): Checkpoint.open(str(folder / name)) for name in ("base", "ops", "ja")}


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """Give the family of a name, built at first use."""
    built: dict[str, Family] = {}

    def get(name: str) -> Family:
        if name not in built:
            with contextlib.redirect_stderr(None):
                references = save_models(tmp_path_factory.mktemp(name), CONFIGS[name](), 3)
            built[name] = Family(name, references, {path: Checkpoint.open(path) for path in references})
        return built[name]

    return get


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, families: Callable[[str], Family]) -> Family:
    """Every architecture in turn."""
    return families(request.param)


@pytest.fixture
def llama(families: Callable[[str], Family]) -> Family:
    """One untied architecture, where one is enough."""
    return families("llama")


@pytest.fixture
def read() -> Callable[[str | Path], dict[str, torch.Tensor]]:
    """Read a checkpoint's parameters with transformers."""
    return lambda path: parameters_of(load(path))


@pytest.fixture(scope="session")
def make_models() -> Callable[..., tuple[str, ...]]:
    """Save a base and fine-tunes of a configuration: ``make_models(folder, config, count)``."""
    return save_models


@pytest.fixture(scope="session")
def configs() -> dict[str, Callable[[], PretrainedConfig]]:
    """Configurations by family name."""
    return CONFIGS


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., tuple[Path, dict[str, torch.Tensor]]]:
    """Save a random adapter that peft makes; return its folder and the weights that peft's own merge gives.

    ``make_adapter(base, folder, seed=0, stored=dtype of the adapter, **LoraConfig)``. The merge is mergekit's: the base
    is loaded in its own dtype.
    """

    def make(
        base: str, folder: Path, *, seed: int = 0, stored: torch.dtype = torch.float32, **settings: object
    ) -> tuple[Path, dict[str, torch.Tensor]]:
        import peft

        module = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = peft.get_peft_model(module, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:  # the second matrix starts at zero: move all that would be trained
                parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        model.save_pretrained(folder)
        weights = load_file(folder / "adapter_model.safetensors")
        own = {name: values if ".base_layer." in name else values.to(stored) for name, values in weights.items()}
        save_file(own, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=None), str(folder))
        return folder, {name: values.clone() for name, values in parameters_of(loaded.merge_and_unload()).items()}

    return make
