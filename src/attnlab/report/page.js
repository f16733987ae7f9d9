"use strict";
// What the scripts of the page share. `attnlab.start()` sets up everything that is interactive, from the markup and from the JSON in #data. It may be
// called again after both were replaced: what the reader chose is kept by the keys of the controls, and the place on the page by its section.
window.attnlab = (() => {
  const parts = [], drawers = [], kept = new Map(), plots = new Set();
  const place = { section: null, top: 0, focus: null };
  let waiting = [], isDrawing = false, isListening = false;

  const keep = (key, value) => kept.set(key, value);
  const chosen = (key, otherwise) => (kept.has(key) ? kept.get(key) : otherwise);
  const tone = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // An element with attributes and children; text stays text.
  function make(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  // A labelled box with choices ([value, text], ...), whose choice is kept under `id`; returns what is chosen.
  function select(controls, id, name, choices, value, changed) {
    const before = chosen(id, value), box = make("select", { "data-key": id });
    for (const [choice, text] of choices) box.add(new Option(text, choice));
    box.value = choices.some(([choice]) => choice === before) ? before : value;
    controls.append(make("label", {}, name, box));
    box.addEventListener("change", () => { keep(id, box.value); changed(box.value); });
    return box.value;
  }

  // Charts that are seen are drawn at once, the others one by one when nothing else is to be done; all again when the colours change.
  function draw(element, drawIt) {
    const id = `height/${element.dataset.chart ?? element.dataset.part}`;
    element.style.minHeight = chosen(id, "");  // of the last time, so that what follows keeps its place
    drawers.push({ element, drawIt: () => { drawIt(); element.style.minHeight = ""; keep(id, `${element.offsetHeight}px`); } });
  }
  function drawAll() {
    const isSeen = ({ element }) => { const box = element.getBoundingClientRect(); return box.top < innerHeight && box.bottom > 0; };
    const seen = new Set(drawers.filter(isSeen));
    for (const { drawIt } of seen) drawIt();
    waiting = drawers.filter((drawer) => !seen.has(drawer)).map(({ drawIt }) => drawIt);
    if (waiting.length && !isDrawing) { isDrawing = true; idle(drawNext); }
  }
  const idle = (work) => ("requestIdleCallback" in window ? requestIdleCallback(work, { timeout: 2000 }) : setTimeout(work, 30));
  function drawNext() {
    const next = waiting.shift();
    if (next) next();
    if (waiting.length) idle(drawNext); else isDrawing = false;
  }
  function drawWaiting() { while (waiting.length) waiting.shift()(); }
  // Plotly reads <b> and the like in labels.
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  // A picture by Plotly that can be read by its label, or a group of what can be chosen; one that the page has no more is given back.
  function plot(element, label, traces, shape, role = "img") {
    element.setAttribute("role", role);
    element.setAttribute("aria-label", label);
    plots.add(element);
    Plotly.newPlot(element, traces, shape, { responsive: true, displayModeBar: false });
  }
  function forget(isGone) {
    for (const element of plots) if (isGone(element)) { Plotly.purge(element); plots.delete(element); }
  }

  const keyOf = (element) => element?.closest?.("[data-key]")?.dataset.key ?? null;

  function notePlace() {
    const section = [...document.querySelectorAll("main > section")].find((one) => one.getBoundingClientRect().bottom > 0);
    place.section = scrollY > 0 ? section?.id ?? null : null;
    place.top = section ? section.getBoundingClientRect().top : 0;
  }
  function returnToPlace() {
    const section = place.section && document.getElementById(place.section);
    if (section) scrollBy({ top: section.getBoundingClientRect().top - place.top, behavior: "instant" });
    for (const region of document.querySelectorAll(".scroll[aria-label]")) region.scrollLeft = chosen(`scroll/${region.getAttribute("aria-label")}`, 0);
    const focused = place.focus && document.querySelector(`[data-key="${CSS.escape(place.focus)}"]`);
    if (focused && document.activeElement === document.body) focused.focus({ preventScroll: true });
  }

  // What is folded away and what is open; the key of a fold stays the same where its words change.
  const foldKey = (fold) => `open/${fold.dataset.key}`;
  function returnFolds() {
    document.querySelectorAll("details[data-key]").forEach((fold) => { fold.open = chosen(foldKey(fold), fold.open); });
  }

  // Listeners stand on the document, so that they serve whatever it holds.
  function listen() {
    isListening = true;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    addEventListener("beforeprint", drawWaiting);
    addEventListener("scroll", notePlace, { passive: true });
    addEventListener("focusin", (event) => { place.focus = keyOf(event.target); });
    addEventListener("pointerdown", (event) => { place.focus = keyOf(event.target); });
    document.addEventListener("toggle", (event) => { if (event.target.matches?.("details[data-key]")) keep(foldKey(event.target), event.target.open); }, true);
    document.addEventListener("scroll", (event) => {
      const region = event.target;
      if (region instanceof Element && region.matches(".scroll[aria-label]")) keep(`scroll/${region.getAttribute("aria-label")}`, region.scrollLeft);
    }, { passive: true, capture: true });
  }

  function start() {
    const data = JSON.parse(document.getElementById("data").textContent);
    if (!isListening) listen();
    drawers.length = 0;
    forget((element) => !element.isConnected);
    returnFolds();
    for (const part of parts) part(data);
    returnToPlace();
    drawAll();
    document.documentElement.dataset.ready = "yes";
    performance.mark("attnlab ready");
  }

  return { start, parts, keep, chosen, tone, make, select, draw, plot, forget, escaped };
})();
