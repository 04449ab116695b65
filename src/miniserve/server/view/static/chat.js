// The conversation, by the server's own /v1/chat/completions. Times are the browser's: the network is part of them.

import { seconds } from "./figure.js";
import { ask, events } from "./stream.js";

const $ = selector => document.querySelector(selector);

export class Chat {
  constructor(state) {
    this.state = state;
    this.messages = [];
    this.controller = null;
    $("#ask").addEventListener("submit", event => { event.preventDefault(); this.send(); });
    $("#prompt").addEventListener("keydown", event => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    $("#stop").addEventListener("click", () => this.controller?.abort());
    $("#fresh").addEventListener("click", () => {
      this.controller?.abort();
      this.messages = [];
      $("#log").replaceChildren();
      $("#prompt").focus();
    });
    $("#temperature").addEventListener("input", () => { $("#temperature-shown").textContent = $("#temperature").value; });
  }

  async send() {
    const text = $("#prompt").value.trim(), { messages } = this;
    if (!text || this.controller || !this.state.engine) return;
    $("#prompt").value = "";
    messages.push({ role: "user", content: text });
    this.say("user", text);
    const turn = this.say("assistant", "");
    this.controller = new AbortController();
    this.busy(true);
    const answer = { role: "assistant", content: "" };
    try {
      await this.receive(turn, answer);
    } catch (error) {
      const stopped = error.name === "AbortError";
      turn.note.textContent = stopped ? `Stopped. ${turn.note.textContent}` : `It ended with an error: ${error.message}`;
      turn.note.classList.toggle("error", !stopped);
    }
    if (messages === this.messages) {   // not a new conversation by now
      if (answer.content) messages.push(answer);
      else messages.pop();              // so that what was asked can be asked again
    }
    this.controller = null;
    this.busy(false);
  }

  async receive(turn, answer) {
    const body = {
      model: this.state.engine.model, messages: this.messages, stream: true, stream_options: { include_usage: true },
      temperature: +$("#temperature").value, max_tokens: +$("#max-tokens").value,
    };
    const started = performance.now(), { signal } = this.controller;
    const response = await ask("/v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
    const request = response.headers.get("x-engine-request"), version = response.headers.get("x-model-version") ?? "";
    this.state.claim(request, version);
    turn.node.style.setProperty("--hue", this.state.hue(request, version));
    turn.who.textContent = `request ${request}${version && ` of version ${version}`}`;
    let first = null, usage = null, reason = null;
    for await (const { data } of events(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage ?? usage;
      const choice = chunk.choices[0], piece = choice?.delta?.content;
      reason = choice?.finish_reason ?? reason;
      if (!piece) continue;
      first ??= performance.now();
      answer.content += piece;
      this.grow(() => { turn.text.textContent = answer.content; });
      turn.note.textContent = `first token after ${seconds((first - started) / 1000)}`;
    }
    if (!usage) throw new Error("the answer broke off");
    const took = (performance.now() - (first ?? started)) / 1000, tokens = usage.completion_tokens;
    const rate = tokens > 1 ? `, then ${((tokens - 1) / took).toFixed(1)} tokens/s` : "";
    const cached = usage.prompt_tokens_details?.cached_tokens;
    const found = cached ? `, ${cached} of ${usage.prompt_tokens} prompt tokens found cached` : "";
    const cut = reason === "length" ? "; cut at its most tokens" : "";
    const wait = first ? `, first after ${seconds((first - started) / 1000)}` : "";
    this.grow(() => { turn.note.textContent = `${tokens} tokens${wait}${rate}${found}${cut}`; });
  }

  busy(on) {
    $("#send").disabled = on;
    $("#stop").disabled = !on;
    $("#log").setAttribute("aria-busy", on);   // read out when it is whole
  }

  say(role, content) {
    $("#log .hint")?.remove();
    const node = document.createElement("article"), who = document.createElement("h3");
    const text = document.createElement("p"), note = document.createElement("p");
    node.className = role;
    note.className = "note";
    who.textContent = role === "user" ? "You" : "…";
    text.textContent = content;
    node.append(who, text);
    if (role === "assistant") node.append(note);
    this.grow(() => $("#log").append(node));
    return { node, who, text, note };
  }

  // Change the log, and stay at its end if that is where its reader is.
  grow(change) {
    const log = $("#log"), atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    change();
    if (atEnd) log.scrollTop = log.scrollHeight;
  }
}
