"""`evomerge match`: a model's units in the order of another model's."""

from __future__ import annotations

from pathlib import Path

from evomerge.files.messages import counted, say
from evomerge.merging.checks.similarity import UNRELATED
from evomerge.merging.matching.reordered import write_matched


def match(model: str, reference: str, out: Path) -> None:
    """Write the model, and say how near it is to the reference before and after."""
    found, moved = write_matched(
        model, reference, out, lambda sweep, cosine: say(f"sweep {sweep}: cosine with {reference} {cosine:.4f}")
    )
    if not moved:
        say(
            f"{model} has its units in the order of {reference} already (cosine {found.before:.4f}); nothing is written"
        )
        return
    say(
        f"wrote {out}: {counted(moved, 'unit')} moved, cosine with {reference} {found.before:.4f} before, "
        f"{found.after:.4f} after"
    )
    if found.after < UNRELATED:
        say(
            "it is still unrelated: models from separate trainings rarely have units that match one to one; a merge of "
            "it has to be allowed (--allow-unrelated) and may work as neither model"
        )
