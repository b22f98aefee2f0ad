// Sorting by a click (or Enter, or Space) on a column's name: numbers descending first, names ascending; empty last.
"use strict";
for (const table of document.querySelectorAll("table.numbers:not(.plain)")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const body = table.tBodies[0];
  const original = [...body.rows];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    const numeric = column > 0;
    const key = (row) => (numeric ? row.cells[column].dataset.sort : row.cells[column].textContent.trim());
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const [first, second] = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
      const next = now === "none" ? first : now === first ? second : "none";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (numeric ? x - y : x.localeCompare(y, undefined, { numeric: true }));
      };
      body.append(...(next === "none" ? original : [...original].sort(compare)));
    });
  });
}
document.documentElement.classList.add("sortable");
