"""A new project: a git repository with DVC and MLflow, from a template or another project.

The template is the folder `new_project/`. Of another project its source files are taken, and what
names it there is renamed: where its data goes, its MLflow experiment, and its README's title.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from mlops.data.dvc_config import CONFIG, DvcConfig
from mlops.data.dvc_files import LOCK_NAME, SUFFIX
from mlops.errors import MlopsError
from mlops.experimenter.git import run_git, source_files, try_git

TEMPLATE = Path(__file__).with_name("new_project")
# As the template writes them.
_NAME = "my-project"
_BUCKET = "my-bucket"
_TEXTS = {".ipynb", ".md", ".py", ".yaml", ".yml"}  # in which another project's name is looked for
# The project's name is a folder, an MLflow experiment and a prefix in S3, and is typed in shells.
_GOOD_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
# Until its user has told git who they are: `dvc exp run` makes commits, and fails without.
_IDENTITY = {"user.name": "mlops", "user.email": "mlops@localhost"}
_OLD_REMOTE = "template"


class NewProject(BaseModel):
    """What `create_project` made.

    Attributes:
        folder: The repository.
        name: Of the project and of its MLflow experiment.
        remote: Where `dvc push` puts the data, `s3://bucket/name`.
        identity_missing: Whether git did not know its user, so that a stand-in was set.
        renamed: The files of another project in which its name became the new one.
        data_remote: The name of the remote that holds the data which the other project tracks
            with `dvc add`; None: there is no such data.
    """

    model_config = ConfigDict(frozen=True)

    folder: Path
    name: str
    remote: str
    identity_missing: bool
    renamed: tuple[Path, ...] = ()
    data_remote: str | None = None


def find_template(parent: Path, template: str) -> Path:
    """Return the project that a new one is to be like.

    Args:
        parent: Where the new one will be.
        template: A path, or the name of a project beside the new one.

    Raises:
        MlopsError: There is no such project.
    """
    places = [parent / template, Path(template)]
    for place in places if "/" not in template else reversed(places):
        if (place / CONFIG).is_file():
            return place.absolute()
    raise MlopsError(
        f"{template}: no project, neither in {parent.absolute()} nor as a path",
        hint="a project has a folder .dvc",
    )


def create_project(
    parent: Path, name: str, *, bucket: str, template: Path | None = None
) -> NewProject:
    """Make a project.

    It is made aside and renamed into place: all of it is there, or nothing. No server is asked.

    Args:
        parent: Where to make it.
        name: Of its folder, of its MLflow experiment, and of its folder in the bucket.
        bucket: Where DVC keeps the data of all projects.
        template: Another project to be like; None: one whose first pipeline runs as it is.

    Raises:
        MlopsError: The name is not good, the folder is there, its parent is not, or git fails.
    """
    _refuse_bad_name(name)
    folder = parent.absolute() / name
    if os.path.lexists(folder):
        raise MlopsError(f"{folder}: is there already", hint="choose another name")
    if not folder.parent.is_dir():
        raise MlopsError(f"{folder.parent}: no such folder", hint="make it first")
    remote = f"s3://{bucket}/{name}"
    renamed: list[Path] = []
    data_remote = None
    try:
        with tempfile.TemporaryDirectory(prefix=".mlops-new-", dir=folder.parent) as aside:
            made = Path(aside, name)
            if template is None:
                _copy_template(made, name, bucket)
            else:
                _copy(template, made)
                renamed = _rename(made, template, name, remote)
                data_remote = _set_remote(made, template, remote)
            identity_missing = _start_repository(made)
            made.rename(folder)
    except OSError as error:
        raise MlopsError(f"{folder}: cannot be made: {error.strerror}") from error
    return NewProject(
        folder=folder,
        name=name,
        remote=remote,
        identity_missing=identity_missing,
        renamed=tuple(renamed),
        data_remote=data_remote,
    )


def _refuse_bad_name(name: str) -> None:
    if not _GOOD_NAME.fullmatch(name):
        good = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-")[:40].strip("._-") or "my-project"
        raise MlopsError(
            f"the name {name!r} has more than letters, digits, '.', '_' and '-', begins or ends "
            "with one of these three, or is longer than 63 characters",
            hint=f"a good name is {good}",
        )


def _copy_template(made: Path, name: str, bucket: str) -> None:
    for source in sorted(_files()):
        target = made / source.relative_to(TEMPLATE)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text(encoding="utf-8")
        target.write_text(text.replace(_NAME, name).replace(_BUCKET, bucket), encoding="utf-8")


def _files() -> list[Path]:
    """Return the template's files; what running them here left behind is none of it."""
    return [
        path for path in TEMPLATE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]


def _copy(template: Path, made: Path) -> None:
    for path in source_files(template):
        if path.name != LOCK_NAME:  # a new one has made nothing yet
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(template / path, made / path, follow_symlinks=False)


def _rename(made: Path, template: Path, name: str, url: str) -> list[Path]:
    """Put a project's name and remote in the place of the other's, and return where.

    The other's name may be a common word: only in titles and where an experiment is spoken of.
    """
    old_url = _url_of(template)
    old_name = old_url.rpartition("/")[2] or template.name
    places = re.compile(
        rf"""^(?P<before>[ ]*"?\#[ ]|.*experiment.*?["'`])  # a title, or the start of a quotation
        {re.escape(old_name)}
        (?P<after>(\\?["'`]|\\n").*)?$""",
        re.VERBOSE | re.IGNORECASE | re.MULTILINE,
    )
    renamed = []
    for path in source_files(made):
        if path.suffix not in _TEXTS:
            continue
        try:
            text = (made / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        changed = places.sub(lambda found: f"{found['before']}{name}{found['after'] or ''}", text)
        changed = re.sub(rf"{re.escape(old_url)}\b", url, changed) if old_url else changed
        if changed != text:
            (made / path).write_text(changed, encoding="utf-8")
            renamed.append(path)
    return renamed


def _set_remote(made: Path, template: Path, url: str) -> str | None:
    """Let the data go elsewhere; return the name of the old remote where data is left there."""
    config = made / CONFIG
    old_url = _url_of(template)
    line = re.compile(rf"(url\s*=\s*){re.escape(old_url)}/*[ \t]*$", re.MULTILINE)
    config.write_text(line.sub(rf"\g<1>{url}", config.read_text(encoding="utf-8")), "utf-8")
    if _url_of(made) != url:  # the other's is none in S3, or is written elsewhere
        text = (TEMPLATE / CONFIG).read_text(encoding="utf-8")
        config.write_text(text.replace(f"s3://{_BUCKET}/{_NAME}", url), encoding="utf-8")
    if not old_url or not any(path.suffix == SUFFIX for path in source_files(made)):
        return None
    with config.open("a", encoding="utf-8") as file:
        file.write(f"['remote \"{_OLD_REMOTE}\"']\n    url = {old_url}\n")
    return _OLD_REMOTE


def _url_of(project: Path) -> str:
    """Return where a project's data goes; empty: nowhere in S3."""
    try:
        return "s3://{}/{}".format(*DvcConfig(project).remote(None))
    except MlopsError:
        return ""


def _start_repository(folder: Path) -> bool:
    """Make the first commit, and return whether git did not know whose it is."""
    run_git(folder, "init", "--quiet", "--initial-branch=main")
    missing = not (_knows(folder, "user.name") and _knows(folder, "user.email"))
    if missing:
        for key, value in _IDENTITY.items():
            run_git(folder, "config", key, value)
    run_git(folder, "add", "--all")
    run_git(folder, "commit", "--quiet", "--no-verify", "--message", "Start from the template")
    return missing


def _knows(folder: Path, key: str) -> bool:
    return try_git(folder, "config", "--get", key).returncode == 0
