"""The merge methods a recipe can name and the parameters each takes: data only, no arithmetic.

Names, defaults and scopes are those of mergekit 0.1.5 where it has the method, so that its recipes read here
without change. A recipe is validated, hashed and searched with this table alone; the arithmetic registers
against it elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from search_spaces.recipes.errors import RecipeError, did_you_mean
from search_spaces.recipes.method_spec import BaseRole, MethodSpec, Parameter

__all__ = ["METHODS", "BaseRole", "MethodSpec", "Parameter", "method_spec"]


# --- parameters that several methods take ---


def _weight(low: float, high: float, doc: str) -> Parameter:
    return Parameter("weight", True, float, low=low, high=high, start=0.5, required=True, doc=doc)


def _factor(doc: str = "Factor of the model's task vector.", *, extension: bool = False) -> Parameter:
    """Return a weight that need not be set, for methods whose papers have none per model."""
    return Parameter("weight", True, float, 1.0, low=0.0, high=1.5, start=1.0, extension=extension, doc=doc)


def _density(doc: str, *, inert: bool = False) -> Parameter:
    return Parameter("density", True, float, default=1.0, low=0.1, high=1.0, start=0.5, inert=inert, doc=doc)


def _flag(name: str, default: bool, doc: str, *, inert: bool = False, extension: bool = False) -> Parameter:
    return Parameter(name, False, bool, default, inert=inert, extension=extension, doc=doc)


_LAMBDA = Parameter("lambda", False, float, 1.0, low=0.1, high=2.0, start=1.0, doc="Scale of the merged task vector.")
_INT8_MASK = _flag("int8_mask", False, "Storage of mergekit's masks.", inert=True)
_GAMMA = Parameter("gamma", True, float, 0.01, low=0.0, high=0.05, start=0.01, doc="Fraction cut off at the top.")
_EPSILON = Parameter(
    "epsilon", True, float, 0.15, low=0.0, high=0.3, start=0.15, doc="Half the spread of the keep probabilities."
)


AIM = Parameter(
    "aim",
    False,
    float,
    low=0.0,
    high=1.0,
    start=0.4,
    after=True,
    extension=True,
    doc="Activation-informed merging (arXiv:2502.02421): what the base's busiest channel keeps of its change.",
)
"""Taken by every method that has a base; needs `calibration_text`."""


def _sum_parameters(*, normalize: bool, rescale: bool, sparse: bool = True) -> tuple[Parameter, ...]:
    """Shared parameters of the methods that add sparsified task vectors to a base."""
    return (
        _flag("normalize", normalize, "Divide by the sum of the weights taken."),
        _LAMBDA,
        _flag("rescale", rescale, "Restore what sparsity took.", inert=not sparse),
        _INT8_MASK,
    )


def _on_task_vectors(
    name: str,
    doc: str,
    *parameters: Parameter,
    min_models: int = 1,
    stochastic: bool = False,
    in_mergekit: bool = True,
    deviation: str = "",
) -> MethodSpec:
    """Return the specification of a method that needs a base."""
    return MethodSpec(name, (*parameters, AIM), "required", min_models, None, stochastic, doc, in_mergekit, deviation)


# --- averages and interpolation ---

LINEAR = MethodSpec(
    name="linear",
    parameters=(
        _weight(0.0, 1.0, "Share of the model; of every source, the base included."),
        _flag("normalize", True, "Divide by the sum of the weights."),
    ),
    base="none",
    min_models=1,
    max_models=None,
    stochastic=False,
    doc="Weighted average of the models (arXiv:2203.05482).",
)

SLERP = MethodSpec(
    name="slerp",
    parameters=(
        Parameter(
            "t", False, float, low=0.0, high=1.0, start=0.5, required=True, doc="0 is the base, 1 the other model."
        ),
        _flag("whole_model", False, "Take all tensors together as one vector, with one angle.", extension=True),
        AIM,
    ),
    base="required",
    min_models=1,
    max_models=1,
    stochastic=False,
    doc="Spherical interpolation between the base and one other model, per flattened tensor.",
)

NUSLERP = MethodSpec(
    name="nuslerp",
    parameters=(
        _weight(0.0, 1.0, "Share of the model; their ratio is the position between the two."),
        _flag("nuslerp_flatten", True, "Take a tensor as one vector, not row by row."),
        _flag("nuslerp_row_wise", False, "Without flattening: column by column."),
    ),
    base="optional",
    min_models=2,
    max_models=2,
    stochastic=False,
    doc="Spherical interpolation of two models, or of their task vectors when there is a base.",
)

MULTISLERP = MethodSpec(
    name="multislerp",
    parameters=(
        _weight(0.0, 1.0, "Share of the model."),
        _flag("normalize_weights", True, "Divide by the sum of the weights."),
        Parameter("eps", False, float, 1e-8, doc="Smallest norm to divide by."),
    ),
    base="optional",
    min_models=1,
    max_models=None,
    stochastic=False,
    doc="Barycentre of the models' directions in one tangent space of the sphere.",
)

KARCHER = MethodSpec(
    name="karcher",
    parameters=(
        _factor("Share of the model.", extension=True),
        Parameter("max_iter", False, float, 10.0, doc="Most steps of the iteration."),
        Parameter("tol", False, float, 1e-5, doc="Length of a step, in radians, at which it stops."),
    ),
    base="none",
    min_models=1,
    max_models=None,
    stochastic=False,
    doc="Mean of the models' directions on the sphere: the point with the least squared angles.",
)

FISHER = MethodSpec(
    name="fisher",
    parameters=(
        Parameter(
            "weight", True, float, 1.0, low=0.05, high=1.0, start=0.5, doc="Share of the model, beside its information."
        ),
        Parameter("floor", False, float, 1e-3, doc="Smallest information, as a fraction of its root mean square."),
    ),
    base="none",
    min_models=1,
    max_models=None,
    stochastic=False,
    doc="Average of the models, each weight by its Fisher information on the calibration text (arXiv:2111.09832).",
    in_mergekit=False,
    statistic="fisher",
)

PASSTHROUGH = MethodSpec(
    name="passthrough",
    parameters=(
        Parameter("scale", True, float, low=0.0, high=2.0, start=1.0, doc="Factor of the tensor; untouched if unset."),
    ),
    base="none",
    min_models=1,
    max_models=1,
    stochastic=False,
    doc="Take each slice from one model, scaled if asked: layer orders, repeats, skips.",
)

NEARSWAP = MethodSpec(
    name="nearswap",
    parameters=(
        Parameter(
            "t", False, float, low=0.0, high=0.01, start=0.001, required=True, doc="The furthest that an entry moves."
        ),
        AIM,
    ),
    base="required",
    min_models=1,
    max_models=1,
    stochastic=False,
    doc="Each entry moved from the base to the other model's, by t at most.",
)

ARCEE_FUSION = MethodSpec(
    name="arcee_fusion",
    parameters=(AIM,),
    base="required",
    min_models=1,
    max_models=1,
    stochastic=False,
    doc="The base with those entries of one other model that stand out: by change, and by change of their row.",
    deviation="its quartiles are exact, where mergekit draws a million entries of larger tensors at random",
)

# --- weighted task vectors ---

TASK_ARITHMETIC = _on_task_vectors(
    "task_arithmetic",
    "Base plus weighted task vectors (arXiv:2212.04089).",
    _weight(-0.5, 1.5, "Factor of the model's task vector (model minus base)."),
    _density("Without effect here: mergekit accepts it.", inert=True),
    *_sum_parameters(normalize=False, rescale=False, sparse=False),
)

MODEL_STOCK = _on_task_vectors(
    "model_stock",
    "Base plus the models' mean, as far as their task vectors agree in direction (arXiv:2403.19522).",
    _flag("filter_wise", False, "Measure angles row by row."),
    min_models=2,
    deviation="its ratio is kept within [0, 1], where mergekit's is negative for task vectors that disagree",
)

METAGPT = _on_task_vectors(
    "metagpt",
    "Task arithmetic with weights in proportion to the squared norms of the task vectors (arXiv:2406.11385).",
    _LAMBDA,
    in_mergekit=False,
)

# --- sparsified task vectors ---

TIES = _on_task_vectors(
    "ties",
    "Trim task vectors, elect a sign per entry, merge those that agree (arXiv:2306.01708).",
    # With `normalize` the kept weights are a divisor: signs that cancel would make it vanish.
    _weight(0.0, 1.5, "Factor of the model's trimmed task vector."),
    _density("Fraction of entries kept, the largest by magnitude."),
    *_sum_parameters(normalize=True, rescale=False),
    _flag("whole_model", False, "Trim over the whole model, not tensor by tensor.", extension=True),
)

_MASKS = (
    "evomerge draws each from the seed, the model and the tensor's name and rescales {by}; "
    "mergekit draws them from one generator and rescales by the sum of magnitudes"
)

DARE_LINEAR = _on_task_vectors(
    "dare_linear",
    "Drop entries of task vectors at random, rescale, add (arXiv:2311.03099).",
    _weight(-0.5, 1.5, "Factor of the model's thinned task vector."),
    _density("Probability that an entry is kept."),
    *_sum_parameters(normalize=False, rescale=True),
    stochastic=True,
    deviation=_MASKS.format(by="by 1/density"),
)

DARE_TIES = _on_task_vectors(
    "dare_ties",
    "Drop entries of task vectors at random, rescale, then sign election as in ties (arXiv:2311.03099).",
    _weight(-0.5, 1.5, "Factor of the model's thinned task vector."),
    _density("Probability that an entry is kept."),
    *_sum_parameters(normalize=False, rescale=True),
    stochastic=True,
    deviation=_MASKS.format(by="by 1/density"),
)

_DELLA_MASKS = _MASKS.format(by="each entry by the inverse of its own probability")

DELLA_LINEAR = _on_task_vectors(
    "della_linear",
    "Drop entries at random, small ones rather, rescale each, add (arXiv:2406.11617).",
    _weight(-0.5, 1.5, "Factor of the model's thinned task vector."),
    _density("Mean probability that an entry is kept."),
    _EPSILON,
    *_sum_parameters(normalize=False, rescale=True),
    stochastic=True,
    deviation=_DELLA_MASKS,
)

DELLA = _on_task_vectors(
    "della",
    "Drop entries at random, small ones rather, rescale each, then sign election as in ties (arXiv:2406.11617).",
    _weight(0.0, 1.5, "Factor of the model's thinned task vector."),
    _density("Mean probability that an entry is kept."),
    _EPSILON,
    *_sum_parameters(normalize=True, rescale=True),
    stochastic=True,
    deviation=_DELLA_MASKS,
)

BREADCRUMBS = _on_task_vectors(
    "breadcrumbs",
    "Trim task vectors at the bottom and at the top, add (arXiv:2312.06795).",
    _weight(-0.5, 1.5, "Factor of the model's trimmed task vector."),
    _density("Fraction of entries kept, below the outliers."),
    _GAMMA,
    *_sum_parameters(normalize=False, rescale=False),
)

BREADCRUMBS_TIES = _on_task_vectors(
    "breadcrumbs_ties",
    "Trim task vectors at the bottom and at the top, then sign election as in ties (arXiv:2312.06795).",
    _weight(-0.5, 1.5, "Factor of the model's trimmed task vector."),
    _density("Fraction of entries kept, below the outliers."),
    _GAMMA,
    *_sum_parameters(normalize=False, rescale=False),
)

# --- task vectors in competition ---

SCE = _on_task_vectors(
    "sce",
    "Select entries by their variance over models, weigh models by mean squares, elect signs (arXiv:2408.07990).",
    Parameter(
        "select_topk", False, float, 1.0, low=0.1, high=1.0, start=0.5, doc="Fraction of varying entries selected."
    ),
    _INT8_MASK,
)

_CHANGED = Parameter("epsilon", False, float, 1e-5, doc="Size of a change that counts.")

RAM = _on_task_vectors(
    "ram",
    "Sum of the task vectors, an entry divided by the number of models that change it (arXiv:2601.13572).",
    _CHANGED,
)

RAMPLUS = _on_task_vectors(
    "ramplus_tl",
    "As ram, with what one model alone changes made larger (arXiv:2601.13572; counts per tensor).",
    Parameter(
        "r", False, float, 0.1, low=0.0, high=1.0, start=0.1, doc="How much larger, per share of what is shared."
    ),
    Parameter("alpha", False, float, 0.2, low=0.0, high=1.0, start=0.2, doc="Largest share that counts."),
    _CHANGED,
)

MAGMAX = _on_task_vectors(
    "magmax",
    "Per entry, the task vector that is largest in magnitude (arXiv:2407.06322).",
    _factor(),
    _LAMBDA,
    in_mergekit=False,
)

EMR = _on_task_vectors(
    "emr",
    "Per entry, the largest task vector that has the elected sign: EMR's unified vector (arXiv:2405.17461).",
    _factor(),
    _LAMBDA,
    in_mergekit=False,
)

CONSENSUS = _on_task_vectors(
    "consensus",
    "Sum of the task vectors where it matters to enough of them, by TALL masks (arXiv:2405.07813).",
    _factor(),
    Parameter(
        "mask_threshold", False, float, 0.4, low=0.2, high=0.6, start=0.4, doc="Size against the others' to matter."
    ),
    Parameter("min_tasks", False, float, 2.0, doc="Number of models, a whole number, that an entry must matter to."),
    _LAMBDA,
    in_mergekit=False,
)

PCB = _on_task_vectors(
    "pcb",
    "Average of task vectors by scores of strength within a model and agreement between them (arXiv:2410.02396).",
    _factor(),
    Parameter("ratio", False, float, 0.1, low=0.02, high=1.0, start=0.1, doc="Fraction of entries that score."),
    _LAMBDA,
    in_mergekit=False,
)

CABS = _on_task_vectors(
    "cabs",
    "Disjoint n:m sparsity: in turn, models take the largest entries that are left (arXiv:2503.01874).",
    _factor("Factor of the model's thinned task vector."),
    Parameter("keep", False, float, 64.0, doc="Entries kept of each group, a whole number (n)."),
    Parameter("group", False, float, 256.0, doc="Entries in a group, a whole number (m)."),
    _LAMBDA,
    in_mergekit=False,
)

# --- linear maps by their singular vectors ---

STAR = _on_task_vectors(
    "star",
    "Average of task vectors truncated to part of their spectrum and rescaled to all of it (arXiv:2502.10339).",
    _factor("Share of the model."),
    Parameter("eta", False, float, 40.0, low=10.0, high=100.0, start=40.0, doc="Percent of the nuclear norm kept."),
    _flag("normalize", True, "Divide by the sum of the weights."),
    _LAMBDA,
    in_mergekit=False,
)

TSV_M = _on_task_vectors(
    "tsv_m",
    "Sum of the models' main singular components, made orthogonal to each other (arXiv:2412.00081).",
    _factor("Factor of the model's singular values."),
    _LAMBDA,
    in_mergekit=False,
)

ISO_C = _on_task_vectors(
    "iso_c",
    "Sum of the task vectors with all its singular values made equal (arXiv:2502.04959).",
    _factor(),
    _LAMBDA,
    in_mergekit=False,
)

ISO_CTS = _on_task_vectors(
    "iso_cts",
    "Common and task-specific singular directions, all with one singular value (arXiv:2502.04959).",
    _factor(),
    Parameter(
        "common_fraction", False, float, 0.8, low=0.0, high=1.0, start=0.8, doc="Fraction of directions in common."
    ),
    _LAMBDA,
    in_mergekit=False,
)

DRM = _on_task_vectors(
    "drm",
    "Trim and elect signs in a singular basis that the models share (arXiv:2505.23117).",
    _factor(),
    _density("Fraction of the renormalised right singular entries kept."),
    _LAMBDA,
    in_mergekit=False,
)

WUDI = _on_task_vectors(
    "wudi",
    "The task vector that interferes least with each model's, pulled towards task arithmetic (arXiv:2503.08099).",
    _factor(),
    Parameter("ridge", False, float, 0.1, low=0.01, high=10.0, start=0.1, doc="Pull towards task arithmetic, above 0."),
    _LAMBDA,
    in_mergekit=False,
)

WIDEN = _on_task_vectors(
    "widen",
    "Task vectors weighted by column, by how much fine-tuning changed its norm and direction (arXiv:2408.03092).",
    Parameter("ratio", False, float, 1.0, low=0.0, high=2.0, start=1.0, doc="Rank, over the mean, to be important."),
    Parameter("calibration", False, float, 1.0, low=0.0, high=2.0, start=1.0, doc="Weight of what is important."),
    in_mergekit=False,
)

METHODS: Mapping[str, MethodSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            LINEAR,
            SLERP,
            NUSLERP,
            MULTISLERP,
            KARCHER,
            NEARSWAP,
            ARCEE_FUSION,
            FISHER,
            TASK_ARITHMETIC,
            MODEL_STOCK,
            METAGPT,
            TIES,
            DARE_LINEAR,
            DARE_TIES,
            DELLA_LINEAR,
            DELLA,
            BREADCRUMBS,
            BREADCRUMBS_TIES,
            SCE,
            RAM,
            RAMPLUS,
            MAGMAX,
            EMR,
            CONSENSUS,
            PCB,
            CABS,
            STAR,
            TSV_M,
            ISO_C,
            ISO_CTS,
            DRM,
            WUDI,
            WIDEN,
            PASSTHROUGH,
        )
    }
)


def method_spec(name: str) -> MethodSpec:
    """Return the specification of the merge method called `name`.

    Raises
    ------
    RecipeError
        If there is no such method; the nearest is named.
    """
    try:
        return METHODS[name]
    except (KeyError, TypeError):
        raise RecipeError(f"merge_method '{name}' is unknown; {did_you_mean(name, METHODS)}") from None
