// A canvas that is drawn at the screen's resolution, follows the theme, and can be asked about its parts: by pointing,
// or with the arrow keys, as a slider whose value is told in words.

const root = document.documentElement;
let cache = null;

// The theme's colours and whether it is dark; read once, until `restyle`.
export function ink() {
  if (cache) return cache;
  const style = getComputedStyle(root), of = name => style.getPropertyValue(`--${name}`).trim();
  cache = Object.fromEntries(["ink", "dim", "line", "free", "cached", "panel", "accent", "warn", "blue", "purple"]
    .map(name => [name, of(name)]));
  cache.lightness = +of("lightness");
  cache.of = (hue, alpha = 1) => `oklch(${cache.lightness} 0.14 ${hue} / ${alpha})`;
  return cache;
}
const figures = new Set();
export function restyle() {
  cache = null;
  for (const figure of figures) figure.redraw();
}

export class Figure {
  // draw(context, width): draws, after setting the height with `figure.height = …` if that depends on the width.
  constructor(canvas, height, draw) {
    Object.assign(this, { canvas, height, draw, wanted: false });
    figures.add(this);
    new ResizeObserver(() => this.redraw()).observe(canvas);
  }

  redraw() {
    if (this.wanted) return;
    this.wanted = true;
    requestAnimationFrame(() => {
      this.wanted = false;
      const { canvas } = this, width = canvas.clientWidth, ratio = devicePixelRatio;
      if (!width) return;
      const height = typeof this.height === "function" ? this.height(width) : this.height;
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
        canvas.style.height = `${height}px`;
      }
      const context = canvas.getContext("2d");
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, width, height);
      context.font = "11px system-ui, sans-serif";
      this.draw(context, width, height);
    });
  }

  // Let its parts be asked about. `parts` has: label; count(); at(x, y), an index or null; row(), how many parts one
  // arrow up or down is; describe(index); chosen(index or null).
  inspect(parts, told) {
    const { canvas } = this;
    this.cursor = null;
    canvas.setAttribute("role", "slider");
    canvas.setAttribute("aria-label", parts.label);
    canvas.setAttribute("aria-valuemin", 0);
    const choose = index => {
      this.cursor = index;
      this.tell = () => {
        const text = index === null ? "" : parts.describe(index);
        if (told.textContent !== text) told.textContent = text;
        canvas.setAttribute("aria-valuemax", Math.max(0, parts.count() - 1));
        canvas.setAttribute("aria-valuenow", index ?? 0);
        canvas.setAttribute("aria-valuetext", text || "nothing chosen");
      };
      this.tell();
      this.redraw();
    };
    canvas.addEventListener("pointermove", event => choose(parts.at(event.offsetX, event.offsetY)));
    canvas.addEventListener("pointerdown", event => choose(parts.at(event.offsetX, event.offsetY)));
    canvas.addEventListener("pointerleave", () => { if (document.activeElement !== canvas) choose(null); });
    canvas.addEventListener("focus", () => { if (canvas.matches(":focus-visible")) choose(this.cursor ?? parts.start()); });
    canvas.addEventListener("blur", () => choose(null));
    canvas.addEventListener("keydown", event => {
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -parts.row(), ArrowDown: parts.row(), Home: -Infinity, End: Infinity };
      if (!(event.key in by) || !parts.count()) return;
      event.preventDefault();
      choose(Math.max(0, Math.min(parts.count() - 1, (this.cursor ?? parts.start()) + by[event.key])));
    });
    this.choose = choose;
    choose(null);
  }
}

// Fill the table behind "As a table", while it is open.
export function fillTable(host, head, rows) {
  if (!host.closest("details").open) return;
  const cell = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
  const line = (tag, texts) => {
    const row = document.createElement("tr");
    row.append(...texts.map(text => cell(tag, text)));
    return row;
  };
  const table = document.createElement("table");
  table.append(document.createElement("thead"), document.createElement("tbody"));
  table.tHead.append(line("th", head));
  for (const th of table.tHead.querySelectorAll("th")) th.scope = "col";
  table.tBodies[0].append(...rows.map(row => line("td", row)));
  host.replaceChildren(table);
}

// Three digits and a fitting unit.
export function seconds(s) {
  if (s === null || s === undefined) return "–";
  const [value, unit] = s >= 1 ? [s, "s"] : s >= 1e-3 ? [1e3 * s, "ms"] : [1e6 * s, "µs"];
  return `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ${unit}`;
}
export const whole = n => Math.round(n).toLocaleString("en-US");
export const count = (n, what) => `${whole(n)} ${what}${n === 1 ? "" : "s"}`;
