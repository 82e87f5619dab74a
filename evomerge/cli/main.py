"""The command line: arguments only. What a verb does is in the module of its name, imported when the verb runs."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from evomerge.cli.arguments import refuse_unused, written_out
from evomerge.cli.failures import explained
from evomerge.cli.surroundings import end_like_ctrl_c, open_closed_streams
from evomerge.files.atomic import check_parent, check_place
from evomerge.files.messages import PrintableFormatter
from evomerge.version import VERSION

app = typer.Typer(
    name="evomerge",
    help="Evolutionary search for language-model merge recipes.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key: space.weight.high=2; budget.hours=+1 adds to it. Also as --KEY=VALUE.",
    ),
]
SearchFile = Annotated[Path, typer.Argument(metavar="SEARCH.yaml", help="The search file (YAML).", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)]
Tasks = Annotated[list[str], typer.Option(help="Names of lm-eval tasks, one or more.", show_default=False)]
IncludePath = Annotated[
    list[Path] | None, typer.Option(help="Folders with lm-eval task files, one or more.", show_default=False)
]

Vocabulary = Annotated[
    Literal["base", "union", "first", "pad"] | None,
    typer.Option(help="Vocabulary of the merge; needed if the models' vocabularies differ."),
]
AllowUnrelated = Annotated[
    bool, typer.Option("--allow-unrelated", help="Accept models that were not trained from the base.")
]

TrustTasks = Annotated[
    bool,
    typer.Option("--trust-tasks", help="Let tasks of the run run Python code that no search on this machine has run."),
]


@app.callback(invoke_without_command=True, epilog="To begin: evomerge demo. With your own models: evomerge init.")
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        typer.echo(f"evomerge {VERSION}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    from evomerge.plugins import load_plugins

    load_plugins()  # search files and recipes may name what they have; one that fails is reported in a line


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The folder to make, or that of an earlier demo.")
    ] = Path("evomerge-demo"),
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the search; by default the search file's.")] = None,
) -> None:
    """Search, report and merge, with four tiny models.

    Takes a minute or two on a processor, and no network. Prints each command that it runs.
    """
    from evomerge.cli.demo import demo as run

    run(folder, seed, lambda arguments: app(args=list(arguments), prog_name="evomerge", standalone_mode=False))


@app.command()
def init(
    models: Annotated[
        list[str] | None, typer.Option(help="The base model, then the experts.", show_default=False)
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="Names of lm-eval tasks, one or more.", show_default=False)
    ] = None,
    include_path: IncludePath = None,
    vocabulary: Vocabulary = None,
    allow_unrelated: AllowUnrelated = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")] = Path("search.yaml"),
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="GENOME", help="Instead of models and tasks: a file of mergekit-evolve."),
    ] = None,
) -> None:
    """Write a commented search file for these models and tasks, or for a genome of mergekit-evolve."""
    from evomerge.config.errors import ConfigError

    if from_ is not None:
        if models or tasks or vocabulary or allow_unrelated:
            raise ConfigError("--from: the genome names models, tasks and tokenizer; leave these options out")
        from evomerge.cli.init import init_from

        return init_from(from_, output, include_path or [])
    if not models or not tasks:
        missing = "--models" if not models else "--tasks"
        raise ConfigError(f"{missing}: write --models BASE EXPERT ... --tasks TASK ..., or --from GENOME")
    if output.exists():  # before the seconds that importing torch takes
        raise ConfigError(f"{output} exists already; name another file with -o")
    check_parent(output)
    from evomerge.cli.init import init as run

    return run(models, tasks, include_path or [], output, vocabulary, allow_unrelated=allow_unrelated)


@app.command()
def plan(
    config: SearchFile,
    set_: Set = None,
    json: Json = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Check without the models' weights and the tasks' data.")
    ] = False,
    architecture: Annotated[
        Path | None, typer.Option(help="With --offline: a config.json like the models'; by default the base's.")
    ] = None,
) -> None:
    """Check a search file and estimate what the search costs."""
    if offline or architecture is not None:
        from evomerge.cli.plan_offline import plan_offline

        return plan_offline(config, set_ or [], architecture, json)
    from evomerge.cli.plan import plan as run

    return run(config, set_ or [], json)


@app.command()
def search(
    config: SearchFile,
    set_: Set = None,
    run_: Annotated[
        Path | None, typer.Option("--run", help="The run directory to create; by default runs/NAME.")
    ] = None,
    warm_start: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Start from the results of a finished or stopped run.")
    ] = None,
    json: Json = False,
) -> None:
    """Search, then score the result on held-out items."""
    if run_ is not None:
        from evomerge.runs.run import check_new

        check_new(run_)  # before the seconds that importing torch takes
    from evomerge.cli.search import search as run

    run(config, set_ or [], run_, warm_start, json)


@app.command()
def resume(run_: RunFolder, set_: Set = None, trust_tasks: TrustTasks = False, json: Json = False) -> None:
    """Continue a stopped search, or extend a finished one.

    A stopped search continues exactly as if it had not been stopped. --budget.evaluations=+200 extends a finished one.
    """
    from evomerge.cli.search import resume as run

    run(run_, set_ or [], trust_tasks, json)


@app.command()
def status(
    run_: RunFolder,
    json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh the display until the search ends.")] = False,
) -> None:
    """Show the state of a run, also while it is searching."""
    if watch:
        if json:
            from evomerge.config.errors import ConfigError

            raise ConfigError(
                "--watch: it is a display for people; leave --json out, or call status --json again and again"
            )
        from evomerge.cli.watch import watch as run_watch

        return run_watch(run_)
    from evomerge.cli.status import status as run

    run(run_, json)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="The folder with the run directories.")] = Path("runs"),
    json: Json = False,
) -> None:
    """List the runs in a folder."""
    from evomerge.cli.status import runs as run

    run(folder, json)


@app.command()
def report(
    run_: RunFolder,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write; by default RUN/report.html.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Write the figures as SVG and PNG files into this folder, too.")
    ] = None,
) -> None:
    """Write a run as one self-contained HTML page."""
    from evomerge.cli.report import report as run

    run(run_, output, figures)


_OF_EXPORT = {"table": ("of",), "optuna": (), "archive": ("format_", "round_"), "pareto": ("format_", "round_")}
"""Options of `export` that name what is written in place of a recipe, and the options that each takes."""


@app.command()
def export(
    context: typer.Context,
    run_: RunFolder,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file to write; by default standard output.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Write the candidate with this rank by search score instead.")
    ] = None,
    row: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Write the recipe of this row of the final table instead, such as found."),
    ] = None,
    pareto: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the Pareto front, one recipe per file, to this folder instead."),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the best recipe of each cell of scores to this folder instead."),
    ] = None,
    format_: Annotated[
        Literal["evomerge", "mergekit"],
        typer.Option("--format", help="mergekit: refuse a recipe that mergekit cannot rebuild exactly."),
    ] = "evomerge",
    round_: Annotated[
        bool,
        typer.Option("--round", help="With --format mergekit: write the nearest recipe that mergekit can rebuild."),
    ] = False,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a table of the run to this .csv or .parquet file instead."),
    ] = None,
    of: Annotated[
        Literal["candidates", "items", "answers"],
        typer.Option("--of", help="With --table: what its rows are."),
    ] = "candidates",
    optuna: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write an Optuna study to this .db or .journal file instead."),
    ] = None,
) -> None:
    """Write the best recipe as YAML, the whole Pareto front, or the run's data for other programs."""
    kind = next((name for name in _OF_EXPORT if context.params[name] is not None), None)
    if kind is None:
        refuse_unused(context, ["of"], "without --table")
        refuse_unused(context, ["row"] if rank is not None else [], "beside --rank")
        refuse_unused(context, ["round_"] if format_ != "mergekit" else [], "without --format mergekit")
    else:
        used = {"run_", kind, *_OF_EXPORT[kind]}
        refuse_unused(context, context.params.keys() - used, f"beside --{kind}")
    from evomerge.cli.export import export, export_archive, export_front, export_study, export_table

    if table is not None:
        export_table(run_, table, of)
    elif optuna is not None:
        export_study(run_, optuna)
    elif archive is not None:
        export_archive(run_, archive, format_, round_)
    elif pareto is not None:
        export_front(run_, pareto, format_, round_)
    else:
        export(run_, output, rank, format_, round_, row)


@app.command()
def answers(
    run_: RunFolder,
    row: Annotated[str, typer.Option(metavar="NAME", help="A row of the final table.")] = "found",
    wrong: Annotated[bool, typer.Option("--wrong", help="Only items with a score below 1.")] = False,
    gained: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only items on which the row scores higher than this one.")
    ] = None,
    lost: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only items on which the row scores lower than this one.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Print at most this many; by default all.")] = None,
    json: Json = False,
) -> None:
    """Show a row of the final table item by item: the question, the right answer and the model's.

    With --gained and --lost together, items of either kind.
    """
    from evomerge.cli.answers import Selection
    from evomerge.cli.answers import answers as run

    run(run_, row, Selection(wrong, gained, lost, limit), json)


@app.command()
def merge(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML, from evomerge or mergekit.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the merge of LoRA adapters as one adapter.")
    ] = False,
    rank: Annotated[int | None, typer.Option(min=1, help="Largest rank of the adapter; by default no limit.")] = None,
    within: Annotated[
        Path | None, typer.Option(help="Refuse local models outside this folder, for recipes you do not trust.")
    ] = None,
    allow_unrelated: AllowUnrelated = False,
    intermediates: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the intermediate models of a recipe with several documents here."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse keys without effect in mergekit, instead of a warning for each.")
    ] = False,
    run_: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="RUN", help="The run that found the recipe; by default the one that its comment names."
        ),
    ] = None,
) -> None:
    """Write the checkpoint of a recipe.

    The folder gets the weights, the tokenizer, the config and a model card, with the scores of the run that found it.
    """
    out = out.expanduser()
    check_place(out)  # before the seconds that importing torch takes
    if recipe.is_file():  # otherwise it is refused at once
        from evomerge.cli.early import load_torch_library

        load_torch_library()
    from evomerge.cli.merge import merge as run

    run(
        recipe,
        out,
        device,
        adapter,
        rank,
        within=within,
        allow_unrelated=allow_unrelated,
        intermediates=intermediates,
        strict=strict,
        run=run_,
    )


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A folder that `evomerge merge` has written.", show_default=False)],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch to commit to; it is created if needed.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and list the files, without the network.")
    ] = False,
    base_model: Annotated[
        list[str] | None,
        typer.Option(
            "--base-model",
            metavar="NAME=REPO",
            help="Public name of a model that the recipe names by a folder; NAME=none: not published. Repeatable.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Publish a merge on the Hugging Face hub.

    Refuses a folder that is not finished, a model card that does not validate, secrets, and paths of this machine.
    """
    from evomerge.cli.push import push as run

    run(
        folder,
        repository,
        private=private,
        revision=revision,
        dry_run=dry_run,
        base_models=base_model or [],
        as_json=json,
    )


@app.command()
def evaluate(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL_OR_RECIPE", help="Folders, hub ids or recipe files, one or more.", show_default=False
        ),
    ],
    tasks: Annotated[
        list[str] | None, typer.Option(help="Names of lm-eval tasks, one or more.", show_default=False)
    ] = None,
    include_path: IncludePath = None,
    split: Annotated[
        Literal["train", "validation", "test"] | None,
        typer.Option(help="The split to score; by default test if the task has it, else validation."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Score on the held-out items of a run, as the run did, instead of --tasks."),
    ] = None,
    trust_tasks: TrustTasks = False,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples before each question, as in lm-eval; by default the task's own.")
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            metavar="N", help="Only the first N items of each task; below 1, that share of them, as in lm-eval."
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Sequences per forward pass; by default 64.")] = None,
    apply_chat_template: Annotated[
        bool,
        typer.Option("--apply-chat-template", help="Format prompts with the model's chat template, as in lm-eval."),
    ] = False,
    allow_code: Annotated[
        bool,
        typer.Option("--allow-code", help="Run programs that the models write (HumanEval, MBPP), in a sandbox."),
    ] = False,
    allow_unrelated: AllowUnrelated = False,
    device: Annotated[
        str | None, typer.Option(help="A torch device; by default a GPU if there is one, or the device of the run.")
    ] = None,
    json: Json = False,
) -> None:
    """Score models and recipes, with confidence intervals.

    Several are scored on the same items and compared by paired tests.
    """
    if like is None:
        refuse_unused(context, ["trust_tasks"], "without --like")
    else:
        refuse_unused(context, ["tasks", "include_path", "split"], "beside --like")
    from evomerge.cli.evaluate import Asking, of_run, of_tasks
    from evomerge.cli.evaluate import evaluate as run
    from evomerge.cli.printing import only_json

    asking = Asking(num_fewshot, limit, apply_chat_template, allow_code)
    with only_json(json):
        asked = of_run(like, trust_tasks, asking) if like else of_tasks(tasks or [], include_path or [], split, asking)
    run(models, asked, device, json, batch_size, allow_unrelated=allow_unrelated)


@app.command()
def inspect(
    models: Annotated[
        list[str], typer.Argument(help="Folders, hub ids or GGUF files; the first is the base.", show_default=False)
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Read only a sample of each tensor.")] = False,
    allow_unrelated: AllowUnrelated = False,
    vocabulary: Vocabulary = None,
    json: Json = False,
) -> None:
    """Compare models, and report what prevents a merge."""
    from evomerge.cli.inspect import inspect as run

    run(models, quick, allow_unrelated, json, vocabulary)


@app.command()
def match(
    model: Annotated[str, typer.Argument(help="A folder or hub id: the model to reorder.", show_default=False)],
    reference: Annotated[str, typer.Argument(help="The model with the order to use.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
) -> None:
    """Reorder the units of a model to match another's, for models without a common base.

    Hidden units, heads and channels change places; the written model computes what MODEL computes.
    """
    out = out.expanduser()
    check_place(out)  # before the seconds that importing torch takes
    from evomerge.cli.match import match as run

    run(model, reference, out)


@app.command("fit-items")
def fit_items(
    context: typer.Context,
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="lm-eval's samples_*.jsonl files, folders of them, one responses matrix (.npz, .csv), or one run.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")] = Path("item_bank.npz"),
    task: Annotated[
        str | None,
        typer.Option(help="The task of a matrix whose items do not name one, or the only task to read from logs."),
    ] = None,
    split: Annotated[
        Literal["train", "validation", "test"],
        typer.Option(help="The split of the items; the files do not contain it."),
    ] = "test",
    metric: Annotated[str | None, typer.Option(help="The score to read from the logs; by default the first.")] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", help="The lm-eval filter to read; by default the first.")
    ] = None,
    dimensions: Annotated[
        int | None,
        typer.Option(min=1, help="Dimensions of the multidimensional model; by default up to 5; 1: no such model."),
    ] = None,
    json: Json = False,
) -> None:
    """Fit item parameters to the answers of other models.

    The file is for fitness.subset.item_bank.
    """
    from evomerge.runs.log_file import is_run

    if is_run(sources[0]):
        refuse_unused(context, ["task", "split", "metric", "filter_"], "on a run, which has its tasks and items")
    elif sources[0].suffix in (".npz", ".csv"):
        refuse_unused(context, ["metric", "filter_"], "on a matrix, which has one score per item")
    from evomerge.cli.fit_items import fit_items as run

    run(
        sources,
        output,
        task=task,
        split=split,
        metric=metric,
        filter_name=filter_,
        dimensions=dimensions,
        as_json=json,
    )


@app.command()
def plugins(json: Json = False) -> None:
    """List everything that a search file can name, by package."""
    from evomerge.cli.plugins import plugins as run

    run(json)


def main() -> None:
    """Run the command line; errors of ours become one line and exit code 1 (failed) or 2 (wrong request)."""
    open_closed_streams()
    end_like_ctrl_c()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal has no characters for
    arguments = written_out(sys.argv[1:])
    debug = "--debug" in arguments
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.ERROR, handlers=[handler])
    try:
        app(args=arguments, prog_name="evomerge")
    except Exception as error:
        if debug:
            raise
        lines, code = explained(error)
        for line in lines:
            print(f"evomerge: {line}", file=sys.stderr)
        sys.exit(code)


if __name__ == "__main__":
    main()
