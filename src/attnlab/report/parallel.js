"use strict";
// Parallel coordinates: one line a run through its choices to its value. Words on an axis are buttons that choose the runs that go through them.
(() => {
  const { make, chosen, keep, tone, escaped } = attnlab;
  const HEIGHT = 300, WORD = 18, SIDE = 150, APART = 160, LETTERS = 18, FADED = 0.07, SHOWN = 0.7;

  const short = (text, most = LETTERS) => (text.length > most ? `${text.slice(0, most - 1)}\u2026` : text);

  // Where a value stands on an axis, 0 (below) to 1 (above); words stand apart, and runs of one word side by side.
  function scale(axis, isLower) {
    if (axis.values) return (value, share) => 1 - (value + 0.5 + 0.6 * (share - 0.5)) / axis.values.length;
    const all = Object.values(axis.of), isLog = Math.min(...all) > 0 && Math.max(...all) / Math.min(...all) >= 50;
    const by = isLog ? Math.log : (x) => x, low = by(Math.min(...all)), room = by(Math.max(...all)) - low || 1;
    return (value) => { const at = (by(value) - low) / room; return isLower ? 1 - at : at; };
  }

  function axesOf(data) {
    const index = data.metrics.indexOf(data.metric.name);
    const of = Object.fromEntries(data.runs.filter((run) => run.path in data.axes[0].of).map((run) => [run.path, run.values[index]]));
    return [...data.axes, { name: data.metric.name, values: null, of, isLower: data.metric.better === "lower" }];
  }

  // From the colour of worse (0) to that of better (1).
  function shade(share) {
    const [worse, better] = ["--heat", "--better"].map((name) => [1, 3, 5].map((i) => parseInt(tone(name).slice(i, i + 2), 16)));
    return `rgb(${worse.map((low, i) => Math.round(low + share * (better[i] - low)))})`;
  }

  // The words of an axis, the ends of one of numbers, and its name above.
  function labels(axes, scales) {
    return axes.flatMap((axis, i) => {
      const side = i === axes.length - 1 ? "left" : i === 0 ? "right" : "center", font = { color: tone("--text"), size: 12 };
      const plain = { x: i, showarrow: false, xanchor: side, xshift: { left: 8, right: -8, center: 0 }[side], font, bgcolor: axis.values ? tone("--page") : undefined };
      const ends = axis.values ? [] : [...new Set([Math.min(...Object.values(axis.of)), Math.max(...Object.values(axis.of))])];
      const words = (axis.values ?? []).map((word, k) => ({ ...plain, y: scales[i](k, 0.5), text: escaped(short(word)), axis, word }));
      const title = { ...plain, y: 1.03, yanchor: "bottom", xanchor: side === "center" ? side : { left: "right", right: "left" }[side], xshift: { left: SIDE - 10, right: 10 - SIDE, center: 0 }[side], text: escaped(short(axis.name, LETTERS + 3)), font: { ...font, weight: 600 } };
      return [title, ...words, ...ends.map((end) => ({ ...plain, y: scales[i](end), text: attnlab.runs.figure(end) }))];
    });
  }

  function show(data, plot, status) {
    const axes = axesOf(data), metric = axes.at(-1), runs = data.runs.filter((run) => run.path in metric.of);
    const scales = axes.map((axis) => scale(axis, axis.isLower)), written = labels(axes, scales);
    const traces = runs.map((run, place) => {
      const share = runs.length > 1 ? place / (runs.length - 1) : 0.5, y = axes.map((axis, i) => scales[i](axis.of[run.path], share));
      const text = `${escaped(attnlab.runs.nameOf(run))}: ${attnlab.runs.figure(metric.of[run.path])}`;
      return { x: axes.map((_, i) => i), y, mode: "lines", line: { color: shade(y.at(-1)), width: 1.5 }, opacity: SHOWN, hovertemplate: `${text}<extra></extra>` };
    });
    const lines = axes.map((_, i) => ({ type: "line", x0: i, x1: i, y0: -0.02, y1: 1.02, layer: "below", line: { color: tone("--line"), width: 1 } }));
    const width = 2 * SIDE + APART * (axes.length - 1), height = Math.max(HEIGHT, WORD * Math.max(...axes.map((axis) => axis.values?.length ?? 0)));
    const hidden = { visible: false, fixedrange: true }, clear = "rgba(0,0,0,0)";
    const shape = {
      paper_bgcolor: clear, plot_bgcolor: clear, showlegend: false, hovermode: "closest", dragmode: false, width, height, margin: { l: SIDE, r: SIDE, t: 30, b: 8 },
      font: { family: getComputedStyle(document.body).fontFamily }, xaxis: { ...hidden, range: [0, axes.length - 1] }, yaxis: { ...hidden, range: [-0.04, 1.04] }, shapes: lines,
      annotations: written.map(({ axis, word, ...annotation }) => annotation), hoverlabel: { bgcolor: tone("--surface"), bordercolor: tone("--line"), font: { color: tone("--text") } },
    };
    // Of one scale whatever the page's width: what does not fit is scrolled to.
    plot.style.width = `${width}px`;
    plot.style.height = `${height}px`;
    attnlab.forget((other) => other === plot);
    attnlab.plot(plot, `${runs.length} runs through ${axes.map((axis) => axis.name).join(", ")}`, traces, shape, "group");

    function fade() {
      const choices = axes.filter((axis) => axis.values).map((axis) => [axis, axis.values.indexOf(chosen(`parallel/${axis.name}`))]).filter(([, place]) => place >= 0);
      const through = runs.map((run) => choices.every(([axis, place]) => axis.of[run.path] === place));
      Plotly.restyle(plot, { opacity: through.map((isIn) => (isIn ? SHOWN : FADED)) });
      plot.querySelectorAll("[aria-pressed]").forEach((word) => word.setAttribute("aria-pressed", String(chosen(word.dataset.axis) === word.dataset.word)));
      status.textContent = choices.length ? `${through.filter(Boolean).length} of ${runs.length} runs go through ${choices.map(([axis, place]) => `${axis.name} ${axis.values[place]}`).join(" and ")}` : "";
    }
    // Plotly draws the words anew where the width changes.
    const name = () => plot.querySelectorAll("g.annotation:not([role])").forEach((element) => {
      const { axis, word } = written[Number(element.dataset.index)];
      if (axis) button(element, axis, word, fade);
    });
    plot.on("plotly_afterplot", name);
    name();
    fade();
  }

  function button(element, axis, word, changed) {
    const id = `parallel/${axis.name}`, pressed = String(chosen(id) === word);
    const attributes = { role: "button", tabindex: "0", "aria-label": `${axis.name} ${word}`, "aria-pressed": pressed, "data-axis": id, "data-word": word, "data-key": `${id}/${word}` };
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.classList.add("word");
    const choose = () => { keep(id, chosen(id) === word ? null : word); changed(); };
    element.addEventListener("click", choose);
    element.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); } });
  }

  attnlab.parts.push((data) => {
    const box = document.querySelector("[data-part=parallel]");
    if (!window.Plotly || !box || !data.axes?.length) return;
    const status = make("span", { role: "status" }), plot = make("div", { class: "plot parallel" });
    box.querySelector(".controls").replaceChildren(status);
    box.querySelector(".panels").replaceChildren(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Parallel coordinates" }, plot));
    attnlab.draw(box, () => show(data, plot, status));
  });
})();
