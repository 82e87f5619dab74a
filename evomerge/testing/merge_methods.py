"""The conformance suite of merge methods: subclass it and name a method.

::

    from evomerge.testing.merge_methods import MergeMethodSuite, coefficients

    class TestMine(MergeMethodSuite):
        method = "mine"
        parameters = coefficients(weight=[0.4, 0.7, 0.2])
        one_model = coefficients(weight=1.0)

pytest then runs the suite on small random tensors of several shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import DataObject, booleans, data, floats, integers, lists, sampled_from
from torch import Tensor

from evomerge.merging.engine.tensor_merge import StepwiseMerge, TensorMerge
from evomerge.merging.engine.tensor_slopes import TensorSlopes
from evomerge.merging.methods import implementation
from evomerge.merging.methods.blocks import CPU_BLOCK, Scratch, TensorInfo
from evomerge.merging.methods.registry import MergeMethod, SourceGroup, SourceModel, SourceTensor
from evomerge.merging.methods.slopes import STEP
from search_spaces.recipes.method_spec import MethodSpec, Parameter
from search_spaces.recipes.resolve import Contribution, TensorPlan
from search_spaces.spaces.derivatives import LAYER_SCALE, Coefficient, coefficients_of

BEND = 16.0  # entries over which a loss bends: elections jump by a few tenths, where a derivative sees a straight line
SLACK = 1 << 15  # bytes of scalars and of values per row, beside state per entry

TENSORS = {
    "matrix": TensorInfo((12, 20)),
    "tall matrix": TensorInfo((31, 7)),
    "vector": TensorInfo((37,)),
    "embeddings": TensorInfo((24, 8), by_token=True),
    "stack of matrices": TensorInfo((3, 6, 8)),
}


def merge_tensors(
    method: str,
    base: Tensor | None,
    models: Sequence[Tensor],
    *,
    seed: int = 0,
    block: int = CPU_BLOCK,
    out_dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    by_token: bool = False,
    name: str = "tensor",
    **parameters: Any,
) -> Tensor:
    """Merge bare tensors of any one shape with a registered method.

    Parameters
    ----------
    method
        Its name.
    base, models
        The sources; without a base None.
    seed, block, out_dtype
        The recipe's seed, entries per block, dtype of the result.
    compiled
        Whether to use the compiled kernels where they can do it.
    by_token
        Whether the tensor is an embedding or the output projection.
    name
        The tensor's, which random masks depend on.
    parameters
        By the method's names (``lambda_`` for ``lambda``); a list is a value per model, one value is all models'.
        Those left out have their defaults. With `activation_informed`, activations rise evenly from the first column
        to the last; statistics that the method asks for are `made_up`.
    """
    merge = Merge(method, base, models, seed=seed, by_token=by_token, name=name)
    return merge.run(block=block, out_dtype=out_dtype, compiled=compiled, **parameters)


class Merge:
    """One method prepared for one tensor; run it with any coefficients."""

    def __init__(
        self,
        method: str,
        base: Tensor | None,
        models: Sequence[Tensor],
        *,
        seed: int = 0,
        by_token: bool = False,
        name: str = "tensor",
    ) -> None:
        self.method: MergeMethod = implementation(method)
        self._shape = models[0].shape
        self._info = TensorInfo(tuple(self._shape), by_token=by_token)
        self._base = None if base is None else base.reshape(-1)
        self._models = [values.reshape(-1) for values in models]
        self._prepared, self._shared = [], None
        with torch.inference_mode():
            if self.method.prepare is not None:
                self._prepared = [self.method.prepare(self._source(name, values, seed)) for values in self._models]
            if self.method.prepare_all is not None:
                self._shared = self.method.prepare_all(
                    SourceGroup(tuple(self._models), self._base, self._info, tuple(map(self._statistics, self._models)))
                )

    def _source(self, name: str, values: Tensor, seed: int) -> SourceTensor:
        """Return a tensor that is the whole of its model."""
        model = SourceModel(lambda: iter([(values, self._base)]))
        return SourceTensor(name, values, self._base, seed, self._info, model, self._statistics(values))

    def _statistics(self, values: Tensor) -> dict[str, Tensor]:
        """Return what the method's spec names, made up from a model's values."""
        found = {name: made_up(name.rpartition(".")[2], values, self._info) for name in self.method.spec.statistics}
        return {name: statistic for name, statistic in found.items() if statistic is not None}

    def run(
        self,
        *,
        block: int = CPU_BLOCK,
        out_dtype: torch.dtype = torch.float32,
        compiled: bool = False,
        **parameters: Any,
    ) -> Tensor:
        """Return the merged tensor."""
        device = self._models[0].device
        out = torch.full((self._models[0].numel(),), float("nan"), dtype=out_dtype, device=device)
        merge = self._merge_into(out, parameters)
        plan, scratch = _plan(self.method.spec, len(self._models), parameters), Scratch(device, block)
        with torch.inference_mode():
            for unit in merge.units(plan, out_dtype, compiled=compiled):
                unit(scratch)
        return out.reshape(self._shape)

    def steps(self, dtype: torch.dtype, **parameters: Any) -> Tensor:
        """Return the merged tensor as mergekit's steps make it in that dtype."""
        out = torch.full((self._models[0].numel(),), float("nan"), dtype=dtype, device=self._models[0].device)
        merge = StepwiseMerge(
            self.method,
            out,
            base=self._base,
            models=self._models,
            shape=tuple(self._shape),
            dtype=dtype,
            prepared=self._prepared if self.method.spec.stochastic else (),
        )
        with torch.inference_mode():
            for unit in merge.units(_plan(self.method.spec, len(self._models), parameters), dtype):
                unit(Scratch(out.device))
        return out.reshape(self._shape)

    def slopes(self, gradient: Tensor, *, block: int = CPU_BLOCK, **parameters: Any) -> dict[Coefficient, float]:
        """Return the derivatives of a loss by all coefficients that have some, from its gradient by the result."""
        plan = _plan(self.method.spec, len(self._models), parameters)
        wanted = [each for each in coefficients_of(plan) if each.parameter != LAYER_SCALE]
        merge = self._merge_into(torch.empty_like(gradient.reshape(-1)), parameters)
        slopes = TensorSlopes(merge, plan, wanted, gradient.reshape(-1))
        scratch = Scratch(gradient.device, block)
        with torch.inference_mode():
            for unit in slopes.units():
                unit(scratch)
        return dict(zip(wanted, slopes.total(), strict=True))

    def _merge_into(self, target: Tensor, parameters: Mapping[str, Any]) -> TensorMerge:
        informed = "activation_informed" in parameters
        return TensorMerge(
            self.method,
            target,
            base=self._base,
            models=self._models,
            info=self._info,
            prepared=self._prepared,
            shared=self._shared,
            activation=_activation(self._info).to(target.device) if informed else None,
        )

    @property
    def state(self) -> tuple[list[Any], Any]:
        """All prepared state."""
        return self._prepared, self._shared


def made_up(kind: str, values: Tensor, info: TensorInfo) -> Tensor | None:
    """Return a statistic that follows from a tensor's values alone; None where models have none of it.

    Parameters
    ----------
    kind
        Its name. A ``gram`` is that of the tensor's own rows, an ``output_gram`` that of its columns. ``loss`` and
        others of a whole model or layer are the mean size, ``energies`` mean squares by column, and ``push`` is minus
        the size. Of other kinds an entry has its squared value, bfloat16.
    values, info
        The tensor, flat.
    """
    if kind.endswith("gram"):
        if not info.is_matrix:
            return None
        rows = values.float().view(info.shape)
        rows = rows.T if kind == "output_gram" else rows
        return rows.T @ rows / len(rows)
    if kind in ("loss", "layer_sensitivity", "disagreement"):
        return values.float().abs().mean()[None]
    if kind == "energies":
        return values.float().view(-1, info.row).square().mean(0)
    if kind == "push":
        return -values.float().abs().bfloat16()
    return values.float().square().bfloat16()


def _activation(info: TensorInfo) -> Tensor:
    """Return a share of the largest activation for each column, float32[N], from 0 to 1."""
    return torch.linspace(0.0, 1.0, info.row)


def _plan(spec: MethodSpec, count: int, parameters: Mapping[str, Any]) -> TensorPlan:
    values: dict[str, Any] = {p.name: p.default for p in spec.parameters if p.default is not None}
    values |= {key.rstrip("_"): value for key, value in parameters.items()}
    unknown = set(values) - {p.name for p in spec.parameters}
    if unknown:
        raise ValueError(f"{spec.name} has no parameter '{min(unknown)}'; use those of its function")

    def of_model(index: int) -> dict[str, Any]:
        own = {p.name: values[p.name] for p in spec.per_model if p.name in values}
        return {name: value[index] if isinstance(value, list) else value for name, value in own.items()}

    contributions = tuple(Contribution(f"model{index}", "tensor", of_model(index)) for index in range(count))
    shared = {p.name: values[p.name] for p in spec.shared if p.name in values}
    return TensorPlan("tensor", spec.name, contributions, None, shared)


def coefficients(**values: Any) -> Mapping[str, Any]:
    """Return coefficients for a suite: by the method's names, a list for a value per model."""
    return MappingProxyType(values)


class MergeMethodSuite:
    """Tests that every merge method passes; subclass it as ``Test...`` and name the method.

    Attributes
    ----------
    method
        Its name.
    parameters
        Some ordinary coefficients; a list holds a value per model, for as many models as the suite merges.
    others
        Further coefficients, to see that one `prepare` serves all: they must give another linear map.
    one_model
        Coefficients with which a single model (with `min_models` 2: two copies of it) comes back unchanged;
        None when there are none.
    models
        How many models are merged.
    ordered
        Whether the order of the models matters.
    needs_more_tensors
        Parameters that change nothing in a model of one tensor, as the suite's are; test them elsewhere.
    tolerance
        Absolute and relative error that rounding may cause, float32.
    """

    method: ClassVar[str]
    parameters: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    others: ClassVar[Mapping[str, Any] | None] = None
    one_model: ClassVar[Mapping[str, Any] | None] = MappingProxyType({})
    models: ClassVar[int] = 3
    ordered: ClassVar[bool] = False
    needs_more_tensors: ClassVar[frozenset[str]] = frozenset()
    tolerance: ClassVar[float] = 2e-6

    @property
    def spec(self) -> MethodSpec:
        """The method's spec."""
        return implementation(self.method).spec

    @pytest.fixture(params=["matrix", "vector"])
    def info(self, request: pytest.FixtureRequest) -> TensorInfo:
        """A linear map and another tensor."""
        return TENSORS[request.param]

    @staticmethod
    def tensors(info: TensorInfo, count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Return a base and models near it, as fine-tunes are."""
        generator = torch.Generator().manual_seed(len(info.shape) * 1000 + info.shape[0])
        base = torch.randn(info.shape, generator=generator)
        deltas = [torch.randn(info.shape, generator=generator) * 0.1 for _ in range(count)]
        return [base.to(dtype), *((base + delta).to(dtype) for delta in deltas)]

    def sources(self, info: TensorInfo, dtype: torch.dtype = torch.float32) -> tuple[Tensor | None, list[Tensor]]:
        """Return a base, None for methods without, and the models."""
        base, *models = self.tensors(info, self.models, dtype)
        return (None if self.spec.base == "none" else base), models

    def run(self, base: Tensor | None, models: Sequence[Tensor], info: TensorInfo, **options: Any) -> Tensor:
        """Merge with the suite's coefficients, unless `options` give others."""
        return merge_tensors(self.method, base, models, by_token=info.by_token, **{**self.parameters, **options})

    def close(self, found: Tensor, expected: Tensor, place: str = "") -> None:
        """Compare up to rounding."""
        torch.testing.assert_close(
            found, expected, rtol=self.tolerance, atol=self.tolerance, msg=lambda text: f"{place}: {text}"
        )

    def test_one_model_gives_that_model(self) -> None:
        """With weight 1 and nothing dropped, on tensors of every shape and role."""
        if self.one_model is None:
            pytest.skip("no coefficients of this method leave a model as it is")
        for name, info in TENSORS.items():
            base, model = self.tensors(info, 1)
            models = [model] * max(1, self.spec.min_models)
            merged_base = None if self.spec.base == "none" else base
            found = merge_tensors(self.method, merged_base, models, by_token=info.by_token, **self.one_model)
            self.close(found, model, name)

    def test_zero_deltas_give_the_base(self) -> None:
        """Whatever the coefficients, on tensors of every shape and role."""
        if self.spec.base == "none":
            pytest.skip("the method knows no base")
        for name, info in TENSORS.items():
            base, *_ = self.tensors(info, 0)
            self.close(self.run(base, [base] * self.models, info), base, name)

    def test_order_of_models(self, info: TensorInfo) -> None:
        """Models and their coefficients reversed together change nothing, or something if order matters."""
        if self.models == 1:
            pytest.skip("one model has no order")
        base, models = self.sources(info)
        reversed_ = {name: value[::-1] if isinstance(value, list) else value for name, value in self.parameters.items()}
        found = self.run(base, models[::-1], info, **reversed_)
        expected = self.run(base, models, info)
        if self.ordered:
            assert not torch.allclose(found, expected)
        else:
            self.close(found, expected)

    def test_half_precision_is_rounded_to_once(self, info: TensorInfo) -> None:
        """Merged in float32, as float32 sources of equal values are, and rounded at the end; the device is kept."""
        for dtype in (torch.bfloat16, torch.float16):
            base, models = self.sources(info, dtype)
            found = self.run(base, models, info, out_dtype=dtype)
            assert found.dtype == dtype
            assert found.device == models[0].device
            assert torch.equal(found, self.run(base, models, info).to(dtype))
            if not self.spec.stochastic:  # masks are drawn from the stored bytes
                wide = self.run(None if base is None else base.float(), [model.float() for model in models], info)
                assert torch.equal(found, wide.to(dtype))

    def test_inputs_stay_as_they_are(self, info: TensorInfo) -> None:
        """Sources are memory-mapped files."""
        base, models = self.sources(info)
        sources = [values for values in (base, *models) if values is not None]
        before = [values.clone() for values in sources]
        self.run(base, models, info)
        assert all(torch.equal(a, b) for a, b in zip(before, sources, strict=True))

    def test_seed_decides(self, info: TensorInfo) -> None:
        """Equal seeds, equal weights; another seed counts for stochastic methods only."""
        base, models = self.sources(info)
        first, again, other = (self.run(base, models, info, seed=seed) for seed in (3, 3, 4))
        assert torch.equal(first, again)
        assert torch.equal(first, other) != self.spec.stochastic

    @pytest.mark.parametrize("tensor", TENSORS)
    def test_blockwise_equals_whole(self, tensor: str) -> None:
        """However the tensor is split, whatever its shape, role and dtype."""
        info = TENSORS[tensor]
        for dtype in (torch.float32, torch.bfloat16):
            base, models = self.sources(info, dtype)
            expected = self.run(base, models, info, out_dtype=dtype)
            for block in (1, 7, 64):
                assert torch.equal(self.run(base, models, info, out_dtype=dtype, block=block), expected), (dtype, block)

    def test_compiled_kernels_change_nothing(self, info: TensorInfo) -> None:
        """One compiled pass gives what torch gives step by step."""
        pytest.importorskip("numba")
        from evomerge.merging.engine.kernels import OWN

        if not implementation(self.method).gives_formula and self.method not in OWN:
            pytest.skip("no kernel computes the method")
        base, models = self.sources(info, torch.bfloat16)
        expected = self.run(base, models, info, out_dtype=torch.bfloat16)
        assert torch.equal(self.run(base, models, info, out_dtype=torch.bfloat16, compiled=True), expected)

    @pytest.mark.parametrize("tensor", TENSORS)
    def test_steps_compute_the_same(self, tensor: str) -> None:
        """What a recipe's `dtype` has done in mergekit's order of steps, here in float64, is the method."""
        if implementation(self.method).stepwise is None:
            pytest.skip("mergekit does not have the method")
        info = TENSORS[tensor]
        base, models = self.sources(info)
        merge = Merge(self.method, base, models, by_token=info.by_token)
        theirs = {parameter.name for parameter in self.spec.parameters if not parameter.extension}
        values = {name: value for name, value in self.parameters.items() if name.rstrip("_") in theirs}
        found = merge.steps(torch.float64, **values)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found.float(), merge.run(**values), rtol=2e-5, atol=2e-5)

    def test_prepared_once_serves_all_coefficients(self, info: TensorInfo) -> None:
        """Prepare once and apply twice gives what preparing for each gives; the first call leaves no trace."""
        base, models = self.sources(info)
        merge = Merge(self.method, base, models, by_token=info.by_token)
        expected = self.run(base, models, info)
        assert torch.equal(merge.run(**self.parameters), expected)
        if self.others is not None:
            found = merge.run(**self.others)
            assert torch.equal(found, merge_tensors(self.method, base, models, by_token=info.by_token, **self.others))
            assert not (info.is_matrix and torch.equal(found, expected))
            assert torch.equal(merge.run(**self.parameters), expected)

    def test_result_is_finite_for_degenerate_tensors(self) -> None:
        """A zero tensor, a model equal to the base, two equal models: no NaN, whatever the shape and role."""
        for info in TENSORS.values():
            base, models = self.sources(info)
            zero = torch.zeros(info.shape)
            bases = [None] if base is None else [base, zero]
            for changed in ([zero] * self.models, [models[-1]] * self.models, [zero, *models[1:]]):
                for start in bases:
                    assert bool(torch.isfinite(self.run(start, changed, info)).all()), info
            if base is not None:
                assert bool(torch.isfinite(self.run(base, [base, *models[1:]], info)).all()), info

    def test_prepared_state_is_no_larger_than_said(self) -> None:
        """`prepared_bytes` and `shared_bytes` are what the footprint adds up."""
        info = TensorInfo((128, 192))
        base, models = self.sources(info)
        merge = Merge(self.method, base, models)
        merge.run(**self.parameters)
        method = implementation(self.method)
        sources = {values.untyped_storage().data_ptr() for values in (base, *models) if values is not None}
        held = sum(bytes_ for place, bytes_ in _storages(merge.state).items() if place not in sources)
        said = method.prepared_size(info) * len(models) + method.shared_size(info)
        assert held <= said + SLACK
        assert said == 0 or held > said / 1.7  # and it says no more than needed, within reason

    def test_every_parameter_has_an_effect(self) -> None:
        """Some two values of each give different results: the ends of its range, its default, or the suite's own."""
        own = [self.parameters, self.others or {}, self.one_model or {}]
        names = {parameter.name for parameter in self.spec.parameters}
        assert {name.rstrip("_") for values in own for name in values} <= names, "the suite sets other parameters"
        for parameter in self.spec.parameters:
            if not (parameter.inert or parameter.after or parameter.name in self.needs_more_tensors):
                assert self._has_effect(parameter), f"{parameter.name}: ignored, or the suite sets no second value"

    @settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(drawn=data())
    def test_derivatives_equal_finite_differences_of_a_loss(self, drawn: DataObject) -> None:
        """By every coefficient that the spec calls differentiable, on tensors of any shape; others have none."""
        shape = drawn.draw(sampled_from([(9, 14), (16, 5), (40,), (1, 3), (2, 3, 4)]))
        info = TensorInfo(shape, by_token=drawn.draw(booleans()))
        base, models = self.sources(info)
        values = self._drawn_coefficients(drawn)
        merge = Merge(self.method, base, models, by_token=info.by_token)
        weigh = torch.randn(shape, generator=torch.Generator().manual_seed(drawn.draw(integers(0, 99)))).double()

        def loss(**changes: Any) -> tuple[Tensor, float]:
            merged = merge.run(**{**values, **changes})
            return merged, float((weigh * torch.tanh(merged.double() / BEND)).sum()) * BEND

        gradient = (weigh * (1 - torch.tanh(loss()[0].double() / BEND).square())).float()
        slopes = merge.slopes(gradient, block=drawn.draw(sampled_from([7, CPU_BLOCK])), **values)
        assert {each.parameter for each in slopes} == {name.rstrip("_") for name in values} & self._smooth
        for coefficient, slope in slopes.items():
            (above, high), (below, low) = (loss(**_moved(values, coefficient, step)) for step in (STEP, -STEP))
            size = float((weigh * (above - below)).abs().sum()) / (2 * STEP)
            assert slope == pytest.approx((high - low) / (2 * STEP), abs=0.05 * size + 1e-3), coefficient

    @property
    def _smooth(self) -> set[str]:
        """The parameters that merged weights have derivatives by."""
        return {*self.spec.differentiable, *(parameter.name for parameter in self.spec.parameters if parameter.after)}

    def _drawn_coefficients(self, drawn: DataObject) -> dict[str, Any]:
        """Return the suite's coefficients with others for those that have derivatives, inside of their ranges."""
        values = dict(self.parameters)
        for parameter in self.spec.parameters:
            if parameter.name not in self._smooth:
                continue
            low, high, _ = parameter.search or (0.2, 1.0, 0.5)
            inside = floats(max(low, 0.0) + 0.2 * (high - max(low, 0.0)), high - 0.2 * (high - max(low, 0.0)))
            count = self.models if parameter.per_model else None
            name = "lambda_" if parameter.name == "lambda" else parameter.name
            values[name] = drawn.draw(inside if count is None else lists(inside, min_size=count, max_size=count))
        return values

    def _has_effect(self, parameter: Parameter) -> bool:
        values: list[Any] = [parameter.default, parameter.low, parameter.high]
        if parameter.kind is bool:
            values = [True, False]
        elif parameter.per_model and parameter.start is not None:
            # one model apart from the others: weights may be divided by their sum
            others = [parameter.start] * (self.models - 1)
            values = [[parameter.start, *others], [parameter.high, *others]]
        own = [{name.rstrip("_"): value for name, value in c.items()} for c in (self.parameters, self.others or {})]
        values += [given[parameter.name] for given in own if parameter.name in given]
        for info in (TENSORS["matrix"], TENSORS["vector"]):
            base, models = self.sources(info)
            merge = Merge(self.method, base, models, by_token=info.by_token)
            for chosen in own:
                runs = [merge.run(**{**chosen, parameter.name: value}) for value in values if value is not None]
                if any(not torch.equal(found, runs[0]) for found in runs[1:]):
                    return True
        return False


def _moved(values: Mapping[str, Any], coefficient: Coefficient, step: float) -> dict[str, Any]:
    """Return the one of a method's arguments that a coefficient is in, moved by `step`."""
    name = "lambda_" if coefficient.parameter == "lambda" else coefficient.parameter
    if coefficient.source is None:
        return {name: values[name] + step}
    return {name: [own + step * (at == coefficient.source) for at, own in enumerate(values[name])]}


def _storages(state: object, seen: set[int] | None = None) -> dict[int, int]:
    """Return the bytes of every tensor storage that can be reached from `state`, by address."""
    seen = set() if seen is None else seen
    if id(state) in seen:
        return {}
    seen.add(id(state))
    if isinstance(state, Tensor):
        storage = state.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    children: list[object] = []
    if isinstance(state, Mapping):
        children = list(state.values())
    elif isinstance(state, (list, tuple)):
        children = list(state)
    elif type(state).__module__.startswith("evomerge") or hasattr(state, "__dataclass_fields__"):
        children = list(vars(state).values())
    found: dict[int, int] = {}
    for child in children:
        found |= _storages(child, seen)
    return found
