"""Pushing an output folder to the Hub: private by default, never over existing files without being asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crepe.errors import CrepeError, UsageError

_LEFT_OUT = ("*.partial", ".*")


@dataclass(frozen=True)
class Pushed:
    """What was, or with dry_run would be, uploaded."""

    repo_id: str
    private: bool
    files: dict[str, int]
    url: str | None


def push(
    folder: str | Path, repo_id: str, *, public: bool = False, create_pr: bool = False, dry_run: bool = False
) -> Pushed:
    """Upload an output folder as a model repository.

    Raises:
        UsageError: repo_id is not `owner/name`. CrepeError: the folder is no output of crepe, the repository
            already has a model and create_pr is off, or the Hub refuses.
    """
    from crepe.checkpoint.manifest import read_manifest

    folder = Path(folder)
    read_manifest(folder)
    if repo_id.count("/") != 1:
        raise UsageError(f"repository {repo_id!r}: give it as owner/name")
    files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    if dry_run:
        return Pushed(repo_id, not public, files, None)
    try:
        url = _upload(folder, repo_id, public, create_pr)
    except CrepeError:
        raise
    except Exception as error:
        raise CrepeError(_reason(repo_id, error)) from error
    return Pushed(repo_id, not public, files, url)


def _upload(folder: Path, repo_id: str, public: bool, create_pr: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    from crepe.progress import bars_wanted

    if not bars_wanted():
        disable_progress_bars()
    api = HfApi()
    api.create_repo(repo_id, private=not public, exist_ok=True)
    present = [f for f in api.list_repo_files(repo_id) if f != ".gitattributes"]
    if present and not create_pr:
        raise CrepeError(
            f"{repo_id} already has files ({present[0]}): push to another repository, or propose them with --create-pr"
        )
    commit: Any = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        commit_message="Pruned with crepe",
        create_pr=create_pr,
        ignore_patterns=list(_LEFT_OUT),
    )
    return str(commit.pr_url or commit.commit_url)


def _reason(repo_id: str, error: Exception) -> str:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
        return f"the Hub refuses to write to {repo_id} ({status or 'no token'}): run `hf auth login` with a write token"
    if isinstance(error, HfHubHTTPError):
        return f"the Hub refuses {repo_id}: {str(error).splitlines()[0]}"
    return f"cannot push to {repo_id}: {type(error).__name__}: {error}; check the network"
