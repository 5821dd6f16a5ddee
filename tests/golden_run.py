"""Numbers that must not move unless `NUMERICS` does: a short training, and every default.

Run this file to write them anew: `python tests/golden_run.py`. It refuses while `NUMERICS` is
that of the file.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.cell import NUMERICS, Cell, Crop, DataSpec, RandAugment, Recipe
from bench.hyperparameters import method_code, resolve_hyperparameters
from bench.launch.job import Library
from bench.record import FINISHED, Store
from bench.train.cohort import Cohort
from bench.train.stream import open_stream
from bench.train.teacher import load_teacher

FILE = Path(__file__).with_name("golden_run.json")
TAUGHT = ("soft_logits", "fitnet", "attention_transfer", "rkd")


def defaults() -> dict[str, object]:
    """Every default that a cell's id leaves out, as JSON holds it.

    Those of methods are not among them: an id holds every hyper-parameter and the method's code.
    """
    values = {
        model.__name__: {
            name: field.default
            for name, field in model.model_fields.items()
            if not field.is_required()
        }
        for model in (Crop, RandAugment, DataSpec, Recipe, Cell)
    }
    return json.loads(json.dumps(values))


def cells(library: Library, recipe: dict[str, object] | None = None) -> tuple[Cell, list[Cell]]:
    """A teacher and its students: 20 steps each, with the defaults of recipe and data."""
    data = DataSpec(source="digits", fraction=0.25, pad=1)
    values = {"epochs": 4, "batch_size": 64, "learning_rate": 0.05, "schedule": "constant"}

    def cell(model: str, method: str, teacher: Cell | None) -> Cell:
        return Cell(
            model=model,
            data=data,
            fingerprint=library.fingerprint(data),
            method=method,
            code=method_code(method),
            hyperparameters=resolve_hyperparameters(method, {}),
            recipe=Recipe(**{**values, **(recipe or {})}),
            seed=0,
            teacher=teacher,
        )

    teacher = cell("cnn8", "student", None)
    students = [cell("cnn4", "student", None), *(cell("cnn4", m, teacher) for m in TAUGHT)]
    return teacher, students


def train(recipe: dict[str, object] | None = None, threads: int = 1) -> dict[str, list[float]]:
    """What 20 steps give: losses by epoch and norms of the kernels, for each network.

    In double precision: in single precision 20 steps turn the rounding of another number of
    threads into differences of percents.
    """
    before = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float64)
    try:
        with tempfile.TemporaryDirectory() as folder:
            library = Library(None, Path(folder) / "data")
            return _train(*cells(library, recipe), library, Store(Path(folder) / "cells"))
    finally:
        torch.set_num_threads(before[0])
        torch.set_default_dtype(before[1])


def _train(
    teacher: Cell, students: list[Cell], library: Library, store: Store
) -> dict[str, list[float]]:
    device, ignore = torch.device("cpu"), lambda *event: None
    stream = open_stream(teacher, library.read(teacher.data), device)
    stream.train.dtype = stream.test.dtype = torch.float64
    Cohort(stream, None, store, device, ignore).run([teacher])
    taught = load_teacher(teacher, store, stream, device)
    Cohort(stream, taught, store, device, ignore).run(students)
    found = {}
    for cell in (teacher, *students):
        record = store.read(cell.id)
        assert record is not None, cell
        assert record.status == FINISHED, record.error
        for name in ("task_loss", "transfer_loss"):
            values = record.curves.get(name, [])
            found[f"{cell.model}/{cell.method}/{name}"] = [v for v in values if v is not None]
        weights = load_file(store.folder(cell.id) / "weights.safetensors").values()
        kernels = [float(weight.norm()) for weight in weights if weight.ndim == 4]
        found[f"{cell.model}/{cell.method}/kernel_norms"] = kernels
    return {name: values for name, values in found.items() if values}


def main() -> None:
    """Writes the file anew, if `NUMERICS` is another than the file's."""
    if FILE.exists() and json.loads(FILE.read_text())["numerics"] == NUMERICS:
        raise SystemExit(f"{FILE.name} is of NUMERICS {NUMERICS}: raise it in bench/cell.py first")
    golden = {"numerics": NUMERICS, "defaults": defaults(), "training": train()}
    FILE.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    print(f"{FILE}: written for NUMERICS {NUMERICS}; say in the commit why numbers moved")


if __name__ == "__main__":
    main()
