"use strict";
// Draws what a study says over its tasks: performance profiles, and average ranks with the critical difference.
(() => {
  const { tone, escaped } = attnlab;
  const dashes = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const look = (index) => ({ colour: tone(`--c${index % 8}`), dash: dashes[Math.floor(index / 8) % dashes.length] });

  function layout(xTitle, yTitle) {
    const axis = { gridcolor: tone("--line"), zeroline: false, linecolor: tone("--line"), tickcolor: tone("--line"), automargin: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest", dragmode: false,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: tone("--soft") },
      margin: { l: 48, r: 12, t: 8, b: 40 }, hoverlabel: { bgcolor: tone("--surface"), bordercolor: tone("--line"), font: { color: tone("--text") } },
      xaxis: { ...axis, title: { text: xTitle, standoff: 8 } }, yaxis: { ...axis, title: { text: yTitle, standoff: 6 } },
    };
  }

  function box(chart, height) {
    const plot = document.createElement("div");
    plot.className = "plot";
    if (height) plot.style.height = `${height}px`;
    const panels = chart.querySelector(".panels");
    attnlab.forget((one) => panels.contains(one));
    panels.replaceChildren(plot);
    return plot;
  }

  function profiles(chart, found) {
    const traces = [];
    found.profiles.forEach((one, index) => {
      const { colour, dash } = look(index), line = { color: colour, width: 2.5, dash, shape: "hv" };
      if (one.low.every((value) => value !== null)) traces.push(
        { x: found.points, y: one.low, mode: "lines", hoverinfo: "skip", line: { width: 0, shape: "hv" } },
        { x: found.points, y: one.high, mode: "lines", hoverinfo: "skip", fill: "tonexty", fillcolor: `${colour}24`, line: { width: 0, shape: "hv" } });
      traces.push({ x: found.points, y: one.share, mode: "lines", name: escaped(one.arm), line, hovertemplate: "%{y:.0%} above %{x:.3g}<extra>%{fullData.name}</extra>" });
    });
    const shape = layout("normalised score \u03c4", "share of runs above \u03c4");
    shape.yaxis.range = [-0.02, 1.02];
    attnlab.plot(box(chart), "Share of runs above each normalised score", traces, shape);
    chart.querySelector(".key").replaceChildren(...found.profiles.map((one, index) => {
      const { colour, dash } = look(index), item = attnlab.make("span", {}, attnlab.make("i"), one.arm);
      item.firstChild.style.borderTop = `3px ${dash === "solid" ? "solid" : "dashed"} ${colour}`;
      return item;
    }));
  }

  // Arms below each other, the best first; bars of what is not told apart stand above them.
  function ranks(chart, { ranks: found, profiles: shown }) {
    const arms = [...found.arms].sort((a, b) => a.rank - b.rank), ink = tone("--text"), order = shown.map((one) => one.arm);
    const shape = layout("average rank, 1 the best", "");
    shape.yaxis = { visible: false, range: [-arms.length + 0.4, found.groups.length * 0.5 + 1.4] };
    shape.xaxis.range = [0.8, arms.length + 0.2];
    shape.xaxis.dtick = 1;
    const bar = (from, to, y, width, text) => ({ x: [from, to], y: [y, y], mode: "lines", line: { color: ink, width }, hovertemplate: `${text}<extra></extra>` });
    const traces = found.groups.map(([from, to], at) => bar(from - 0.03, to + 0.03, 0.5 + at * 0.5, 5, "not told apart"));
    const top = found.groups.length * 0.5 + 0.9, end = Math.min(1 + found.apart, arms.length + 0.2);
    traces.push({ ...bar(1, end, top, 1.5, "critical difference"), mode: "lines+markers", marker: { symbol: "line-ns-open", size: 10, color: ink } });
    traces.push({
      x: arms.map((one) => one.rank), y: arms.map((_, at) => -at), mode: "markers+text", text: arms.map((one) => ` ${escaped(one.arm)} `),
      textposition: arms.map((one) => (one.rank > (arms.length + 1) / 2 ? "middle left" : "middle right")), textfont: { color: ink, size: 13 },
      marker: { size: 9, color: arms.map((one) => look(order.indexOf(one.arm)).colour) }, hovertemplate: "%{text}: %{x:.2f}<extra></extra>",
    });
    shape.annotations = [{ x: 1, y: top, yshift: 10, text: `critical difference ${found.apart.toFixed(2)}`, showarrow: false, xanchor: "left" }];
    attnlab.plot(box(chart, 110 + 26 * arms.length + 16 * found.groups.length), "Average ranks with the critical difference", traces, shape);
  }

  attnlab.parts.push((data) => {
    if (!window.Plotly || !data.across) return;
    for (const chart of document.querySelectorAll("[data-chart]")) {
      const drawIt = { profiles, ranks }[chart.dataset.chart];
      if (drawIt) attnlab.draw(chart, () => drawIt(chart, data.across));
    }
  });
})();
