// The page: how the connection is, the theme, the pause, and when what is drawn again.

import { Blocks } from "./blocks.js";
import { Charts } from "./charts.js";
import { Chat } from "./chat.js";
import { Company } from "./company.js";
import { Engines, tiersOf } from "./engines.js";
import { Experts } from "./experts.js";
import { restyle, whole } from "./figure.js";
import { State } from "./state.js";
import { Steps } from "./steps.js";
import { follow, savedKey, saveKey } from "./stream.js";

const $ = selector => document.querySelector(selector);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const state = new State();
const figures = [new Blocks(state), new Steps(state), new Experts(state)], charts = new Charts(state);
const engines = new Engines(state, () => { for (const figure of [...figures, charts]) figure.update(); });
let paused = false, drawn = 0;

new Chat(state);
new Company(state);

function status(kind, text) {
  const node = $("#status");
  node.dataset.state = kind;
  if (node.textContent !== text) node.textContent = text;
}

const STATES = {
  ready: ["ready", engine => {
    const away = engine.engines.filter(each => !each.ready).map(each => each.name);
    return away.length ? `Live, without ${away.join(", ")}` : "Live";
  }],
  starting: ["wait", engine => engine.restarts ? "The engine died and is being started again" : "The engine is starting"],
  draining: ["wait", () => "The server is shutting down"],
};

const stream = follow({
  onEvent(name, data) {
    if (name === "engine") {
      state.meet(data);
      $("#model").textContent = data.model;
      $("#description").textContent = data.description;
      $("#block-size").textContent = data.block_size;
      $("#max-tokens").max = data.max_model_len;
      const [kind, text] = STATES[data.state];
      status(kind, text(data));
      $("#key-form").hidden = !savedKey();
      drawn = 0;
      engines.update();
      show();
    } else if (name === "update" && !paused && state.engine) {
      state.take(data);
      show();
    }
  },
  onTrouble({ status: code, message, wait }) {
    if (code === 401) {
      status("wait", savedKey() ? "This key is not known" : "An API key is needed");
      $("#key-form").hidden = false;
    } else if (code === 403) {
      status("wait", "This key may not watch the engine");
      $("#key-form").hidden = false;
    } else {
      status("lost", `Connection lost (${message}); trying again in ${wait} s`);
    }
  },
});

// Figures follow the updates, where motion is not unwelcome; numbers and charts change once a second.
function show() {
  const time = performance.now();
  if (calm.matches && time - drawn < 1000) return;
  drawn = time;
  for (const figure of figures) figure.update();
}

setInterval(() => {
  if (paused) return;
  const { update, engine } = state;
  const sum = what => state.all.reduce((total, each) => total + (each.update ? what(each) : 0), 0);
  if (state.all.some(each => each.update)) {
    const prompt = sum(each => each.update.totals.prompt), cached = sum(each => each.update.totals.cached);
    $("#n-running").textContent = sum(each => each.update.requests.length);
    $("#n-waiting").textContent = sum(each => each.update.waiting);
    $("#n-output").textContent = whole(sum(each => each.rate("output")));
    $("#n-computed").textContent = whole(sum(each => each.rate("computed")));
    const blocks = engine.engines.reduce((all, { name }) => all + state.poolOf(name), 0);
    const free = engine.engines.reduce((all, { name }) => all + (state.of(name).update?.free ?? state.poolOf(name)), 0);
    $("#n-blocks").textContent = whole(blocks - free);
    $("#n-all-blocks").textContent = whole(blocks);
    $("#n-cached").textContent = prompt ? `${(100 * cached / prompt).toFixed(0)}%` : "–";
  }
  if (update) {
    $("#tiers").hidden = !update.tiers.length;
    $("#tiers span").textContent = tiersOf(update);
    $("#cost").textContent = `${(100 * update.cost).toFixed(2)}%`;
  }
  engines.update();
  charts.update();
  for (const figure of [...figures, charts]) figure.fillTable();
}, 1000);
for (const details of document.querySelectorAll("details.alternative")) {
  details.addEventListener("toggle", () => { for (const figure of [...figures, charts]) figure.fillTable(); });
}

$("#pause").addEventListener("click", () => {
  paused = !paused;
  $("#pause").setAttribute("aria-pressed", paused);
});

$("#key-form").addEventListener("submit", event => {
  event.preventDefault();
  saveKey($("#key").value.trim());
  $("#key").value = "";
  status("wait", "Connecting …");
  stream.retry();
});

// The theme: the system's, until one is chosen here.
const THEMES = ["system", "light", "dark"];
function setTheme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  localStorage.setItem("miniserve.theme", name);
  $("#theme span").textContent = name;
  restyle();
}
const theme = localStorage.getItem("miniserve.theme");
setTheme(THEMES.includes(theme) ? theme : "system");
$("#theme").addEventListener("click", () => {
  setTheme(THEMES[(THEMES.indexOf($("#theme span").textContent) + 1) % THEMES.length]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restyle);
