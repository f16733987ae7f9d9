"use strict";
// Parallel coordinates: one line a run through its choices to its value. Words on an axis are buttons that choose the runs that go through them.
(() => {
  const { make, chosen, keep } = attnlab;
  const HEIGHT = 300, TOP = 34, BOTTOM = 18, SIDE = 70, APART = 150;

  function drawn(name, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  // Where a value stands on an axis, 0 (below) to 1 (above); words stand apart, and runs of one word side by side.
  function scale(axis, isLower) {
    if (axis.values) {
      const n = axis.values.length;
      return (value, share) => 1 - (value + 0.5 + 0.6 * (share - 0.5)) / n;
    }
    const all = Object.values(axis.of), isLog = Math.min(...all) > 0 && Math.max(...all) / Math.min(...all) >= 50;
    const by = isLog ? Math.log : (x) => x, low = by(Math.min(...all)), room = by(Math.max(...all)) - low || 1;
    return (value) => { const at = (by(value) - low) / room; return isLower ? 1 - at : at; };
  }

  function axesOf(data) {
    const index = data.metrics.indexOf(data.metric.name);
    const of = Object.fromEntries(data.runs.filter((run) => run.path in data.axes[0].of).map((run) => [run.path, run.values[index]]));
    return [...data.axes, { name: data.metric.name, values: null, of, isMetric: true }];
  }

  function show(data, panels, status) {
    const axes = axesOf(data), metric = axes.at(-1), width = 2 * SIDE + APART * (axes.length - 1);
    const runs = data.runs.filter((run) => run.path in metric.of);
    const scales = axes.map((axis) => scale(axis, axis.isMetric && data.metric.better === "lower"));
    const x = (i) => SIDE + APART * i, y = (share) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - share);
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "group", "aria-label": `${runs.length} runs through ${axes.map((axis) => axis.name).join(", ")}`, class: "parallel" });
    svg.style.minWidth = `${width}px`;
    const lines = runs.map((run, place) => {
      const share = runs.length > 1 ? place / (runs.length - 1) : 0.5, at = axes.map((axis, i) => scales[i](axis.of[run.path], share));
      const line = drawn("path", { d: `M${at.map((share, i) => `${x(i)},${y(share).toFixed(1)}`).join("L")}`, "aria-hidden": "true" }, drawn("title", {}, `${attnlab.runs.nameOf(run)}: ${attnlab.runs.figure(metric.of[run.path])}`));
      line.style.setProperty("--share", `${Math.round(100 * at.at(-1))}%`);
      return [run, line];
    });
    svg.append(drawn("g", { class: "lines" }, ...lines.map(([, line]) => line)));

    const wanted = () => axes.filter((axis) => axis.values).map((axis) => [axis, axis.values.indexOf(chosen(`parallel/${axis.name}`))]).filter(([, place]) => place >= 0);
    function fade() {
      const choices = wanted(), through = lines.filter(([run, line]) => {
        const isIn = choices.every(([axis, place]) => axis.of[run.path] === place);
        line.classList.toggle("faded", !isIn);
        return isIn;
      });
      svg.querySelectorAll("[aria-pressed]").forEach((word) => word.setAttribute("aria-pressed", String(chosen(word.dataset.axis) === word.dataset.word)));
      status.textContent = choices.length ? `${through.length} of ${runs.length} runs go through ${choices.map(([axis, place]) => `${axis.name} ${axis.values[place]}`).join(" and ")}` : "";
    }

    axes.forEach((axis, i) => {
      const isEnd = i === axes.length - 1, anchor = isEnd ? "start" : i === 0 ? "end" : "middle", side = isEnd ? 8 : i === 0 ? -8 : 0;
      svg.append(drawn("text", { x: x(i), y: 14, "text-anchor": isEnd ? "end" : i === 0 ? "start" : "middle", dx: isEnd ? SIDE : i === 0 ? -SIDE : 0, class: "name" }, axis.name));
      svg.append(drawn("line", { x1: x(i), x2: x(i), y1: TOP - 6, y2: HEIGHT - BOTTOM + 6 }));
      if (axis.values) return axis.values.forEach((word, place) => svg.append(button(axis, word, x(i) + side, y(1 - (place + 0.5) / axis.values.length), anchor, fade)));
      const ends = [Math.min(...Object.values(axis.of)), Math.max(...Object.values(axis.of))];
      for (const end of new Set(ends)) svg.append(drawn("text", { x: x(i) + side, y: y(scales[i](end)) + 4, "text-anchor": anchor }, attnlab.runs.figure(end)));
    });
    panels.replaceChildren(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Runs through their choices" }, svg));
    fade();
  }

  function button(axis, word, x, y, anchor, changed) {
    const id = `parallel/${axis.name}`, text = drawn("text", { x, y: y + 4, "text-anchor": anchor }, word.length > 18 ? `${word.slice(0, 17)}\u2026` : word);
    const made = drawn("g", { role: "button", tabindex: "0", "aria-label": `${axis.name} ${word}`, "aria-pressed": "false", class: "word", "data-axis": id, "data-word": word, "data-key": `${id}/${word}` }, text);
    const choose = () => { keep(id, chosen(id) === word ? null : word); changed(); };
    made.addEventListener("click", choose);
    made.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); } });
    return made;
  }

  attnlab.parts.push((data) => {
    const box = document.querySelector("[data-part=parallel]");
    if (!box || !data.axes?.length) return;
    const status = make("span", { role: "status" });
    box.querySelector(".controls").replaceChildren(status);
    show(data, box.querySelector(".panels"), status);
  });
})();
