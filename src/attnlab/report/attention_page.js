"use strict";
// The page of `attnlab attention`. All text goes through textContent. Legend of comments: T queries, S keys.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const STEPS = 65535, THUMB = 48, SHOWN = 8;
  const state = { example: 0, kind: 0, layer: 0, head: 0, query: 0, key: null, root: false };
  const decoded = new Map();

  const kindNow = () => data.examples[state.example].kinds[state.kind];

  const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  function unpacked(kind) {
    if (!decoded.has(kind)) decoded.set(kind, { weights: new Uint16Array(bytesOf(kind.weights).buffer), hidden: kind.hidden && bytesOf(kind.hidden) });
    return decoded.get(kind);
  }

  function map(kind, layer, head) {
    const size = kind.queries.length * kind.keys.length;
    const first = (layer * kind.heads + head) * size;
    return unpacked(kind).weights.subarray(first, first + size);
  }

  // Whether a place of a layer's map is one that the query may not attend to.
  function isHidden(kind, layer, place) {
    const bits = unpacked(kind).hidden, index = layer * kind.queries.length * kind.keys.length + place;
    return Boolean(bits) && Boolean(bits[index >> 3] & (128 >> (index & 7)));
  }

  const number = (steps) => (steps / STEPS).toFixed(4);
  const headName = (kind, layer, head) => `${kind.name} ${kind.numbers[layer]}.${head}`;

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value === true) made.setAttribute(key, "");
      else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  // --- colours

  function shades() {
    const style = getComputedStyle(document.documentElement);
    const parse = (name) => style.getPropertyValue(name).trim().split(/\s+/).map(Number);
    const low = parse("--map-low"), middle = parse("--map-middle"), high = parse("--map-high");
    const table = new Uint8ClampedArray(257 * 3);
    table.set(parse("--map-no"), 256 * 3);
    for (let i = 0; i < 256; i++) {
      const t = (i / 255) * 2, from = t < 1 ? low : middle, to = t < 1 ? middle : high, part = t < 1 ? t : t - 1;
      for (let c = 0; c < 3; c++) table[3 * i + c] = from[c] + part * (to[c] - from[c]);
    }
    return table;
  }

  const level = (value, most) => {
    const share = most ? value / most : 0;
    return Math.round(255 * (state.root ? Math.sqrt(share) : share));
  };

  function paint(canvas, values, hidden, rows, columns, table) {
    let most = 0;
    for (const value of values) if (value > most) most = value;
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
    for (let i = 0; i < values.length; i++) {
      const shade = 3 * (hidden(i) ? 256 : level(values[i], most));
      image.data.set([table[shade], table[shade + 1], table[shade + 2], 255], 4 * i);
    }
    context.putImageData(image, 0, 0);
    return most;
  }

  // A map in few pixels: the greatest weight under each, so that thin lines stay; hidden where all of them are.
  function small(kind, layer, head) {
    const values = map(kind, layer, head), rows = kind.queries.length, columns = kind.keys.length;
    const high = Math.min(THUMB, rows), wide = Math.min(THUMB, columns), pooled = new Uint16Array(high * wide), seen = new Uint8Array(high * wide);
    for (let t = 0; t < rows; t++) {
      const y = Math.floor((t * high) / rows);
      for (let s = 0; s < columns; s++) {
        const place = y * wide + Math.floor((s * wide) / columns), value = values[t * columns + s];
        if (value > pooled[place]) pooled[place] = value;
        if (!seen[place] && !isHidden(kind, layer, t * columns + s)) seen[place] = 1;
      }
    }
    return [pooled, (place) => !seen[place], high, wide];
  }

  // --- choices

  function fill(select, names) {
    select.replaceChildren(...names.map((name, index) => element("option", { value: index }, name)));
  }

  function showExample() {
    const example = data.examples[state.example];
    fill($("kind"), example.kinds.map((kind) => kind.name));
    state.kind = Math.min(state.kind, example.kinds.length - 1);
    $("kind").value = state.kind;
    showKind();
  }

  function showKind() {
    const kind = kindNow();
    state.layer = Math.min(state.layer, kind.layers - 1);
    state.head = Math.min(state.head, kind.heads - 1);
    state.query = Math.min(state.query, kind.queries.length - 1);
    state.key = null;
    $("no").hidden = !kind.hidden;
    $("cut").textContent = kind.cut
      ? `The page holds the first ${kind.queries.length} of ${kind.cut[0]} queries and ${kind.keys.length} of ${kind.cut[1]} keys; rows may sum to less than 1. The statistics are of all.`
      : "";
    $("picture").hidden = !kind.grid;
    $("reading").hidden = Boolean(kind.grid);
    buildOverview(kind);
    buildAxes(kind);
    showHead();
  }

  // --- overview

  function buildOverview(kind) {
    const table = shades(), rows = [];
    const head = element("tr", {}, element("td"));
    for (let h = 0; h < kind.heads; h++) head.append(element("th", { scope: "col" }, kind.heads > 1 ? `head ${h}` : "all heads"));
    for (let l = kind.layers - 1; l >= 0; l--) {
      const row = element("tr", {}, element("th", { scope: "row" }, `layer ${kind.numbers[l]}`));
      for (let h = 0; h < kind.heads; h++) {
        const canvas = element("canvas", { "aria-hidden": "true" });
        paint(canvas, ...small(kind, l, h), table);
        const known = data.heads[headName(kind, l, h)], role = known && known.role ? known.role : "";
        const button = element("button", { type: "button", "data-layer": l, "data-head": h, "aria-label": `layer ${kind.numbers[l]}, head ${h}${role ? ": " + role : ""}` }, canvas, element("span", {}, role || "\u00a0"));
        button.addEventListener("click", () => { state.layer = l; state.head = h; showHead(); });
        row.append(element("td", {}, button));
      }
      rows.push(row);
    }
    $("overview").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
  }

  // --- one head

  function buildAxes(kind) {
    const room = $("box").clientWidth - 120;
    const cell = Math.max(11, Math.min(26, Math.floor(room / kind.keys.length)));
    $("map").style.setProperty("--cell", `${cell}px`);
    $("queries").replaceChildren(...kind.queries.map((label, t) => element("li", { role: "option", id: `q${t}`, "aria-selected": "false" }, label)));
    $("keys").replaceChildren(...kind.keys.map((label) => element("span", {}, label)));
    const canvas = $("cells");
    canvas.style.width = `${cell * kind.keys.length}px`;
    canvas.style.height = `${cell * kind.queries.length}px`;
    $("reading").replaceChildren(...kind.keys.map((label, s) => element("span", { "data-key": s }, label.replace(/\u23ce/g, "\u23ce\n").replace(/\u2423/g, " "))));
  }

  function showHead() {
    const kind = kindNow(), known = data.heads[headName(kind, state.layer, state.head)];
    for (const button of $("overview").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.layer) === state.layer && Number(button.dataset.head) === state.head));
    }
    const rolled = kind.name.endsWith("rollout");
    $("title").textContent = rolled
      ? `${kind.name}, layers 0 to ${kind.numbers[state.layer]}`
      : `${kind.name}, layer ${kind.numbers[state.layer]}, head ${state.head}${known && known.role ? ` \u00b7 ${known.role}` : ""}`;
    const values = map(kind, state.layer, state.head);
    const most = paint($("cells"), values, (place) => isHidden(kind, state.layer, place), kind.queries.length, kind.keys.length, shades());
    $("most").textContent = number(most);
    $("cells").setAttribute("aria-label", `Attention weights of ${$("title").textContent}: ${kind.queries.length} queries by ${kind.keys.length} keys; the list of queries beside it is for the keyboard`);
    showStatistics(known);
    showQuery(state.query);
  }

  function showStatistics(known) {
    const rows = known ? Object.entries(known.statistics) : [];
    $("statistics").hidden = !rows.length;
    $("statistics").tBodies[0].replaceChildren(...rows.map(([name, [value, chance]]) => element("tr", {}, element("th", { scope: "row" }, data.names[name] || name), element("td", {}, value), element("td", {}, chance))));
  }

  // What query t gives to the keys: the table, the text or the image, the marks on the map.
  function showQuery(t) {
    const kind = kindNow(), columns = kind.keys.length;
    const row = map(kind, state.layer, state.head).subarray(t * columns, (t + 1) * columns);
    const order = Array.from(row.keys()).filter((s) => row[s] > 0).sort((a, b) => row[b] - row[a] || a - b).slice(0, SHOWN);
    $("from").textContent = `Keys of query ${t}: ${kind.queries[t]}`;
    $("top").tBodies[0].replaceChildren(...order.map((s) => {
      const bar = element("i", { "aria-hidden": "true" });
      bar.style.width = `${(100 * row[s]) / STEPS}%`;
      return element("tr", {}, element("th", { scope: "row" }, kind.keys[s]), element("td", {}, String(s)), element("td", {}, number(row[s]), bar));
    }));
    for (const option of $("queries").querySelectorAll("[aria-selected=true]")) option.setAttribute("aria-selected", "false");
    $(`q${t}`).setAttribute("aria-selected", "true");
    $("queries").setAttribute("aria-activedescendant", `q${t}`);
    place($("row"), 0, t, columns, 1);
    if (state.key === null) $("cell").hidden = true; else place($("cell"), state.key, t, 1, 1);
    $("pair").textContent = state.key === null
      ? "Move over the map, or use the arrow keys in the list of queries."
      : `${kind.queries[t]} (${t}) \u2192 ${kind.keys[state.key]} (${state.key}): ${number(row[state.key])}`;
    if (kind.grid) drawImage(kind, t, row); else shadeText(kind, t, row);
  }

  function place(mark, column, row, wide, high) {
    mark.hidden = false;
    mark.style.setProperty("--x", column);
    mark.style.setProperty("--y", row);
    mark.style.setProperty("--w", wide);
    mark.style.setProperty("--h", high);
  }

  function shadeText(kind, t, row) {
    let most = 0;
    for (const value of row) if (value > most) most = value;
    const own = kind.square ? t : -1;
    for (const span of $("reading").children) {
      const s = Number(span.dataset.key);
      span.style.setProperty("--share", most ? (state.root ? Math.sqrt(row[s] / most) : row[s] / most) : 0);
      span.classList.toggle("own", s === own);
    }
  }

  function drawImage(kind, t, row) {
    const example = data.examples[state.example], canvas = $("image"), side = 320;
    const [down, across] = kind.grid, [high, wide] = example.size;
    canvas.width = side;
    canvas.height = Math.round((side * high) / wide);
    const context = canvas.getContext("2d"), tile = element("canvas");
    tile.width = wide;
    tile.height = high;
    const pixels = bytesOf(example.pixels), image = tile.getContext("2d").createImageData(wide, high);
    for (let i = 0; i < wide * high; i++) image.data.set([pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2], 255], 4 * i);
    tile.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(tile, 0, 0, canvas.width, canvas.height);
    const patches = row.subarray(kind.before), x = canvas.width / across, y = canvas.height / down;
    let most = 0;
    for (const value of patches) if (value > most) most = value;
    for (let i = 0; i < patches.length; i++) {
      const share = most ? (state.root ? Math.sqrt(patches[i] / most) : patches[i] / most) : 0;
      const left = (i % across) * x, top = Math.floor(i / across) * y;
      context.fillStyle = `rgba(255, 170, 0, ${0.75 * share})`;  // seen on black and on white
      context.fillRect(left, top, x, y);
      if (i === t - kind.offset) {
        context.strokeStyle = "#4f8cff";
        context.lineWidth = 3;
        context.strokeRect(left + 1.5, top + 1.5, x - 3, y - 3);
      }
    }
    canvas.setAttribute("aria-label", `The image, tinted where query ${kind.queries[t]} attends to; the table of keys holds the numbers`);
  }

  // --- what the reader does

  function choose(t) {
    const kind = kindNow();
    state.query = Math.max(0, Math.min(kind.queries.length - 1, t));
    showQuery(state.query);
    $(`q${state.query}`).scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  function under(event) {
    const kind = kindNow(), box = $("cells").getBoundingClientRect();
    const s = Math.floor(((event.clientX - box.left) / box.width) * kind.keys.length);
    const t = Math.floor(((event.clientY - box.top) / box.height) * kind.queries.length);
    return [Math.max(0, Math.min(kind.queries.length - 1, t)), Math.max(0, Math.min(kind.keys.length - 1, s))];
  }

  $("cells").addEventListener("mousemove", (event) => { const [t, s] = under(event); state.key = s; showQuery(t); });
  $("cells").addEventListener("mouseleave", () => { state.key = null; showQuery(state.query); });
  $("cells").addEventListener("click", (event) => { const [t, s] = under(event); state.query = t; state.key = s; showQuery(t); });
  $("queries").addEventListener("click", (event) => { if (event.target.id.startsWith("q")) choose(Number(event.target.id.slice(1))); });
  $("queries").addEventListener("keydown", (event) => {
    const kind = kindNow(), last = kind.keys.length - 1, step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (step !== undefined) choose(state.query + step);
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      const side = event.key === "ArrowRight" ? 1 : -1;
      state.key = state.key === null ? 0 : Math.max(0, Math.min(last, state.key + side));
      showQuery(state.query);
    } else return;
    event.preventDefault();
  });
  $("reading").addEventListener("click", (event) => { const kind = kindNow(); if (kind.square && event.target.dataset.key) choose(Number(event.target.dataset.key)); });
  $("image").addEventListener("click", (event) => {
    const kind = kindNow(), box = $("image").getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * kind.grid[0]), column = Math.floor(((event.clientX - box.left) / box.width) * kind.grid[1]);
    choose(kind.offset + row * kind.grid[1] + column);
  });
  $("example").addEventListener("change", (event) => { state.example = Number(event.target.value); showExample(); });
  $("kind").addEventListener("change", (event) => { state.kind = Number(event.target.value); showKind(); });
  $("shade").addEventListener("change", (event) => { state.root = event.target.value === "root"; showKind(); });
  for (const button of document.querySelectorAll("#heads button")) {
    button.addEventListener("click", () => {
      const index = data.examples[state.example].kinds.findIndex((kind) => kind.name === button.dataset.kind);
      if (index < 0) return;
      const layer = data.examples[state.example].kinds[index].numbers.indexOf(Number(button.dataset.layer));
      Object.assign(state, { kind: index, layer, head: Number(button.dataset.head) });
      $("kind").value = index;
      showKind();
      $("title").scrollIntoView();
      $("title").focus();
    });
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showKind);

  fill($("example"), data.examples.map((example, index) => `${index + 1}: ${example.title}`));
  Object.assign(state, data.start);
  showExample();
})();
