"""Records to MLflow, and back. The only module that imports mlflow.

A mirror, not a source: one process (the coordinator) copies finished records, once each, told
apart by the tag `cell_id`. Losing the mirror loses nothing, and `sync` fills it again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from bench.record import FAILED, FINISHED, Plan, Record, Row, Store

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

STATUS = {FINISHED: "FINISHED", FAILED: "FAILED"}
LOADER = Path(__file__).with_name("served_student.py")
CHAMPION = "champion"  # the alias of the grid's registered winner
KIND = "kd_bench.kind"
NOTE, PARENT = "mlflow.note.content", "mlflow.parentRunId"  # tags that the UI reads
MOST_METRICS = 1000  # a call takes no more
PAGE = 200  # runs of a search; a busy server needs seconds for a thousand, and calls have a limit
SUMMARY = PurePosixPath("summary")  # where the summary run keeps tables and figures


class TrackingError(RuntimeError):
    """The tracking store cannot be used; the records are safe and can be sent later."""


def quiet() -> None:
    """Settings that mlflow reads when it is imported or called: brief in retries and words."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Seven retries with backoff would stall a grid for four minutes a call on a dead server.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    # Two lines for each run in the midst of the progress display, and a request for each.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)


def tracking_uri(work_dir: Path) -> str:
    """MLFLOW_TRACKING_URI, or else the sqlite file of the work directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{work_dir.resolve()}/mlflow.db"


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Every way in which a tracking store can fail, as one error."""
    from alembic.util.exc import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (
        MlflowException, SQLAlchemyError, CommandError, OSError, ImportError, ValueError
    ) as error:  # fmt: skip
        raise TrackingError(" ".join(str(error).split())[:300]) from error


class Mirror:
    """One grid's experiment in an MLflow store."""

    def __init__(self, work_dir: Path, grid: str) -> None:
        """Opens the store; the database is made here, by one process, if there is none.

        Raises:
            TrackingError: the store cannot be opened.
        """
        quiet()
        uri = tracking_uri(work_dir)
        with _failures():
            if uri.startswith("sqlite:///"):
                Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            from mlflow.tracking import MlflowClient

            self.client = MlflowClient(tracking_uri=uri)
            self._experiment = self._find_or_create(f"kd-bench/{grid}", uri, work_dir)
        self.uri, self.grid = uri, grid
        self._cells: dict[str, tuple[str, str]] | None = None
        self._groups: dict[str, str] | None = None

    def _find_or_create(self, name: str, uri: str, work_dir: Path) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        # A server has its own place for artifacts; a bare database would use the current folder.
        local = not uri.startswith(("http:", "https:", "databricks"))
        location = (work_dir.resolve() / "mlartifacts").as_uri() if local else None
        from mlflow.exceptions import MlflowException

        try:
            return self.client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            # Another sender made it meanwhile, or this one did: a call without an answer is
            # made again.
            found = self.client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
            return found.experiment_id

    # --- sending --------------------------------------------------------------------------------

    def send_plan(self, plan: Plan) -> None:
        """Describes the experiment and keeps the plan with it; the latest plan wins."""
        with _failures():
            self.client.set_experiment_tag(self._experiment, NOTE, describe(plan))
            self.client.set_experiment_tag(
                self._experiment, "mlflow.experimentKind", "custom_model_development"
            )
            run = self._summary_run()
            self.client.log_text(run, plan.to_json(), "plan.json")

    def send_summary(
        self, folder: Path, files: Iterable[Path], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Puts tables and figures on the experiment's summary run; the latest ones win.

        Args:
            folder: the grid's; files keep their places below it.
            files: inside `folder`.
            metrics: numbers of the tables worth a metric of their own.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = [Metric(_key(name), value, now, 0) for name, value in (metrics or {}).items()]
        with _failures():
            run = self._summary_run()
            for start in range(0, len(numbers), MOST_METRICS):
                self.client.log_batch(run, metrics=numbers[start : start + MOST_METRICS])
            for path in files:
                place = path.relative_to(folder).parent
                self.client.log_artifact(run, str(path), (SUMMARY / place).as_posix())
            self.client.set_terminated(run)

    def _summary_run(self) -> str:
        found = self._find_summary_run()
        if found is not None:
            return found
        made = self.client.create_run(
            self._experiment, run_name="summary", tags={KIND: "summary"}
        ).info.run_id
        return self._find_summary_run() or made

    def _find_summary_run(self) -> str | None:
        """The summary run; of several, which senders made at the same time, one is kept."""
        ids = sorted(run.info.run_id for run in self._search(f"tags.`{KIND}` = 'summary'"))
        for spare in ids[1:]:
            self.client.delete_run(spare)
        return ids[0] if ids else None

    def send(self, record: Record, row: Row, folder: Path) -> bool:
        """Copies one record, once.

        Args:
            record: finished, failed or not applicable.
            row: a row of the plan that the record answers for: names and tags.
            folder: the cell's files.

        Returns:
            False if the store holds this result already.

        Raises:
            TrackingError: the store failed; nothing is half there that counts as sent.
        """
        with _failures():
            run, status = self._known().get(record.cell_id, ("", ""))
            if status == record.status:
                return False
            if run:  # of an earlier status, or cut off before it was whole
                self.client.delete_run(run)
            run = self._copy(record, row, folder)
            kept = self._keep_one(run, record)
        self._known()[record.cell_id] = (kept, record.status)
        return kept == run

    def _known(self) -> dict[str, tuple[str, str]]:
        """Cell id -> (run, status) of what the store holds; status "" if it is not whole."""
        if self._cells is None:
            self._cells = {}
            for run in self._search(f"tags.`{KIND}` = 'cell'"):
                cell_id = run.data.tags["cell_id"]
                found = (run.info.run_id, run.data.tags["status"] if _is_whole(run) else "")
                other = self._cells.setdefault(cell_id, found)
                if other != found:  # a sender was cut off before it looked for others
                    kept, spare = (other, found) if other[1] else (found, other)
                    self._cells[cell_id] = kept
                    self.client.delete_run(spare[0])
        return self._cells

    def _keep_one(self, run: str, record: Record) -> str:
        """Of this run and those that others sent of the same result meanwhile, keeps one.

        Commands on one work directory take turns; this is for those on several, with one server.
        Each looks after it has sent, so the last to look sees all; whoever sees several keeps the
        smallest id.
        """
        same = {
            other.info.run_id
            for other in self._search(f"tags.cell_id = '{record.cell_id}'")
            if _is_whole(other) and other.data.tags["status"] == record.status
        }
        kept, *spare = sorted({run, *same})
        for other in spare:
            self.client.delete_run(other)
        return kept

    def close_left(self) -> int:
        """Ends runs of cells that a killed process left running; returns how many there were.

        One beside a whole run of its cell is deleted: it was made by a call whose answer was lost,
        and that was made again.
        """
        with _failures():
            left = self._search(f"tags.`{KIND}` = 'cell' AND attributes.status = 'RUNNING'")
            for run in left:
                cell_id, run_id = run.data.tags["cell_id"], run.info.run_id
                kept, status = self._known().get(cell_id, ("", ""))
                if status and kept != run_id:
                    self.client.delete_run(run_id)
                else:
                    self.client.set_terminated(run_id, status="KILLED")
                    self._known()[cell_id] = (run_id, "")
            return len(left)

    def _copy(self, record: Record, row: Row, folder: Path) -> str:
        started = _milliseconds(record)
        tags = _tags(record, row) | {PARENT: self._group(group_of(row))}
        made = self.client.create_run(
            self._experiment, start_time=started, run_name=row.name, tags=tags
        )
        run = made.info.run_id
        self.client.log_batch(run, metrics=_metrics(record, started or 0), params=_params(record))
        self.client.log_inputs(run, [_dataset(record, row)])
        self._files_of(made).log_artifacts(str(folder))
        took = sum(record.final.get(f"{part}_seconds", 0) for part in ("train", "evaluation"))
        ended = started and int(started + 1000 * took)
        status = STATUS.get(record.status, "FINISHED")
        self.client.set_terminated(run, status=status, end_time=ended)
        return run

    def _files_of(self, run: Run) -> ArtifactRepository:
        """Where a run keeps its files. The client's own calls ask the store for the run again."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        assert run.info.artifact_uri is not None
        return get_artifact_repository(run.info.artifact_uri, tracking_uri=self.uri)

    def _group(self, group: Group) -> str:
        """The run under which the UI lists the runs of a group; made when first asked for."""
        if self._groups is None:
            found = self._search(f"tags.`{KIND}` = 'group'")
            self._groups = {run.info.run_name or "": run.info.run_id for run in found}
        if group.name not in self._groups:
            tags = {KIND: "group", NOTE: group.note, "pair": group.pair}
            made = self.client.create_run(self._experiment, run_name=group.name, tags=tags)
            self.client.set_terminated(made.info.run_id)
            self._groups[group.name] = made.info.run_id
        return self._groups[group.name]

    def join_groups(self) -> None:
        """Makes one of groups of the same name, which several senders made at the same time.

        Raises:
            TrackingError: the store failed.
        """
        with _failures():
            there: dict[str, list[str]] = {}
            for run in self._search(f"tags.`{KIND}` = 'group'"):
                there.setdefault(run.info.run_name or "", []).append(run.info.run_id)
            for name, alive in there.items():
                used = (self._groups or {}).get(name, min(alive))
                # Another sender may have deleted the one that this sender used.
                for spare in {*alive, used} - {min(alive)}:
                    for run in self._search(f"tags.`{PARENT}` = '{spare}'"):
                        self.client.set_tag(run.info.run_id, PARENT, min(alive))
                    if spare in alive:
                        self.client.delete_run(spare)
            self._groups = {name: min(alive) for name, alive in there.items()}

    # --- the winner -----------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """Under which the grid's winner is registered: <grid>-student."""
        return registered_name(self.grid)

    def champion(self) -> str | None:
        """The cell id of the registered winner; None if there is none yet.

        Raises:
            TrackingError: the store cannot be read.
        """
        with _failures():
            version = self._registered().get("version")
            if version is None:
                return None
            return self.client.get_model_version(self.model_name, version).tags.get("cell_id")

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

    def crown(self, student: ServableStudent) -> None:
        """Registers a student as a new version of the grid's model and moves the alias to it.

        A student that has a version keeps it. The alias moves last: until then the former
        champion is served, and what was cut off before is done again.

        Raises:
            TrackingError: the store failed, or holds no run of the student's cell.
        """
        with _failures():
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
        with _failures():
            self.client.delete_registered_model_alias(self.model_name, CHAMPION)

    def _version_of(self, cell_id: str) -> str | None:
        found = self.client.search_model_versions(f"name = '{self.model_name}'")
        return next((str(v.version) for v in found if v.tags.get("cell_id") == cell_id), None)

    def _new_version(self, student: ServableStudent) -> str:
        from mlflow.entities import LoggedModelOutput

        cell_id = student.row.cell_id
        runs = self._search(f"tags.cell_id = '{cell_id}'")
        if not runs:
            raise ValueError(f"no run of cell {cell_id} is there; send it first: run_all.py sync")
        tags = {"cell_id": cell_id, "pair": runs[0].data.tags.get("pair", "none")}
        run = runs[0].info.run_id
        model = self.client.create_logged_model(
            self._experiment, name=self.model_name, source_run_id=run, tags=tags,
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

    # --- reading back ---------------------------------------------------------------------------

    def fetch(self) -> tuple[Plan, dict[str, Record]]:
        """The plan and all its records, from MLflow alone.

        Raises:
            TrackingError: the experiment holds no plan, or the store cannot be read.
        """
        with _failures(), tempfile.TemporaryDirectory() as folder:
            plan = Plan.from_json(self._download(self._summary_run(), "plan.json", folder))
            wanted = set(plan.cell_ids())
            records = {}
            for run in self._search(f"tags.`{KIND}` = 'cell'"):
                if _is_whole(run) and run.data.tags["cell_id"] in wanted:
                    path = self._files_of(run).download_artifacts("record.json", folder)
                    record = Record.from_json(Path(path).read_text(encoding="utf-8"))
                    records[record.cell_id] = record
        return plan, {i: records[i] for i in plan.cell_ids() if i in records}

    def read_summary_file(self, name: str) -> str | None:
        """The text of a file of the summary run, as `send_summary` put it there.

        Args:
            name: its place below the grid's folder, such as "cost.json".

        Returns:
            None if the experiment has no such file.

        Raises:
            TrackingError: the store cannot be read.
        """
        path = SUMMARY / name
        with _failures(), tempfile.TemporaryDirectory() as folder:
            run = self._find_summary_run()
            if run is None:
                return None
            there = self.client.list_artifacts(run, path.parent.as_posix())
            if path.as_posix() not in {file.path for file in there if not file.is_dir}:
                return None
            return self._download(run, path.as_posix(), folder)

    def _download(self, run: str, name: str, folder: str) -> str:
        return Path(self.client.download_artifacts(run, name, folder)).read_text(encoding="utf-8")

    def _search(self, text: str) -> list[Run]:
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self._experiment], text, max_results=PAGE, page_token=token
            )
            runs.extend(page)
            token = page.token
            if not token:
                return runs


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


def _is_whole(run: Run) -> bool:
    """Whether everything of a run was sent; one that was cut off is RUNNING, or KILLED by now."""
    return run.info.status in STATUS.values()


def mirror_all(mirror: Mirror, plan: Plan, store: Store) -> int:
    """Sends every record of the plan that the store lacks; returns how many were sent.

    Runs that a killed process left unfinished are sent anew, or closed if there is no record.
    """
    mirror.send_plan(plan)
    rows = first_rows(plan)
    records = store.read_all(rows)
    sent = sum(mirror.send(record, rows[i], store.folder(i)) for i, record in records.items())
    mirror.close_left()
    mirror.join_groups()
    return sent


def registered_name(grid: str) -> str:
    """The name of a grid's registered model, without characters that MLflow refuses."""
    return "".join("_" if c in "/:" else c for c in f"{grid}-student")


def first_rows(plan: Plan) -> dict[str, Row]:
    """Cell id -> the first row that it answers for."""
    rows: dict[str, Row] = {}
    for row in plan.rows:
        rows.setdefault(row.cell_id, row)
    return rows


@dataclass(frozen=True)
class Group:
    """Runs that the UI lists together, under a run of this name.

    Attributes:
        name: of that run.
        pair: the tag that its runs have, so that a filter by it finds both; "none" without one.
        note: its description, Markdown.
    """

    name: str
    pair: str
    note: str


def group_of(row: Row) -> Group:
    """A method's runs are grouped by pair; whatever trains without a teacher stands by itself.

    A baseline or a teacher belongs to several pairs, and a run has one place only.
    """
    if row.role != "method":
        return Group(
            "teachers and plain students",
            "none",
            "Networks trained without a teacher: what every pair is compared with. One run each, "
            "however many pairs they belong to.",
        )
    axes = "".join(f" {name}={value:g}" for name, value in row.axes.items() if value != 1)
    return Group(
        f"{row.teacher}>{row.student}{axes}",
        f"{row.teacher}>{row.student}",
        f"All methods and seeds by which `{row.teacher}` taught `{row.student}` on `{row.data}`"
        f"{axes}. Select runs below and press *Compare*, or filter the list, for example by "
        f"`tags.category = 'response' and tags.pair = '{row.teacher}>{row.student}'`. Means, "
        "intervals and figures are on the run `summary`.",
    )


def describe(plan: Plan) -> str:
    """The experiment's note: what the grid is, and how to read its runs."""
    pairs = dict.fromkeys(f"`{row.teacher}` → `{row.student}`" for row in plan.rows)
    seeds = len({row.seed for row in plan.rows})
    lines = [
        f"**{plan.name}**: {' '.join(plan.description.split())}",  # all that a folded note shows
        f"Pairs: {', '.join(pairs)}. Seeds: {seeds}. Cells: {len(plan.cell_ids())}.",
        "**Where to look.** The run `summary` holds tables and figures under *Artifacts*. One run "
        "per cell, named teacher>student/method/seed, is listed under its pair: press + to unfold, "
        "*Load more* if a pair has no + (the list loads 100 runs at a time). To see some only, "
        "type for example `tags.category = 'response'` or `tags.pair = '...'` into the search; the "
        "tags `role`, `pair`, `method`, `label`, `category`, `seed`, `status` also group (*Group "
        "by*). *Columns* adds accuracies: `final/last_accuracy` is the last epoch's on the test "
        "set, in [0, 1]; `final/best_accuracy` is selected on the test set and so too high; "
        "`epoch/...` are curves.",
        f"A student that beats the plain one beyond doubt is the registered model "
        f"`{registered_name(plan.name)}`, alias `{CHAMPION}`.",
    ]
    return "\n\n".join(lines)


def _milliseconds(record: Record) -> int | None:
    from datetime import datetime

    started = record.conditions.get("started")
    return int(datetime.fromisoformat(started).timestamp() * 1000) if started else None


def _tags(record: Record, row: Row) -> dict[str, str]:
    paired = row.role == "method" and row.method != "student"
    tags = {
        KIND: "cell", "cell_id": record.cell_id, "status": record.status, "role": row.role,
        "method": row.method, "label": row.label, "category": record.category,
        "teacher": row.teacher if paired else "none", "seed": row.seed, "data": row.data,
        "student": row.teacher if row.role == "teacher" else row.student,
        "pair": f"{row.teacher}>{row.student}" if paired else "none",
        "error": record.error,
    }  # fmt: skip
    tags |= row.axes | {NOTE: _describe_run(record, row)}
    for name in ("commit", "dirty", "torch", "device"):
        tags[name] = record.conditions.get(name, "")
    return {name: str(value)[:5000] for name, value in tags.items() if value != ""}


def _describe_run(record: Record, row: Row) -> str:
    """What a run is, for a reader who meets the method for the first time; Markdown."""
    taught = f"`{row.teacher}` teaches `{row.student}` by " if row.role == "method" else ""
    what = f"{taught}**{row.label}** ({record.category}), seed {row.seed}, on `{row.data}`."
    failure = f"{record.status}: {record.error}" if record.error else ""
    return "\n\n".join(filter(None, (what, failure, record.source)))


def _dataset(record: Record, row: Row) -> DatasetInput:
    """Which images, known by their hash; none of them is sent."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    spec = record.cell.get("data", {})
    images = record.final.get("train_images")
    about = {"fingerprint": record.cell.get("fingerprint"), "train_images": images}
    data = Dataset(
        name=row.data, digest=str(record.cell.get("fingerprint")), source=json.dumps(spec),
        source_type=str(spec.get("source")), profile=json.dumps(about),
    )  # fmt: skip
    return DatasetInput(data, [InputTag("mlflow.data.context", "training")])


def _params(record: Record) -> list[Any]:
    from mlflow.entities import Param

    flat: dict[str, object] = {}
    for name, value in record.cell.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            flat[name] = value
    flat |= {"category": record.category, "student": flat.get("model")}
    flat["teacher"] = flat.get("teacher.model", "none")
    return [Param(name, str(value)[:6000]) for name, value in flat.items()]


def _metrics(record: Record, began: int) -> list[Any]:
    from mlflow.entities import Metric

    # The UI draws a section for each prefix, in this order: curves first, single points apart.
    curves = [
        Metric(_key(f"epoch/{name}"), value, began, epoch)
        for name, curve in record.curves.items()
        for epoch, value in enumerate(curve, start=1)
        if value is not None
    ]
    last = int(record.final.get("epochs", 0))
    final = [Metric(_key(f"final/{name}"), v, began, last) for name, v in record.final.items()]
    return curves + final


def _key(name: str) -> str:
    """A metric's key as MLflow allows it: letters, digits, _ - . space : /."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)


def serve(work_dir: Path, port: int) -> int:
    """Serves the MLflow UI on loopback until it is stopped; returns its exit code."""
    quiet()
    if tracking_uri(work_dir).startswith(("http:", "https:")):
        print(f"error: MLFLOW_TRACKING_URI is a server; its UI is at {tracking_uri(work_dir)}",
              file=sys.stderr)  # fmt: skip
        return 2
    # The jobs are for generative models; without them the server is two processes, not fifteen.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
               "--workers", "1", "--backend-store-uri", tracking_uri(work_dir)]  # fmt: skip
    # Without the word it would open on pages for language models.
    page = f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning"
    print(f"MLflow UI on {page} (Ctrl-C stops it)", flush=True)
    return subprocess.run(command, check=False).returncode
