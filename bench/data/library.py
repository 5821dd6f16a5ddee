"""The data sets of a grid's cells, each decoded and hashed once in a process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.cell import ImageSpec

if TYPE_CHECKING:
    from bench.data.dataset import DataSet


class Library:
    """Data sets by source, size and classes; `absent`: replaced by random images -> why."""

    def __init__(self, data_root: Path | None, cache: Path, random_if_absent: bool = False) -> None:
        """Reads nothing yet; arguments as for `load`.

        `random_if_absent`: whether random images replace a data set that is not here; for
        estimates, never for training.
        """
        self.data_root, self.cache, self.random_if_absent = data_root, cache, random_if_absent
        self.absent: dict[str, str] = {}
        self._sets: dict[str, DataSet] = {}
        self._fingerprints: dict[str, str] = {}

    def read(self, spec: ImageSpec) -> DataSet:
        """The decoded data set; DataError if it is missing or unusable."""
        key = self._key(spec)
        if key not in self._sets:
            self._sets[key] = self._load(spec)
        return self._sets[key]

    def _load(self, spec: ImageSpec) -> DataSet:
        from bench.data.dataset import MissingDataError
        from bench.data.sources import SOURCES, load, random_data

        source, cut = spec.source, {"size": spec.size, "classes": spec.classes}
        try:
            return load(source, data_root=self.data_root, cache=self.cache, **cut)
        except MissingDataError as error:
            if not self.random_if_absent or SOURCES.get(source).sizes is None:
                raise
            self.absent[self._key(spec)] = str(error)
            return random_data(source, **cut)

    def fingerprint(self, spec: ImageSpec) -> str:
        """The hash of a data set's content; "absent" where random images replace it."""
        from bench.data.dataset import fingerprint

        key = self._key(spec)
        if key not in self._fingerprints:
            data = self.read(spec)
            self._fingerprints[key] = "absent" if key in self.absent else fingerprint(data)
        return self._fingerprints[key]

    @staticmethod
    def _key(spec: ImageSpec) -> str:
        return repr((spec.source, spec.size, spec.classes))
