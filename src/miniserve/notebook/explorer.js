// Explorer: one ES module for three hosts. anywidget (Jupyter, Colab) calls render({model, el}); the static book runs
// the same text in a module script that ends in mountAll(document). It asks nothing of the network.
// What a host gives: `grid` (see Explorer.grid in explorer.py), `values`, and `exact` once a kernel has answered.

const SI = new Set(["B", "B/s", "FLOP", "FLOP/s", "Hz", "J", "W", "bit/s", "s"]);
const PREFIX = { "-9": "n", "-6": "µ", "-3": "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E" };
const trim = text => text.includes(".") ? text.replace(/0+$/, "").replace(/\.$/, "") : text;

// Three significant digits; the twin of format_value in units.py.
export function formatValue(value, unit = "") {
  if (!Number.isFinite(value)) return `${value} ${unit}`.trim();
  const [mantissa, power] = value.toExponential(2).split("e");
  if (SI.has(unit)) {
    if (value === 0) return `0 ${unit}`;
    const p = Math.max(-9, Math.min(18, 3 * Math.floor(+power / 3)));
    const digits = Math.max(0, Math.min(20, 2 - (+power - p)));
    return `${trim((+mantissa * 10 ** (+power - p)).toFixed(digits))} ${PREFIX[p]}${unit}`;
  }
  const size = Math.abs(value);
  let text = value === 0 ? "0" : size >= 1000 ? Math.round(size).toLocaleString("en-US")
    : trim(Math.abs(+`${mantissa}e${power}`).toFixed(Math.max(0, Math.min(20, 2 - +power))));
  if (unit.startsWith("$")) text = `$${text}${unit.slice(1)}`;
  else if (unit) text += unit === "%" || unit === "×" ? unit : ` ${unit}`;
  return (value < 0 ? "-" : "") + text;
}

// Multilinear over a regular grid; in log space along log axes, and in the value too where output.log is set.
export function interpolate(grid, values) {
  let corners = [[0, 1]];
  grid.axes.forEach((axis, d) => {
    const xs = axis.grid, f = axis.log ? Math.log : x => x;
    let i = 0;
    while (i < xs.length - 2 && xs[i + 1] <= values[d]) i++;
    const t = Math.min(1, Math.max(0, (f(values[d]) - f(xs[i])) / (f(xs[i + 1]) - f(xs[i]))));
    corners = corners.flatMap(([o, w]) => [[o * xs.length + i, w * (1 - t)], [o * xs.length + i + 1, w * t]]);
    corners = corners.filter(([, w]) => w);
  });
  const { log } = grid.output, g = log ? Math.log : y => y;
  const sum = corners.reduce((s, [o, w]) => s + w * g(grid.data[o]), 0);
  return log ? Math.exp(sum) : sum;
}

// Round numbers between lo and hi: decades (with 2 and 5 when there are few) or multiples of 1, 2, 5.
function ticks(lo, hi, log, want = 5) {
  if (log) {
    const from = Math.floor(Math.log10(lo)), to = Math.ceil(Math.log10(hi));
    const steps = 3 * (to - from) <= want + 3 ? [1, 2, 5] : [1], out = [];
    const every = Math.max(1, Math.ceil((to - from) / (want + 2)));
    for (let p = from; p <= to; p += every) for (const s of steps) out.push(s * 10 ** p);
    return out.filter(x => x >= lo * 0.999 && x <= hi * 1.001);
  }
  const rough = (hi - lo) / want, p = 10 ** Math.floor(Math.log10(rough));
  const step = p * [1, 2, 5, 10].find(s => s * p >= rough * 0.999);
  const out = [];
  for (let k = Math.ceil(lo / step - 1e-9); k * step <= hi * (1 + 1e-9); k++) out.push(k * step);
  return out;
}

// The nearest of 1, 2, 5 times a power of ten below (-1) or above (1).
function nice(v, side) {
  const p = 10 ** Math.floor(Math.log10(v)), steps = [1, 2, 5, 10].map(s => s * p);
  return side < 0 ? steps.filter(s => s <= v * 1.001).at(-1) ?? p : steps.find(s => s >= v * 0.999) ?? 10 * p;
}

const CSS = `
.ms-explorer{--ms-line:#0a84c6;--ms-mark:#d55e00;border:1px solid color-mix(in srgb,currentColor 30%,transparent);
  border-radius:.5rem;padding:.75rem 1rem;margin:.75rem 0;max-width:44rem;font-family:inherit;color:inherit}
.ms-explorer .ms-title{font-weight:600;margin:0 0 .5rem}
.ms-explorer .ms-row{display:grid;grid-template-columns:minmax(6rem,11rem) 1fr minmax(6rem,9rem);gap:.75rem;
  align-items:center;margin:.15rem 0}
.ms-explorer input[type=range]{width:100%;margin:0;min-height:1.75rem;accent-color:var(--ms-line);cursor:pointer}
.ms-explorer input[type=range]:focus-visible{outline:2px solid var(--ms-line);outline-offset:2px;border-radius:.25rem}
.ms-explorer .ms-value{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.ms-explorer output{display:block;margin:.5rem 0 0;font-size:1.1em}
.ms-explorer output b{font-variant-numeric:tabular-nums}
.ms-explorer .ms-how{font-size:.8em;margin-left:.5rem;font-style:italic}
.ms-explorer svg{display:block;width:100%;height:auto;margin-top:.5rem;overflow:visible}
.ms-explorer svg text{fill:currentColor;font-size:12px;font-family:inherit}
@media (max-width:36rem){.ms-explorer{padding:.6rem}.ms-explorer .ms-row{grid-template-columns:1fr auto;gap:0 .5rem}
  .ms-explorer .ms-row input{grid-row:2;grid-column:1/3}}`;

const NS = "http://www.w3.org/2000/svg";
function make(tag, attributes = {}, text) {
  const svg = ["svg", "g", "line", "text", "polyline", "circle"].includes(tag);
  const node = svg ? document.createElementNS(NS, tag) : document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
  if (text !== undefined) node.textContent = text;
  return node;
}

const H = 260, L = 66, R = 16, T = 26, B = 46;     // the plot's height and its margins
function plot(svg, grid, values, exact, y) {
  // Drawn at the width it has, so that text keeps its size on a phone.
  const W = Math.round(Math.max(280, Math.min(672, svg.parentNode?.clientWidth - 32 || 640)));
  svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
  // With a kernel, the exact curve it sent; without, the interpolated one at every stop of the slider.
  const axis = grid.axes[0], out = grid.output, xs = exact?.xs ?? axis.stops, ref = grid.reference;
  const curve = exact?.curve ?? xs.map(x => interpolate(grid, [x, ...values.slice(1)]));
  const all = ref ? [...curve, y, ref.value] : [...curve, y];
  let lo = Math.min(...all), hi = Math.max(...all);
  if (out.log) { lo = nice(lo, -1); hi = nice(hi, 1); if (hi / lo < 1.5) hi = nice(lo * 10, 1); }
  else { lo = Math.min(0, lo); if (hi === lo) hi = lo + 1; }
  const along = (v, a, b, log) => log ? Math.log(v / a) / Math.log(b / a) : (v - a) / (b - a);
  const share = x => axis.discrete ? xs.indexOf(x) / (xs.length - 1) : along(x, xs[0], xs.at(-1), axis.log);
  const X = x => L + (W - L - R) * share(x);
  const Y = v => H - B - (H - B - T) * along(v, lo, hi, out.log);
  const g = make("g");
  const add = (tag, attributes, text) => g.append(make(tag, attributes, text));
  for (const v of ticks(lo, hi, out.log)) {
    add("line", { x1: L, x2: W - R, y1: Y(v), y2: Y(v), stroke: "currentColor", "stroke-opacity": 0.18 });
    add("text", { x: L - 8, y: Y(v) + 4, "text-anchor": "end" }, formatValue(v, SI.has(out.unit) ? out.unit : ""));
  }
  const room = Math.floor(W / 75);
  const marks = axis.discrete
    ? xs.filter((_, i) => i % Math.ceil(xs.length / room) === 0) : ticks(xs[0], xs.at(-1), axis.log, room - 2);
  for (const x of marks) {
    add("line", { x1: X(x), x2: X(x), y1: H - B, y2: H - B + 5, stroke: "currentColor" });
    const text = formatValue(x, SI.has(axis.unit) ? axis.unit : "");
    add("text", { x: X(x), y: H - B + 20, "text-anchor": "middle" }, text);
  }
  const named = (label, unit) => unit && !SI.has(unit) ? `${label} (${unit})` : label;
  add("line", { x1: L, x2: W - R, y1: H - B, y2: H - B, stroke: "currentColor" });
  add("text", { x: (L + W - R) / 2, y: H - 4, "text-anchor": "middle" }, named(axis.label, axis.unit));
  add("text", { x: 0, y: 12 }, named(out.label, out.unit));
  if (ref) {
    const y = Y(ref.value), text = `${ref.label}: ${formatValue(ref.value, out.unit)}`;
    add("line", { x1: L, x2: W - R, y1: y, y2: y, stroke: "currentColor", "stroke-dasharray": "6 4" });
    const gap = i => Math.abs(Y(curve.at(i)) - Y(ref.value)), left = gap(0) > gap(-1);   // the end with more room
    add("text", { x: left ? L + 6 : W - R, y: y - 6, "text-anchor": left ? "start" : "end" }, text);
  }
  const points = xs.map((x, i) => `${X(x).toFixed(1)},${Y(curve[i]).toFixed(1)}`).join(" ");
  add("polyline", { points, fill: "none", stroke: "var(--ms-line)", "stroke-width": 2.5, "stroke-linejoin": "round" });
  add("circle", { cx: X(values[0]), cy: Y(y), r: 6, fill: "var(--ms-mark)", stroke: "currentColor" });
  svg.replaceChildren(g);
}

function render({ model, el }) {
  const grid = model.get("grid"), { label, unit } = grid.output;
  const root = make("div", { class: "ms-explorer", role: "group", "aria-label": grid.title });
  const out = make("output", { "aria-live": "polite" }), svg = make("svg", { role: "img" });
  root.append(make("style", {}, CSS), make("p", { class: "ms-title" }, grid.title));
  function draw() {
    const values = model.get("values"), answer = model.get("exact");
    const exact = answer && answer.values.every((v, i) => v === values[i]) ? answer : null;
    if (exact?.error) { out.textContent = exact.error; return; }
    const y = exact?.value ?? interpolate(grid, values), text = formatValue(y, unit);
    const tabled = grid.axes.every(a => a.discrete);   // then every value shown was computed, none interpolated
    const how = exact ? "exact, from the kernel" : tabled ? "computed in the build" : "interpolated";
    out.replaceChildren(`${label}: `, make("b", {}, text), make("span", { class: "ms-how" }, how));
    const where = grid.axes.map((a, d) => `${a.label} ${formatValue(values[d], a.unit)}`).join(", ");
    svg.setAttribute("aria-label", `${grid.title}: ${label} against ${grid.axes[0].label}; ${text} at ${where}`);
    plot(svg, grid, values, exact, y);
  }
  grid.axes.forEach((axis, d) => {
    const at = axis.stops.indexOf(model.get("values")[d]);
    const input = make("input", { type: "range", min: 0, max: axis.stops.length - 1, "aria-label": axis.label });
    const shown = make("span", { class: "ms-value", "aria-hidden": "true" });
    input.value = at < 0 ? Math.floor(axis.stops.length / 2) : at;
    const say = () => {
      shown.textContent = formatValue(axis.stops[+input.value], axis.unit);
      input.setAttribute("aria-valuetext", shown.textContent);
    };
    input.addEventListener("input", () => {
      model.set("values", model.get("values").map((v, i) => i === d ? axis.stops[+input.value] : v));
      model.save_changes();
      say();
      draw();
    });
    // JupyterLab takes arrow keys for its own cell navigation unless they stop here.
    input.addEventListener("keydown", event => event.stopPropagation());
    const row = make("div", { class: "ms-row" });
    row.append(make("span", {}, axis.label), input, shown);
    root.append(row);
    say();
  });
  root.append(out, svg);
  el.append(root);
  model.on("change:exact", draw);
  draw();
  const watch = new ResizeObserver(draw);
  watch.observe(root);
  return () => { watch.disconnect(); model.off("change:exact", draw); };
}

// The static host: every container that holds a grid and is not mounted yet.
export function mountAll(within) {
  for (const host of within.querySelectorAll(".ms-explorer-host:not([data-mounted])")) {
    const data = host.querySelector("script[type='application/json']");
    if (!data) continue;
    host.setAttribute("data-mounted", "");
    const grid = JSON.parse(data.textContent);
    const state = { grid, values: grid.axes.map(a => a.start), exact: null };
    host.querySelector("p")?.remove();
    const set = (k, v) => { state[k] = v; };
    render({ model: { get: k => state[k], set, save_changes() {}, on() {}, off() {} }, el: host });
  }
}

export default { render };
