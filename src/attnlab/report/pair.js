"use strict";
// Two runs side by side: what differs, and nothing else.
(() => {
  const { make, runs } = attnlab;
  const groups = [["settings", "Settings"], ["figures", "Final figures"], ["facts", "What it ran on"]];

  const everything = (data, run) => ({
    ...runs.described(data, run),
    ...Object.fromEntries(data.metrics.map((name, i) => [`figures/${name}`, runs.valueOf(data, run, i)]).filter(([, value]) => value !== null && value !== undefined)),
  });

  function difference(data, first, second) {
    const [a, b] = [everything(data, first), everything(data, second)];
    const place = (key) => data.metrics.indexOf(key.slice("figures/".length)), order = (x, y) => place(x) - place(y) || x.localeCompare(y);
    return [...new Set([...Object.keys(a), ...Object.keys(b)])].sort(order).filter((key) => a[key] !== b[key]).map((key) => [key, a[key], b[key]]);
  }

  const shown = (value) => (value === undefined ? "(absent)" : value === null ? "null" : typeof value === "number" && !Number.isInteger(value) ? runs.figure(value) : String(value));
  function apart(a, b) {
    if (typeof a !== "number" || typeof b !== "number") return "";
    const figure = runs.figure(b - a);
    return b > a ? `+${figure}` : figure;
  }

  function show(data, panels, first, second) {
    const rows = difference(data, first, second), body = make("tbody");
    for (const [group, title] of groups) {
      const own = rows.filter(([key]) => key.startsWith(`${group}/`));
      if (own.length) body.append(make("tr", { class: "group" }, make("th", { colspan: 4, scope: "rowgroup" }, title)));
      for (const [key, a, b] of own) body.append(make("tr", {}, make("th", { scope: "row" }, key.slice(group.length + 1)), ...[shown(a), shown(b), apart(a, b)].map((text) => make("td", {}, text))));
    }
    const names = ["", runs.nameOf(first), runs.nameOf(second), "second minus first"];
    const table = make("table", { class: "figures pair" }, make("thead", {}, make("tr", {}, ...names.map((name) => (name ? make("th", { scope: "col" }, name) : make("td"))))), body);
    panels.replaceChildren(rows.length ? make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Two runs side by side" }, table) : make("p", {}, "Nothing differs between them."));
  }

  attnlab.parts.push((data) => {
    const box = document.querySelector("[data-part=pair]"), known = data.runs?.filter((run) => run.own || run.values) ?? [];
    if (!box || known.length < 2) return;
    const controls = box.querySelector(".controls"), panels = box.querySelector(".panels");
    const of = (path) => known.find((run) => run.path === path), choices = known.map((run) => [run.path, runs.nameOf(run)]);
    const other = known.find((run) => run.cell !== known[0].cell && run.seed === known[0].seed) ?? known[1];
    const state = {}, again = () => show(data, panels, of(state.first), of(state.second));
    controls.replaceChildren();
    state.first = attnlab.select(controls, "pair/first", "First", choices, known[0].path, (path) => { state.first = path; again(); });
    state.second = attnlab.select(controls, "pair/second", "Second", choices, other.path, (path) => { state.second = path; again(); });
    again();
  });
})();
