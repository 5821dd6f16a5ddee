"""The student that won a grid, as a model in MLflow's registry."""

from __future__ import annotations

import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from bench.record import Row
from bench.tracking.experiment import Experiment, failures

LOADER = Path(__file__).parents[1] / "served_student.py"
CHAMPION = "champion"  # the alias of the grid's registered winner


def registered_name(grid: str) -> str:
    """The name of a grid's registered model, without characters that MLflow refuses."""
    return "".join("_" if c in "/:" else c for c in f"{grid}-student")


@dataclass(frozen=True)
class ServableStudent:
    """An exported student as MLflow's registry takes it.

    Attributes:
        row: what was trained.
        program: the content of its torch.export file, preprocessing included.
        card: the content of its card, see `bench.export.Card`.
        why: why this one, one paragraph.
    """

    row: Row
    program: bytes
    card: str
    why: str

    def note(self, model_name: str) -> str:
        """What a reader of the registry is told, Markdown."""
        card = json.loads(self.card)
        steps = "".join(f"\n1. {step}" for step in card["preprocessing"])
        return (
            f"`{self.row.name}`, {card['parameters']} parameters. {self.why}\n\n"
            f"Takes uint8 images (batch, {', '.join(map(str, card['image_shape']))}), returns "
            f"logits of {len(card['classes'])} classes: {', '.join(card['classes'])}. "
            f"What is done to an image, all but its size inside the model:\n{steps}\n\n"
            f"```\nmlflow models serve -m models:/{model_name}@{CHAMPION} --env-manager local\n```"
        )

    def save(self, folder: Path, run: str, model: str) -> None:
        """Writes MLflow's model folder, `folder`/model: the program, its loader, no pickle.

        Args:
            folder: an empty one.
            run: id of the run that trained it.
            model: id of the logged model that it becomes.
        """
        import numpy as np
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        with warnings.catch_warnings():  # of MLflow about its own type hints, while it is imported
            warnings.simplefilter("ignore", UserWarning)
            import mlflow.pyfunc

        card = json.loads(self.card)
        program = folder / "student.pt2"
        program.write_bytes(self.program)
        shape, version = card["image_shape"], card["torch"].partition("+")[0]
        noise = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
        images = TensorSpec(np.dtype(np.uint8), (-1, *shape))
        logits = TensorSpec(np.dtype(np.float32), (-1, len(card["classes"])))
        mlflow.pyfunc.save_model(
            folder / "model", loader_module=LOADER.stem, data_path=str(program),
            code_paths=[str(LOADER)], signature=ModelSignature(Schema([images]), Schema([logits])),
            input_example=noise,  # the registry gets nobody's images
            pip_requirements=[f"torch>={version}", "numpy"],
            mlflow_model=Model(run_id=run, model_id=model), metadata={"student": self.card},
        )  # fmt: skip


class Registry:
    """The registered model of one grid."""

    def __init__(self, experiment: Experiment) -> None:
        """Nothing is registered before there is a winner."""
        self.experiment, self.client = experiment, experiment.client

    @property
    def model_name(self) -> str:
        """Under which the grid's winner is registered: <grid>-student."""
        return registered_name(self.experiment.grid)

    def champion(self) -> str | None:
        """The cell id of the registered winner; None if there is none yet.

        Raises:
            TrackingError: the store cannot be read.
        """
        with failures():
            version = self._registered().get("version")
            if version is None:
                return None
            return self.client.get_model_version(self.model_name, version).tags.get("cell_id")

    def crown(self, student: ServableStudent) -> None:
        """Registers a student as a new version of the grid's model and moves the alias to it.

        A student that has a version keeps it. The alias moves last: until then the former
        champion is served, and what was cut off before is done again.

        Raises:
            TrackingError: the store failed, or holds no run of the student's cell.
        """
        with failures():
            if not self._registered():
                self.client.create_registered_model(self.model_name)
            version = self._version_of(student.row.cell_id) or self._new_version(student)
            self.client.update_registered_model(self.model_name, student.note(self.model_name))
            self.client.set_registered_model_alias(self.model_name, CHAMPION, version)

    def withdraw(self) -> None:
        """Takes the alias from the champion: no student wins any more. Its version stays.

        Raises:
            TrackingError: the store failed.
        """
        with failures():
            self.client.delete_registered_model_alias(self.model_name, CHAMPION)

    def _registered(self) -> dict[str, str]:
        """{} if the model is not registered; else its champion's version, if it has one."""
        from mlflow.exceptions import MlflowException

        try:
            model = self.client.get_registered_model(self.model_name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {"name": model.name} | (
            {"version": model.aliases[CHAMPION]} if CHAMPION in model.aliases else {}
        )

    def _version_of(self, cell_id: str) -> str | None:
        found = self.client.search_model_versions(f"name = '{self.model_name}'")
        return next((str(v.version) for v in found if v.tags.get("cell_id") == cell_id), None)

    def _new_version(self, student: ServableStudent) -> str:
        from mlflow.entities import LoggedModelOutput

        cell_id = student.row.cell_id
        runs = self.experiment.search(f"tags.cell_id = '{cell_id}'")
        if not runs:
            raise ValueError(f"no run of cell {cell_id} is there; send it first: run_all.py sync")
        tags = {"cell_id": cell_id, "pair": runs[0].data.tags.get("pair", "none")}
        run = runs[0].info.run_id
        model = self.client.create_logged_model(
            self.experiment.id, name=self.model_name, source_run_id=run, tags=tags,
            params={"preprocessing": "included", "input": "uint8 pixels"}, model_type="classifier",
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            student.save(Path(folder), run, model.model_id)
            self.client.log_model_artifacts(model.model_id, f"{folder}/model")
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run, [LoggedModelOutput(model.model_id, 0)])
        made = self.client.create_model_version(
            self.model_name, model.artifact_location, run, tags, model_id=model.model_id,
            description=student.note(self.model_name),
        )  # fmt: skip
        return str(made.version)
