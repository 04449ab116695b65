// Server-sent events over fetch, which can send an API key, as EventSource cannot.

const SILENCE_MS = 25000;   // the server says something every ten seconds
const KEY = "miniserve.key";

export const savedKey = () => sessionStorage.getItem(KEY) ?? "";
export const saveKey = key => key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY);

// Fetch with the key, if there is one; an error's own words become the exception's.
export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (savedKey()) headers.authorization = `Bearer ${savedKey()}`;
  if (options.body) headers["content-type"] = "application/json";
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw Object.assign(new Error(told?.error?.message ?? `status ${response.status}`), { status: response.status });
}

// The events of a response: {name, data}, with data as text. Comments are events without a name.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const event = { name: null, data: "" };
        for (const line of part.split("\n")) {
          if (line.startsWith("event: ")) event.name = line.slice(7);
          else if (line.startsWith("data: ")) event.data += line.slice(6);
        }
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Follow the engine for good: `onEvent(name, object)`; `onTrouble({status, message, wait})` when the stream ends, before
// it is tried again. `retry()` of what is returned tries at once, as after a new key.
export function follow({ onEvent, onTrouble }) {
  let wake = () => {}, attempt = 0, current = null;
  const once = async () => {
    const controller = current = new AbortController();
    let timer;
    const heard = () => { clearTimeout(timer); timer = setTimeout(() => controller.abort(), SILENCE_MS); };
    try {
      heard();
      const response = await ask("/view/events", { signal: controller.signal });
      for await (const { name, data } of events(response)) {
        heard();
        attempt = 0;
        if (name) onEvent(name, JSON.parse(data));
      }
    } finally {
      clearTimeout(timer);
    }
  };
  (async () => {
    for (;;) {
      let trouble = { message: "the stream has ended" };
      try { await once(); } catch (error) { trouble = { status: error.status, message: error.message }; }
      const wait = Math.min(8, 2 ** attempt++);
      onTrouble({ ...trouble, wait });
      await new Promise(resolve => { wake = resolve; setTimeout(resolve, 1000 * wait); });
    }
  })();
  return { retry() { attempt = 0; current?.abort(); wake(); } };
}
