"""Everything a GPU is asked, within a number of seconds: tests, speed, real training.

    tests/gpu/run.sh OUT [SECONDS] [--parts training] [--tiny]

| part | ends after (of SECONDS) | in OUT |
|---|---|---|
| tests: `pytest -m gpu` | a third, at most 180 s | tests.txt |
| speed: see speed.py | two thirds | speed.txt, speed.jsonl |
| training: see training.py | 0.96 | training.txt, state.0 to state.2 |

Standard library only, so that it can say what else the machine lacks. Each part is a process of its
own and writes to OUT as it goes: a kill at any moment leaves what is done, and the next part runs
whatever became of the last; summary.json says how each ended. The environment may name PYTHON, the
interpreter; WHEELS, a folder with wheels of what it lacks (tests/gpu/wheels); COMMIT, where there
is no repository; and what training.py reads. `--tiny` is for trying it on a CPU.

It ends at once, with exit code 2, where a module is lacking and has no wheel. CONTRIBUTING.md says
how to fetch them. Git ignores tests/gpu/wheels: a copy of the repository needs it named.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NEEDED = (
    *("torch", "torchvision", "numpy", "scipy", "networkx", "sklearn", "safetensors", "yaml"),
    *("PIL", "pytest", "rich", "pydantic", "pydantic_core", "annotated_types"),
    "typing_inspection",
)
LONGEST_TESTS = 180.0
PARTS = {"tests": 1 / 3, "speed": 2 / 3, "training": 0.96}


def lacking() -> list[str]:
    """The modules of `NEEDED` that this interpreter does not find."""
    importlib.invalidate_caches()
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def install(wheels: Path, site: Path) -> None:
    """Unpacks the wheels into a folder of its own, if anything is lacking."""
    if not (missing := lacking()):
        return
    print(f"lacking here: {', '.join(missing)}; looking for wheels in {wheels}")
    if files := sorted(wheels.glob("*.whl")):
        how = ("--no-index", "--no-deps", "--no-compile", "--quiet", "--target", str(site))
        subprocess.run([sys.executable, "-m", "pip", "install", *how, *files], check=False)
        sys.path.insert(0, str(site))
    if missing := lacking():
        print(
            f"tests/gpu: {', '.join(missing)} lacking, and no wheels of them in {wheels}; "
            "CONTRIBUTING.md says how to fetch them",
            file=sys.stderr,
        )
        raise SystemExit(2)


def commands(out: Path, tiny: bool) -> dict[str, list[str]]:
    """Module and arguments of each part."""
    tests = ["pytest", "-m", "gpu", "-v", "-W", "default", "-p", "no:cacheprovider"]
    tests += ["--continue-on-collection-errors", "tests/test_gpu.py", "tests/test_data.py"]
    if importlib.util.find_spec("xdist") is not None and not tiny:
        tests += ["-n", "4"]
    rest = [str(out), *(["--tiny"] if tiny else [])]
    return {name: [f"tests.gpu.{name}", *rest] for name in PARTS} | {"tests": tests}


def run_part(command: list[str], log: Path, seconds: float, environment: dict[str, str]) -> str:
    """Runs one part; returns how it ended. All its processes end with it."""
    if seconds < 1:
        return "no time was left"
    environment = {**environment, "SECONDS_LEFT": f"{seconds:.1f}"}
    command = [sys.executable, "-u", "-m", *command]
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )
        try:
            return f"exit code {process.wait(timeout=seconds)}"
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s, when its time was over"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def said(*command: str) -> str:
    """What a command prints; nothing if it fails or is not here."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def describe() -> dict[str, object]:
    """The machine, for the summary."""
    query = "--query-gpu=name,driver_version,memory.total"
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": said("nvidia-smi", query, "--format=csv,noheader") or "no nvidia-smi",
        "machine": f"{platform.platform()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "commit": said("git", "rev-parse", "HEAD") or os.environ.get("COMMIT", ""),
    }


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="tests/gpu/run.sh", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("seconds", type=float, nargs="?", default=540.0, metavar="SECONDS")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="small networks, for a CPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as site:
        wheels = os.environ.get("WHEELS", Path(__file__).parent / "wheels")
        install(Path(wheels).resolve(), Path(site))
        paths = [site, os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        summary = {**describe(), "seconds": options.seconds, "parts": {}}
        for name in options.parts:
            command, log = commands(options.out, options.tiny)[name], options.out / f"{name}.txt"
            start = time.monotonic()
            left = PARTS[name] * options.seconds - (start - began)
            left = min(left, LONGEST_TESTS) if name == "tests" else left
            summary["parts"][name] = run_part(command, log, left, environment)
            (options.out / "summary.json").write_text(json.dumps(summary, indent=1))
            seconds = time.monotonic() - start
            print(f"{name}: {summary['parts'][name]} ({seconds:.0f} s)")


if __name__ == "__main__":
    main()
