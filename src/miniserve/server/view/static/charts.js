// Small charts of the last minute, one bin a second, and where a step's time goes.

import { fillTable, Figure, ink, seconds, whole } from "./figure.js";

const HEIGHT = 128, TOP = 8, BOTTOM = 20, LEFT = 46, SPAN = 60, WINDOW = 10;

// What is drawn: of each line its name, its colour, how it looks, and its value at the bin that ends at an index.
const quantile = (what, q) => (state, end) => state.quantile(what, q, end, WINDOW);
const level = what => (state, end) => state.bins[end - 1][what];
const CHARTS = [
  { id: "ttft", title: "Time to first token", format: seconds, lines: [
    ["p50", "blue", [], quantile("ttft", 0.5)], ["p99", "warn", [5, 3], quantile("ttft", 0.99)]] },
  { id: "itl", title: "Time between tokens", format: seconds, lines: [
    ["p50", "blue", [], quantile("itl", 0.5)], ["p99", "warn", [5, 3], quantile("itl", 0.99)]] },
  { id: "throughput", title: "Tokens per second", format: whole, whole: true, lines: [
    ["output", "accent", [], level("output")], ["computed", "purple", [5, 3], level("computed")]] },
  { id: "requests", title: "Requests", format: whole, whole: true, lines: [
    ["running", "accent", [], level("running")], ["waiting", "warn", [5, 3], level("waiting")]] },
];
const PARTS = ["accent", "blue", "purple", "warn", "cached", "dim"];

const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};

export class Charts {
  constructor(state) {
    this.state = state;
    this.charts = CHARTS.map(chart => this.add(chart));
  }

  add(chart) {
    const canvas = make("canvas", { id: `chart-${chart.id}`, role: "img", ariaLabel: chart.title });
    const told = chart.lines.map(([name, colour, dash]) => {
      const value = make("b", { textContent: "–" });
      const swatch = make("i", { className: `swatch ${colour}${dash.length ? " dashed" : ""}` });
      return [make("span", { className: "key" }, swatch, `${name} `, value), value];
    });
    const caption = make("figcaption", {}, make("strong", { textContent: chart.title }), " ", ...told.map(([span]) => span));
    document.querySelector("#charts").append(make("figure", {}, caption, canvas));
    const drawn = { ...chart, canvas, values: told.map(([, value]) => value) };
    drawn.figure = new Figure(canvas, HEIGHT, (context, width) => this.draw(drawn, context, width));
    return drawn;
  }

  update() {
    this.state.bin();
    for (const chart of this.charts) {
      // The bin of the running second is not complete: rates are read from the one before.
      const end = this.state.bins.length - (chart.id === "throughput" ? 1 : 0);
      const now = chart.lines.map(([, , , value]) => end ? chart.format(value(this.state, end) ?? null) : "–");
      now.forEach((text, i) => { chart.values[i].textContent = text === "NaN" ? "–" : text; });
      const label = `${chart.title}: ${chart.lines.map(([name], i) => `${name} ${now[i]}`).join(", ")}`;
      chart.canvas.setAttribute("aria-label", label);
      chart.figure.redraw();
    }
    this.showSplit();
  }

  draw(chart, context, width) {
    const colours = ink(), { bins } = this.state, last = bins.length - 1, base = HEIGHT - BOTTOM;
    const curves = chart.lines.map(([, , , value]) => bins.slice(0, -1).map((_, i) => value(this.state, i + 1)));
    const top = ceiling(Math.max(...curves.flat().filter(v => v !== null), chart.whole ? 4 : 1e-3));
    const X = i => width - (last - 1 - i) * (width - LEFT) / SPAN, Y = v => base - v / top * (base - TOP);
    context.lineWidth = 1;
    context.fillStyle = colours.dim;
    context.strokeStyle = colours.line;
    context.textAlign = "right";
    for (const v of [0, top / 2, top]) {
      context.strokeRect(LEFT, Math.round(Y(v)) + 0.5, width - LEFT, 0);
      context.fillText(chart.format(v).replace(/\.0+ /, " ").replace(/0 (µs|ms)/, m => v ? m : "0"), LEFT - 5, Y(v) + 4);
    }
    context.fillText("now", width, HEIGHT - 6);
    context.textAlign = "left";
    context.fillText("60 s ago", LEFT, HEIGHT - 6);
    chart.lines.forEach(([, colour, dash], at) => {
      context.strokeStyle = colours[colour];
      context.lineWidth = 2;
      context.setLineDash(dash);
      context.beginPath();
      let drawing = false;
      curves[at].forEach((value, i) => {
        if (value === null) { drawing = false; return; }
        context[drawing ? "lineTo" : "moveTo"](X(i), Y(value));
        drawing = true;
      });
      context.stroke();
      context.setLineDash([]);
    });
  }

  showSplit() {
    const parts = Object.entries(this.state.split(WINDOW)).sort((a, b) => b[1] - a[1]);
    const total = parts.reduce((sum, [, s]) => sum + s, 0);
    const bar = document.querySelector("#split-bar"), list = document.querySelector("#split");
    bar.replaceChildren(...parts.map(([, s], i) => {
      const piece = make("span", { className: `part ${PARTS[i % PARTS.length]}` });
      piece.style.flexGrow = s / total;
      return piece;
    }));
    list.replaceChildren(...parts.map(([name, s], i) => make("li", {},
      make("i", { className: `swatch ${PARTS[i % PARTS.length]}` }), `${name} `,
      make("b", { textContent: seconds(s) }), ` ${(100 * s / total).toFixed(s / total < 0.1 ? 1 : 0)}%`)));
    if (!parts.length) list.replaceChildren(make("li", { textContent: "No step in the last ten seconds." }));
  }

  fillTable() {
    const { state } = this, end = state.bins.length - 1;
    const rows = [0, 10, 20, 30, 40, 50].filter(ago => end - ago > 0).map(ago => [
      ago ? `${ago} s ago` : "now", ...this.charts.flatMap(chart =>
        chart.lines.map(([, , , value]) => { const v = value(state, end - ago); return v === null ? "–" : chart.format(v); })),
    ]);
    const head = ["", ...this.charts.flatMap(chart => chart.lines.map(([name]) => `${chart.title}, ${name}`))];
    fillTable(document.querySelector("#charts-table"), head, rows);
  }
}

// The smallest of a few round numbers that is not below.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map(step => step * power).find(step => step >= value * 0.999);
}
