"""The work of `evomerge merge`: a recipe's models are opened and checked, and its checkpoint is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from shlex import quote

from evomerge.cli.recipe_file import read, warn
from evomerge.files.atomic import check_place, scratch_folder
from evomerge.files.messages import say
from evomerge.files.references import local_or_hub
from evomerge.merging.checks import preflight
from evomerge.merging.engine.engine import MergeEngine
from evomerge.merging.engine.placement import torch_device
from evomerge.merging.methods import MethodError
from evomerge.merging.output.adapter_writer import write_adapter
from evomerge.merging.output.card import gguf_command
from evomerge.merging.output.provenance import Provenance
from evomerge.merging.output.writer import write_checkpoint, written_size
from evomerge.merging.sources.adapters import AdapterSource
from evomerge.merging.sources.open_sources import folder_of, open_sources
from evomerge.merging.sources.source import Source
from evomerge.runs.log_file import LogError, RunError, run_of
from search_spaces.recipes import mergekit_export, mergekit_yaml
from search_spaces.recipes.errors import RecipeError
from search_spaces.recipes.fields import changed_text
from search_spaces.recipes.mergekit.documents import Document, needed
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.references import parts, with_parts
from search_spaces.recipes.resolve import resolve, unused_filters


def merge_recipe(
    recipe: Recipe,
    file: Path,
    out: Path,
    device: str,
    adapter: bool = False,
    rank: int | None = None,
    *,
    within: Path | None = None,
    allow_unrelated: bool = False,
    run: Path | None = None,
) -> None:
    """Write the checkpoint of a recipe, or the adapter."""
    local = _local(recipe, file, within)
    found = _provenance(file, recipe, run, within)
    whole = None if adapter else out
    checkpoints, base, recipe = _opened(local, file, within, allow_unrelated=allow_unrelated, out=whole)
    engine = MergeEngine(checkpoints, base=base, device=torch_device(device))
    if not adapter:
        with _about(file):
            write_checkpoint(engine, recipe, out, provenance=found)
        _say_written(out)
        return
    with _about(file):
        written = write_adapter(engine, recipe, out, rank=rank, provenance=found)
    say(
        f"wrote {out}: an adapter of rank {written.rank}, {written.parameters:,} parameters; "
        f"the rank leaves out {written.error:.2%} of the merged task vectors (Frobenius norm)"
    )


def merge_documents(
    documents: Sequence[Document],
    file: Path,
    out: Path,
    device: str,
    intermediates: Path | None = None,
    *,
    within: Path | None = None,
    allow_unrelated: bool = False,
) -> None:
    """Write the checkpoint of a recipe of several documents.

    Intermediate models are kept in the folder `intermediates`, or beside `out` until the last merge is done.
    """
    names = [document.name for document in documents]
    documents = tuple(replace(document, recipe=_local(document.recipe, file, within, names)) for document in documents)
    *earlier, last = needed(documents)
    for document in documents:
        if document is not last and document not in earlier:
            say(f"warning: {document.name} is not used by the last document and is left out", stderr=True)
    check_place(out)
    if intermediates is not None:
        for document in earlier:
            check_place(intermediates / str(document.name))
    for document in (*earlier, last):
        for model in document.recipe.models:
            with_parts(model, lambda part: part if part in names else str(folder_of(part)))  # before hours of merging
    results: dict[str, str] = {}
    with nullcontext(intermediates) if intermediates is not None else scratch_folder(out) as folder:
        for document in (*earlier, last):
            place = out if document is last else folder / str(document.name)
            checkpoints, base, recipe = _opened(
                document.with_results(results), file, within, allow_unrelated=allow_unrelated, out=place
            )
            engine = MergeEngine(checkpoints, base=base, device=torch_device(device))
            if document is last:
                write_checkpoint(engine, recipe, out, documents=(*earlier, last))
                _say_written(out)
            else:
                assert document.name is not None
                results[document.name] = str(write_checkpoint(engine, recipe, folder / document.name))
                kept = f"wrote {folder / document.name}" if intermediates else f"merged {document.name}"
                say(f"{kept}: {recipe.methods} of {', '.join(document.recipe.models)}")


@contextmanager
def _about(file: Path) -> Iterator[None]:
    """Begin what a method says about a recipe's values with the recipe's file."""
    try:
        yield
    except MethodError as error:
        raise RecipeError(f"{file}: {error}") from error


def _say_written(out: Path) -> None:
    say(f"wrote {out}; next: evomerge push {quote(str(out))} OWNER/NAME --dry-run")
    place = out.absolute()
    command = gguf_command(quote(str(place)), quote(f"{place}.gguf"))
    say(f"as one GGUF file, with the converter of llama.cpp: {command}")


def _provenance(file: Path, recipe: Recipe, run: Path | None, within: Path | None) -> Provenance | None:
    """Return what the run that has found a recipe says about it, for the model card.

    It is the run that the recipe's comment names, or the one that `run` names. Only the latter must have scored it.
    """
    place = run_of(file) if run is None else run
    outside = within is not None and place is not None and not place.resolve().is_relative_to(within.resolve())
    if place is None or (run is None and outside):
        return None
    from evomerge.runs.provenance import provenance

    try:
        found = provenance(place, recipe)
        if found is not None:
            return found
        said = f"{place} has not scored this recipe"
    except (RunError, LogError) as error:
        said = str(error)
    if run is not None:
        raise RunError(f"--run: {said}")
    say(f"warning: the model card gets no scores: {said}; give the recipe's run with --run", stderr=True)
    return None


def open_recipe(
    file: Path, within: Path | None = None, *, allow_unrelated: bool = False
) -> tuple[dict[str, Source], str, Recipe]:
    """Read a recipe and open and check its models; return them, the base's reference and the sliced recipe.

    Local paths become absolute, so that the recipe that is written beside the weights rebuilds them anywhere. Models
    that are not averaged may be unrelated: layers of several may be stacked.

    Raises
    ------
    RecipeError
        If `within` is given and the recipe (its models and its calibration text), or an adapter of it, names a local
        path that is not in it, links followed; or if the file holds several documents.
    """
    document, *others = read(file)
    if others:
        raise RecipeError(f"{file}: {mergekit_yaml.ONE_DOCUMENT.format(count=1 + len(others))}")
    return _opened(_local(document.recipe, file, within), file, within, allow_unrelated=allow_unrelated)


def _local(recipe: Recipe, file: Path, within: Path | None, names: Sequence[str | None] = ()) -> Recipe:
    """Return the recipe with absolute paths that are in `within`; `names` of other documents stay."""
    named = [part for model in recipe.models for part in parts(model) if part is not None and part not in names]
    if within is not None:
        for place in (*named, *recipe.calibration_files):
            _check_confined(place, within, file)
    absolute = {place: str(local_or_hub(place)) for place in named}
    places = {model: with_parts(model, lambda part: absolute.get(part, part)) for model in recipe.models}
    for model, place in places.items():
        first = next(other for other in places if places[other] == place)
        if first != model:
            warn([f"{file}: {first} and {model} are the same folder, and so one model"])
    try:
        recipe = recipe.with_models(places)
    except RecipeError as error:
        raise RecipeError(f"{file}: {error}") from None
    text = changed_text(recipe.calibration_text, lambda file: str(Path(file).resolve()))
    return replace(recipe, calibration_text=text)


def _opened(
    recipe: Recipe, file: Path, within: Path | None, *, allow_unrelated: bool, out: Path | None = None
) -> tuple[dict[str, Source], str, Recipe]:
    checkpoints = open_sources(
        {reference: reference for reference in recipe.models},
        recipe.base_model,
        vocabulary=recipe.tokenizer_source,
        tokens=recipe.tokens,
    )
    if within is not None:
        for checkpoint in checkpoints.values():
            # an adapter that comes alone names its base; the recipe's own models are checked already
            if isinstance(checkpoint, AdapterSource) and parts(checkpoint.reference)[1] is None:
                _check_confined(checkpoint.base.reference, within, file)
    base = recipe.donor
    averages = any(spec.name != "passthrough" for spec in recipe.specs)

    def check_room() -> None:
        if out is not None:
            check_place(out, size=written_size(MergeEngine(checkpoints, base=base), recipe))

    report = preflight.check(
        checkpoints,
        base,
        scan=out is None,  # a checkpoint's tensors are looked at when they are merged
        allow_unrelated=allow_unrelated or not averages,
        before_scan=check_room,
    )
    warn(report.warnings)
    layout = checkpoints[base].layout
    expanded = recipe.expanded(layout.num_layers)
    example = layout.layer_tensor(0, layout.layers[0][0])
    warn(
        f"{file}: no tensor's name contains the filter '{unused}', so its value is not used; a name is {example}"
        for unused in unused_filters(expanded, layout)
    )
    try:
        mergekit_export.check_spreads(resolve(expanded, layout))
    except RecipeError as error:
        raise RecipeError(f"{file}: {error}") from None
    return checkpoints, base, expanded


def _check_confined(model: str, within: Path, file: Path) -> None:
    place = local_or_hub(model)
    if isinstance(place, Path) and not place.is_relative_to(within.resolve()):
        raise RecipeError(f"{file}: {model} is outside {within}; correct the path, or merge without --within")
