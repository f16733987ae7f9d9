"use strict";
// Tables: sorted by the buttons in their headings, filtered by words and choices, rows unfolded to what is behind them.
(() => {
  const { chosen, keep, make } = attnlab;
  const number = (text) => (text.trim() === "" ? NaN : Number(text.replace("\u2212", "-")));
  const valueOf = (row, column) => { const cell = row.cells[column]; return cell.querySelector("[data-value]")?.dataset.value ?? cell.textContent; };
  // Words ("unavailable", "-") stand behind the numbers of their column, in both directions.
  const compare = (isDown) => ([a], [b]) => {
    const [x, y] = [number(a), number(b)], sign = isDown ? -1 : 1;
    if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
    return sign * (isNaN(x) ? a.localeCompare(b, undefined, { numeric: true }) : x - y);
  };
  const headsOf = (table) => [...table.tHead.rows[0].cells];
  const rowsOf = (table) => [...table.tBodies[0].rows].filter((row) => !row.classList.contains("unfolded"));
  const nameOf = (table) => `sort/${table.closest("[aria-label]").getAttribute("aria-label")}`;
  const unfolded = new WeakMap();
  let data;

  function sort(table, column, isDown) {
    headsOf(table).forEach((head, i) => (i === column ? head.setAttribute("aria-sort", isDown ? "descending" : "ascending") : head.removeAttribute("aria-sort")));
    const rows = rowsOf(table).map((row) => [valueOf(row, column), row]);
    table.tBodies[0].append(...rows.sort(compare(isDown)).flatMap(([, row]) => (unfolded.has(row) ? [row, unfolded.get(row)] : [row])));
  }

  function sortable(table) {
    const before = chosen(nameOf(table));
    headsOf(table).forEach((head, column) => {
      const text = head.textContent;
      if (!head.querySelector("button")) head.replaceChildren(make("button", { type: "button", class: "sort", "data-key": `${nameOf(table)}/${text}` }, text));
      if (text === before?.head) sort(table, column, before.isDown);
    });
  }

  // --- unfolding

  const keyOf = (row) => `unfolded/${row.closest("[aria-label]").getAttribute("aria-label")}/${row.dataset.row}`;
  const contents = {
    cells: (label) => attnlab.runs.ofCell(data, label),
    runs: (path) => { const run = data.runs.find((one) => one.path === path); return run && attnlab.runs.body(data, run); },
  };

  function fold(row, isOpen) {
    unfolded.get(row)?.remove();
    unfolded.delete(row);
    row.querySelector("button.unfold").setAttribute("aria-expanded", String(isOpen));
    if (!isOpen) return;
    const inside = contents[row.closest("table").dataset.of](row.dataset.row);
    const below = make("tr", { class: "unfolded" }, make("td", { colspan: row.cells.length }, inside ?? "Nothing is known of it."));
    below.hidden = row.hidden;
    unfolded.set(row, below);
    row.after(below);
  }

  function unfolding(table) {
    for (const row of rowsOf(table)) {
      const id = keyOf(row), head = row.cells[0];
      if (!head.querySelector("button")) head.prepend(make("button", { type: "button", class: "unfold", "aria-expanded": "false", "aria-label": `What is behind ${row.dataset.row}`, "data-key": id }));
      if (chosen(id, false) || unfolded.has(row)) fold(row, chosen(id, false));
    }
  }

  // --- filtering

  const said = new WeakMap();
  function saidOf(row) {
    if (!said.has(row)) said.set(row, row.textContent.toLowerCase());
    return said.get(row);
  }
  const fits = {
    cells: (row, name, choice) => (data.cells.find((cell) => cell.label === row.dataset.row)?.choices[name] ?? "-") === choice,
    runs: (row, name, choice) => data.runs.find((run) => run.path === row.dataset.row)?.[name] === choice,
  };
  const choicesOf = {
    cells: () => Object.entries(data.factors).filter(([, choices]) => choices.length > 1),
    runs: () => ["state"].map((name) => [name, [...new Set(data.runs.map((run) => run[name]))]]).filter(([, choices]) => choices.length > 1),
  };

  function filter(of, names, counted) {
    const words = chosen(`filter/${of}`, "").toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = names.map(([name, choices]) => [name, chosen(`filter/${of}/${name}`, "")]).filter(([, choice], i) => choice && names[i][1].includes(choice));
    let shown = 0, all = 0;
    document.querySelectorAll(`table[data-of="${of}"]`).forEach((table, place) => {
      for (const row of rowsOf(table)) {
        row.hidden = !(words.every((word) => saidOf(row).includes(word)) && wanted.every(([name, choice]) => fits[of](row, name, choice)));
        if (unfolded.has(row)) unfolded.get(row).hidden = row.hidden;
        if (place === 0) { all += 1; shown += !row.hidden; }
      }
    });
    counted.textContent = words.length || wanted.length ? `${shown} of ${all} shown` : "";
  }

  function filtering(box) {
    const of = box.dataset.filter, id = `filter/${of}`, rows = document.querySelectorAll(`table[data-of="${of}"] tbody tr[data-row]`);
    box.hidden = rows.length < 3;
    const names = choicesOf[of](), counted = make("span", { role: "status" }), again = () => filter(of, names, counted);
    const words = make("input", { type: "search", "data-key": id, placeholder: "words that must all occur" });
    words.value = chosen(id, "");
    words.addEventListener("input", () => { keep(id, words.value); again(); });
    box.replaceChildren(make("label", {}, "Filter", words));
    for (const [name, choices] of names) attnlab.select(box, `${id}/${name}`, name, [["", "all"], ...choices.map((choice) => [choice, choice])], "", again);
    box.append(counted);
    again();
  }

  document.addEventListener("click", (event) => {
    const head = event.target.closest?.("table.sortable thead th"), button = event.target.closest?.("button.unfold");
    if (button) {
      const row = button.closest("tr"), isOpen = button.getAttribute("aria-expanded") !== "true";
      keep(keyOf(row), isOpen);
      fold(row, isOpen);
    } else if (head) {
      const table = head.closest("table"), isDown = head.getAttribute("aria-sort") === "ascending";
      keep(nameOf(table), { head: head.textContent, isDown });
      sort(table, head.cellIndex, isDown);
    }
  });

  attnlab.parts.push((found) => {
    data = found;
    document.querySelectorAll("[data-filter]").forEach(filtering);
    document.querySelectorAll("table[data-of]").forEach(unfolding);
    document.querySelectorAll("table.sortable").forEach(sortable);
  });
})();
