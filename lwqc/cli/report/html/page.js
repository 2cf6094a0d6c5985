"use strict";
const keyOf = (row, column) => {
  const cell = row.cells[column];
  const value = "value" in cell.dataset ? cell.dataset.value : cell.textContent.trim();
  return value === "" || Number.isNaN(Number(value)) ? value : Number(value);
};
const compare = (a, b) =>
  typeof a === "number" && typeof b === "number"
    ? a - b
    : String(a).localeCompare(String(b), undefined, { numeric: true });

for (const heading of document.querySelectorAll("th button")) {
  heading.addEventListener("click", () => {
    const cell = heading.parentElement;
    const upward = cell.getAttribute("aria-sort") !== "ascending";
    for (const other of cell.parentElement.cells) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", upward ? "ascending" : "descending");
    const body = cell.closest("table").tBodies[0];
    const rows = Array.from(body.rows, (row) => [keyOf(row, cell.cellIndex), row]);
    rows.sort(([a], [b]) => (upward ? compare(a, b) : compare(b, a)));
    body.append(...rows.map(([, row]) => row));
  });
}

for (const field of document.querySelectorAll("input[type=search]")) {
  const figure = field.closest("figure");
  const rows = Array.from(figure.querySelector("table").tBodies[0].rows);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    figure.querySelector("output").textContent = words.length
      ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}`
      : "";
  });
}

for (const zoom of document.querySelectorAll("input[type=range]")) {
  const figure = zoom.closest("figure");
  zoom.addEventListener("input", () => {
    for (const drawing of figure.querySelectorAll("svg.drawing")) {
      drawing.setAttribute("width", (drawing.viewBox.baseVal.width * zoom.value) / 100);
    }
  });
  const button = figure.querySelector("button.unfold");
  button.addEventListener("click", () => {
    const parts = Array.from(figure.querySelectorAll("details"));
    const open = !parts.every((part) => part.open);
    for (const part of parts) part.open = open;
    button.textContent = open ? "fold all" : "unfold all";
  });
}

window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
