"""From what the user typed after --model to files on disk: folder, .gguf file, alias or Hub id."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crepe.errors import CrepeError, UsageError, unknown

_SMALL = ["*.json", "*.jinja", "tokenizer*", "*.model", "*.txt", "*.py"]
# Second copies of the weights in other formats, which some repositories carry.
_IGNORED = ["consolidated*", "original/*"]


@dataclass(frozen=True)
class Source:
    """A resolved model. folder: where its files lie; gguf: the file inside it, if it is one.

    name: what a card should call the base model; revision: commit of the Hub repository, where known.
    """

    asked: str
    name: str
    folder: Path
    gguf: str | None = None
    revision: str | None = None
    licence: str | None = None

    def __str__(self) -> str:
        place = self.folder / self.gguf if self.gguf else self.folder
        revision = f" (revision {self.revision})" if self.revision else ""
        return f"{self.name} from {place}{revision}"


def aliases() -> dict[str, dict[str, Any]]:
    from crepe.configs import read_yaml

    found: dict[str, dict[str, Any]] = read_yaml("models.yaml")
    return found


def resolve(asked: str, revision: str | None = None, weights: bool = True) -> Source:
    """Find the files of a model; without `weights` a Hub model is looked at by its small files alone.

    Raises:
        UsageError: the name is neither a path, an alias nor a Hub id.
        CrepeError: the path is no model, or the Hub cannot be reached or refuses.
    """
    path = Path(asked).expanduser()
    if path.is_dir():
        return _folder(asked, path)
    if path.suffix == ".gguf":
        return _gguf_file(asked, path)
    table = aliases()
    if "net" in table.get(asked, {}):
        raise UsageError(f"{asked} is an image model: this command is for language models")
    if asked in table:
        return _alias(asked, table[asked], revision, weights)
    if asked.startswith((".", "/", "~")) or asked.count("/") > 1:
        raise CrepeError(f"no folder or file at {asked!r}: give a model folder, a .gguf file, a Hub id or an alias")
    if "/" not in asked:
        raise unknown("folder or model alias", asked, table)
    return _hub(asked, asked, revision, {}, weights)


def announce(source: Any) -> None:
    """Say on stderr which files a name stands for."""
    logging.getLogger("crepe").info("model: %s", source)


def _folder(asked: str, path: Path) -> Source:
    if (path / "config.json").is_file():
        return Source(asked, path.resolve().name, path)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return _gguf_file(asked, files[0])
    raise CrepeError(f"{asked!r} is a folder without a model: it has no config.json and not exactly one .gguf file")


def _gguf_file(asked: str, path: Path) -> Source:
    if not path.is_file():
        raise CrepeError(f"no file at {asked!r}: check the path of the .gguf file")
    return Source(asked, path.stem, path.parent, gguf=path.name)


def _alias(asked: str, entry: dict[str, Any], revision: str | None, weights: bool) -> Source:
    if "package" in entry and revision is None:
        spec = importlib.util.find_spec(entry["package"])
        if spec and spec.submodule_search_locations:
            folder = Path(spec.submodule_search_locations[0])
            return Source(asked, entry["hub"], folder, gguf=entry["file"], licence=entry.get("licence"))
    return _hub(asked, entry["hub"], revision, entry, weights)


def _hub(asked: str, repository: str, revision: str | None, entry: dict[str, Any], weights: bool) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    def download(*kinds: str) -> Path:
        wanted = [*_SMALL, *kinds]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted, ignore_patterns=_IGNORED))

    try:
        folder = download(*(["*.safetensors"] if weights else []))
        if weights and not list(folder.glob("*.safetensors")):
            folder = download("*.bin")
    except HFValidationError as error:
        raise UsageError(f"{asked!r} is no valid Hub id: {error}") from None
    except Exception as error:
        raise CrepeError(_hub_failure(asked, repository, entry, error)) from error
    return Source(asked, repository, folder, revision=folder.name, licence=entry.get("licence"))


def _hub_failure(asked: str, repository: str, entry: dict[str, Any], error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError) or (entry.get("gated") and isinstance(error, RepositoryNotFoundError)):
        return f"{repository} is gated: accept its licence on the Hub, then run `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no such revision: check --revision"
    if isinstance(error, RepositoryNotFoundError):
        return f"no model {repository!r} on the Hub, or it is private: check the name or run `hf auth login`"
    ways = "check the network, or give a local folder"
    if "install" in entry:
        ways += f", or install the package that carries it: {entry['install']}"
    return f"cannot download {repository!r} (for --model {asked}): {type(error).__name__}; {ways}"
