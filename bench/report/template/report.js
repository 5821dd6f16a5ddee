"use strict";
// Headings become buttons that sort their table: rising, falling, as it came.
// Numbers are compared by data-value; what has none stays last either way.
const NEXT = {none: "ascending", ascending: "descending", descending: "none"};

function compare(a, b, numbers, sign) {
  if (!numbers) return sign * a.textContent.localeCompare(b.textContent, "en");
  const missing = [a, b].map((cell) => cell.dataset.value === undefined);
  if (missing[0] || missing[1]) return missing[0] - missing[1];
  return sign * (Number(a.dataset.value) - Number(b.dataset.value));
}

function sortable(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = NEXT[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      const numbers = rows.some((row) => row.cells[column].dataset.value !== undefined);
      const sign = order === "descending" ? -1 : 1;
      const sorted = order === "none" ? rows : rows.toSorted(
        (a, b) => compare(a.cells[column], b.cells[column], numbers, sign));
      body.append(...sorted);
    });
  });
}

document.querySelectorAll("table").forEach(sortable);
