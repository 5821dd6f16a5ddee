"""What a node of a Ray cluster checks before it runs a job."""

from pathlib import Path

import bench
from bench.code_version import numerics_digest
from bench.data.library import Library
from bench.faults import reason
from bench.launch.job import Job, WorkerConfig
from bench.plugin import plugged
from bench.train.device import pick_device


def missing_here(job: Job, config: WorkerConfig, code: str, heartbeat: Path) -> str | None:
    """What this node lacks to run a job, in words; None if it lacks nothing.

    Args:
        job: its teachers and sources are finished.
        config: with absolute paths.
        code: digest of the coordinator's code, see `bench.code_version`.
        heartbeat: a file of the work directory that exists while the coordinator lives.
    """
    if numerics_digest("methods/*.py") != code:
        return (
            f"the code in {Path(bench.__file__).parent} differs from the coordinator's; install "
            "the same version on every node, and start again"
        )
    if not heartbeat.is_file():
        return f"it does not see {config.store.parent}; put --work-dir on a disk that all share"
    cells = [cell for one in job.cells for cell in (one, one.source) if cell is not None]
    try:
        with plugged(config.plugins):
            pick_device(config.device)
            library = Library(config.data_root, config.cache)
            for spec, wanted in {(cell.data, cell.fingerprint) for cell in cells}:
                if library.fingerprint(spec) != wanted:
                    return (
                        f"its data set {spec.source!r} differs from the coordinator's "
                        f"(data root: {config.data_root}); copy the same files to every node"
                    )
    except (ValueError, OSError) as error:  # no device, no data, or a plugin that fails only here
        return reason(error)
    return None
