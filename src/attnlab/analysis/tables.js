"use strict";
// Sorts tables by the buttons in their headings.
(() => {
  const { chosen, keep, make } = attnlab;
  const number = (text) => (text.trim() === "" ? NaN : Number(text.replace("\u2212", "-")));
  const valueOf = (row, column) => { const cell = row.cells[column]; return cell.querySelector("[data-value]")?.dataset.value ?? cell.textContent; };
  // Words ("cannot", "-") stand behind the numbers of their column, in both directions.
  const compare = (isDown) => ([a], [b]) => {
    const [x, y] = [number(a), number(b)], sign = isDown ? -1 : 1;
    if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
    return sign * (isNaN(x) ? a.localeCompare(b, undefined, { numeric: true }) : x - y);
  };
  const headsOf = (table) => [...table.tHead.rows[0].cells];
  const nameOf = (table) => `sort/${table.closest("[aria-label]").getAttribute("aria-label")}`;

  function sort(table, column, isDown) {
    headsOf(table).forEach((head, i) => (i === column ? head.setAttribute("aria-sort", isDown ? "descending" : "ascending") : head.removeAttribute("aria-sort")));
    const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
    table.tBodies[0].append(...rows.sort(compare(isDown)).map(([, row]) => row));
  }

  document.addEventListener("click", (event) => {
    const head = event.target.closest?.("table.sortable thead th");
    if (!head) return;
    const table = head.closest("table"), isDown = head.getAttribute("aria-sort") === "ascending";
    keep(nameOf(table), { head: head.textContent, isDown });
    sort(table, head.cellIndex, isDown);
  });

  function sortable(table) {
    const before = chosen(nameOf(table));
    headsOf(table).forEach((head, column) => {
      const text = head.textContent;
      if (!head.querySelector("button")) head.replaceChildren(make("button", { type: "button", class: "sort", "data-key": `${nameOf(table)}/${text}` }, text));
      if (text === before?.head) sort(table, column, before.isDown);
    });
  }

  attnlab.parts.push(() => document.querySelectorAll("table.sortable").forEach(sortable));
})();
