// The page: how the connection is, the theme, the pause, and when what is drawn again.

import { Blocks } from "./blocks.js";
import { Charts } from "./charts.js";
import { Chat } from "./chat.js";
import { Company } from "./company.js";
import { count, restyle, whole } from "./figure.js";
import { State } from "./state.js";
import { Steps } from "./steps.js";
import { follow, savedKey, saveKey } from "./stream.js";

const $ = selector => document.querySelector(selector);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const state = new State();
const figures = [new Blocks(state), new Steps(state)], charts = new Charts(state);
let paused = false, drawn = 0;

new Chat(state);
new Company(state);

function status(kind, text) {
  const node = $("#status");
  node.dataset.state = kind;
  if (node.textContent !== text) node.textContent = text;
}

const STATES = {
  ready: ["ready", () => "Live"],
  starting: ["wait", engine => engine.restarts ? "The engine died and is being started again" : "The engine is starting"],
  draining: ["wait", () => "The server is shutting down"],
};

const stream = follow({
  onEvent(name, data) {
    if (name === "engine") {
      if (data.state === "starting") state.reset();
      state.engine = data;
      $("#model").textContent = data.model;
      $("#description").textContent = data.description;
      $("#block-size").textContent = data.block_size;
      $("#max-tokens").max = data.max_model_len;
      const [kind, text] = STATES[data.state];
      status(kind, text(data));
      $("#key-form").hidden = !savedKey();
      drawn = 0;
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
  if (engine && update) {
    const used = engine.num_blocks - update.free, { prompt, cached } = update.totals;
    $("#n-running").textContent = update.requests.length;
    $("#n-waiting").textContent = update.waiting;
    $("#n-output").textContent = whole(state.rate("output"));
    $("#n-computed").textContent = whole(state.rate("computed"));
    $("#n-blocks").textContent = whole(used);
    $("#n-all-blocks").textContent = whole(engine.num_blocks);
    $("#n-cached").textContent = prompt ? `${(100 * cached / prompt).toFixed(0)}%` : "–";
    $("#tiers").hidden = !update.tiers.length;
    $("#tiers span").textContent = update.tiers.map(tier =>
      `${tier.name} ${whole(tier.used_bytes / 2 ** 20)} of ${whole(tier.capacity_bytes / 2 ** 20)} MiB, ` +
      `${count(tier.hits, "block")} loaded, ${whole(tier.misses)} looked for in vain`).join("; ") + ".";
    $("#cost").textContent = `${(100 * update.cost).toFixed(2)}%`;
  }
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
