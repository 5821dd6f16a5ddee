"use strict";
// Headings become buttons that sort their table, the best first, then the other way.
// Numbers are compared by data-value; what has none stays last either way.
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
    button.addEventListener("click", () => {
      const first = head.dataset.best === "high" ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const numbers = rows.some((row) => row.cells[column].dataset.value !== undefined);
      const sign = order === "descending" ? -1 : 1;
      body.append(...rows.toSorted((a, b) => compare(a.cells[column], b.cells[column], numbers, sign)));
    });
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);

const picker = document.getElementById("pair");
function pick() {
  document.querySelectorAll(".panel").forEach((panel) => {
    panel.hidden = panel.dataset.pair !== picker.value;
  });
}
if (picker) {
  picker.addEventListener("change", pick);
  pick();
}

// A link into a closed section opens it; paper shows all of them.
function reveal() {
  const found = location.hash && document.getElementById(location.hash.slice(1));
  if (found && found.tagName === "DETAILS") found.open = true;
}
addEventListener("hashchange", reveal);
reveal();
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
