"""Records to MLflow, and back: a mirror that `sync` fills again. Nobody else imports mlflow."""

from bench.tracking.experiment import TrackingError
from bench.tracking.mirror import Mirror
from bench.tracking.ui import serve

__all__ = ["Mirror", "TrackingError", "serve"]
