// The strip: one column a step. Prompts' tokens stand on a line, up to the budget; decodes hang from it, one cell each.

import { count, fillTable, Figure, ink, seconds, whole } from "./figure.js";

const COLUMN = 9, TOP = 14, PROMPTS = 84, MIDDLE = 6, DECODES = 96, LEFT = 44;

// No request has a phase: one that computes more than one token of its own is in its prompt, at least in part.
const isChunk = ([, tokens, drafted]) => tokens - drafted > 1;
const total = step => step.parts.reduce((sum, [, tokens]) => sum + tokens, 0);

export class Steps {
  constructor(state) {
    this.state = state;
    this.figure = new Figure(document.querySelector("#strip"), TOP + PROMPTS + MIDDLE + DECODES, (...a) => this.draw(...a));
    this.figure.inspect({
      label: "Steps, the newest last",
      count: () => this.shown().length,
      at: x => {
        const at = Math.floor((x - this.right()) / COLUMN) + this.shown().length;
        return x >= LEFT && at >= 0 && at < this.shown().length ? at : null;
      },
      row: () => 10,
      start: () => Math.max(0, this.shown().length - 1),
      describe: at => this.shown()[at] ? this.describe(this.shown()[at]) : "",
    }, document.querySelector("#strip-told"));
  }

  right() { return this.figure.canvas.clientWidth; }
  shown() { return this.state.steps.slice(-Math.floor((this.right() - LEFT) / COLUMN)); }
  update() {
    this.figure.redraw();
    this.figure.tell();
  }

  draw(context, width) {
    const steps = this.shown(), colours = ink(), base = TOP + PROMPTS, budget = this.state.engine?.budget ?? 512;
    const most = Math.max(8, ...steps.map(s => s.parts.filter(p => !isChunk(p)).reduce((sum, p) => sum + p[1], 0)));
    const cell = Math.min(10, DECODES / most);
    this.axes(context, width, base, budget, most, cell);
    steps.forEach((step, at) => {
      const x = width - (steps.length - at) * COLUMN;
      let up = base, down = base + MIDDLE;
      for (const part of step.parts) {
        const [request, tokens, drafted, accepted] = part, hue = this.state.hue(request);
        context.fillStyle = colours.of(hue);
        if (isChunk(part)) {
          const height = Math.max(1, PROMPTS * tokens / budget);
          context.fillRect(x, up - height, COLUMN - 1, Math.max(1, height - 1));
          up -= height;
        } else {
          const right = tokens - drafted + accepted, gap = cell > 3 ? 1 : 0;
          context.fillRect(x, down, COLUMN - 1, right * cell - gap);
          context.fillStyle = colours.of(hue, 0.3);
          context.fillRect(x, down + right * cell, COLUMN - 1, Math.max(0, (drafted - accepted) * cell - gap));
          down += tokens * cell;
        }
      }
      if (step.preempted.length) this.mark(context, x + COLUMN / 2 - 0.5);
      if (step.skipped) {
        context.strokeStyle = colours.dim;
        context.setLineDash([2, 3]);
        context.strokeRect(x - 0.5, TOP, 0, PROMPTS + MIDDLE + DECODES);
        context.setLineDash([]);
      }
      if (at === this.figure.cursor) {
        context.strokeStyle = colours.ink;
        context.lineWidth = 1.5;
        context.strokeRect(x - 1, TOP - 1, COLUMN + 1, PROMPTS + MIDDLE + DECODES);
      }
    });
  }

  axes(context, width, base, budget, most, cell) {
    const colours = ink();
    context.fillStyle = colours.dim;
    context.strokeStyle = colours.line;
    context.lineWidth = 1;
    context.textAlign = "right";
    for (const [y, text] of [[base - PROMPTS, whole(budget)], [base - PROMPTS / 2, whole(budget / 2)], [base, "0"]]) {
      context.strokeRect(LEFT, Math.round(y) + 0.5, width - LEFT, 0);
      context.fillText(text, LEFT - 6, y + 4);
    }
    context.fillText(whole(most), LEFT - 6, base + MIDDLE + most * cell);
    context.textAlign = "left";
    context.fillText("budget", LEFT, TOP - 4);
    if (!this.state.steps.length) context.fillText("No step has been computed since you came.", LEFT + 8, base - 10);
  }

  mark(context, x) {
    context.fillStyle = ink().warn;
    context.beginPath();
    context.moveTo(x - 4.5, 1);
    context.lineTo(x + 4.5, 1);
    context.lineTo(x, 10);
    context.fill();
  }

  describe(step) {
    const chunks = step.parts.filter(isChunk), decodes = step.parts.filter(p => !isChunk(p));
    const drafted = step.parts.reduce((sum, p) => sum + p[2], 0), accepted = step.parts.reduce((sum, p) => sum + p[3], 0);
    const told = [`Step ${whole(step.index)}: ${count(total(step), "token")} of ${whole(this.state.engine.budget)}`];
    if (chunks.length) told.push(`prompts ${chunks.map(([name, n]) => `${name} (${whole(n)})`).join(", ")}`);
    if (decodes.length) told.push(`${count(decodes.length, "request")} decoding`);
    if (drafted) told.push(`${accepted} of ${count(drafted, "guess").replace("guesss", "guesses")} right`);
    if (step.preempted.length) told.push(`request ${step.preempted.join(", ")} lost its blocks`);
    if (step.skipped) told.push(`${count(step.skipped, "step")} before it not shown`);
    told.push(seconds(Object.values(step.seconds).reduce((a, b) => a + b, 0)));
    return told.join("; ");
  }

  fillTable() {
    const rows = this.state.steps.slice(-20).reverse().map(step => {
      const chunks = step.parts.filter(isChunk), sum = (parts, i) => parts.reduce((s, p) => s + p[i], 0);
      return [step.index, total(step), sum(chunks, 1), step.parts.length - chunks.length, sum(step.parts, 2), sum(step.parts, 3),
        step.preempted.join(", "), seconds(Object.values(step.seconds).reduce((a, b) => a + b, 0))];
    });
    const head = ["step", "tokens", "of prompts", "decodes", "guessed", "right", "preempted", "time"];
    fillTable(document.querySelector("#steps-table"), head, rows);
  }
}
