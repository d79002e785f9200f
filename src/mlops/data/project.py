"""A DVC project: what it tracks, and the references to that."""

from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mlops.data.dvc_config import CONFIG, DvcConfig
from mlops.data.dvc_files import (
    LOCK_NAME,
    PIPELINE_NAME,
    TrackedOutput,
    read_dvc_file,
    read_lock,
)
from mlops.data.reference import Reference
from mlops.data.revision import GitTree, Tree, WorkingTree
from mlops.errors import MlopsError

_NAMED = 20  # of many outputs


class ReferredOutput(NamedTuple):
    """A tracked output, where it lies in the project, and the reference to its data."""

    output: TrackedOutput
    path: Path
    reference: Reference


class DvcProject:
    """The project that a folder lies in.

    Args:
        place: The folder.
        revision: The git revision at which its data is wanted; None: as its files are.

    Raises:
        MlopsError: There is no project, or no such revision.
    """

    def __init__(self, place: Path, revision: str | None = None) -> None:
        self._place = place
        self.root = _find_root(place)
        self._revision = revision
        self._tree: Tree = GitTree(self.root, revision) if revision else WorkingTree(self.root)

    def outputs(self, targets: list[str]) -> list[ReferredOutput]:
        """Return tracked outputs with their references.

        Args:
            targets: Paths, relative to the folder, of outputs, of folders with outputs in them, or
                of the `.dvc` files themselves; none: all.

        Raises:
            MlopsError: Nothing of that is tracked, or a file of DVC's is not understood.
        """
        tracked = self._tracked()
        if not tracked:
            raise MlopsError(f"{self._name}: DVC tracks nothing here", hint="see `dvc add`")
        config = DvcConfig(self.root)
        chosen = [out for target in targets for out in self._select(target, tracked)]
        found = []
        for output in dict.fromkeys(chosen if targets else tracked):
            bucket, path = config.remote(output.remote)
            reference = Reference(bucket=bucket, path=path, hash=output.hash)
            found.append(ReferredOutput(output, self.root / output.path, reference))
        return found

    @property
    def _name(self) -> str:
        return f"{self.root}{f' at {self._revision}' if self._revision else ''}"

    def _tracked(self) -> list[TrackedOutput]:
        outputs: list[TrackedOutput] = []
        for source in self._tree.sources():
            text = self._tree.read(source)
            if text is None:  # gone since it was listed
                continue
            if PurePosixPath(source).name == LOCK_NAME:
                beside = str(PurePosixPath(source).with_name(PIPELINE_NAME))
                outputs += read_lock(text, source, self._tree.read(beside))
            else:
                outputs += read_dvc_file(text, source)
        return sorted(outputs, key=lambda output: output.path)

    def _select(self, target: str, tracked: list[TrackedOutput]) -> list[TrackedOutput]:
        path = self._relative(target)
        found = [
            output
            for output in tracked
            if path in {output.path, output.source} or f"{output.path}/".startswith(f"{path}/")
        ]
        if found or path == ".":
            return found or tracked
        for output in tracked:
            if path.startswith(f"{output.path}/"):
                raise MlopsError(
                    f"{target}: is a part of {output.path}, which is tracked as a whole",
                    hint=f"pull {output.path}",
                )
        known = [output.path for output in tracked]
        more = ", ..." if len(known) > _NAMED else ""
        raise MlopsError(
            f"{target}: is not tracked by DVC in {self._name}",
            hint=f"tracked are: {', '.join(known[:_NAMED])}{more}",
        )

    def _relative(self, target: str) -> str:
        path = (self._place / target).absolute()
        # The last part may be a link into a cache; the way to it may lead over links, too.
        path = path.parent.resolve() / path.name if path.name != ".." else path.resolve()
        try:
            return path.relative_to(self.root.resolve()).as_posix()
        except ValueError:
            raise MlopsError(
                f"{target}: is outside of the project {self.root}",
                hint="go into the other project, or give a reference, s3://...@<hash>",
            ) from None


def _find_root(place: Path) -> Path:
    for folder in (place, *place.parents):
        if (folder / CONFIG).is_file():
            return folder
    raise MlopsError(
        f"{place}: not in a DVC project",
        hint="go into one, or give a reference, s3://<bucket>/<remote path>@<hash>, and --to",
    )
