// The KV cache twice: each request's block table, in its own order, and the pool, where every block has its place.
// Pointing at a block in either marks it in both.

import { count, fillTable, Figure, ink, whole } from "./figure.js";
import { blocksOf } from "./history.js";

const SIZES = [14, 12, 10, 8, 7, 6, 5];   // of a block in the pool, pixels, the largest that fits
const ROW = 19, LARGEST_CELL = 15, SMALLEST_CELL = 8, LEFT = 58, RIGHT = 92, MAX_ROWS = 16;

export class Blocks {
  constructor(state) {
    this.state = state;
    this.holders = [];      // of each block: the requests that have it
    this.cached = new Uint8Array();
    this.rows = 4;
    this.grid = { size: 8, columns: 1, each: 1 };
    this.tables = new Figure(document.querySelector("#tables"), () => this.rows * ROW + 4, (...a) => this.drawTables(...a));
    this.pool = new Figure(document.querySelector("#pool"), width => this.layOut(width), (...a) => this.drawPool(...a));
    this.pool.inspect({
      label: "Blocks of the pool",
      count: () => Math.ceil(this.holders.length / this.grid.each),
      at: (x, y) => this.cellAt(x, y),
      row: () => this.grid.columns,
      start: () => Math.max(0, Math.floor(this.holders.findIndex(h => h?.length) / this.grid.each)),
      describe: cell => this.describe(cell),
    }, document.querySelector("#pool-told"));
    const canvas = this.tables.canvas;
    canvas.addEventListener("pointermove", event => this.pool.choose(this.tableCellAt(event.offsetX, event.offsetY)));
    canvas.addEventListener("pointerleave", () => this.pool.choose(null));
  }

  update() {
    const { engine, update } = this.state;
    if (!engine) return;
    this.holders = Array(this.state.numBlocks);
    this.cached = new Uint8Array(this.state.numBlocks);
    for (const request of update?.requests ?? []) {
      for (const block of blocksOf(request.blocks)) (this.holders[block] ??= []).push(request.name);
    }
    for (const block of blocksOf(update?.cached ?? [])) this.cached[block] = 1;
    this.rows = Math.min(MAX_ROWS, Math.max(this.rows, update?.requests.length ?? 0));
    this.tables.redraw();
    this.pool.redraw();
    this.pool.tell();
  }

  // Block tables.

  drawTables(context, width) {
    const requests = this.state.update?.requests ?? [], colours = ink(), size = this.state.engine?.block_size ?? 16;
    const shown = requests.slice(0, requests.length > MAX_ROWS ? MAX_ROWS - 1 : MAX_ROWS);
    const longest = Math.max(1, ...shown.map(r => Math.ceil(r.tokens / size)));
    const room = width - LEFT - RIGHT, cell = Math.floor(room / longest);
    this.cellSize = Math.max(SMALLEST_CELL, Math.min(LARGEST_CELL, cell));
    this.each = Math.ceil(longest * this.cellSize / room);   // blocks of a cell
    this.shown = shown.map(request => [...blocksOf(request.blocks)]);
    context.textBaseline = "middle";
    shown.forEach((request, at) => {
      const y = at * ROW + 3, hue = this.state.hue(request.name), mine = this.state.isMine(request.name.split("/")[0]);
      context.fillStyle = mine ? colours.ink : colours.dim;
      context.fillText(mine ? `${request.name} yours` : request.name, 0, y + 6);
      const blocks = this.shown[at];
      for (let i = 0, x = LEFT; i < blocks.length; i += this.each, x += this.cellSize) {
        const part = blocks.slice(i, i + this.each), filled = Math.min(1, Math.max(0, (request.computed / size - i) / part.length));
        context.fillStyle = colours.of(hue, 0.28);
        context.fillRect(x, y, this.cellSize - 1, 13);
        context.fillStyle = colours.of(hue);
        context.fillRect(x, y, (this.cellSize - 1) * filled, 13);
        if (part.some(b => this.holders[b]?.length > 1)) this.dot(context, x + (this.cellSize - 1) / 2, y + 6.5, this.cellSize / 5);
        if (part.some(b => this.cell(b) === this.pool.cursor)) this.ring(context, x, y, this.cellSize - 1, 13);
      }
      context.fillStyle = colours.dim;
      context.textAlign = "right";
      context.fillText(count(request.tokens, "token"), width, y + 6);
      context.textAlign = "left";
    });
    context.fillStyle = colours.dim;
    if (requests.length > shown.length) context.fillText(`and ${requests.length - shown.length} more`, 0, shown.length * ROW + 9);
    if (!requests.length) context.fillText("No request holds blocks now.", 0, 9);
    const shared = this.holders.filter(h => h?.length > 1).length;
    this.tables.canvas.setAttribute("aria-label", `Block tables of ${count(requests.length, "request")}; ${count(shared, "block")} shared`);
  }

  tableCellAt(x, y) {
    const row = this.shown?.[Math.floor(y / ROW)], at = Math.floor((x - LEFT) / this.cellSize) * this.each;
    return row && x >= LEFT && at < row.length ? this.cell(row[at]) : null;
  }

  // The pool.

  layOut(width) {
    const n = this.holders.length || 1, room = width < 500 ? 380 : 250;
    const fits = SIZES.find(size => Math.ceil(n / Math.floor(width / size)) * size <= room);
    const size = fits ?? 6, columns = Math.floor(width / size);
    const each = fits ? 1 : Math.ceil(n / (columns * Math.floor(room / size)));
    this.grid = { size, columns, each };
    const scale = each === 1 ? `One cell is one of ${whole(n)} blocks.` : `One cell is ${each} of ${whole(n)} blocks, as full as they are.`;
    const told = document.querySelector("#scale");
    if (told.textContent !== scale) told.textContent = scale;
    return Math.ceil(Math.ceil(n / each) / columns) * size + 1;
  }

  drawPool(context) {
    const { size, columns, each } = this.grid, n = this.holders.length, colours = ink(), side = size - 1;
    for (let cell = 0; cell * each < n; cell++) {
      const x = (cell % columns) * size, y = Math.floor(cell / columns) * size;
      let used = 0, cached = 0, shared = false, owner = null;
      for (let block = cell * each; block < Math.min(n, (cell + 1) * each); block++) {
        const holders = this.holders[block];
        if (holders) { used++; owner ??= holders[0]; shared ||= holders.length > 1; } else cached += this.cached[block];
      }
      context.fillStyle = cached * 2 >= each || (cached && each === 1) ? colours.cached : colours.free;
      context.fillRect(x, y, side, side);
      if (!used) continue;
      const height = Math.max(2, side * used / each);
      context.fillStyle = colours.of(this.state.hue(owner));
      context.fillRect(x, y + side - height, side, height);
      if (shared) this.dot(context, x + side / 2, y + side / 2, Math.max(1.2, size / 5));
    }
    const { cursor } = this.pool;
    if (cursor !== null) this.ring(context, (cursor % columns) * size, Math.floor(cursor / columns) * size, side, side);
  }

  cell(block) { return Math.floor(block / this.grid.each); }

  cellAt(x, y) {
    const { size, columns, each } = this.grid, column = Math.floor(x / size), cell = Math.floor(y / size) * columns + column;
    return column < columns && cell * each < this.holders.length ? cell : null;
  }

  describe(cell) {
    const { each } = this.grid, first = cell * each, last = Math.min(this.holders.length, first + each) - 1;
    if (each === 1) return `Block ${first}: ${this.status(first)}`;
    const held = this.holders.slice(first, last + 1).filter(Boolean), names = [...new Set(held.flat())];
    return `Blocks ${first} to ${last}: ${held.length} in use${names.length ? ` by ${this.named(names)}` : ""}`;
  }

  status(block) {
    const holders = this.holders[block], known = this.cached[block];
    if (!holders) return known ? "free; its content is remembered until it is handed out" : "free";
    return `${this.named(holders)}; ${count(holders.length, "reference")}${known ? "; can be found by others" : "; being filled"}`;
  }

  named(names) { return `${names.length === 1 ? "request" : "requests"} ${names.join(", ")}`; }

  dot(context, x, y, radius) {
    context.fillStyle = ink().panel;
    context.beginPath();
    context.arc(x, y, radius, 0, 7);
    context.fill();
  }

  ring(context, x, y, width, height) {
    context.strokeStyle = ink().ink;
    context.lineWidth = 2;
    context.strokeRect(x - 1, y - 1, width + 2, height + 2);
  }

  fillTable() {
    const rows = (this.state.update?.requests ?? []).map(r => {
      const blocks = [...blocksOf(r.blocks)], shared = blocks.filter(b => this.holders[b]?.length > 1).length;
      return [r.name, r.prompt, r.tokens, r.computed, r.cached, blocks.length, shared, r.preemptions];
    });
    const head = ["request", "prompt tokens", "tokens", "computed", "found cached", "blocks", "of these shared", "preempted"];
    fillTable(document.querySelector("#blocks-table"), head, rows);
  }
}
