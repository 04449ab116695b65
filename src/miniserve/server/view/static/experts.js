// A mixture's experts: what share of its layer's choices each has got, since the engine was started.

import { fillTable, Figure, ink, whole } from "./figure.js";

const HIGHEST = 16, LOWEST = 3, TALL = 320, LEFT = 30, RIGHT = 52, FULL = 4;   // FULL: times an even share

export class Experts {
  constructor(state) {
    this.state = state;
    this.layers = [];
    this.figure = new Figure(document.querySelector("#heat"), () => this.layers.length * this.row + 2, (...a) => this.draw(...a));
    this.figure.inspect({
      label: "Experts by layer",
      count: () => this.layers.length * this.columns,
      at: (x, y) => this.cellAt(x, y),
      row: () => this.columns,
      start: () => 0,
      describe: cell => this.describe(Math.floor(cell / this.columns), cell % this.columns),
    }, document.querySelector("#heat-told"));
  }

  get columns() { return this.layers[0]?.length || 1; }
  get row() { return Math.max(LOWEST, Math.min(HIGHEST, Math.floor(TALL / (this.layers.length || 1)))); }

  update() {
    this.layers = this.state.update?.experts ?? [];
    document.querySelector("#experts").hidden = !this.layers.length;
    this.figure.redraw();
    this.figure.tell();
  }

  // How many times an even share an expert got, and its layer's largest; 0 before the first token.
  times(layer, expert) {
    const counts = this.layers[layer], total = counts.reduce((sum, each) => sum + each, 0);
    return total ? counts[expert] * counts.length / total : 0;
  }
  imbalance(layer) { return Math.max(...this.layers[layer].map((_, expert) => this.times(layer, expert))); }

  draw(context, width) {
    const colours = ink(), { row, columns } = this, cell = this.cellWidth = (width - LEFT - RIGHT) / columns;
    const gap = cell > 4 && row > 4 ? 1 : 0, every = Math.ceil(14 / row);
    context.textBaseline = "middle";
    this.layers.forEach((counts, layer) => {
      const y = layer * row + 1;
      counts.forEach((_, expert) => {
        const x = LEFT + expert * cell;
        context.fillStyle = colours.free;
        context.fillRect(x, y, cell - gap, row - gap);
        context.globalAlpha = Math.min(1, this.times(layer, expert) / FULL);
        context.fillStyle = colours.accent;
        context.fillRect(x, y, cell - gap, row - gap);
        context.globalAlpha = 1;
        if (layer * columns + expert !== this.figure.cursor) return;
        context.strokeStyle = colours.ink;
        context.lineWidth = 2;
        context.strokeRect(x, y, cell - gap, row - gap);
      });
      if (layer % every) return;
      context.fillStyle = colours.dim;
      context.fillText(String(layer), 0, y + row / 2);
      context.textAlign = "right";
      context.fillText(`${this.imbalance(layer).toFixed(1)} ×`, width, y + row / 2);
      context.textAlign = "left";
    });
  }

  cellAt(x, y) {
    const expert = Math.floor((x - LEFT) / this.cellWidth), layer = Math.floor((y - 1) / this.row);
    return this.layers[layer]?.[expert] === undefined ? null : layer * this.columns + expert;
  }

  describe(layer, expert) {
    const tokens = this.layers[layer]?.[expert];
    return tokens === undefined ? "" : `Layer ${layer}, expert ${expert}: ${whole(tokens)} tokens, ${this.times(layer, expert).toFixed(2)} times an even share`;
  }

  fillTable() {
    const rows = this.layers.map((counts, layer) => [layer, `${this.imbalance(layer).toFixed(2)} ×`, ...counts.map(whole)]);
    const head = ["layer", "busiest over mean", ...(this.layers[0] ?? []).map((_, expert) => `expert ${expert}`)];
    fillTable(document.querySelector("#experts-table"), head, rows);
  }
}
