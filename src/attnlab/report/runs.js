"use strict";
// What a run's entry in the data says, in full and as markup.
attnlab.runs = (() => {
  const { make } = attnlab;
  const nameOf = (run) => `${run.cell} \u00b7 seed ${run.seed}`;
  const figure = (value) => (value === null || value === undefined ? "-" : typeof value === "string" ? value : String(Number(value.toPrecision(5))).replace("-", "\u2212"));

  // A final metric of a run by its place; in words where the cost to a target is known to one side alone.
  const valueOf = (data, run, i) => run.censored?.[data.metrics[i]] ?? run.values?.[i];

  // Settings and facts: what is shared, with the run's own put over it.
  function described(data, run) {
    const all = { ...data.shared, ...run.own };
    for (const key of run.lacks ?? []) delete all[key];
    return run.own || run.values ? all : {};
  }

  const text = (title, words) => (words ? make("div", {}, make("h3", {}, title), make("pre", { tabindex: "0" }, words)) : null);
  const place = (run) => (run.href ? make("a", { href: run.href }, run.path) : make("code", {}, run.path));

  function figures(data, run) {
    const rows = data.metrics.map((name, i) => [name, valueOf(data, run, i)]).filter(([, value]) => value !== null && value !== undefined);
    if (!rows.length) return null;
    const lines = rows.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, figure(value))));
    return make("div", {}, make("h3", {}, "Final figures"), make("table", { class: "figures" }, make("tbody", {}, ...lines)));
  }

  // Everything about a run.
  function body(data, run) {
    const head = make("p", {}, make("b", {}, nameOf(run)), `, ${run.state}: `, place(run));
    return make("div", { class: "run" }, head, text("Error", run.error), text("Reproduce", run.command), text("End of its log", run.log), figures(data, run));
  }

  // A cell's runs, each to be unfolded.
  function ofCell(data, label) {
    const index = data.metrics.indexOf(data.metric?.name);
    const folds = data.runs.filter((run) => run.cell === label).map((run) => {
      const found = index >= 0 ? valueOf(data, run, index) : undefined;
      const value = found === undefined ? "" : ` \u00b7 ${data.metrics[index]} ${figure(found)}`;
      const fold = make("details", { "data-key": `run/${run.path}` }, make("summary", {}, `seed ${run.seed} \u00b7 ${run.state}${value}`), make("p", {}, place(run)));
      fold.open = attnlab.chosen(`open/run/${run.path}`, false);
      const fill = () => { if (fold.open && !fold.querySelector(".run")) { fold.querySelector("p").remove(); fold.append(body(data, run)); } };
      fold.addEventListener("toggle", fill);
      fill();
      return fold;
    });
    return make("div", {}, ...(folds.length ? folds : ["No run is planned for this cell."]));
  }

  return { nameOf, figure, valueOf, described, body, ofCell, place };
})();
