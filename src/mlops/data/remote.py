"""A DVC remote in S3: where a hash lies in it, and how large its objects are."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import islice
from typing import Literal

from mlops.data.parallel import in_parallel
from mlops.data.reference import Reference
from mlops.storage import ObjectNotFoundError, ObjectStore

# Of DVC 3, and of the releases before it. One remote may hold both.
Layout = Literal["files/md5", "legacy"]
LAYOUTS: tuple[Layout, ...] = ("files/md5", "legacy")

THREADS = 16
_PAGE = 1000  # keys that a server lists at once
_LISTED_FROM = 4  # objects of one shard; fewer are asked for one by one


class Remote:
    """The objects of one remote, in one of its layouts.

    Args:
        store: The bucket.
        path: The remote's path in it.
        layout: How its objects are named.
    """

    def __init__(self, store: ObjectStore, path: str, layout: Layout) -> None:
        self.store = store
        self.layout = layout
        parts = [path] if path else []
        self._folder = "/".join([*parts, layout] if layout != "legacy" else parts)

    def key(self, data_hash: str) -> str:
        """Return the key of a hash's object."""
        return f"{self._shard(data_hash)}/{data_hash[2:]}"

    def uri(self, data_hash: str) -> str:
        """Return the address of a hash's object."""
        return self.store.uri(self.key(data_hash))

    def sizes(self, hashes: Iterable[str]) -> dict[str, int]:
        """Ask for the sizes of objects, in bytes; what does not exist is left out.

        Where many are wanted a listing of their shard is cheaper than a question for each:
        0.3 s against 1 s for 10,000 objects on one machine. Unless the shard is full of others:
        then the listing is given up.
        """
        found: dict[str, int] = {}
        shards: dict[str, list[str]] = defaultdict(list)
        for each in hashes:
            shards[self._shard(each)].append(each)

        def ask(shard: str) -> None:
            wanted = shards[shard]
            left: Iterable[str] = wanted
            if len(wanted) >= _LISTED_FROM:
                limit = _PAGE * (len(wanted) // _LISTED_FROM)
                sizes: dict[str, int] = {}
                seen = 0
                for item in islice(self.store.objects(shard), limit):
                    seen += 1
                    sizes[item.key] = item.size
                listed = {each: sizes[k] for each in wanted if (k := self.key(each)) in sizes}
                found.update(listed)
                left = set(wanted) - set(listed) if seen == limit else ()
            for each in left:
                try:
                    found[each] = self.store.size(self.key(each))
                except ObjectNotFoundError:
                    continue

        in_parallel(ask, sorted(shards), THREADS)
        return found

    def _shard(self, data_hash: str) -> str:
        return f"{self._folder}{'/' if self._folder else ''}{data_hash[:2]}"


def find_remote(store: ObjectStore, reference: Reference, layouts: Iterable[Layout]) -> Remote:
    """Return the remote in the layout in which it holds the reference's object.

    Args:
        store: The reference's bucket.
        reference: What is looked for.
        layouts: Where it may be, the likeliest first.

    Raises:
        ObjectNotFoundError: It is in none of them.
        MlopsError: The object store does not answer or refuses.
    """
    remotes = [Remote(store, reference.path, layout) for layout in layouts]
    for remote in remotes:
        try:
            store.size(remote.key(reference.hash))
        except ObjectNotFoundError:
            continue
        return remote
    raise ObjectNotFoundError(
        f"{reference}: is not in the remote; there is no {remotes[0].uri(reference.hash)}",
        hint="was it pushed? `dvc push` where the data is",
    )
