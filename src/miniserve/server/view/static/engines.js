// Every engine of a fleet, and of each version of a model, a row each: what it does, what it holds, and what moved. The one
// whose name is pressed is the one that the figures show. Nothing is shown of an engine that is alone.

import { count, whole } from "./figure.js";

const MIB = 2 ** 20;
const mib = bytes => `${bytes < 10 * MIB ? (bytes / MIB).toFixed(1) : whole(bytes / MIB)} MiB`;
const moved = (number, bytes) => number ? `${whole(number)} (${mib(bytes)})` : "0";

// What the tiers beside an engine's memory hold and gave, in words.
export const tiersOf = update => update.tiers.map(tier =>
  `${tier.name} ${whole(tier.used_bytes / MIB)} of ${whole(tier.capacity_bytes / MIB)} MiB, ` +
  `${count(tier.hits, "block")} loaded, ${whole(tier.misses)} looked for in vain`).join("; ") + ".";

// What the rows are to each other.
const APART = "A long prompt is computed by an engine for prefill; then the request goes on, with its KV, in one that " +
  "decodes. It has one number and one colour in both. ";
const VERSIONS = "Versions of the model that are loaded: a request is computed by one of them, which gives it its number. ";

// Of each column its head, and what stands in it, of an engine's history.
const COLUMNS = [
  ["running", ({ update }) => whole(update.requests.length)],
  ["waiting", ({ update }) => whole(update.waiting)],
  ["KV in use", ({ update }, numBlocks) => `${(100 * (1 - update.free / numBlocks)).toFixed(0)}%`],
  ["output tokens/s", history => whole(history.rate("output"))],
  ["computed tokens/s", history => whole(history.rate("computed"))],
  ["left", ({ update: { moves } }) => moves ? moved(moves.num_left, moves.left_bytes) : "–"],
  ["to be fetched", ({ update: { moves } }) => moves ? moved(moves.held, moves.held_bytes) : "–"],
  ["arrived", ({ update: { moves } }) => moves ? moved(moves.num_arrived, moves.arrived_bytes) : "–"],
  ["in tiers", ({ update: { tiers } }) => tiers.map(tier => `${tier.name} ${mib(tier.used_bytes)}`).join(", ") || "–"],
];

export class Engines {
  // onChoice: called when another engine is chosen.
  constructor(state, onChoice) {
    Object.assign(this, { state, onChoice, rows: new Map() });
    this.section = document.querySelector("#engines");
  }

  update() {
    const engines = this.state.engine?.engines ?? [];
    this.section.hidden = engines.length < 2;
    if (this.section.hidden) return;
    if (engines.some(each => !this.rows.has(each.name)) || this.rows.size !== engines.length) this.build(engines);
    for (const { name, ready, restarts } of engines) {
      const { button, state, cells } = this.rows.get(name), history = this.state.of(name);
      button.setAttribute("aria-pressed", name === this.state.chosen);
      state.textContent = ready ? "ready" : restarts ? "starting again" : "starting";
      cells.forEach((cell, at) => {
        const text = history.update ? COLUMNS[at][1](history, this.state.poolOf(name)) : "–";
        if (cell.textContent !== text) cell.textContent = text;
      });
    }
  }

  build(engines) {
    const table = document.createElement("table");
    this.rows.clear();
    const heads = table.createTHead().insertRow();
    for (const head of ["engine", "state", ...COLUMNS.map(([name]) => name)]) {
      heads.append(Object.assign(document.createElement("th"), { scope: "col", textContent: head }));
    }
    const body = table.createTBody();
    const several = engines.some(each => each.version), apart = engines.some(each => /\bprefill/.test(each.name));
    this.section.querySelector("#engines-told").textContent = (several ? VERSIONS : "") + (apart ? APART : "");
    for (const { name, version } of engines) {
      const row = body.insertRow(), head = Object.assign(document.createElement("th"), { scope: "row" });
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: version ? `version ${name}` : name });
      button.addEventListener("click", () => {
        this.state.choose(name);
        this.update();
        this.onChoice();
      });
      head.append(button);
      row.append(head);
      this.rows.set(name, { button, state: row.insertCell(), cells: COLUMNS.map(() => row.insertCell()) });
    }
    this.section.querySelector("table").replaceWith(table);
  }
}
