// What the page knows: the server, each of its engines, which of them the figures show, and the requests' colours.
// No drawing here.

import { History } from "./history.js";

export class State {
  engine = null;          // what the server says of itself
  #mine = new Set();      // requests of the chat
  #histories = new Map([["", new History()]]);   // by the engine's name
  #chosen = "";
  #colours = new Map();

  // The server says how it is. An engine that is away holds nothing; after all of them, requests may be counted anew.
  meet(engine) {
    this.engine = engine;
    const known = this.#histories;
    this.#histories = new Map(engine.engines.map(({ name }) => [name, known.get(name) ?? new History()]));
    for (const { name, ready } of engine.engines) if (!ready) this.#histories.get(name).reset();
    if (!this.#histories.has(this.#chosen)) {
      this.#chosen = (engine.engines.find(each => /\bdecode/.test(each.name)) ?? engine.engines[0]).name;
    }
    if (engine.state !== "starting") return;
    this.#colours.clear();
    this.#mine.clear();
  }

  take(update) {
    if (this.said(update.engine)?.ready) this.of(update.engine).take(update);
  }

  of(name) { return this.#histories.get(name); }
  get all() { return [...this.#histories.values()]; }
  get chosen() { return this.#chosen; }
  choose(name) { this.#chosen = name; }

  said(name) { return this.engine.engines.find(each => each.name === name); }
  poolOf(name) { return this.said(name)?.num_blocks ?? this.engine.num_blocks; }

  // Of the engine that is chosen; see `History`.
  get version() { return this.said(this.#chosen)?.version ?? ""; }
  get numBlocks() { return this.poolOf(this.#chosen); }
  get #history() { return this.#histories.get(this.#chosen); }
  get update() { return this.#history.update; }
  get steps() { return this.#history.steps; }
  get bins() { return this.#history.bins; }
  bin() { return this.#history.bin(); }
  quantile(...window) { return this.#history.quantile(...window); }
  split(...window) { return this.#history.split(...window); }

  // Each version numbers its own requests; without another one named, those of the engine that is chosen are meant.
  claim(request, version) { this.#mine.add(`${version} ${request}`); }
  isMine(request) { return this.#mine.has(`${this.version} ${request}`); }

  // Hues a golden angle apart: those of requests that come one after another differ most.
  hue(request, version = this.version) {
    const key = `${version} ${request}`;
    if (!this.#colours.has(key)) this.#colours.set(key, (165 + 137.508 * this.#colours.size) % 360);
    return this.#colours.get(key);
  }
}
