// Sorting by a click (or Enter, or Space) on a column's name: numbers descending first, names ascending; empty last.
// A table of more than twenty rows gets a box: only rows that hold every word in it are shown.
"use strict";
for (const table of document.querySelectorAll("table.numbers:not(.plain)")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const body = table.tBodies[0];
  const original = [...body.rows];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    const numeric = column > 0 && !head.classList.contains("word");
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
for (const table of document.querySelectorAll("table.numbers")) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length <= 20) continue;
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("span");
  label.className = "filter";
  input.type = "search";
  input.placeholder = `Filter ${rows.length} rows`;
  input.setAttribute("aria-label", `Filter the table's ${rows.length} rows`);
  count.setAttribute("role", "status");
  const texts = rows.map((row) => row.textContent.toLowerCase());
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      shown += !row.hidden;
    });
    count.textContent = words.length ? `${shown} of ${rows.length}` : "";
  });
  label.append(input, count);
  table.closest(".scroll").before(label);
}
document.documentElement.classList.add("sortable");
