"use strict";
// Draws the learning curves, the metric against length and against cost, and what tuning found. Colours come from the style sheet, so both themes are served.
(() => {
  const { tone, select, escaped } = attnlab;
  let data, choicesOf, factorNames;
  const dashes = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "5px,2px,1px,2px", "8px,3px"];
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
    const boxes = entries.map(({ title }) => {
      const box = document.createElement("div");
      box.className = "panel";
      if (title) box.appendChild(document.createElement("h3")).textContent = title;
      const plot = box.appendChild(document.createElement("div"));
      plot.className = "plot";
      return box;
    });
    attnlab.forget((plot) => panels.contains(plot));
    panels.replaceChildren(...boxes);
    entries.forEach(({ name, traces, shape }, i) => attnlab.plot(boxes[i].querySelector(".plot"), name, traces, shape));
  }

  const rest = (cell, factor) => factorNames.filter((f) => f !== factor && f in choicesOf[cell]).map((f) => (/^[a-z_]\w*$/i.test(choicesOf[cell][f]) ? choicesOf[cell][f] : `${f} ${choicesOf[cell][f]}`)).join(" \u00b7 ");

  // What lines are told apart by at first: few cells by colour, many by a colour for the first factor and a panel for the others.
  function look() {
    const fewPanels = factorNames.length > 1 && new Set(data.cells.map((cell) => rest(cell.label, factorNames[0]))).size <= 16;
    return { colour: data.by_cell ? "cell" : factorNames[0], panels: data.by_cell ? "one" : fewPanels ? "rest" : factorNames[1] ?? "one" };
  }

  // Lines by the title of their panel, in the order of the cells.
  function panelled(series, { colour, panels }) {
    const titleOf = (cell) => panels === "one" ? "" : panels === "rest" ? rest(cell, colour) : `${panels} ${choicesOf[cell][panels] ?? "-"}`;
    const titles = [...new Set(data.cells.map((cell) => titleOf(cell.label)))];
    return titles.map((title) => [title, series.filter((s) => titleOf(s.cell) === title)]).filter(([, found]) => found.length);
  }

  // A single panel has titles at its axes, and room at the right for names; of several the key says what they show.
  function drawPanels(chart, groups, { x, y, xaxis = {}, yaxis = {}, annotations = [], right = 12 }, tracesOf) {
    const several = groups.length > 1;
    chart.classList.toggle("small", several);
    plotAll(chart.querySelector(".panels"), groups.map(([title, series]) => {
      const shape = several ? layout("", "", xaxis) : layout(x, y, xaxis);
      Object.assign(shape.yaxis, yaxis);
      Object.assign(shape.margin, { r: right });
      return { title, name: `${title} ${y} against ${x}`.trim(), traces: tracesOf(series), shape: { ...shape, annotations } };
    }));
    return several ? [`${y}, against ${x}`] : [];
  }

  // Names at the right ends of lines, moved apart where they would cover each other.
  function endLabels(series, lastX, pixels) {
    const ends = series.filter((s) => s.x.at(-1) === lastX).map((s) => ({ cell: s.cell, y: s.y.at(-1), at: s.y.at(-1) })).sort((a, b) => a.y - b.y);
    const values = series.flatMap((s) => [...s.low, ...s.high]);
    const gap = ((Math.max(...values) - Math.min(...values)) * 1.1 * 16) / pixels;
    for (let i = 1; i < ends.length; i++) ends[i].at = Math.max(ends[i].at, ends[i - 1].at + gap);
    return ends;
  }

  function lengthTraces(series, colourBy) {
    const traces = [];
    for (const s of series) {
      const { colour, dash } = styleOf(s.cell, colourBy);
      traces.push({
        x: s.x, y: s.y, name: escaped(s.cell), mode: "lines+markers", line: { color: colour, width: 2.5, dash }, marker: { size: 7, color: colour },
        error_y: { type: "data", symmetric: false, array: s.y.map((y, i) => s.high[i] - y), arrayminus: s.y.map((y, i) => y - s.low[i]), color: colour, thickness: 1.5, width: 3 },
        hovertemplate: "%{x}\u00d7: %{y:.4g}<extra>%{fullData.name}</extra>",
      });
      if (s.unavailable.length && s.x.length) traces.push({
        x: [s.x.at(-1)], y: [s.y.at(-1)], name: escaped(s.cell), mode: "markers", marker: { symbol: "x-thin", size: 13, line: { width: 2.5, color: colour } },
        hovertemplate: "ends here: cannot go further<extra>%{fullData.name}</extra>",
      });
    }
    return traces;
  }

  function drawLengths(chart, { family }) {
    const chosen = look(), groups = panelled(family.series, chosen);
    const multiples = [...new Set(family.series.flatMap((s) => [...s.x, ...s.unavailable]))].sort((a, b) => a - b);
    const [first, last] = [multiples[0], multiples.at(-1)];
    const axes = { x: "multiple of the training length", y: family.unit, xaxis: { type: "log", tickvals: multiples, ticktext: multiples.map((k) => `${k}\u00d7`) } };
    if (groups.length > 1) axes.yaxis = { range: whole(family.series.flatMap((s) => [...s.low, ...s.high])) };
    let keyed = family.series.map((s) => s.cell);
    if (data.by_cell && chart.querySelector(".panels").clientWidth > 560) {
      const labels = endLabels(family.series, last, 270);
      axes.annotations = labels.map((end) => ({ x: 1, xref: "paper", y: end.at, text: escaped(end.cell), showarrow: false, xanchor: "left", xshift: 4, font: { color: styleOf(end.cell, "cell").colour, size: 13 } }));
      axes.right = 20 + 7.5 * Math.max(0, ...labels.map((end) => end.cell.length));
      const room = 0.06 * Math.log10(last / first);
      axes.xaxis.range = [Math.log10(first) - room, Math.log10(last) + room / 2];
      keyed = keyed.filter((cell) => !labels.some((end) => end.cell === cell));
    }
    const said = drawPanels(chart, groups, axes, (series) => lengthTraces(series, chosen.colour));
    const ends = family.series.filter((s) => s.unavailable.length && s.x.length).map((s) => [s, `ends at ${s.x.at(-1)}\u00d7`]);
    const byCell = chosen.colour === "cell";
    key(chart, keyed, chosen.colour, byCell ? new Map(ends.map(([s, end]) => [s.cell, `${s.cell} (${end})`])) : undefined);
    chart.querySelector(".key").append(...said);
  }

  function curveTraces(series, axis, colourBy) {
    const traces = [];
    for (const s of series) {
      const { colour, dash } = styleOf(s.cell, colourBy);
      const x = axis === "flops" ? s.tokens.map((tokens) => (tokens === null ? null : tokens * s.flops_per_token)) : s[axis];
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

  const whole = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)], room = 0.06 * (high - low) || 0.1;
    return [low - room, high + room];
  };

  // The worst 2% may leave the picture (losses of the first steps), the best may not.
  function range(series, better) {
    const values = series.flatMap((s) => Object.values(s.seeds).flat()).filter((y) => y !== null).sort((a, b) => a - b);
    const last = values.length - 1, cut = Math.floor(0.98 * last);
    return whole(better === "higher" ? [values[last - cut], values[last]] : [values[0], values[cut]]);
  }

  const words = (axis) => ({ step: "optimizer steps", tokens: `training ${data.term}s`, seconds: "seconds", flops: "training FLOPs" })[axis];

  function drawCurves(chart, state) {
    const entry = data.curves.find((curve) => curve.name === state.metric), groups = panelled(entry.series, state);
    const axes = { x: words(state.axis), y: entry.unit, xaxis: groups.length > 1 ? { nticks: 5 } : {}, yaxis: { range: range(entry.series, entry.better) } };
    const said = drawPanels(chart, groups, axes, (series) => curveTraces(series, state.axis, state.colour));
    key(chart, entry.series.map((s) => s.cell), state.colour);
    chart.querySelector(".key").append(...said);
  }

  // A point a cell, those on the front filled and joined by a stair.
  function drawPareto(chart, state) {
    const picture = data.pareto[0], colourBy = data.by_cell ? "cell" : factorNames[0];
    const points = picture.points.filter((p) => p.cost[state.axis] !== undefined).sort((a, b) => a.cost[state.axis] - b.cost[state.axis]);
    const front = points.filter((p) => p.front.includes(state.axis));
    const stair = { x: front.map((p) => p.cost[state.axis]), y: front.map((p) => p.y), mode: "lines", hoverinfo: "skip", line: { color: tone("--soft"), width: 1.5, shape: "hv" } };
    const traces = points.map((p) => {
      const { colour } = styleOf(p.cell, colourBy);
      const bar = p.low === null || p.high === null ? {} : { error_y: { type: "data", symmetric: false, array: [p.high - p.y], arrayminus: [p.y - p.low], color: colour, thickness: 1.5, width: 3 } };
      return {
        x: [p.cost[state.axis]], y: [p.y], name: escaped(p.cell), mode: "markers", ...bar,
        marker: { size: 9, color: colour, symbol: front.includes(p) ? "circle" : "circle-open", line: { width: 2, color: colour } },
        hovertemplate: `%{x:.4s}: %{y:.4g}${front.includes(p) ? ", on the front" : ""}<extra>%{fullData.name}</extra>`,
      };
    });
    drawPanels(chart, [["", points]], { x: picture.axes[state.axis], y: picture.unit, xaxis: { type: "log" } }, () => [stair, ...traces]);
    key(chart, points.map((p) => p.cell), colourBy);
  }

  function pareto(chart, controls) {
    const choices = Object.entries(data.pareto[0].axes), state = { axis: choices[0][0] };
    const draw = () => drawPareto(chart, state);
    if (choices.length > 1) state.axis = select(controls, "pareto/axis", "Over", choices, state.axis, (value) => { state.axis = value; draw(); });
    return draw;
  }

  function lengths(chart, controls) {
    const named = (name) => data.lengths.find((family) => family.name === name);
    const state = { family: data.lengths[0] };
    const draw = () => drawLengths(chart, state);
    const choices = data.lengths.map((f) => [f.name, `${f.name.includes("sliding") ? "sliding" : "one after the other"} (${f.name})`]);
    if (choices.length > 1) state.family = named(select(controls, "lengths/windows", "Windows", choices, choices[0][0], (name) => { state.family = named(name); draw(); }));
    return draw;
  }

  function tuningTraces(series, { number }, colourBy) {
    const traces = [];
    for (const s of series) {
      const { colour, dash } = styleOf(s.cell, colourBy), plain = { hoverinfo: "skip", mode: "markers" }, at = s.x.indexOf(s.chosen);
      if (s.seeds.some((seeds) => seeds.length > 1)) traces.push({ ...plain, x: s.x.flatMap((x, i) => s.seeds[i].map(() => x)), y: s.seeds.flat(), marker: { size: 4, color: faded(colour, 0.5) } });
      traces.push({ x: s.x, y: s.y, name: escaped(s.cell), mode: number ? "lines+markers" : "markers", line: { color: colour, width: 2.5, dash }, marker: { size: 7, color: colour }, hovertemplate: `%{x}: %{y:.4g}<extra>%{fullData.name}</extra>` });
      if (at >= 0) traces.push({ ...plain, x: [s.x[at]], y: [s.y[at]], marker: { symbol: "circle-open", size: 15, line: { width: 2.5 }, color: colour } });
    }
    return traces;
  }

  function drawTuning(chart, { family }) {
    const chosen = look(), groups = panelled(family.series, chosen);
    const axes = { x: family.name, y: family.unit, xaxis: family.log ? { type: "log", exponentformat: "power" } : family.number ? {} : { type: "category" } };
    if (groups.length > 1) axes.yaxis = { range: whole(family.series.flatMap((s) => [...s.y, ...s.seeds.flat()]).filter((y) => y !== null)) };
    const said = drawPanels(chart, groups, axes, (series) => tuningTraces(series, family, chosen.colour));
    key(chart, family.series.map((s) => s.cell), chosen.colour);
    chart.querySelector(".key").append(...said);
  }

  function tuning(chart, controls) {
    const named = (name) => data.tuning.find((family) => family.name === name), state = { family: data.tuning[0] };
    const draw = () => drawTuning(chart, state), choices = data.tuning.map((family) => [family.name, family.name]);
    if (choices.length > 1) state.family = named(select(controls, "tuning/field", "Against", choices, choices[0][0], (name) => { state.family = named(name); draw(); }));
    return draw;
  }

  const hasFlops = () => data.curves.every((entry) => entry.series.every((s) => s.flops_per_token !== null));

  function curves(chart, controls) {
    const state = { metric: data.curves[0].name, axis: "step", ...look() };
    const draw = () => drawCurves(chart, state);
    const choose = (field, name, choices) => { state[field] = select(controls, `curves/${field}`, name, choices, state[field], (value) => { state[field] = value; draw(); }); };
    if (data.curves.length > 1) choose("metric", "Curve", data.curves.map((c) => [c.name, c.name]));
    choose("axis", "Against", [["step", "steps"], ["tokens", `${data.term}s`], ["seconds", "seconds"], ...(hasFlops() ? [["flops", "training FLOPs"]] : [])]);
    if (factorNames.length > 1) {
      const byCell = data.by_cell ? [["cell", "cell"]] : [];
      choose("colour", "Colour", [...byCell, ...factorNames.map((f) => [f, f])]);
      choose("panels", "Panels", [["one", "one"], ["rest", "all other factors"], ...factorNames.map((f) => [f, f])]);
    }
    return draw;
  }

  attnlab.parts.push((found) => {
    data = found;
    if (!window.Plotly || !data.cells) return;
    choicesOf = Object.fromEntries(data.cells.map((cell) => [cell.label, cell.choices]));
    factorNames = Object.keys(data.factors);
    for (const chart of document.querySelectorAll("[data-chart]")) {
      const controls = chart.querySelector(".controls"), kind = { lengths, curves, pareto, tuning }[chart.dataset.chart];
      if (!kind || !data[chart.dataset.chart].length) continue;
      controls.replaceChildren();
      attnlab.draw(chart, kind(chart, controls));
    }
  });
})();
