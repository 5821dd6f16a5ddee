"""The commands that train nothing: tables, recommend, sync, export, list and ui."""

import argparse
import re
import socket
import sys

from bench.cli.options import command_of, work_words
from bench.cli.recorded import asked_results, mended_by, render, send, write
from bench.cli.terminal import say, width
from bench.decide.csv_file import read_csv
from bench.decide.decision import Question, decide
from bench.decide.records import decide_plan, group_by_pair
from bench.faults import UserError, one_line
from bench.models.files import checksum_file
from bench.record import digest, write_atomically
from bench.report.answers import NO_STUDENT, Asked, answer_lines, asked_of, overall_lines, winner
from bench.report.results import findings
from bench.tracking import serve

OVERRIDE = re.compile(r"[\w.]+=")
"""How FIELD=VALUE begins; the name of a cell has a "/" before any "="."""


def tables(options: argparse.Namespace) -> int:
    """Renders a grid's tables again from what is recorded."""
    render(*asked_results(options, options.origin))
    return 0


def recommend(options: argparse.Namespace) -> int:
    """Says for each pair what is proven and what is the best bet: of a grid, or of a CSV file."""
    limits = {"against": options.against or "", "max_cost": options.max_cost}
    if options.csv is not None:
        if options.methods or options.pairs or options.seeds or options.overrides:
            raise UserError("--csv: --methods, --pairs, --seeds and fields are for grids")
        pairs, asked = read_csv(options.csv, one_line(options.baseline or "student")), Asked()
        equal = not any(row.screening for pair in pairs for row in pair.rows)
        answers, overall = decide(pairs, Question(equal_seeds=equal, **limits))
        names = {pair.name: pair.name for pair in pairs}
    elif options.baseline is not None:
        raise UserError("--baseline is for --csv; rows of a grid are held --against ROW")
    else:
        _, (plan, records, costs) = asked_results(options, options.origin)
        answers, overall = decide_plan(plan, records, costs, **limits)
        answers = answers.values()
        names = {pair.title: f"{pair.teacher}:{pair.student}" for pair in group_by_pair(plan)}
        asked = asked_of(plan, records)._replace(work_dir=work_words(options))
    titles = [title for title, name in names.items() if options.pair in (None, name)]
    if not titles:
        known = ", ".join(dict.fromkeys(names.values()))
        raise UserError(f"--pair: no pair {options.pair!r}; it has: {known}")
    answered = {answer.pair.name: answer for answer in answers}
    shown = [answered[title] for title in titles if title in answered]
    why = f"no confirmation seeds of {options.against!r}" if options.against else NO_STUDENT
    failed = [f"{title}: {why}" for title in titles if title not in answered]
    if not any(answer.named for answer in shown):
        problems = [f"{answer.pair.name}: {answer.problem}" for answer in shown] + failed
        problems += [asked.lacks.rstrip(".")] if asked.lacks else []
        raise UserError(f"no answer: {'; '.join(dict.fromkeys(problems))}")
    say(overall_lines(overall, options.against or "student") if options.pair is None else [])
    say(line for answer in shown for line in answer_lines(answer, asked))
    say(f"no answer: {text}" for text in failed)
    if asked.grid and any(answer.settle for answer in shown):
        say(["a command takes the --data-root of the run as well, if it had one"])
    return 0


def sync(options: argparse.Namespace) -> int:
    """Sends to MLflow the records that it lacks."""
    work, results = asked_results(options)
    files = write(work, findings(*results))
    print(f"{send(work, results[0].name, files, results)} records sent")
    return 0


def export(options: argparse.Namespace) -> int:
    """Writes one trained network with its preprocessing, after comparing it with the original."""
    from bench.export import ParityError, check_output, file_name, find_row, load_trained, pack

    cells = [word for word in options.overrides if not OVERRIDE.match(word)]
    if len(cells) + options.winner != 1:
        raise UserError("wanted either a CELL or --winner (see: run_all.py export --help)")
    options.overrides = [word for word in options.overrides if word not in cells]
    asked = options.output and check_output(options.output, options.format)
    work, (plan, records, costs) = asked_results(options)
    won = winner(plan, records, costs) if options.winner else (find_row(plan, cells[0]), "")
    if won is None:
        raise UserError(
            f"no row of {plan.name} is believed to be better than the student alone (see: "
            "run_all.py recommend); name a CELL instead"
        )
    row, why = won
    if row.cell_id in records and work.store.read(row.cell_id) is None:  # a committed record
        pairs, methods = [f"{row.teacher}:{row.student}"], [row.method]
        train = command_of(options, pairs=pairs, methods=methods, seeds=[row.seed])
        raise UserError(f"the weights of {row.name} are not in {work.root}; train them: {train}")
    with mended_by(command_of(options)):
        trained = load_trained(row, work, why)
    try:
        content, parity = pack(trained, options.format)
    except ParityError as error:
        print(f"error: nothing is written: {error}", file=sys.stderr)
        return 1
    card = trained.card
    path = asked or work.grid(plan.name) / "students" / file_name(card, options.format)
    write_atomically(path, content)
    # Of the formats none has a checksum. In the form of sha256sum, which checks it, too.
    write_atomically(checksum_file(path), f"{digest(content)}  {path.name}\n")
    say([why] if why else [])
    print(f"{card.name} ({card.cell_id}): {path}")
    recorded = f"recorded on {card.measured_on}: {card.last_accuracy:.2%}"
    print(f"compared with the trained network on {parity} ({recorded})")
    if parity.quantised:
        print(parity.quantised)
    print("preprocessing:", *(f"  {step}" for step in card.preprocessing), sep="\n")
    print(f"classes, in the order of the logits: {', '.join(map(one_line, card.classes))}")
    return 0


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
