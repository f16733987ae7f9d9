"use strict";
// Draws the charts of the page from the JSON beside it, and sorts its tables. Colours come from the style sheet, so both themes are served.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tone = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dashes = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px,2px,1px,2px", "8px,3px"];
  const choicesOf = Object.fromEntries(data.cells.map((cell) => [cell.label, cell.choices]));
  const factorNames = Object.keys(data.factors);
  const faded = (colour, alpha) => colour + Math.round(alpha * 255).toString(16).padStart(2, "0");

  // What a line's colour stands for: the cell itself, or the choice of one factor.
  function styleOf(label, colourBy) {
    const names = colourBy === "cell" ? data.cells.map((cell) => cell.label) : data.factors[colourBy];
    const index = names.indexOf(colourBy === "cell" ? label : choicesOf[label][colourBy] ?? "-");
    return { name: names[index], colour: tone(`--c${index % 8}`), dash: dashes[Math.floor(index / 8) % dashes.length] };
  }

  function layout(xTitle, yTitle, xAxis) {
    const axis = { gridcolor: tone("--line"), zeroline: false, linecolor: tone("--line"), tickcolor: tone("--line"), automargin: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest", dragmode: false,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: tone("--soft") },
      margin: { l: 48, r: 12, t: 8, b: 40 }, hoverlabel: { bgcolor: tone("--surface"), bordercolor: tone("--line"), font: { color: tone("--text") } },
      xaxis: { ...axis, title: { text: xTitle, standoff: 8 }, ...xAxis }, yaxis: { ...axis, title: { text: yTitle, standoff: 6 } },
    };
  }

  function select(controls, name, choices, value, changed) {
    const label = controls.appendChild(document.createElement("label"));
    label.append(name);
    const box = label.appendChild(document.createElement("select"));
    for (const [key, text] of choices) box.add(new Option(text, key, false, key === value));
    box.addEventListener("change", () => changed(box.value));
  }

  // Plotly reads <b> and the like in labels.
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function key(chart, labels, colourBy, words = new Map()) {
    const shown = new Map(labels.map((label) => { const style = styleOf(label, colourBy); return [style.name, style]; }));
    chart.querySelector(".key").replaceChildren(...[...shown.values()].map((style) => {
      const item = document.createElement("span");
      const line = item.appendChild(document.createElement("i"));
      line.style.borderTop = `3px ${style.dash === "solid" ? "solid" : "dashed"} ${style.colour}`;
      item.append(words.get(style.name) ?? style.name);
      return item;
    }));
  }

  // All boxes first, then the plots: a plot measures its box once.
  function plotAll(panels, entries) {
    const boxes = entries.map(([title]) => {
      const box = document.createElement("div");
      box.className = "panel";
      if (title) box.appendChild(document.createElement("h4")).textContent = title;
      const plot = box.appendChild(document.createElement("div"));
      plot.className = "plot";
      return box;
    });
    panels.replaceChildren(...boxes);
    entries.forEach(([title, traces, shape], i) => {
      const plot = boxes[i].querySelector(".plot");
      plot.setAttribute("role", "img");
      plot.setAttribute("aria-label", `${title} ${shape.yaxis.title.text} against ${shape.xaxis.title.text}`);
      Plotly.newPlot(plot, traces, shape, { responsive: true, displayModeBar: false });
    });
  }

  // Names at the right ends of lines, moved apart where they would cover each other.
  function endLabels(series, lastX, pixels) {
    const ends = series.filter((s) => s.x.at(-1) === lastX).map((s) => ({ cell: s.cell, y: s.y.at(-1), at: s.y.at(-1) })).sort((a, b) => a.y - b.y);
    const values = series.flatMap((s) => [...s.low, ...s.high]);
    const gap = ((Math.max(...values) - Math.min(...values)) * 1.1 * 16) / pixels;
    for (let i = 1; i < ends.length; i++) ends[i].at = Math.max(ends[i].at, ends[i - 1].at + gap);
    return ends;
  }

  function drawLengths(chart, state) {
    const family = data.lengths[state.family];
    const colourBy = data.by_cell ? "cell" : factorNames[0];
    const multiples = [...new Set(family.series.flatMap((s) => [...s.x, ...s.cannot]))].sort((a, b) => a - b);
    const traces = [];
    for (const s of family.series) {
      const { colour, dash } = styleOf(s.cell, colourBy);
      traces.push({
        x: s.x, y: s.y, name: escaped(s.cell), mode: "lines+markers", line: { color: colour, width: 2.5, dash }, marker: { size: 7, color: colour },
        error_y: { type: "data", symmetric: false, array: s.y.map((y, i) => s.high[i] - y), arrayminus: s.y.map((y, i) => y - s.low[i]), color: colour, thickness: 1.5, width: 3 },
        hovertemplate: "%{x}\u00d7: %{y:.4g}<extra>%{fullData.name}</extra>",
      });
      if (s.cannot.length && s.x.length) traces.push({
        x: [s.x.at(-1)], y: [s.y.at(-1)], name: escaped(s.cell), mode: "markers", marker: { symbol: "x-thin", size: 13, line: { width: 2.5, color: colour } },
        hovertemplate: "ends here: cannot go further<extra>%{fullData.name}</extra>",
      });
    }
    const xAxis = { type: "log", tickvals: multiples, ticktext: multiples.map((k) => `${k}\u00d7`) };
    const shape = layout("multiple of the training length", family.unit, xAxis);
    const panels = chart.querySelector(".panels");
    let keyed = family.series.map((s) => s.cell);
    if (data.by_cell && panels.clientWidth > 560) {
      const labels = endLabels(family.series, multiples.at(-1), 270);
      shape.annotations = labels.map((end) => ({ x: 1, xref: "paper", y: end.at, text: escaped(end.cell), showarrow: false, xanchor: "left", xshift: 4, font: { color: styleOf(end.cell, "cell").colour, size: 13 } }));
      shape.margin.r = 20 + 7.5 * Math.max(0, ...labels.map((end) => end.cell.length));
      const room = 0.06 * Math.log10(multiples.at(-1) / multiples[0]);
      shape.xaxis.range = [Math.log10(multiples[0]) - room, Math.log10(multiples.at(-1)) + room / 2];
      keyed = keyed.filter((cell) => !labels.some((end) => end.cell === cell));
    }
    plotAll(panels, [["", traces, shape]]);
    key(chart, keyed, colourBy, new Map(family.series.filter((s) => s.cannot.length && s.x.length).map((s) => [s.cell, `${s.cell} (ends at ${s.x.at(-1)}\u00d7)`])));
  }

  function curveTraces(series, axis, colourBy) {
    const traces = [];
    for (const s of series) {
      const { colour, dash } = styleOf(s.cell, colourBy);
      const x = s[axis];
      const at = s.mean.map((_, i) => i).filter((i) => s.low[i] !== null && s.high[i] !== null);
      const plain = { hoverinfo: "skip", mode: "lines" };
      traces.push({ ...plain, x: [...at.map((i) => x[i]), ...at.map((i) => x[i]).reverse()], y: [...at.map((i) => s.high[i]), ...at.map((i) => s.low[i]).reverse()], fill: "toself", fillcolor: faded(colour, 0.14), line: { width: 0 } });
      const seeds = Object.values(s.seeds);
      if (seeds.length > 1) traces.push({ ...plain, x: seeds.flatMap(() => [...x, null]), y: seeds.flatMap((y) => [...y, null]), line: { color: faded(colour, 0.35), width: 1 } });
      const many = s.mean.filter((y) => y !== null).length > 1;
      traces.push({ x, y: s.mean, name: escaped(s.cell), mode: many ? "lines" : "lines+markers", line: { color: colour, width: 2.5, dash }, hovertemplate: `%{x}: %{y:.4g}<extra>%{fullData.name}</extra>` });
    }
    return traces;
  }

  // The worst 2% may leave the picture (losses of the first steps), the best may not.
  function range(series, better) {
    const values = series.flatMap((s) => Object.values(s.seeds).flat()).filter((y) => y !== null).sort((a, b) => a - b);
    const last = values.length - 1, cut = Math.floor(0.98 * last);
    const [low, high] = better === "higher" ? [values[last - cut], values[last]] : [values[0], values[cut]];
    const room = 0.06 * (high - low) || 0.1;
    return [low - room, high + room];
  }

  const words = { step: "optimizer steps", tokens: `training ${data.term}s`, seconds: "seconds" };
  const rest = (cell, factor) => factorNames.filter((f) => f !== factor && f in choicesOf[cell]).map((f) => (/^[a-z_]\w*$/i.test(choicesOf[cell][f]) ? choicesOf[cell][f] : `${f} ${choicesOf[cell][f]}`)).join(", ");

  function drawCurves(chart, state) {
    const entry = data.curves[state.metric];
    const panelOf = (cell) => state.panels === "one" ? "" : state.panels === "rest" ? rest(cell, state.colour) : `${state.panels} ${choicesOf[cell][state.panels] ?? "-"}`;
    const groups = [...new Set(data.cells.map((cell) => panelOf(cell.label)))];
    const panels = chart.querySelector(".panels");
    chart.classList.toggle("small", groups.length > 1);
    const limits = range(entry.series, entry.better);
    const entries = [];
    for (const group of groups) {
      const series = entry.series.filter((s) => panelOf(s.cell) === group);
      if (!series.length) continue;
      const shape = groups.length > 1 ? layout("", "", { nticks: 5 }) : layout(words[state.axis], entry.unit, {});
      shape.yaxis.range = limits;
      entries.push([group, curveTraces(series, state.axis, state.colour), shape]);
    }
    plotAll(panels, entries);
    key(chart, entry.series.map((s) => s.cell), state.colour);
    if (groups.length > 1) chart.querySelector(".key").append(`${entry.unit}, against ${words[state.axis]}`);
  }

  function start(chart) {
    const controls = chart.querySelector(".controls");
    if (chart.dataset.chart === "lengths") {
      const state = { family: 0 };
      if (data.lengths.length > 1) select(controls, "Windows", data.lengths.map((f, i) => [String(i), `${f.name.includes("sliding") ? "sliding" : "one after the other"} (${f.name})`]), "0", (v) => { state.family = Number(v); drawLengths(chart, state); });
      return () => drawLengths(chart, state);
    }
    const fewPanels = factorNames.length > 1 && new Set(data.cells.map((cell) => rest(cell.label, factorNames[0]))).size <= 16;
    const state = { metric: 0, axis: "step", colour: data.by_cell ? "cell" : factorNames[0], panels: data.by_cell ? "one" : fewPanels ? "rest" : factorNames[1] ?? "one" };
    const draw = () => drawCurves(chart, state);
    const choose = (field, number) => (value) => { state[field] = number ? Number(value) : value; draw(); };
    if (data.curves.length > 1) select(controls, "Curve", data.curves.map((c, i) => [String(i), c.name]), "0", choose("metric", true));
    select(controls, "Against", [["step", "steps"], ["tokens", `${data.term}s`], ["seconds", "seconds"]], "step", choose("axis"));
    if (factorNames.length > 1) {
      const byCell = data.by_cell ? [["cell", "cell"]] : [];
      select(controls, "Colour", [...byCell, ...factorNames.map((f) => [f, f])], state.colour, choose("colour"));
      select(controls, "Panels", [["one", "one"], ["rest", "all other factors"], ...factorNames.map((f) => [f, f])], state.panels, choose("panels"));
    }
    return draw;
  }

  function sortable(table) {
    table.querySelectorAll("thead th").forEach((head, column) => {
      head.tabIndex = 0;
      const sort = () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => row.cells[column].querySelector("[data-value]")?.dataset.value ?? row.cells[column].textContent;
        const order = (a, b) => (isNaN(a) || isNaN(b) ? String(a).localeCompare(String(b), undefined, { numeric: true }) : a - b);
        const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? -1 : 1) * order(value(a), value(b)));
        table.tBodies[0].append(...rows);
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); } });
    });
  }

  const drawers = [...document.querySelectorAll("[data-chart]")].map(start);
  const drawAll = () => drawers.forEach((draw) => draw());
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  document.querySelectorAll("table.sortable").forEach(sortable);
})();
