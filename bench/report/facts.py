"""What is equal for all pairs of a grid, said once, and what tells its pairs apart."""

import json
from collections.abc import Iterable, Mapping

from bench.design import PairId
from bench.record import Plan, Record
from bench.report.groups import Group, Pairs
from bench.report.wording import seeds_text


def pair_titles(pairs: Pairs) -> dict[PairId, str]:
    """Each pair by its networks, with data set and axes only where pairs differ in them."""
    where = {key: (key.data, *_axes(key, groups)) for key, groups in pairs.items()}
    common = set.intersection(*map(set, where.values())) if where else set()
    return {
        key: ", ".join([f"{key.teacher} → {key.student}", *(x for x in parts if x not in common)])
        for key, parts in where.items()
    }


def facts(plan: Plan, pairs: Pairs, records: Mapping[str, Record]) -> list[str]:
    """What was trained, on what and when, as short phrases."""
    used = [records[cell] for cell in plan.cell_ids() if cell in records]
    students, teachers = (
        [r for groups in pairs.values() for g in groups if g.role == role for r in g.finished()]
        for role in ("student", "teacher")
    )
    seen, taught = (_whole_numbers(found, "train_images") for found in (students, teachers))
    images = f"{seen} training images" if seen == taught or not taught else ""
    places = dict.fromkeys(str(r.conditions["device"]) for r in used if r.conditions.get("device"))
    parts = [
        ", ".join(dict.fromkeys(key.data for key in pairs)),
        images or f"teachers saw {taught} images, students {seen}",
        f"{_whole_numbers(students, 'epochs')} epochs",
        f"seeds {seeds_text(row.seed for row in plan.rows)}",
        f"{_whole_numbers(students, 'test_images')} {measured_on(plan, 'images')}",
        ", ".join(places),
        max((str(r.conditions.get("started", "")) for r in used), default="")[:10],
    ]
    return [part for part in parts if students and part and not part.startswith(" ")]


def measured_on(plan: Plan, what: str) -> str:
    """What accuracies are of: the test `what`, "set" or "images", or images held out."""
    if plan.config.get("data", {}).get("validation"):
        return "held-out training images"
    return f"test {what}"


def _axes(key: PairId, groups: Iterable[Group]) -> list[str]:
    """The axes of a pair that are not at their neutral 1, as people say them."""
    finished = {group.role: record for group in groups for record in group.finished()[:1]}
    student, teacher = finished.get("student"), finished.get("teacher")
    seen, all_data = ((r.cell.get("data") or {}) if r else {} for r in (student, teacher))
    found = []
    for name, value in json.loads(key.axes).items():
        text = f"{name} {value:g}"
        if name == "resolution" and (size := seen.get("size")):
            text = f"{size / value:g}×{size / value:g}"
        elif name == "labels":
            text = f"{100 * value:.0f} % of the labels"
        elif name == "fraction" and student and "train_images" in student.final:
            text = f"{student.final['train_images']:,.0f} images"
            if teacher and all_data.get("fraction") == 1:
                text = text.replace("images", f"of {teacher.final['train_images']:,.0f} images")
        found += [text] if value != 1 else []
    return found


def _whole_numbers(records: Iterable[Record], key: str) -> str:
    """The values of a count, the least and the greatest."""
    values = [record.final[key] for record in records if record.final.get(key) is not None]
    ends = dict.fromkeys(f"{end:,.0f}" for end in (min(values), max(values))) if values else ()
    return " to ".join(ends)
