"""The model card of a merged checkpoint or adapter: what was merged, how it was found, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from evomerge.files.messages import counted
from evomerge.files.references import local_or_hub
from evomerge.merging.checks.licences import card_metadata, conflicts, licence, licence_fields
from evomerge.merging.output import markdown
from evomerge.merging.output.for_mergekit import obstacles
from evomerge.merging.output.provenance import Provenance, ScoreRow
from evomerge.merging.sources.source import Source
from search_spaces.recipes.fields import changed_text
from search_spaces.recipes.mergekit.architectures import Model
from search_spaces.recipes.mergekit.documents import Document, dump, with_models
from search_spaces.recipes.recipe import Recipe
from search_spaces.recipes.references import parts, with_parts

TAGS = ("merge", "mergekit", "evomerge")
RECIPE = "recipe.yaml"
MERGEKIT_CONFIG = "mergekit_config.yml"
README = "README.md"
UNSTATED = "not stated"


def model_card(
    recipe: Recipe,
    checkpoints: Mapping[str, Source],
    provenance: Provenance | None = None,
    documents: Sequence[Document] = (),
    *,
    name: str = "merge",
    donor: Model | None = None,
) -> str:
    """Return the README.md of a merged model, with the hub's front matter.

    Parameters
    ----------
    recipe
        The recipe that was merged.
    checkpoints
        Opened sources by the recipe's references.
    provenance
        What the search that found the recipe says about it; None: no search is known.
    documents
        The documents to quote, the recipe's own last; empty: the recipe alone.
    name
        The model's name, such as its folder's.
    donor
        The model that the merge is built like, for what mergekit would make of it; None: not known.
    """
    documents = documents or (Document(None, recipe),)
    references = all_references(documents)
    names = public_names(references)
    said = documents[-1].recipe.models  # by name where the recipe has the folder of another document's result
    names |= {model: names[called] for model, called in zip(recipe.models, said, strict=True)}
    lines = [
        *front_matter(recipe, references, checkpoints, provenance, name, library="transformers"),
        f"# {_title(recipe, names)}",
        "",
        *(f"Merged with evomerge, method `{spec.name}`: {spec.doc}" for spec in recipe.specs),
        "",
        *_result_lines(provenance),
        *_source_lines(recipe, checkpoints, names, provenance),
        *_search_lines(provenance),
        *recipe_lines(public_recipe(documents, names), obstacles(with_models(documents, names), donor)),
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("PATH_OR_NAME", dtype="auto")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH_OR_NAME")',
        "```",
        "",
        "As one GGUF file, with the converter of [llama.cpp](https://github.com/ggml-org/llama.cpp):",
        "",
        "```bash",
        gguf_command("FOLDER", "model.gguf"),
        "```",
        "",
    ]
    return "\n".join(lines)


def adapter_card(recipe: Recipe, checkpoints: Mapping[str, Source], base: str, provenance: Provenance | None) -> str:
    """Return the README.md of a merged adapter; `base` is the reference of the model that it belongs on."""
    names = public_names(recipe.models)
    lines = [
        *front_matter(recipe, [base], checkpoints, provenance, "adapter", library="peft", tags=(*TAGS, "lora")),
        f"# {_title(recipe, names)}",
        "",
        f"A LoRA adapter, merged with evomerge in core space, method `{recipe.merge_method}`.",
        "",
        *_result_lines(provenance),
        *_source_lines(recipe, checkpoints, names, provenance),
        *_search_lines(provenance),
        *recipe_lines(public_recipe((Document(None, recipe),), names), ("mergekit writes no adapters",)),
    ]
    return "\n".join(lines)


def gguf_command(folder: str, file: str) -> str:
    """Return the command that writes a merged folder as one GGUF file, run in a copy of llama.cpp."""
    return f"python convert_hf_to_gguf.py {folder} --outtype auto --outfile {file}"


def front_matter(
    recipe: Recipe,
    references: Sequence[str],
    checkpoints: Mapping[str, Source],
    provenance: Provenance | None,
    name: str,
    *,
    library: str,
    tags: Sequence[str] = TAGS,
) -> list[str]:
    """Return the lines that the hub reads; a licence only where all sources have the same.

    Raises
    ------
    ValueError
        If huggingface_hub refuses them.
    """
    sources = [checkpoints[reference] for reference in recipe.models]
    stated = [licence_fields(source) for source in sources]
    results = _eval_results(provenance)
    data = ModelCardData(
        base_model=[one.partition("@")[0] for one in _named(references) if is_hub_id(one)] or None,
        base_model_relation="merge",
        datasets=_datasets(sources) or None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=list(tags),
        eval_results=results or None,
        model_name=name if results else None,
        **(stated[0] if all(fields == stated[0] for fields in stated) else {}),
    )
    return ["---", data.to_yaml().strip(), "---", ""]


def recipe_lines(text: str, reasons: Sequence[str]) -> list[str]:
    """Return the card's section with the recipe; `reasons` say why mergekit does not build the model, if any."""
    also = f"`{MERGEKIT_CONFIG}` is the same for `mergekit-yaml`."
    if reasons:
        also = f"mergekit does not build the same weights: {'; '.join(map(markdown.text, reasons))}."
    return [
        "## Recipe",
        "",
        f"Also in `{RECIPE}`; `evomerge merge {RECIPE} OUT` rebuilds the model. {also}",
        "",
        *markdown.fenced(text, "yaml"),
        "",
    ]


def all_references(documents: Sequence[Document]) -> list[str]:
    """Return names of intermediate results, then every model of the documents, each once."""
    found = [document.name for document in documents if document.name is not None]
    return list(dict.fromkeys([*found, *(model for document in documents for model in document.recipe.models)]))


def public_names(references: Sequence[str]) -> dict[str, str]:
    """Return a unique name for each reference that does not reveal folders of its author's disk."""
    names: dict[str, str] = {}
    for reference in references:
        name = with_parts(reference, lambda part: part if is_hub_id(part) else Path(part).name)
        names[reference] = f"{name}-{len(names)}" if name in names.values() else name
    return names


def public_recipe(documents: Sequence[Document], names: Mapping[str, str]) -> str:
    """Return the documents as YAML without folders of their author's disk: models by `names`, a text by its file."""
    return dump([_without_folder(document) for document in with_models(documents, names)])


def _without_folder(document: Document) -> Document:
    text = changed_text(document.recipe.calibration_text, lambda file: Path(file).name)
    return replace(document, recipe=replace(document.recipe, calibration_text=text))


def is_hub_id(reference: str) -> bool:
    """Return whether a model or adapter is named by an id of the hub, with a revision or without."""
    return isinstance(local_or_hub(reference), str)


def _title(recipe: Recipe, names: Mapping[str, str]) -> str:
    return markdown.text(f"Merge of {', '.join(names[model] for model in recipe.models)}")


def _named(references: Sequence[str]) -> list[str]:
    """Return every model and adapter once."""
    return list(dict.fromkeys(part for reference in references for part in parts(reference) if part is not None))


def _datasets(sources: Sequence[Source]) -> list[str]:
    """Return the data sets that the sources' cards say they were trained on."""
    found: list[str] = []
    for source in sources:
        stated = card_metadata(source).get("datasets")
        named = [stated] if isinstance(stated, str) else stated if isinstance(stated, list) else []
        found += [each for each in named if isinstance(each, str)]
    return list(dict.fromkeys(found))


def _eval_results(provenance: Provenance | None) -> list[EvalResult]:
    """Return this model's held-out scores in the hub's form: the metric as lm-eval gives it, not negated."""
    if provenance is None:
        return []
    tasks = {task.name: task for task in provenance.tasks}
    results = []
    for row in provenance.rows:
        if row.name != provenance.row or row.task not in tasks:
            continue
        task = tasks[row.task]
        sign = -1 if task.lower_is_better else 1
        low, high = sorted((sign * row.low, sign * row.high))
        metric = task.metric.partition(",")[0]
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=row.task,
                dataset_name=row.task,
                metric_type=metric,
                metric_value=round(sign * row.score, 6),
                metric_name=f"{metric} on {counted(row.items, 'held-out item')} (95 % interval {low:.3f} to "
                f"{high:.3f})",
            )
        )
    return results


# --- sections ---


def _result_lines(provenance: Provenance | None) -> list[str]:
    """Return the verdict and the held-out table."""
    if provenance is None:
        return []
    lines = ["## Result", ""]
    if provenance.verdict:
        lines += [f"**Verdict of the search:** {markdown.text(provenance.verdict)}", ""]
    lines += [f"This model: {markdown.text(provenance.origin)}", ""]
    tasks = list(dict.fromkeys(row.task for row in provenance.rows))
    if tasks:
        negated = any(task.lower_is_better for task in provenance.tasks)
        lines += [
            "Scores on held-out items, which the search has not used, with 95 % intervals"
            + ("; metrics where lower is better are negated." if negated else "."),
            "",
            *markdown.table(["model", *map(markdown.text, tasks)], _score_rows(provenance, tasks), numbers_from=1),
            "",
        ]
    lines += [f"Note: {markdown.text(note)}\n" for note in provenance.notes]
    return lines


def _score_rows(provenance: Provenance, tasks: Sequence[str]) -> list[list[str]]:
    cells: dict[str, dict[str, str]] = {}
    for row in provenance.rows:
        cells.setdefault(row.name, {})[row.task] = _score(row)
    return [
        [
            f"**{markdown.text(name)}** (this model)" if name == provenance.row else markdown.text(name),
            *(scores.get(task, "") for task in tasks),
        ]
        for name, scores in cells.items()
    ]


def _score(row: ScoreRow) -> str:
    if row.low == row.high and row.items == 1:
        return f"{row.score:.3f} (of the model as a whole)"
    return f"{row.score:.3f} ({row.low:.3f} to {row.high:.3f}, {counted(row.items, 'item')})"


def _source_lines(
    recipe: Recipe, checkpoints: Mapping[str, Source], names: Mapping[str, str], provenance: Provenance | None
) -> list[str]:
    licences = {names[reference]: licence(checkpoints[reference]) for reference in recipe.models}
    called = {} if provenance is None else provenance.names
    rows = [
        [
            _linked(reference, names[reference]),
            "base" if reference == recipe.base_model else "merged",
            markdown.text(licences[names[reference]] or UNSTATED),
            *([markdown.text(called.get(reference, ""))] if called else []),
        ]
        for reference in recipe.models
    ]
    return [
        "## Sources",
        "",
        *markdown.table(["model", "role", "licence", *(["name above"] if called else [])], rows),
        "",
        *(f"Licences: {markdown.text(sentence)}.\n" for sentence in conflicts(licences)),
    ]


def _linked(reference: str, name: str) -> str:
    model, adapter = parts(reference)
    if adapter is not None or not is_hub_id(model):
        return markdown.text(name)
    return f"[{markdown.text(name)}](https://huggingface.co/{model.partition('@')[0]})"


def _search_lines(provenance: Provenance | None) -> list[str]:
    if provenance is None or not provenance.settings:
        return []
    tasks = [
        [
            markdown.text(task.name),
            markdown.text(task.metric) + (" (lower is better)" if task.lower_is_better else ""),
            markdown.text(task.weight),
            markdown.text(task.shots),
            markdown.text(task.search),
            markdown.text(task.held_out),
        ]
        for task in provenance.tasks
    ]
    settings = [[markdown.text(key), markdown.text(value)] for key, value in provenance.settings.items()]
    packages = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    return [
        "## Search",
        "",
        *markdown.table(["task", "metric", "weight", "few-shot examples", "search items", "held-out items"], tasks),
        "",
        *markdown.table(["setting", "value"], settings),
        "",
        *([f"Versions: {markdown.text(packages)}.", ""] if packages else []),
    ]
