"""The commands that train nothing: tables, sync, export, list and ui."""

import argparse
import re
import socket
import sys

from bench.cli.outputs import render, write
from bench.cli.recorded import fetch_costs, fetch_results, mended_by, results_name, words_of
from bench.cli.terminal import say, width
from bench.faults import UserError
from bench.launch.leases import Leases
from bench.launch.mirroring import send_records, sole_mirror
from bench.models.files import checksum_file
from bench.record import Plan, Record, Row, digest, write_atomically
from bench.report.answers import winner
from bench.report.results import findings
from bench.tracking import serve
from bench.workdir import WorkDir

OVERRIDE = re.compile(r"[\w.]+=")
"""How FIELD=VALUE begins; the name of a cell has a "/" before any "="."""


def tables(options: argparse.Namespace) -> int:
    """Renders a grid's tables again from what is recorded."""
    work = WorkDir(options.work_dir)
    name = results_name(options)
    plan, records = fetch_results(work, name, options.origin, words_of(options))
    render(work, plan, records, fetch_costs(work, name, options.origin))
    return 0


def sync(options: argparse.Namespace) -> int:
    """Sends to MLflow the records that it lacks."""
    work = WorkDir(options.work_dir)
    name = results_name(options)
    plan, records = fetch_results(work, name, "records", words_of(options))
    files = write(work, findings(plan, records, fetch_costs(work, name, "records")))
    with Leases(work.leases) as leases, sole_mirror(work, name, leases) as mirror:
        sent = send_records(mirror, work, plan, records)
        mirror.send_files(work.grid(name), files)
    print(f"{sent} records sent")
    return 0


def export(options: argparse.Namespace) -> int:
    """Writes one trained network with its preprocessing, after comparing it with the original."""
    from bench.export import ParityError, file_name, find_row, load_trained, pack

    work = WorkDir(options.work_dir)
    cells = [word for word in options.overrides if not OVERRIDE.match(word)]
    if len(cells) + options.winner != 1:
        raise UserError("wanted either a CELL or --winner (see: run_all.py export --help)")
    options.overrides = [word for word in options.overrides if word not in cells]
    name = results_name(options)
    plan, records = fetch_results(work, name, "records", words_of(options))
    row, why = _winner(work, plan, records) if options.winner else (find_row(plan, cells[0]), "")
    _check_trained(work, row, options, records)
    with mended_by(f"run_all.py {words_of(options)}"):
        trained = load_trained(row, work, why)
    try:
        content, parity = pack(trained, options.format)
    except ParityError as error:
        print(f"error: nothing is written: {error}", file=sys.stderr)
        return 1
    card = trained.card
    path = options.output or work.grid(plan.name) / "students" / file_name(card, options.format)
    write_atomically(path, content)
    # Of the formats none has a checksum. In the form of sha256sum, which checks it, too.
    write_atomically(checksum_file(path), f"{digest(content)}  {path.name}\n")
    say([why] if why else [])
    print(f"{card.name} ({card.cell_id}): {path}")
    print(f"compared with the trained network on {parity} (recorded: {card.last_accuracy:.2%})")
    if parity.quantised:
        print(parity.quantised)
    print("preprocessing:", *(f"  {step}" for step in card.preprocessing), sep="\n")
    print(f"classes, in the order of the logits: {', '.join(card.classes)}")
    return 0


def _winner(work: WorkDir, plan: Plan, records: dict[str, Record]) -> tuple[Row, str]:
    """The row to take home, and why."""
    best = winner(plan, records, fetch_costs(work, plan.name, "records"))
    if best is None:
        raise UserError(
            f"no row of {plan.name} is believed to be better than the student alone (see: "
            "run_all.py recommend); name a CELL instead"
        )
    return best


def _check_trained(
    work: WorkDir, row: Row, options: argparse.Namespace, records: dict[str, Record]
) -> None:
    """Refuses a cell that has a committed record and no weights here."""
    if row.cell_id in records and work.store.read(row.cell_id) is None:
        raise UserError(
            f"the weights of {row.name} are not in {work.root}; train that cell: run_all.py "
            f"--grid {options.grid} --pairs {row.teacher}:{row.student} --methods {row.method} "
            f"--seeds {row.seed} {' '.join(options.overrides)}".rstrip()
        )


def list_all(options: argparse.Namespace) -> int:
    """Prints what a grid can name, or the taps of one model."""
    from bench.catalogue import catalogue, describe_model

    if options.model is None:
        print(catalogue(width()))
        return 0
    try:
        print(describe_model(options.model, options.size))
    except ValueError as error:
        raise UserError(f"--model: {error}") from None
    return 0


def ui(options: argparse.Namespace) -> int:
    """Serves the MLflow UI on loopback until it is stopped."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind(("127.0.0.1", options.port))
        except OSError as error:
            raise UserError(f"--port {options.port}: {error.strerror}; choose another") from None
    return serve(options.work_dir, options.port)
