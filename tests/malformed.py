"""A generator of malformed input, and a judge of what commands make of it.

Processes are forked from this one after all imports, so that a case costs milliseconds. A case must
end with exit code 2 and one line, or be accepted and be on the list of what is right.
"""

import argparse
import contextlib
import io
import json
import math
import os
import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from malformed_trees import TREES, write_tree
from summary_grid import cost, plan, records

from bench.cost.costs import FILE, Costs
from bench.record import WorkDir

SECONDS, MEMORY, BATCH = 60, 8 * 2**30, 50
HOLE = "@hole@"


class Case(NamedTuple):
    """A command line and what it reads; `make` writes that into the folder that "{}" stands for.

    A right one that would take long ends at something else, which names `mark`.
    """

    name: str
    words: Sequence[str]
    right: bool
    make: Callable[[Path], object] = lambda folder: None
    mark: str = "\0"


class Hang(BaseException):
    """A case took too long; nothing of the harness catches this."""


def faults(cases: Sequence[Case], folder: Path) -> list[str]:
    """What is wrong with each case that is not judged right. `folder` is shared, and kept."""
    told, start = [], 0
    while part := cases[start : start + BATCH]:
        log = folder / f"ended-{start}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads that are not used here
            child = os.fork()
        if child == 0:
            _run(part, folder / str(start), log)
        os.waitpid(child, 0)
        ended = [json.loads(line) for line in log.read_text().splitlines()]
        told += [_judge(case, *end) for case, end in zip(part, ended, strict=False)]
        start += len(ended)
        if len(ended) < len(part):
            told.append(f"{part[len(ended)].name}: hung, or ended its process")
            start += 1
    return [text for text in told if text]


def _judge(case: Case, code: object, said: str) -> str:
    lines = [line for line in said.splitlines() if ": reading " not in line]
    if code not in (0, 1, 2) or "Traceback" in said:
        return f"{case.name}: ended with {code}: {' | '.join(lines[-3:])[-300:]}"
    if code == 2 and (len(lines) != 1 or not lines[0].startswith("error: ") or len(said) > 2000):
        return f"{case.name}: not one line: {' | '.join(lines)[:300]}"
    if (taken := code == 0 or case.mark in said) != case.right:
        return f"{case.name}: {'accepted' if taken else f'refused: {lines}'}"
    return ""


def _run(cases: Sequence[Case], folder: Path, log: Path) -> None:
    """In the new process, which ends here: runs cases, and logs how each ended and what it said."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        with log.open("w") as ended:
            for number, case in enumerate(cases):
                place = folder / str(number)
                place.mkdir(parents=True)
                case.make(place)
                os.chdir(place)
                words = [word.replace("{}", str(place)) for word in case.words]
                ended.write(f"{json.dumps(_end(words))}\n")
                ended.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _hang(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # if even this does not end it
    signal.alarm(2)
    raise Hang


def _end(words: list[str]) -> tuple[object, str]:
    """The exit code, or what was raised, and what was said on stderr."""
    from bench.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            signal.signal(signal.SIGALRM, _hang)
            signal.alarm(SECONDS)
            return main(words), said.getvalue()
        except SystemExit as stopped:
            return stopped.code, said.getvalue()
        except BaseException as error:
            return type(error).__name__, "".join(traceback.format_exception(error))
        finally:
            signal.alarm(0)


# --- grids ---------------------------------------------------------------------------------------

VALUES = {
    "null": "null", "true": "true", "yes": "'yes'", "zero": "0", "one": "1", "eight": "8",
    "minus": "-1", "half": "0.5", "exponent": "5e-1", "more": "1.5", "whole": "2.0",
    "many": "10000000000", "vast": "100000000000000000000", "over": "1e400", "nan": ".nan",
    "inf": ".inf", "below": "-.inf", "empty": "''", "space": "' '", "word": "x", "up": "../x",
    "nul": '"a\\0b"', "break": '"a\\nb"', "digit": "'1'", "date": "2026-01-01",
    "time": "2026-01-01T10:00:00Z", "base60": "1:30", "binary": "!!binary aGk=", "list": "[]",
    "nulls": "[null]", "truths": "[true]", "halves": "[0.5]", "words": "[x]", "nested": "[[[[1]]]]",
    "map": "{}", "unknown": "{nonsense: 1}", "odd": "{1: 2}", "self": "&a [*a]",
    "selfmap": "&a {a: *a}", "code": "!!python/object/apply:os.getcwd []", "twice": "{a: 1, a: 2}",
    "long": "x" * 100_000, "deep": "[" * 2000 + "]" * 2000,
}  # fmt: skip
"""Values of every field, as YAML."""

TEXT = "yes space word up break digit date time base60 long"
NUMBERS = "half exponent more whole one eight many vast"
RIGHT = {
    "text": f"{TEXT} empty", "flag": "true", "none": "", "optional": "null", "map": "map",
    "count": "one eight", "natural": "zero one eight", "two": "eight", "part": "half exponent one",
    "below 1": "zero half exponent", "above 0": NUMBERS, "from 0": f"{NUMBERS} zero",
    "from 1": "more whole one eight", "to 1": "half exponent zero one", "seed": "zero one eight",
}  # fmt: skip
"""Kind of field -> the values that are right for it."""

SMALL = {
    "description": "x", "data": {"source": "digits", "fraction": 0.1, "pad": 1},
    "pairs": ["cnn4:cnn4"], "methods": ["soft_logits"], "seeds": 1,
    "recipe": {"epochs": 2, "batch_size": 16, "learning_rate": 0.1},
}  # fmt: skip

FIELDS = {
    "description": "text", "data": "none", "axes": "map", "pairs": "none", "teachers": "none",
    "students": "none", "models": "map", "methods": "none", "seeds": "one eight",
    "max_cost": f"null {RIGHT['above 0']}", "recipe": "none", "recipe_for": "map",
    "tuned": "map", "teacher": "map", "source": "null", "precision": "none",
    "deterministic": "flag", "diagnostics": "flag", "name": "none", "part_of": "none",
    "narrowed": "none", "nonsense": "none",
    "data.source": "none", "data.size": "null eight", "data.classes": "null eight",
    "data.pad": "natural", "data.padding": "none", "data.flip": "flag", "data.fraction": "part",
    "data.crop": "null", "data.randaugment": "null map", "data.randaugment.operations": "count",
    "data.randaugment.magnitude": "natural", "data.crop.scale": "none", "data.labels": "part",
    "data.resolution": "count", "data.validation": "below 1",
    "data.validation_seed": "null zero one eight", "data.split_seed": "seed",
    "axes.fraction": "null halves", "axes.labels": "null halves", "axes.resolution": "null",
    "recipe.epochs": "count", "recipe.batch_size": "two", "recipe.learning_rate": "above 0",
    "recipe.optimiser": "none", "recipe.betas": "none", "recipe.warmup": "zero one",
    **dict.fromkeys(("recipe.mixup", "recipe.cutmix"), "zero half exponent more one eight whole"),
    "recipe.momentum": "below 1", "recipe.nesterov": "flag", "recipe.weight_decay": "from 0",
    "recipe.schedule": "none", "recipe.milestones": "list halves", "recipe.decay": "part",
    "recipe.drop_last": "flag", "recipe.label_smoothing": "below 1",
    "recipe.evaluate_every": "count", "recipe.budget": "none",
    "recipe_for.cnn4": "map", "recipe_for.cnn4.epochs": "count", "recipe_for.x": "none",
    "tuned.soft_logits": "map", "tuned.soft_logits.temperature": "above 0",
    "tuned.soft_logits.learning_rate": "above 0", "tuned.x": "none",
    "teacher.fraction": "part", "teacher.recipe": "map", "teacher.recipe.epochs": "count",
    "teacher.seed": "seed", "teacher.seeds": "optional", "teacher.weights": "optional",
    "teacher.normalise": "optional", "teacher.classes": "optional",
    "teacher.fine_tune": "null", "teacher.fine_tune.epochs": "none",  # without weights
    "seeds.screen": "count", "seeds.finalists": "two", "seeds.confirm": "two",
    "seeds.extend": "natural", "seeds.first": "seed", "source.data": "map",
    "source.data.classes": "null eight", "source.data.fraction": "part", "source.recipe": "none",
    "models.x": "none", "models.cnn4": "none", "models.cnn4.model": "none",
    "models.cnn4.torchvision": "none", "models.cnn4.timm": "none", "models.cnn4.weights": "none",
    "models.cnn4.taps": "none", "pairs.0": "none", "pairs.0.teacher": "none",
    "pairs.0.student": "none", "methods.0": "none", "methods.0.x": "none", "seeds.0": "seed",
    "methods.0.student": "null map", "methods.0.student.epochs_factor": "more whole one eight",
    "methods.0.soft_logits": "null map", "methods.0.soft_logits.finalist": "flag",
    "methods.0.soft_logits.rho": "to 1", "methods.0.fitnet": "null map",
    "methods.0.rkd.with_soft_logits": "flag", "methods.0.fitnet.stage2": "none",
    "methods.0.fitnet.learning_rate": "above 0",
}  # fmt: skip
"""Field -> its kind, or the values that are right for it, of a grid that is right but for it."""


def grid_cases() -> Iterator[Case]:
    """Every field of a grid with every value."""
    for field, kind in FIELDS.items():
        text = _flow(_with(SMALL, field.split("."), HOLE))
        right = RIGHT.get(kind, kind).split()
        for name, value in VALUES.items():
            written = text.replace(f"'{HOLE}'", value)
            yield grid_case(f"{field}: {name}", written.encode(), name in right)


def grid_case(name: str, text: bytes, right: bool, *more: str) -> Case:
    """A dry run of a grid of this text; data are read from a cache that the cases share."""
    words = ["--grid", "{}/g.yaml", "--work-dir", "{}/../../work", "--dry-run", "--workers", "1"]
    return Case(name, [*words, *more], right, lambda at: (at / "g.yaml").write_bytes(text))


def _flow(values: object) -> str:
    return yaml.safe_dump(values, default_flow_style=True, width=10**9).strip()


def _with(values: object, path: Sequence[str], new: object) -> object:
    """The values with the one at a path replaced; what is missing on the way is added."""
    if not path:
        return new
    first, *rest = path
    if first.isdecimal():
        return [_with(values[0] if isinstance(values, list) else None, rest, new)]
    own = dict(values) if isinstance(values, dict) else {}
    if first in ("screen", "finalists", "confirm", "extend", "first"):
        own = {"screen": 1, "finalists": 2, "confirm": 2}
    if first in ("teachers", "students"):
        own |= {"teachers": ["cnn4"], "students": ["cnn4"], "pairs": []}
    return own | {first: _with(own.get(first), rest, new)}


# --- the text of a grid --------------------------------------------------------------------------

WHOLE, BLOCK = _flow(SMALL), yaml.safe_dump(SMALL)
MANY = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 12))
TEXTS = {
    "empty": "", "comment": "# nothing", "list": "[1]", "number": "1", "word": "x", "null": "~",
    "tab": f"\t{BLOCK}", "alias before": "description: *d\n", "self": f"{BLOCK}x: &x [*x]",
    "multiplies": f"x0: &x0 [x]\n{MANY}{BLOCK}", "two": f"---\n{BLOCK}---\n{BLOCK}",
    "version": f"%YAML 9.9\n---\n{BLOCK}", "complex key": f"{BLOCK}? [a]\n: b\n",
    "number key": f"{BLOCK}1: x\n", "null key": f"{BLOCK}~: x\n", "control": f"{BLOCK}x: \x01\n",
    "deep map": "{a: " * 5000, "deep block": "\n".join(" " * n + "a:" for n in range(500)),
    "open quote": f'{BLOCK}x: "', "digits": f"{BLOCK}max_cost: {'9' * 5000}\n",
    "merge of text": f"{BLOCK}<<: x\n", "name": f"{BLOCK}name: a/b\n", "NUL": f"{BLOCK}\0",
    "python": f"{BLOCK}x: !!python/name:os.system\n", "set": f"{BLOCK}axes: !!set {{x}}\n",
    "bad int": BLOCK.replace("seeds: 1", "seeds: !!int x"), "local": f"{BLOCK}axes: !x {{}}\n",
    "bad float": BLOCK.replace("0.1", "!!float ''"), "escape": f'{BLOCK}x: "\\q"',
    "bad bool": f"{BLOCK}diagnostics: !!bool x\n", "bom": "\ufeff\ufeff", "BEL": f"{BLOCK}# \7",
    **{f"cut at {cut}": WHOLE[:cut] for cut in range(0, len(WHOLE), 2)},
    **{f"twice {line}": BLOCK.replace(line, f"{line}\n{line}") for line in BLOCK.splitlines()},
}  # fmt: skip
"""Texts that are no grid; the last ones have a key, or an entry of a list, twice."""

OVERRIDES = [
    "=1", ".=1", ".x=1", "recipe.=1", "recipe..epochs=1", "recipe", "seeds.0=1", "x=1", "data=1",
    "data.source.x=1", "name=x", "part_of=x", "narrowed=true", "recipe.epochs=[", "=", "\0=1",
    "recipe.epochs=&a [*a]", "recipe.epochs= ", "recipe.epochs=2026-01-01", "recipe.epochs=true",
    "recipe.\nepochs=1", "data.source=\udcff", "pairs=cnn4", "methods.0=fitnet", "-", "x/y",
]  # fmt: skip


def text_cases() -> Iterator[Case]:
    """Texts that are no grid, or are one in another encoding, and words that override fields."""
    for name, text in TEXTS.items():
        yield grid_case(f"text: {name}", text.encode(), False)
    for encoding in ("utf-16", "utf-32", "latin-1"):
        yield grid_case(f"text: {encoding}", f"{BLOCK}# ü\n".encode(encoding), False)
    alias = BLOCK.replace("recipe:", "recipe: &r") + "recipe_for: {cnn4: {<<: *r, epochs: 3}}\n"
    right = {"BOM": BLOCK.encode("utf-8-sig"), "CRLF": BLOCK.replace("\n", "\r\n").encode(),
             "long comment": f"{BLOCK}{'#' * 10**5}".encode(), "alias": alias.encode()}  # fmt: skip
    for name, content in right.items():
        yield grid_case(f"text: {name}", content, True)
    for text in OVERRIDES:
        yield grid_case(f"override: {text!r}", BLOCK.encode(), False, text)
    yield grid_case("override: right", BLOCK.encode(), True, "recipe.decay=1e-3", "data.pad=0")


# --- options -------------------------------------------------------------------------------------

WORDS = [
    "", " ", "x", "-1", "0", "1", "2", "1.5", "0.5", "1e400", "nan", "inf", "-inf", "9" * 30, "1 s",
    "10000000000", "１", "../x", "/dev/null", "a\nb", "\udcff", "x" * 5000, ",", "x,y", "0-", "5-0",
    "0-9999999999", "[]", "--", "cnn4:cnn4", "é", "0x10", "1_0", " 1", "1x8x8", "0x0", "0-4", 
    "auto", "cpu", "onnx", "local", "records",
]  # fmt: skip
"""Words after every option."""

TEXT_WORDS = set(WORDS) - {"-inf", "--"}  # which are options themselves
NAMES = TEXT_WORDS - {"", " ", ","}
PATHS = TEXT_WORDS - {"", " ", "\udcff"}
COUNT = {"1", "2", " 1"}
RIGHT_WORDS = {
    "--work-dir": PATHS, "--methods": NAMES, "--pairs": NAMES, "--data-root": PATHS,
    "--seeds": {"0", "1", "2", "0-4", " 1"}, "--device": TEXT_WORDS, "--threads": COUNT,
    "--workers": COUNT, "--cohort": COUNT, "--launcher": {"local"},
    "--checkpoint-seconds": {*COUNT, "0", "1.5", "0.5"}, "--trials": COUNT,
    "--gpus-per-job": {*COUNT, "0", "1.5", "0.5"}, "--tuning-seeds": COUNT,
    "--validation": {"0.5"}, "--rounds": COUNT, "--from": {"records"},
    "--against": TEXT_WORDS, "--pair": TEXT_WORDS,
    "--max-cost": {*COUNT, "1.5"}, "--format": {"onnx"},
    "--output": PATHS - {"/dev/null", "x" * 5000}, "--size": {"1x8x8"},
    "--port": COUNT, "ui --work-dir": PATHS, "tables --plugin": TEXT_WORDS,
    "recommend --plugin": TEXT_WORDS,
}  # fmt: skip
"""Option -> the words that are right for it, as far as the command line can know."""


def option_cases() -> Iterator[Case]:
    """Every option of every command with every word; what is right ends at a name that is not."""
    from bench.cli import COMMANDS

    for command, (_, add_options, _) in COMMANDS.items():
        parser = argparse.ArgumentParser()
        add_options(parser.add_argument)
        known = [action for action in parser._actions if action.nargs != 0]
        start = ["--model" if command == "list" else "--grid", "nosuch"] if command != "ui" else []
        for option in sorted({name for action in known for name in action.option_strings}):
            for word in WORDS:
                rights = RIGHT_WORDS.get(f"{command} {option}", RIGHT_WORDS.get(option, set()))
                if command == "ui" and word in rights:
                    continue  # it would be served
                words = [command, *start, *["--winner"] * (command == "export"), option, word]
                name = f"{command} {option} {word[:20]!r}"
                yield Case(name, words, word in rights, mark="nosuch")


# --- records -------------------------------------------------------------------------------------

JSON = {
    "null": None, "true": True, "zero": 0, "minus": -1, "half": 0.5, "vast": 10**40,
    "nan": math.nan, "inf": math.inf, "empty": "", "word": "x", "up": "../x",
    "nul": "a\0b", "surrogate": "\ud800", "list": [], "nulls": [None], "words": ["x"],
    "nested": [[[[1]]]], "map": {},
    "unknown": {"nonsense": 1}, "maps": [{}], "long": "x" * 100_000,
}  # fmt: skip
"""Values of every field, as JSON."""


def hand_written(root: Path) -> None:
    """Writes the results that the cases of records are about into `root`/by_hand."""
    work = WorkDir(root / "by_hand")
    work.grid("by_hand").mkdir(parents=True)
    work.plan("by_hand").write_text(plan().to_json())
    (work.grid("by_hand") / FILE).write_text(Costs((cost("soft_logits", 1.4),)).to_json())
    for record in records().values():
        work.store.write(record)


def record_cases(root: Path) -> Iterator[Case]:
    """Every field of a record, a plan and measured costs with every value, and damaged text."""
    cell = "store/cells/narrow-soft_logits-0/record.json"
    for file in (cell, "by_hand/plan.json", f"by_hand/{FILE}"):
        text = (root / "by_hand" / file).read_text()
        whole = json.loads(text)
        for path in list(_paths(whole)):
            for name, value in JSON.items():
                if _at(whole, path) != value:
                    changed = json.dumps(_with(whole, path, value))
                    yield _damaged(root, file, f"{'.'.join(path)}: {name}", changed.encode())
        for cut in range(0, len(text), max(1, len(text) // 25)):
            yield _damaged(root, file, f"cut at {cut}", text[:cut].encode())
        texts = {"deep": "[" * 10**5, "deep map": '{"a":' * 10**5, "twice": f"{text}{text}",
                 "digits": "9" * 5000, "NUL": f"{text}\0"}  # fmt: skip
        for name, changed in texts.items():
            yield _damaged(root, file, name, changed.encode())
        for encoding in ("utf-16", "utf-8-sig"):
            yield _damaged(root, file, encoding, text.encode(encoding))
        yield _damaged(root, file, "not UTF-8", text.encode() + b"\xff")


def _damaged(root: Path, file: str, name: str, content: bytes) -> Case:
    """`recommend` on the hand-written results with one file changed; all others are links."""

    def make(folder: Path) -> None:
        here, there = folder / "w", root / "by_hand"
        for place in (Path(), *reversed(Path(file).parents[:-1])):
            (here / place).mkdir(parents=True, exist_ok=True)
            for entry in os.scandir(there / place):
                if not Path(file).is_relative_to(place / entry.name):
                    (here / place / entry.name).symlink_to(entry.path)
        (here / file).write_bytes(content)

    words = ["recommend", "--grid", "by_hand", "--work-dir", "{}/w"]
    return Case(f"{Path(file).name}: {name}", words, False, make)


def _paths(values: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    first = values[:1] if isinstance(values, list) else []
    inner = values.items() if isinstance(values, dict) else enumerate(first)
    for key, value in inner:
        yield from _paths(value, (*path, str(key)))


def _at(values: Any, path: Sequence[str]) -> object:
    for key in path:
        values = values[int(key) if isinstance(values, list) else key]
    return values


# --- trees of images -----------------------------------------------------------------------------


def tree_cases() -> Iterator[Case]:
    """Trees of images, as `source: folder` and under a name."""
    for name, (right, change) in TREES.items():
        for source, place in (("folder", "{}/d"), ("d", "{}")):
            if name in ("no train", "file for train", "file for tree", "nothing") and source == "d":
                continue
            text = _flow(SMALL | {"data": {"source": source, "pad": 1}}).encode()

            def make(folder: Path, text: bytes = text, change: Any = change) -> None:
                (folder / "g.yaml").write_bytes(text)
                change(write_tree(folder))

            case = grid_case(f"tree: {name}, {source}", text, right, "--data-root", place)
            yield case._replace(make=make)
