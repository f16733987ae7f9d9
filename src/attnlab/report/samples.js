"use strict";
// What the models of two cells give, side by side, and what their heads attend to.
(() => {
  const { make } = attnlab;
  const picture = (png, words, kind) => make("img", { src: `data:image/png;base64,${png}`, alt: words, class: kind, decoding: "async" });

  function value(content, column, row) {
    if (content !== null && typeof content === "object") return picture(content.png, `${column} of example ${row + 1}`, "thumbnail");
    return typeof content === "number" ? attnlab.runs.figure(content) : content;
  }

  function panel(data, entry) {
    const run = data.runs.find((one) => one.path === entry.run);
    const title = make("h3", {}, entry.cell), from = make("p", { class: "soft" }, `seed ${entry.seed}: `, run ? attnlab.runs.place(run) : entry.run);
    const parts = [title, from];
    if (entry.rows.length) {
      const head = make("tr", {}, ...entry.columns.map((column) => make("th", { scope: "col" }, column)));
      const body = entry.rows.map((row, i) => make("tr", {}, ...row.map((content, j) => make("td", {}, value(content, entry.columns[j], i)))));
      const table = make("table", { class: "figures samples" }, make("thead", {}, head), make("tbody", {}, ...body));
      parts.push(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Samples of ${entry.cell}` }, table));
    }
    if (entry.left) parts.push(make("p", { class: "soft" }, `${entry.left} more stand in outputs/samples.json of the run.`));
    if (entry.attention) {
      const caption = make("figcaption", { class: "soft" }, `What its heads attend to on one example: downwards the position that looks, to the right where it looks, dark where it looks most; ${entry.caption}`);
      parts.push(make("figure", {}, picture(entry.attention, `Attention maps of ${entry.cell}`, "attention"), caption));
    }
    return make("div", { class: "panel" }, ...parts);
  }

  attnlab.parts.push((data) => {
    const box = document.querySelector("[data-part=samples]"), entries = data.samples ?? [];
    if (!box || !entries.length) return;
    const controls = box.querySelector(".controls"), choices = entries.map((entry) => [entry.cell, entry.cell]);
    const state = {}, named = (cell) => entries.find((entry) => entry.cell === cell);
    const show = () => box.querySelector(".panels").replaceChildren(...[state.first, state.second].filter((cell) => named(cell)).map((cell) => panel(data, named(cell))));
    controls.replaceChildren();
    state.first = attnlab.select(controls, "samples/first", "Cell", choices, entries[0].cell, (cell) => { state.first = cell; show(); });
    if (entries.length > 1) state.second = attnlab.select(controls, "samples/second", "beside", [["", "none"], ...choices], entries[1].cell, (cell) => { state.second = cell; show(); });
    show();
  });
})();
