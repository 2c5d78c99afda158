"""The name of a model on the Hugging Face hub in, the folder of its files in the hub library's cache out.

A copy that is complete is used as it is, and nobody is asked: a name means the same weights, with or without a
network, until somebody downloads newer ones.  Otherwise the files that openlpu reads, and no others, are downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openlpu._base.errors import BadCheckpoint, Unsupported
from openlpu._base.progress import Progress, silent
from openlpu.checkpoint.fields import Fields

if TYPE_CHECKING:
    from tqdm.auto import tqdm

NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?(?<!\.gguf)")
# Weights come last: where they are all there, so is everything that may be absent from a model.
DESCRIPTION = ["config.json", "generation_config.json", "model.safetensors.index.json", "tokenizer.json",
               "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]
WEIGHTS = ["model.safetensors", "model-*.safetensors"]
REQUIRED = ("config.json", "tokenizer.json")
SITE = "https://huggingface.co"


def find(name: str | Path, progress: Progress) -> Path:
    """The path that a name is; if there is none, the local files of the model on the hub that it names.

    ``owner/model`` or ``owner/model@revision``.  ``progress`` counts bytes.  Raises
    :class:`~openlpu._base.errors.OpenLpuError` for a model that cannot be had, with what to do about it.
    """
    path, asked = Path(name).expanduser(), NAME.fullmatch(str(name))
    if path.exists() or asked is None or isinstance(name, Path):
        return path
    repo, revision = asked["repo"], asked["revision"] or "main"
    try:
        from huggingface_hub import constants
    except ModuleNotFoundError as missing:
        what = "no such folder, and a model on the Hugging Face hub needs the huggingface_hub package"
        raise Unsupported(what, where=str(name), fix="pip install 'openlpu[hub]', or name a folder") from missing
    store = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    return _cached(store, revision) or _download(repo, revision, progress)


def _cached(store: Path, revision: str) -> Path | None:
    """The snapshot of a revision in a model's part of the cache; None when a file is missing."""
    branch = store / "refs" / revision
    folder = store / "snapshots" / (branch.read_text("utf-8") if branch.is_file() else revision)
    index = folder / "model.safetensors.index.json"
    shards = (Fields.read(index).child("weight_map") if index.is_file() else None) or Fields(index, {})
    weights = {shards.text(name) for name in shards.values} or {"model.safetensors"}
    return folder if all((folder / file).is_file() for file in {*REQUIRED, *weights}) else None


def _download(repo: str, revision: str, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download

    quiet, bar = _bar("", silent), _bar(f"download {repo}", progress)
    with _explained(repo, revision):
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=DESCRIPTION, tqdm_class=quiet))
        missing = [file for file in REQUIRED if not (folder / file).is_file()]
        if missing:
            fix = "take a model with safetensors weights and a tokenizer.json, or download its .gguf file and name that"
            raise BadCheckpoint(f"the model has no {' and no '.join(missing)}", where=f"{SITE}/{repo}", fix=fix)
        return Path(snapshot_download(repo, revision=folder.name, allow_patterns=WEIGHTS, tqdm_class=bar))


@contextmanager
def _explained(repo: str, revision: str) -> Iterator[None]:
    """The library's errors as those of a user who asked for a model."""
    from huggingface_hub import errors

    where = f"{repo}@{revision}"
    broken: Any = errors.HfHubHTTPError.__bases__  # what its HTTP client raises, and OSError
    try:
        yield
    except errors.GatedRepoError as error:
        fix = f"ask for access on {SITE}/{repo}, then log in with: hf auth login"
        raise BadCheckpoint("its owner lets only those download it who have agreed", where=where, fix=fix) from error
    except errors.RepositoryNotFoundError as error:
        fix = "check the name; for a private model, log in with: hf auth login"
        raise BadCheckpoint("no such folder, and no such model on the hub", where=where, fix=fix) from error
    except errors.RevisionNotFoundError as error:
        fix = f"one of those on {SITE}/{repo}/tree/main, or none for the newest"
        raise BadCheckpoint("no such branch, tag or commit", where=where, fix=fix) from error
    except errors.HFValidationError as error:
        raise BadCheckpoint(f"no such folder, and no name of a model: {error}", where=where,
                            fix="name a folder, or a model as owner/name") from error
    except broken as error:
        if isinstance(error, OSError) and error.errno:  # a file of the cache, such as one for which there is no room
            raise
        reason = str(error.__cause__ or error).partition("\n")[0]
        what = f"no such folder, no complete copy in the cache, and the hub gives none: {reason}"
        raise BadCheckpoint(what, where=where, fix="check the network, or name a folder") from error


def _bar(what: str, progress: Progress) -> type[tqdm[Any]]:
    """A progress bar class for the library that draws nothing and reports bytes; of several bars, the fullest."""
    from tqdm.auto import tqdm

    done = 0

    class Bar(tqdm):
        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            nonlocal done
            if self.unit == "B" and self.n > done:
                done = int(self.n)
                progress(what, done, max(done, int(self.total or 0)))

        def close(self) -> None:
            self.disable = True

    return Bar
