// Requests beside the chat's, so that there is something to see: several at a time, over and over, each a question
// under one text that all begin with. Three submissions carry them, since a browser opens few connections to one server.

import { count } from "./figure.js";
import { ask } from "./stream.js";

const SUBMISSIONS = 3, PAUSE_MS = 3000;
const BEGINNING = `The following is a conversation between a curious visitor and the guide of a museum of computing
machines. The guide is friendly, knows the history of calculating from the abacus to the graphics processor, answers in
a few plain sentences, and gives an example wherever that helps. The guide never makes up numbers, and says so when
something is not known. The museum is open from nine to five, and the tour begins at the old relay machine.

Visitor: `;
const QUESTIONS = [
  "Who built the first computer?", "Why do graphics processors have so many cores?", "What is a transistor?",
  "How did people calculate before machines?", "What is the oldest thing in this museum?", "Why is memory so slow?",
  "Can a machine think?", "What did a programmer do in 1950?", "How does a punched card work?", "What is a bit?",
  "Why do computers use two digits only?", "What will computers look like in fifty years?",
];
const REMARKS = [
  "I came by train this morning, and it rained all the way.", "My grandfather repaired typewriters in a small shop.",
  "I have just seen the drum memory, and it is larger than I thought.", "My daughter wants to become an engineer.",
  "The machine in the first hall makes a wonderful noise.", "I read somewhere that early machines were very hot.",
  "We have an hour left before the bus goes.", "I used to write programs myself, a long time ago.",
];
const any = list => list[Math.floor(Math.random() * list.length)];

export class Company {
  constructor(state) {
    this.state = state;
    this.visitors = 0;
    this.controllers = new Set();
    const slider = document.querySelector("#visitors"), shown = document.querySelector("#visitors-shown");
    slider.addEventListener("input", () => {
      this.visitors = +slider.value;
      shown.textContent = this.visitors ? count(this.visitors, "request") : "none";
      slider.setAttribute("aria-valuetext", shown.textContent);
      if (!this.visitors) for (const controller of this.controllers) controller.abort();
      while (this.visitors && this.controllers.size < SUBMISSIONS) this.come();
    });
  }

  // One submission after another, until nobody is wanted.
  async come() {
    const controller = new AbortController();
    this.controllers.add(controller);
    await new Promise(resolve => setTimeout(resolve, 700 * (this.controllers.size - 1)));   // not all at once
    while (this.visitors && !controller.signal.aborted) {
      try { await this.talk(controller.signal); } catch {
        await new Promise(resolve => setTimeout(resolve, PAUSE_MS));   // stopped, refused, or the engine is away
      }
    }
    this.controllers.delete(controller);
    if (this.visitors && this.controllers.size < SUBMISSIONS) this.come();   // wanted again meanwhile
  }

  async talk(signal) {
    const prompts = Array.from({ length: this.visitors / SUBMISSIONS }, () =>
      `${BEGINNING}${Array.from({ length: 12 * Math.random() }, () => any(REMARKS)).join(" ")} ${any(QUESTIONS)}\n\nGuide:`);
    const body = {
      model: this.state.engine.model, prompt: prompts, stop: ["Visitor:"], temperature: 1,
      max_tokens: 40 + Math.floor(160 * Math.random()),
    };
    const response = await ask("/v1/completions", { method: "POST", body: JSON.stringify(body), signal });
    await response.json();
  }
}
