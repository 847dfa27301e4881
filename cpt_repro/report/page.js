// What the page can do beside being read: sections open where a link leads, tables sort and filter, curves are
// explored. Without it everything is still there.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  // -- links open what they lead to

  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const own = target.querySelector(":scope > details");
    if (own) own.open = true;
    for (let e = target; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (link && link.hash === location.hash) reveal();
  });

  // -- tables

  // The first number of a cell; what has none comes last.
  const number = (text) => {
    const match = text.replaceAll("−", "-").replaceAll(",", "").match(/[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i);
    return match ? Number(match[0]) : NaN;
  };
  const sortable = (table) => {
    const heads = all("thead tr:last-child > th", table), body = table.tBodies[0];
    const original = [...body.rows];
    heads.forEach((head, column) => {
      if (head.getAttribute("aria-hidden") || !head.textContent.trim()) return;
      const button = make("button", { type: "button", class: "sort" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
        const direction = next === undefined ? "ascending" : next;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (direction) head.setAttribute("aria-sort", direction);
        const texts = new Map(original.map((row) => [row, row.cells[column] ? row.cells[column].textContent.trim() : ""]));
        const numeric = original.filter((row) => !Number.isNaN(number(texts.get(row)))).length * 2 > original.length;
        const sign = direction === "descending" ? -1 : 1;
        const compare = (a, b) => {
          if (!numeric) return sign * texts.get(a).localeCompare(texts.get(b), "en", { numeric: true });
          const [x, y] = [number(texts.get(a)), number(texts.get(b))];
          return Number.isNaN(x) - Number.isNaN(y) || sign * (x - y);
        };
        body.append(...(direction ? [...original].sort(compare) : original));
      });
    });
  };
  // A box that leaves the rows which hold all its words.
  const searchBox = (label, change) => {
    const box = make("input", { type: "search", "aria-label": label, placeholder: label });
    box.addEventListener("input", change);
    box.holds = (text) => box.value.toLowerCase().split(/\s+/).every((word) => text.includes(word));
    return box;
  };
  const filterable = (table) => {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 12 || !table.parentElement.matches(".scroll")) return;
    const box = searchBox("Filter rows", () =>
      rows.forEach((row) => { row.hidden = !box.holds(row.textContent.toLowerCase()); }));
    table.parentElement.before(make("p", { class: "tools" }, box));
  };
  const claims = () => {
    const section = document.getElementById("claims"), tables = all("table.claims", section);
    if (!tables.length) return;
    const rows = tables.flatMap((table) => [...table.tBodies[0].rows]);
    const verdict = (row) => row.cells[row.cells.length - 1].querySelector(".verdict").textContent;
    const found = make("output"), boxes = new Map();
    const apply = () => {
      let shown = 0;
      for (const row of rows) {
        row.hidden = !(boxes.get(verdict(row)).checked && box.holds(row.textContent.toLowerCase()));
        shown += !row.hidden;
      }
      found.textContent = `${shown} of ${rows.length} claims`;
    };
    const box = searchBox("Search claims", apply), tools = make("p", { class: "tools" }, box);
    for (const word of new Set(rows.map(verdict))) {
      const check = make("input", { type: "checkbox" });
      check.checked = true;
      check.addEventListener("change", apply);
      boxes.set(word, check);
      tools.append(make("label", {}, check, ` ${word}`));
    }
    tools.append(found);
    tables[0].parentElement.insertBefore(tools, section.querySelector("h3"));
    apply();
  };

  // -- curves

  const inflate = async (id) => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).text();
  };
  let loading = null;
  const load = () => (loading ??= (async () => {
    const [library, data] = await Promise.all([inflate("library"), inflate("curves")]);
    document.head.append(make("script", {}, library));
    return JSON.parse(data);
  })());

  const MODES = { loss: "loss", start: "minus its start", base: "minus the line of reference" };

  const chart = (place, panel, arrays, unit) => {
    const seeds = [...new Set(panel.curves.flatMap((curve) => Object.keys(curve.seeds)))].sort();
    const on = new Set(seeds), hidden = new Set();
    let mode = "loss", log = false;
    const view = make("div", { class: "view" }), tip = make("div", { class: "tip", role: "status" });
    const tools = make("p", { class: "tools" });
    const choice = make("select", { "aria-label": "What is shown" });
    for (const [key, label] of Object.entries(MODES)) {
      if (key !== "base" || panel.base) choice.append(make("option", { value: key }, key === "base" ? `minus ${panel.base.label}` : label));
    }
    choice.addEventListener("change", () => { mode = choice.value; draw(); });
    tools.append(choice);
    const axis = make("input", { type: "checkbox" });
    axis.addEventListener("change", () => { log = axis.checked; draw(); });
    tools.append(make("label", {}, axis, " log axis"));
    for (const seed of seeds) {
      const check = make("input", { type: "checkbox" });
      check.checked = true;
      check.addEventListener("change", () => { check.checked ? on.add(seed) : on.delete(seed); draw(); });
      tools.append(make("label", {}, check, ` seed ${seed}`));
    }
    const legend = make("p", { class: "legend" });
    panel.curves.forEach((curve, index) => {
      const key = make("span", { class: "key", "aria-hidden": "true" });
      key.style.borderColor = curve.colour;
      const button = make("button", { type: "button", "aria-pressed": "true" }, key, curve.label);
      button.addEventListener("click", () => {
        hidden.has(index) ? hidden.delete(index) : hidden.add(index);
        button.setAttribute("aria-pressed", String(!hidden.has(index)));
        draw();
      });
      legend.append(button);
    });
    place.append(make("h4", {}, panel.title), tools, view, tip, legend);

    // [{curve, seed or null for the mean, points: [[x, y], ...]}], means last.
    const lines = () => panel.curves.flatMap((curve, index) => {
      if (hidden.has(index)) return [];
      const own = seeds.filter((seed) => on.has(seed) && curve.seeds[seed]).map((seed) => {
        const [xs, ys] = curve.seeds[seed].map((k) => arrays[k]);
        const origin = mode === "start" ? ys.find((y) => y !== null) : mode === "base" ? panel.base.y : 0;
        return { curve, seed, points: xs.map((x, k) => [x, ys[k] === null ? null : ys[k] - origin]) };
      });
      if (own.length < 2 || own.some((line) => line.points.length !== own[0].points.length)) return own;
      const middle = own[0].points.map(([x], k) => {
        const ys = own.map((line) => line.points[k][1]);
        return [x, ys.includes(null) ? null : d3.mean(ys)];
      });
      return [...own, { curve, seed: null, points: middle }];
    }).sort((a, b) => (a.seed === null) - (b.seed === null));

    const draw = () => {
      const shown = lines(), flat = shown.flatMap((line) => line.points.filter(([, y]) => y !== null));
      view.replaceChildren();
      tip.textContent = "";
      if (!flat.length) return;
      const width = Math.max(280, view.clientWidth), height = 260, left = 52, bottom = 38, top = 8, right = 8;
      const ys = d3.extent(flat, ([, y]) => y), room = 0.04 * (ys[1] - ys[0] || 1);
      const steep = log && ys[0] > 0;
      const x = d3.scaleLinear().domain(d3.extent(flat, ([a]) => a)).range([left, width - right]);
      const y = (steep ? d3.scaleLog().domain(ys) : d3.scaleLinear().domain([ys[0] - room, ys[1] + room]))
        .range([height - bottom, top]);
      const svg = d3.select(view).append("svg").attr("viewBox", `0 0 ${width} ${height}`)
        .attr("role", "img").attr("aria-label", `${panel.title}: ${panel.curves.map((curve) => curve.label).join(", ")}`);
      svg.append("g").attr("transform", `translate(0,${height - bottom})`).call(d3.axisBottom(x).ticks(6));
      svg.append("g").attr("transform", `translate(${left},0)`).call(steep ? d3.axisLeft(y).ticks(5, "~g") : d3.axisLeft(y).ticks(5));
      svg.append("text").attr("x", (left + width) / 2).attr("y", height - 4).attr("text-anchor", "middle").text(unit);
      const effect = mode === "loss" ? "loss (nats/token)" : `loss ${choice.selectedOptions[0].textContent}`;
      svg.append("text").attr("transform", `translate(12,${(height - bottom) / 2}) rotate(-90)`).attr("text-anchor", "middle").text(effect);
      const path = d3.line().defined(([, b]) => b !== null).x(([a]) => x(a)).y(([, b]) => y(b));
      if (panel.base && mode === "loss" && panel.base.y >= y.domain()[0] && panel.base.y <= y.domain()[1]) {
        svg.append("path").attr("class", "base").attr("d", path([[x.domain()[0], panel.base.y], [x.domain()[1], panel.base.y]]));
      }
      for (const line of shown) {
        const single = line.seed === null || !shown.some((other) => other.seed === null && other.curve === line.curve);
        svg.append("path").attr("d", path(line.points)).attr("fill", "none").attr("stroke", line.curve.colour)
          .attr("stroke-dasharray", line.curve.dash || null)
          .attr("stroke-width", single ? 1.8 : 0.8).attr("opacity", single ? 1 : 0.45);
      }
      const dot = svg.append("circle").attr("class", "dot").attr("r", 4).attr("visibility", "hidden");
      svg.on("mousemove touchstart touchmove", function () {
        const [px, py] = d3.event.touches ? d3.touches(this)[0] : d3.mouse(this);
        let best = null;
        for (const line of shown) for (const [a, b] of line.points) {
          if (b === null) continue;
          const distance = (x(a) - px) ** 2 + (y(b) - py) ** 2;
          if (!best || distance < best.distance || (distance === best.distance && line.seed === null)) best = { distance, line, a, b };
        }
        dot.attr("visibility", "visible").attr("cx", x(best.a)).attr("cy", y(best.b)).attr("fill", best.line.curve.colour);
        const who = best.line.seed === null ? "mean" : `seed ${best.line.seed}`;
        tip.textContent = `${best.line.curve.label}, ${who}: ${best.b.toFixed(4)} at ${best.a.toFixed(2)}`;
      });
    };
    draw();
    return draw;
  };

  const charts = () => {
    const drawers = [];
    const show = async (place) => {
      if (place.dataset.shown) return;
      place.dataset.shown = "1";
      const { arrays, charts } = await load();
      for (const panel of charts[place.dataset.chart]) {
        drawers.push(chart(place.appendChild(make("div", { class: "panel" })), panel, arrays, place.dataset.unit));
      }
    };
    for (const place of all("[data-chart]")) {
      const fold = place.closest("details");
      if (fold.open) show(place);
      fold.addEventListener("toggle", () => fold.open && show(place));
      fold.hidden = false;
    }
    let waiting = 0;
    addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(() => drawers.forEach((draw) => draw()), 150); });
  };

  all("table.sortable").forEach((table) => { sortable(table); filterable(table); });
  claims();
  if (document.getElementById("curves") && "DecompressionStream" in window) charts();
  reveal();
})();
