"""Records to MLflow, and back. The only package that imports mlflow.

A mirror, not a source: one process (the coordinator) copies finished records, once each, told
apart by the tag `cell_id`. Losing the mirror loses nothing, and `sync` fills it again.
"""

from bench.tracking.description import group_of
from bench.tracking.experiment import TrackingError
from bench.tracking.mirror import Mirror, first_rows, mirror_all
from bench.tracking.ui import serve

__all__ = [
    "Mirror",
    "TrackingError",
    "first_rows",
    "group_of",
    "mirror_all",
    "serve",
]
