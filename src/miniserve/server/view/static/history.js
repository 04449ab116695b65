// What the page knows of one engine: the newest update, the last steps, and a minute of history in bins of one second.
// No drawing here.

const BINS = 60, MAX_STEPS = 400;
export const now = () => performance.now() / 1000;

const emptyBin = second => ({
  second, output: 0, computed: 0, running: null, waiting: null, ttft: new Map(), itl: new Map(), seconds: {}, steps: 0,
});
const merge = (into, sketch) => {
  for (const [bucket, n] of sketch) into.set(+bucket, (into.get(+bucket) ?? 0) + n);
};

// Runs [first, count, first, count …] as single blocks.
export function* blocksOf(runs) {
  for (let i = 0; i < runs.length; i += 2) for (let b = runs[i], e = b + runs[i + 1]; b < e; b++) yield b;
}

export class History {
  update = null;
  steps = [];
  bins = [emptyBin(Math.floor(now()))];

  // The next process counts from zero.
  reset() {
    this.update = null;
    this.steps = [];
  }

  take(update) {
    const bin = this.bin(), before = this.update?.totals, totals = update.totals;
    if (before && totals.steps < before.steps) this.reset();
    else if (before) {
      bin.output += totals.output - before.output;
      bin.computed += totals.computed - before.computed;
    }
    bin.running = update.requests.length;
    bin.waiting = update.waiting;
    merge(bin.ttft, Object.entries(update.ttft));
    merge(bin.itl, Object.entries(update.itl));
    const last = this.steps.at(-1)?.index ?? -1;
    for (const step of update.steps) {
      if (step.index <= last) continue;
      step.skipped = this.steps.length ? step.index - this.steps.at(-1).index - 1 : 0;
      this.steps.push(step);
      bin.steps++;
      for (const [name, s] of Object.entries(step.seconds)) bin.seconds[name] = (bin.seconds[name] ?? 0) + s;
    }
    this.steps.splice(0, this.steps.length - MAX_STEPS);
    this.update = update;
  }

  // The bin of this second; those of seconds in which nothing came are as things were.
  bin() {
    const second = Math.floor(now());
    let last = this.bins.at(-1);
    if (second - last.second > BINS) this.bins = [last = emptyBin(second - BINS)];
    while (last.second < second) {
      const next = emptyBin(last.second + 1);
      next.running = last.running;
      next.waiting = last.waiting;
      this.bins.push(last = next);
    }
    this.bins.splice(0, this.bins.length - BINS - 1);
    return last;
  }

  // Tokens per second over the last few whole seconds.
  rate(what, seconds = 3) {
    this.bin();
    const bins = this.bins.slice(-seconds - 1, -1);
    return bins.length ? bins.reduce((sum, bin) => sum + bin[what], 0) / bins.length : 0;
  }

  // The q-quantile in seconds of "ttft" or "itl" over the `window` bins that end at index `end`; null if there are none.
  quantile(what, q, end = this.bins.length, window = 10) {
    const all = new Map();
    for (const bin of this.bins.slice(Math.max(0, end - window), end)) merge(all, bin[what]);
    const counts = [...all].sort((a, b) => a[0] - b[0]);
    let left = q * counts.reduce((sum, [, n]) => sum + n, 0);
    for (const [bucket, n] of counts) if ((left -= n) <= 0) return 1e-6 * Math.exp((bucket + 0.5) / 50);
    return null;
  }

  // Mean seconds of a step by name, over the last `window` bins.
  split(window = 10) {
    const bins = this.bins.slice(-window), sums = {};
    const steps = bins.reduce((sum, bin) => sum + bin.steps, 0);
    for (const bin of bins) for (const [name, s] of Object.entries(bin.seconds)) sums[name] = (sums[name] ?? 0) + s / steps;
    return sums;
  }
}
