"""A grid's plan and records in one compressed file that is committed with its tables.

One JSON object per line: the plan, then the records by cell id.
"""

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bench.faults import UserError
from bench.record import Plan, Record, write_atomically

FILE = "records.jsonl.gz"


def write_archive(plan: Plan, records: Mapping[str, Record], path: Path) -> None:
    """Writes the plan and its records without tracebacks, unless the file holds them already."""
    kept = [replace(records[i], traceback="") for i in sorted(plan.cell_ids()) if i in records]
    lines = [_in_one_line(text.to_json()) for text in (plan, *kept)]
    content = "".join(f"{line}\n" for line in lines).encode()
    if path.is_file() and _unpacked(path.read_bytes()) == content:
        return  # another version of zlib would give other bytes
    write_atomically(path, gzip.compress(content, mtime=0))


def read_archive(path: Path) -> tuple[Plan, dict[str, Record]]:
    """The plan and the records by cell id; UserError if the file is damaged."""
    content = _unpacked(path.read_bytes())
    try:
        if content is None:
            raise ValueError("not a gzip file")
        first, *lines = content.decode().splitlines()
        plan = Plan.from_json(first)
        records = {record.cell_id: record for record in map(Record.from_json, lines)}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error}; run the grid again") from None
    return plan, {cell_id: records[cell_id] for cell_id in plan.cell_ids() if cell_id in records}


def _in_one_line(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def _unpacked(packed: bytes) -> bytes | None:
    try:
        return gzip.decompress(packed)
    except (OSError, EOFError, zlib.error):
        return None
