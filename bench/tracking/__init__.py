"""Records to MLflow, and back. The only package that imports mlflow.

MLflow mirrors the records and is not their source. One process, the coordinator, copies each
finished record once and finds it again by the tag `cell_id`. Losing the mirror loses nothing:
`sync` fills it again.
"""

from bench.tracking.experiment import TrackingError
from bench.tracking.mirror import Mirror
from bench.tracking.ui import serve

__all__ = ["Mirror", "TrackingError", "serve"]
