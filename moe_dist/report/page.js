// A table of alike rows sorts by a click on the name of a column: once, and the other way round.
const units = { ms: 1e-3, s: 1, min: 60, h: 3600 };
const value = (row, column) => {
  const text = row.cells[column].textContent.trim();
  const [, number, unit] = text.replaceAll(",", "").match(/^([+-]?\d[\d.e+-]*)\s*([a-z]*)/) ?? [];
  return number === undefined ? text : parseFloat(number) * (units[unit] ?? 1);
};
const order = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b
  : typeof a === typeof b ? a.localeCompare(b) : typeof a === "number" ? -1 : 1;
for (const table of document.querySelectorAll("table.sorts")) {
  const rows = [...table.tBodies[0].rows];
  const heads = [table.tHead.rows[0].cells[0], ...table.tHead.querySelectorAll("th[scope=col]")];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.ariaSort === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      rows.sort((a, b) => sign * order(value(a, column), value(b, column)));
      table.tBodies[0].append(...rows);
    });
  });
}
