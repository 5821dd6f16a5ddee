"""The data sets of cells, each decoded and hashed once in a process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.cell import DataSpec

if TYPE_CHECKING:
    from bench.data.dataset import DataSet


class Library:
    """Data sets by the fields of a cell that choose them: source, size and classes."""

    def __init__(self, data_root: Path | None, cache: Path, stand_in: bool = False) -> None:
        """Reads nothing yet.

        Args:
            data_root: where the user keeps data sets; None for nowhere.
            cache: folder of decoded data sets.
            stand_in: whether random images replace a data set that is not here. For estimates,
                never for training.
        """
        self.data_root, self.cache, self.stand_in = data_root, cache, stand_in
        self.absent: dict[str, str] = {}
        self._sets: dict[str, DataSet] = {}
        self._fingerprints: dict[str, str] = {}

    def read(self, spec: DataSpec) -> DataSet:
        """The decoded data set.

        Raises:
            DataError: it is missing, or cannot be used.
        """
        key = self._key(spec)
        if key not in self._sets:
            self._sets[key] = self._load(spec)
        return self._sets[key]

    def _load(self, spec: DataSpec) -> DataSet:
        from bench.data.dataset import DataError
        from bench.data.sources import load, stand_in

        try:
            return load(
                spec.source,
                data_root=self.data_root,
                cache=self.cache,
                size=spec.size,
                classes=spec.classes,
            )
        except DataError as error:
            if not self.stand_in:
                raise
            try:
                found = stand_in(spec.source, size=spec.size, classes=spec.classes)
            except DataError:
                raise error from None
            self.absent[self._key(spec)] = str(error)
            return found

    def fingerprint(self, spec: DataSpec) -> str:
        """The hash of a data set's content; "absent" where random images replace it."""
        from bench.data.dataset import fingerprint

        key = self._key(spec)
        if key not in self._fingerprints:
            data = self.read(spec)
            self._fingerprints[key] = "absent" if key in self.absent else fingerprint(data)
        return self._fingerprints[key]

    @staticmethod
    def _key(spec: DataSpec) -> str:
        return repr((spec.source, spec.size, spec.classes))
