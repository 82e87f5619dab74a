"""`evomerge push`: a merged folder, on the hub."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from evomerge.cli.printing import console, grid, size
from evomerge.files.messages import counted, reason, say
from evomerge.merging.output.publishing import PublishError, Upload, check_repository, checked_upload


class HubError(RuntimeError):
    """The hub cannot be reached, or refuses; one line that says what to do."""


def push(
    folder: Path,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    base_models: Sequence[str] = (),
    as_json: bool = False,
) -> None:
    """Check a folder and upload it, or only list what would be uploaded."""
    check_repository(repository)
    upload = checked_upload(folder, dict(_pair(option) for option in base_models))
    if dry_run:
        return _show(upload, repository, private, revision, as_json)
    url = _upload(upload, repository, private, revision)
    if as_json:
        print(json.dumps({"url": url}))
    else:
        say(f"pushed {counted(len(upload.files), 'file')} to {url}")


def _pair(option: str) -> tuple[str, str]:
    name, equals, repository = option.rpartition("=")
    if not (name and equals and repository):
        raise PublishError(f"--base-model {option}: write NAME=OWNER/NAME, the recipe's name first")
    return name, repository


def _show(upload: Upload, repository: str, private: bool, revision: str | None, as_json: bool) -> None:
    data = upload.card.data
    total = sum(file.size for file in upload.files)
    if as_json:
        files = {file.name: file.size for file in upload.files}
        print(
            json.dumps({"repository": repository, "files": files, "left_out": upload.left_out, "card": data.to_dict()})
        )
        return
    out = console()
    out.print(grid(["file", "size"], [[file.name, size(file.size)] for file in upload.files]))
    for file in upload.files:
        if file.text is not None:
            say(f"{file.name} is uploaded with the models' names on the hub in place of folders")
    for name in upload.left_out:
        say(f"{name} is hidden and is left out")
    base = data.base_model or "none on the hub"
    results = counted(len(data.eval_results or []), "held-out score")
    said = f"base models {base if isinstance(base, str) else ', '.join(base)}, licence {data.license or 'not stated'}"
    say(f"the model card is valid: {results}, {said}")
    where = f"{'private ' if private else ''}{repository}" + (f" at {revision}" if revision else "")
    say(f"dry run: {counted(len(upload.files), 'file')}, {size(total)}, would go to {where}")


def _upload(upload: Upload, repository: str, private: bool, revision: str | None) -> str:
    """Make the repository where it does not exist, and commit all files at once; return its address."""
    try:
        api = HfApi()
        made = api.create_repo(repository, private=True if private else None, repo_type="model", exist_ok=True)
        if revision is not None:
            api.create_branch(made.repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="evomerge-push-") as folder:
            upload.write_to(Path(folder))
            api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                revision=revision,
                commit_message="Upload a merge made with evomerge",
            )
    except OfflineModeIsEnabled:
        raise HubError("HF_HUB_OFFLINE is set, so nothing is uploaded; unset it, or add --dry-run") from None
    except LocalTokenNotFoundError:
        raise HubError("you are not logged in to the hub; run `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        raise HubError(_refusal(repository, error)) from None
    except Exception as error:  # whatever the hub's client and what carries its requests raise
        raise HubError(
            f"{repository}: cannot be uploaded ({reason(error)}); push again; what is already there is kept"
        ) from None
    return str(made)


def _refusal(repository: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code if error.response is not None else None
    if status in (401, 403):
        return (
            f"{repository}: the hub does not let you write there ({status}); log in with `hf auth login` as somebody "
            "who may, with a token that can write"
        )
    return f"{repository}: the hub refuses ({error.server_message or reason(error)}); correct that, and push again"
