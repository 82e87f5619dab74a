"""A model's answers from vLLM: the same requests and the same scores as from the model itself.

Prompts, tokens, stop strings and metrics are this process's own. vLLM gets tokens, returns log-likelihoods and new
tokens, and reads merged weights from memory. Log-likelihoods are computed in float32 from the engine's logits; of
equally likely tokens the first of the vocabulary counts as the most likely one, as far as vLLM names it.

An engine that dies is started again and the question is asked once more; a second death is the candidate's failure.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from fitness.results import EngineUnavailable, TaskError
from fitness.scoring.ends import Ends, by_setting, end_tokens, greedy_settings, room_for_prompt
from fitness.scoring.engine_config import VllmEngine
from fitness.scoring.loglikelihood import HALF_TOLERANCE, LoglikelihoodPlan, Pair, model_input
from fitness.tasks.lm_eval_rules import RightTexts
from fitness.vllm.environment import versions
from fitness.vllm.memory import READ_AT_ONCE, Memory, head_size, memory
from fitness.vllm.process import EngineDied, EngineError, EngineProcess, Tensors

TOLERANCE = (5e-3, 1e-4)
"""Largest difference from the model's own log-likelihoods in float32: absolute in nats, relative."""
HEAD_SIZES = (32, 64, 72, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of attention heads that vLLM 0.32 computes, on one device or another."""
STARTS = 2
"""Times that an engine is started for one question."""

log = logging.getLogger("evomerge")
T = TypeVar("T")
Launch = Callable[[str, Mapping[str, Any], Mapping[str, str]], EngineProcess]


@dataclass(frozen=True)
class EnginePlace:
    """Where an engine runs.

    Attributes
    ----------
    device
        The torch device of the merged model.
    gpus
        GPUs of the engine: it splits the model among them.
    threads
        CPU threads; None: as many as there are.
    free
        Returns the bytes that are free there, of each GPU or of the host's memory.
    """

    device: str
    gpus: int
    threads: int | None
    free: Callable[[], int]


class VllmAnswers:
    """Plans requests for vLLM, and keeps an engine that has the weights of the last model.

    Parameters
    ----------
    engine
        The settings.
    place
        Where it runs.
    launch
        Starts an engine; another one in tests.
    """

    def __init__(self, engine: VllmEngine, place: EnginePlace, launch: Launch = EngineProcess) -> None:
        self._engine, self._place, self._launch = engine, place, launch
        self._longest = self._sequences = 1
        self._sample: Sequence[Pair] = ()
        self._process: EngineProcess | None = None
        self._key: tuple[object, ...] = ()
        self._memory: Memory | None = None
        self._has_weights = False
        self._checked: set[str] = set()
        self._model: Any = None

    # --- planning ---

    def loglikelihoods(
        self, pairs: Sequence[Pair], *, max_length: int, batch_size: int, device: str
    ) -> VllmLoglikelihoods:
        """Return a plan for log-likelihoods."""
        plan = VllmLoglikelihoods(self, pairs, max_length)
        self._plan_for(plan.longest, batch_size)
        return plan

    def generations(
        self,
        prompts: Sequence[tuple[int, ...]],
        settings: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        *,
        max_length: int,
        batch_size: int,
        device: str,
        right: Sequence[RightTexts | None] = (),
    ) -> VllmGenerations:
        """Return a plan for texts."""
        plan = VllmGenerations(self, prompts, settings, tokenizer, max_length, right)
        self._plan_for(plan.longest, batch_size)
        return plan

    def _plan_for(self, longest: int, sequences: int) -> None:
        self._longest = max(self._longest, longest)
        self._sequences = sequences

    # --- the model ---

    def prepare(self, model: Any, sample: Sequence[Pair]) -> None:
        """Start the engine, and compare its answers to a few requests with the model's own.

        Raises
        ------
        EngineError
            vLLM does not know the model, or answers otherwise than the model itself.
        TaskError
            There is too little memory, or vLLM is missing.
        """
        self._sample = sample
        self.taken(model)

    def taken(self, model: Any) -> Any:
        """Hand the model's weights to the engine; start another one where the model or the requests need it.

        Returns
        -------
        torch.nn.Module
            The model, whose config and generation settings the plans read.

        Raises
        ------
        EngineError
            See `prepare`; or vLLM does not take the weights.
        """
        self._model, self._has_weights = model.eval(), False
        config = model.config.to_json_string(use_diff=False)
        self._tried(lambda process: None)  # which hands the weights over
        if config not in self._checked:
            self._check(model)
            self._checked.add(config)
        return model

    def ask(self, question: Callable[[EngineProcess], T]) -> tuple[T, float]:
        """Return what the engine answers, and the seconds; it is asked once more where it dies meanwhile.

        Raises
        ------
        EngineError
            It died again.
        """
        started = time.perf_counter()
        return self._tried(question), time.perf_counter() - started

    def _tried(self, question: Callable[[EngineProcess], T]) -> T:
        """Return the answer of an engine that has the model's weights; raises as `ask` and `taken` do."""
        for attempt in range(1, STARTS + 1):
            try:
                process = self._running()
                if not self._has_weights:
                    self._load(process)
                return question(process)
            except EngineDied as death:
                started = self._process is not None
                self.close()
                if attempt == STARTS and started:
                    raise EngineError(f"{death}, {STARTS} times in a row") from None
                if attempt == STARTS:
                    raise EngineUnavailable(f"vLLM does not start: {death}; fix that, then resume the run") from None
                log.warning("%s; another one is started", death)
        raise AssertionError("unreachable")

    def _load(self, process: EngineProcess) -> None:
        try:
            process.load(stored_tensors(self._model))
        except (EngineError, MemoryError):
            self.close()  # it has parts of two models
            raise
        self._has_weights = True

    def _running(self) -> EngineProcess:
        """Return an engine for the model's config and for the planned requests; one that runs, if it fits."""
        config = self._model.config.to_json_string(use_diff=False)
        length = 0 if self._memory is None else self._memory.length
        if self._process is not None and self._key == (config, self._sequences) and self._longest < length:
            return self._process
        self.close()
        engine = self._engine
        versions(engine)  # vLLM is still there
        self._memory = found = self._needed(self._model)
        settings = {
            "dtype": _dtype(self._model),
            "max_model_len": found.length,
            "max_num_seqs": found.sequences,
            "max_num_batched_tokens": max(READ_AT_ONCE, found.length),
            "kv_cache_memory_bytes": found.kv,
            "tensor_parallel_size": self._place.gpus,
            "enforce_eager": not engine.compiled or self._place.device == "cpu",
        }
        if self._place.device != "cpu":
            settings["gpu_memory_utilization"] = 0.05  # no more than a check: the line above decides
        with tempfile.TemporaryDirectory(prefix="evomerge-vllm-") as folder:
            _save_config(self._model, folder)
            python = engine.python or sys.executable
            self._process = self._launch(python, settings | {"model": folder}, self._variables())
        self._key = config, self._sequences
        return self._process

    def _needed(self, model: Any) -> Memory:
        size = head_size(model.config.get_text_config())
        if size not in HEAD_SIZES:
            raise TaskError(
                f"fitness.engine: vLLM has no attention for heads of size {size}, only for "
                f"{', '.join(map(str, HEAD_SIZES))}; write fitness.engine: transformers"
            )
        return memory(
            model,
            self._longest,
            self._sequences,
            itemsize=model.dtype.itemsize,
            gpus=self._place.gpus,
            free=self._place.free(),
            wanted=self._engine.kv_memory,
        )

    def _variables(self) -> dict[str, str]:
        found = {"VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING")}
        if self._place.threads is not None:
            found["OMP_NUM_THREADS"] = str(self._place.threads)
        device = torch.device(self._place.device)
        if device.index:  # vLLM takes the first that it sees
            seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            found["CUDA_VISIBLE_DEVICES"] = seen[device.index] if seen[0] else str(device.index)
        return found

    def _check(self, model: Any) -> None:
        """Refuse an engine whose log-likelihoods are not the model's: weights that it has not read, another formula."""
        if not self._sample:
            return
        limit = max(len(one) + len(other) for one, other in self._sample)
        settings: dict[str, Any] = {"max_length": limit, "batch_size": len(self._sample)}
        own = LoglikelihoodPlan(self._sample, **settings, device=str(model.device)).run(model)[0]
        theirs = VllmLoglikelihoods(self, self._sample, limit).run(model)[0]
        absolute, relative = TOLERANCE if model.dtype == torch.float32 else HALF_TOLERANCE
        if not np.allclose(theirs, own, atol=absolute, rtol=relative):
            worst = int(np.abs(theirs - own).argmax())
            self.close()
            raise EngineError(
                f"fitness.engine: vLLM's log-likelihood of a request is {theirs[worst]:.4f} and the model's own is "
                f"{own[worst]:.4f}, so it computes another model; write fitness.engine: transformers"
            )

    # --- for people, and the end ---

    def describe(self) -> list[str]:
        """Return what `evomerge plan` says, once the engine is prepared."""
        found = self._memory
        assert found is not None
        where = f"on each of {self._place.gpus} GPUs" if self._place.gpus > 1 else f"on {self._place.device}"
        gib = 2**30
        return [
            f"vLLM {versions(self._engine)['vllm']} answers in {_dtype(self._model)}, {where}: weights "
            f"{found.weights / gib:.2f} GiB beside the merged model, {found.kv / gib:.2f} GiB for keys and values of "
            f"up to {found.sequences} sequences of {found.length} tokens, {found.logits / gib:.2f} GiB for logits",
            "merged weights go to it through memory; a recipe with layers in another order or number, and longer "
            "prompts, start another engine, which takes as long as the first",
        ]

    def close(self) -> None:
        """End the engine."""
        process, self._process, self._has_weights = self._process, None, False
        if process is not None:
            process.close()


class VllmLoglikelihoods:
    """Requests for log-likelihoods, each distinct one once.

    Parameters
    ----------
    answers
        Whom to ask.
    pairs, max_length
        As for `LoglikelihoodPlan`.
    """

    def __init__(self, answers: VllmAnswers, pairs: Sequence[Pair], max_length: int) -> None:
        self._answers = answers
        distinct: dict[tuple[tuple[int, ...], int, int], int] = {}
        self._place = []
        for pair in pairs:
            tokens, count = model_input(pair, max_length), len(pair[1])
            key = tokens, len(tokens) + 1 - count, pair[1][-1]
            self._place.append(distinct.setdefault(key, len(distinct)))
        ordered = sorted(distinct, key=lambda key: key[0])  # requests with one beginning come together
        rank = {key: at for at, key in enumerate(ordered)}
        place = [rank[key] for key in distinct]
        self._place = [place[at] for at in self._place]
        self._inputs = [tokens for tokens, _, _ in ordered]
        self._first = [first for _, first, _ in ordered]
        self._last = [last for _, _, last in ordered]
        self.longest = max((len(tokens) + 1 for tokens in self._inputs), default=1)

    def run(self, model: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], float]:
        """Return log-likelihoods float64[R], greedy bool[R], and seconds; ValueError for NaN."""
        if not self._inputs:
            return np.zeros(0), np.zeros(0, np.bool_), 0.0
        (total, greedy), seconds = self._answers.ask(
            lambda process: process.score(self._inputs, self._first, self._last)
        )
        if np.isnan(total).any():
            raise ValueError("the model produced NaN instead of log-likelihoods: its weights are not usable")
        return total[self._place], greedy[self._place], seconds


@dataclass(frozen=True)
class _Group:
    """Requests with the same settings: their numbers, prompts, most new tokens, and stop strings."""

    requests: list[int]
    prompts: list[tuple[int, ...]]
    limit: int
    stop: tuple[str, ...]


class VllmGenerations:
    """Requests for texts; all that share their settings run at once, and vLLM refills its batch.

    Parameters
    ----------
    answers
        Whom to ask.
    prompts, settings, tokenizer, max_length, right
        As for `GenerationPlan`.

    Raises
    ------
    TaskError
        An answer leaves no room for a prompt, or a task wants more than greedy decoding.
    """

    def __init__(
        self,
        answers: VllmAnswers,
        prompts: Sequence[tuple[int, ...]],
        settings: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        max_length: int,
        right: Sequence[RightTexts | None] = (),
    ) -> None:
        self._answers, self._tokenizer, self._size, self._right = answers, tokenizer, len(prompts), right
        self._groups = []
        for requests in by_setting(settings):
            limit, stop, extra = greedy_settings(settings[requests[0]], tokenizer)
            if extra:
                raise TaskError(
                    f"a task sets {', '.join(sorted(extra))} in its generation_kwargs, which vLLM is not asked for; "
                    "remove it there, or write fitness.engine: transformers"
                )
            room = room_for_prompt(limit, max_length)
            ordered = sorted(requests, key=lambda request: prompts[request])
            self._groups.append(_Group(ordered, [prompts[request][-room:] for request in ordered], limit, stop))
        self.longest = max((len(prompt) + group.limit for group in self._groups for prompt in group.prompts), default=1)

    def run(self, model: Any, *, whole: bool = True) -> tuple[list[str], float, list[int]]:
        """Return texts, seconds, and the truncated requests; see `GenerationPlan.run`."""
        texts, truncated, seconds = [""] * self._size, [], 0.0
        eos = end_tokens(model, self._tokenizer)
        for group in self._groups:
            ends, took = self._answers.ask(partial(self._generate, group, eos, whole))
            seconds += took
            for row, request in enumerate(group.requests):
                texts[request], is_truncated = ends.text(row)
                if is_truncated:
                    truncated.append(request)
        return texts, seconds, truncated

    def _generate(self, group: _Group, eos: frozenset[int], whole: bool, process: EngineProcess) -> Ends:
        right = [] if whole or not self._right else [self._right[request] for request in group.requests]
        ends = Ends(self._tokenizer, len(group.requests), group.limit, group.stop, eos, right)
        over: set[int] = set()

        def listen(new: Sequence[tuple[int, list[int]]]) -> list[int]:
            done = []
            for row, tokens in new:
                for token in tokens:
                    if row not in over and ends.done(row, token):
                        over.add(row)
                        done.append(row)
            return [row for row in done if len(ends.rows[row]) < group.limit and ends.rows[row][-1] not in eos]

        process.generate(group.prompts, [group.limit] * len(group.prompts), sorted(eos), listen)
        return ends


def stored_tensors(model: Any) -> Tensors:
    """Return a model's parameters by the names that they have in its checkpoint: fused experts one by one.

    Tied ones are there under each of their names (`_save_config`).
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # a release of transformers 5 without conversions
        return list(own.items())
    return list(revert_weight_conversion(model, dict(own)).items())


def _save_config(model: Any, folder: str) -> None:
    """Write the config from which vLLM builds its own model.

    Embeddings and head are never tied there: `reload_weights` of vLLM 0.32 leaves a tied head as it was on a CPU, where
    it has a packed copy of its own.
    """
    config = deepcopy(model.config)
    config.architectures = [type(model).__name__]
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = False
    config.save_pretrained(folder)


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")
