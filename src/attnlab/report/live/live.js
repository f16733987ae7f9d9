"use strict";
// Follows a study that runs: asks for the version of what is shown, fetches the content where it is another one, puts in what differs and starts the
// page's scripts again. Asking survives a laptop's sleep and a tunnel that is built anew; with the page hidden it asks less.
(() => {
  const SETTINGS = {}; // of the server: the version of what is shown, and the seconds after which to ask again
  const SECONDS = 1000, EVERY = SETTINGS.every * SECONDS, HIDDEN = 30 * EVERY, SLOWEST = 8 * EVERY, PATIENCE = 10 * SECONDS, LONG = 120 * SECONDS;
  const find = (id) => document.getElementById(id);
  const source = (parent) => [...parent.children].map((child) => child.outerHTML);
  let version = SETTINGS.version, since = null, failures = 0, touched = -Infinity, timer, isAsking = false;
  // What is shown as it came from the server: the page's scripts change what stands in the document.
  const inner = (within, name) => within.querySelector(`body > ${name}`)?.innerHTML;
  const shown = { header: inner(document, "header"), nav: inner(document, "nav"), sections: source(document.querySelector("main")) };

  // The line at the foot. What is announced changes only with the runs and with the connection; its age is not announced.
  function say(text, isWell) {
    if (find("live-state").textContent !== text) find("live-state").textContent = text;
    find("live").classList.toggle("lost", !isWell);
    sayAge();
  }
  function words(seconds) {
    const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([size]) => seconds >= size) ?? [1, "s"];
    return `${Math.floor(seconds / size)} ${unit} ago`;
  }
  function sayAge() {
    find("live-since").textContent = since === null ? "" : `updated ${words((Date.now() - since) / 1000)}`;
    for (const time of document.querySelectorAll("main time[datetime]")) {
      time.title ||= time.textContent;
      time.textContent = words(Math.max(0, (Date.now() - Date.parse(time.dateTime)) / 1000));
    }
  }
  const progress = (state) => ("runs" in state ? `live, ${state.finished} of ${state.runs} runs finished${state.running ? `, ${state.running} running` : ""}` : "live");

  class Silence extends Error {}
  async function ask(path, patience) {
    const request = { cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(patience) };
    const answer = await fetch(path, request).catch(() => { throw new Silence("The server does not answer."); });
    if (answer.status === 403) throw new Silence("The server was started anew: open the address that it printed.");
    if (!answer.ok) throw new Silence("The server cannot show this now.");
    const text = await answer.text().catch(() => { throw new Silence("The server does not answer."); });
    return [text, answer.headers.get("ETag")];
  }

  // Nothing is replaced under the reader's hands: not while a choice is open or text is marked, nor just after a key or a click.
  function isBusy() {
    const isHeld = document.activeElement?.matches("select") || !getSelection().isCollapsed;
    return performance.now() - touched < (isHeld ? 10 : 0.7) * SECONDS;
  }
  for (const kind of ["pointerdown", "keydown", "input"]) addEventListener(kind, () => { touched = performance.now(); }, { passive: true, capture: true });

  function putParent(name, next) {
    const came = inner(next, name);
    if (came === undefined || came === shown[name]) return;
    shown[name] = came;
    document.querySelector(`body > ${name}`).replaceChildren(...next.querySelector(`body > ${name}`).childNodes);
  }
  function putSections(next) {
    const main = document.querySelector("main"), before = [...main.children];
    const came = [...next.querySelector("main").children], sources = came.map((section) => section.outerHTML);
    const old = new Map(before.map((section, i) => [section.id, { section, source: shown.sections[i] }]));
    const wanted = came.map((section, i) => (old.get(section.id)?.source === sources[i] ? old.get(section.id).section : section));
    for (const section of before) if (!wanted.includes(section)) {
      const heir = wanted.find((other) => other.id === section.id);
      if (heir) section.replaceWith(heir); else section.remove();
    }
    wanted.forEach((section, i) => { if (main.children[i] !== section) main.insertBefore(section, main.children[i] ?? null); });
    shown.sections = sources;
  }
  async function update() {
    const [text, tag] = await ask("content", LONG), next = new DOMParser().parseFromString(text, "text/html");
    version = tag.replaceAll('"', "");
    const before = document.activeElement, key = before?.dataset?.key, caret = before?.matches?.("input") ? before.selectionStart : null;
    putParent("header", next);
    putParent("nav", next);
    putSections(next);
    if (find("data")) find("data").textContent = next.getElementById("data").textContent;
    document.title = next.title;
    window.attnlab?.start();
    if (key && caret !== null && document.activeElement.dataset.key === key) document.activeElement.setSelectionRange(caret, caret);
  }

  async function look() {
    const started = performance.now();
    const state = JSON.parse((await ask("state", PATIENCE))[0]);
    failures = 0;
    if (state.trouble) { since = null; say(state.trouble, false); return EVERY; }
    if (version === "") { location.reload(); return LONG; }
    if (state.version !== version && isBusy()) return 0.5 * SECONDS;
    if (state.version !== version) await update();
    since = Date.now() - state.age * SECONDS;
    say(progress(state), true);
    return Math.max(EVERY, 2 * (performance.now() - started));  // a large page is not fetched more often than it takes
  }

  async function turn() {
    if (isAsking) return;
    isAsking = true;
    clearTimeout(timer);
    let wait;
    try {
      wait = await look();
    } catch (error) {
      failures += 1;
      if (!(error instanceof Silence)) console.error(error);
      say(error instanceof Silence ? error.message : "This page could not be brought up to date: reload it.", false);
      wait = Math.min(SLOWEST, EVERY * 1.5 ** failures);
    }
    isAsking = false;
    timer = setTimeout(turn, document.hidden ? Math.max(wait, HIDDEN) : wait);
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) turn(); });
  addEventListener("online", turn);
  setInterval(() => { if (!document.hidden) sayAge(); }, SECONDS);
  turn();
})();
