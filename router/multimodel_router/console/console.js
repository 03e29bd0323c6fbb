// The console's script: it samples the router's state once a second, draws it, and talks to the models.
// Text of models and errors reaches the page as text alone; paths are relative, so that a prefix in front works.

const POLL_MS = 1000;
const POLL_HIDDEN_MS = 10_000;
const POLL_LONGEST_MS = 15_000;
const STATE_MS = 8000; // a state that takes longer counts as a lost connection
const WINDOW = 60; // seconds that the quantiles and the curves cover
const RATE_WINDOW = 5; // seconds that a rate is taken over
const ALL = ""; // all models together, where a model's name is asked for
const KEY = "multimodel-api-key";

const byId = (id) => document.getElementById(id);

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// ---- Words and numbers ----

const words = (name) => name.replaceAll("_", " ");
const rateText = (rate) => rate.toFixed(rate < 100 ? 1 : 0);
const FIGURES = { rate: rateText, p50: secondsText, p99: secondsText, inFlight: String }; // what the tiles show, and how

function secondsText(seconds) {
  if (seconds === null) return "–";
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(seconds < 100 ? 1 : 0)} s`;
}

function bytesText(done, total) {
  const [unit, name] = total < 1e9 ? [1e6, "MB"] : [1e9, "GB"];
  return `${(done / unit).toFixed(1)} of ${(total / unit).toFixed(1)} ${name}`;
}

// ---- Calls, with the API key that the tab keeps ----

let asked = false; // whether the key was asked for since the last one was given

async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { ...options.headers, authorization: `Bearer ${key}` } : options.headers;
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.ok) return response;
  if (response.status === 401 && !asked) {
    asked = true;
    byId("key-dialog").showModal();
  }
  const { error } = await response.json().catch(() => ({}));
  const problem = error?.message ?? error ?? `The router answered with status ${response.status}.`;
  throw Object.assign(new Error(problem), { refused: true });
}

function post(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return call(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

const problemOf = (error) => (error.refused ? error.message : "The router does not answer.");

function useKey() {
  sessionStorage.setItem(KEY, byId("key").value.trim());
  byId("key").value = "";
  asked = false;
  poll();
}

// ---- Sampling ----

let timer = 0;
let failures = 0;
let polling = false;

async function poll() {
  if (polling) return;
  polling = true;
  clearTimeout(timer);
  const state = await fetchState();
  polling = false;
  timer = setTimeout(poll, pause());
  if (state) show(state);
}

async function fetchState() {
  try {
    const response = await call("console/state", { signal: AbortSignal.timeout(STATE_MS) });
    const state = await response.json();
    failures = 0;
    showConnection("live", "");
    return state;
  } catch (error) {
    failures += 1;
    showConnection("lost", error.refused ? error.message : "Connection lost. The page tries again by itself.");
    return null;
  }
}

function pause() {
  if (failures) return Math.min(POLL_LONGEST_MS, POLL_MS * 2 ** (failures - 1));
  return document.hidden ? POLL_HIDDEN_MS : POLL_MS;
}

function showConnection(state, problem) {
  byId("connection").dataset.state = state;
  byId("connection").textContent = state;
  byId("banner").hidden = !problem;
  byId("banner").textContent = problem;
}

function show(state) {
  const figures = takeSample(state.models);
  showTiles(figures.get(ALL));
  showModels(state.models, figures);
  showChoice(state.models.filter((model) => model.chats));
}

// ---- Traffic: rates and quantiles between two samples ----

let samples = []; // of the last WINDOW seconds, oldest first: {at, traffic: name → totals, figures: name → figures}

function takeSample(models) {
  const traffic = new Map(models.map((model) => [model.name, model.traffic]));
  traffic.set(ALL, combined([...traffic.values()]));
  const sample = { at: performance.now() / 1000, traffic };
  const restarted = requestCount(traffic.get(ALL)) < requestCount(samples.at(-1)?.traffic.get(ALL));
  samples = [...(restarted ? [] : samples.filter((old) => sample.at - old.at <= WINDOW)), sample];
  sample.figures = new Map([...traffic.keys()].map((name) => [name, figuresOf(name, sample)]));
  return sample.figures;
}

function combined(traffics) {
  const sum = { requests: {}, first_byte: {}, in_flight: 0, waiting: 0 };
  for (const traffic of traffics) {
    sum.in_flight += traffic.in_flight;
    sum.waiting += traffic.waiting;
    for (const kind of ["requests", "first_byte"]) {
      for (const [label, count] of Object.entries(traffic[kind])) sum[kind][label] = (sum[kind][label] ?? 0) + count;
    }
  }
  return sum;
}

function requestCount(traffic) {
  return Object.values(traffic?.requests ?? {}).reduce((sum, count) => sum + count, 0);
}

function figuresOf(name, now) {
  const { in_flight: inFlight, waiting, first_byte: firstByte, ...traffic } = now.traffic.get(name);
  const recent = samples.find((sample) => now.at - sample.at <= RATE_WINDOW);
  const requests = requestCount(traffic);
  const rate = recent === now ? 0 : (requests - requestCount(recent.traffic.get(name))) / (now.at - recent.at);
  const before = samples[0].traffic.get(name)?.first_byte ?? {};
  return { rate, requests, inFlight, waiting, p50: quantile(0.5, firstByte, before), p99: quantile(0.99, firstByte, before) };
}

// The quantile, in seconds, of what a cumulative histogram counted since `before`: a straight line within a bucket.
function quantile(share, counts, before) {
  const buckets = Object.entries(counts)
    .map(([bound, count]) => ({ bound: Number(bound.replace("+Inf", "Infinity")), count: count - (before[bound] ?? 0) }))
    .sort((a, b) => a.bound - b.bound);
  const rank = share * (buckets.at(-1)?.count ?? 0);
  if (!rank) return null;
  const index = buckets.findIndex((bucket) => bucket.count >= rank);
  const lower = buckets[index - 1] ?? { bound: 0, count: 0 };
  const { bound, count } = buckets[index];
  return bound === Infinity ? lower.bound : lower.bound + ((bound - lower.bound) * (rank - lower.count)) / (count - lower.count);
}

function showTiles(figures) {
  for (const [name, asText] of Object.entries(FIGURES)) {
    byId(name).textContent = asText(figures[name]);
    drawCurve(byId(`${name}-curve`), name);
  }
  byId("waiting").textContent = figures.waiting ? `${figures.waiting} waiting` : "";
}

function drawCurve(svg, figure) {
  const points = samples
    .map((sample) => ({ x: WINDOW - (samples.at(-1).at - sample.at), value: sample.figures.get(ALL)[figure] }))
    .filter((point) => point.value !== null);
  const highest = Math.max(...points.map((point) => point.value)) || 1;
  const line = points.map(({ x, value }) => `${x.toFixed(2)} ${(19 - (18 * value) / highest).toFixed(2)}`).join("L");
  const drawn = points.length > 1;
  svg.querySelector(".line").setAttribute("d", drawn ? `M${line}` : "");
  svg.querySelector(".area").setAttribute("d", drawn ? `M${points[0].x} 20L${line}L${points.at(-1).x} 20Z` : "");
}

// ---- Models ----

const cards = new Map(); // by the model's name; `load` is the last progress seen, kept for when the model is unloaded

function showModels(models, figures) {
  for (const [name, card] of cards) {
    if (models.some((model) => model.name === name)) continue;
    card.root.remove();
    cards.delete(name);
  }
  for (const [place, model] of models.entries()) {
    const card = cards.get(model.name) ?? newCard(model.name);
    const there = byId("models").children[place];
    if (there !== card.root) byId("models").insertBefore(card.root, there);
    showModel(card, model);
    showModelTraffic(card.root.querySelector(".traffic"), figures.get(model.name));
  }
  byId("no-models").hidden = models.length > 0;
  byId("summary").textContent = `${models.filter((model) => model.state === "loaded").length} of ${models.length} loaded`;
}

function newCard(name) {
  const root = byId("model-template").content.firstElementChild.cloneNode(true);
  const card = { root, button: root.querySelector("button"), load: null, pending: null, refusal: "" };
  card.button.addEventListener("click", () => act(card));
  cards.set(name, card);
  return card;
}

function showModel(card, model) {
  const { root } = card;
  if (card.state && card.state !== model.state) byId("announcement").textContent = `${model.id}: ${words(model.state)}`;
  Object.assign(card, { id: model.id, state: model.state, load: model.progress ?? model.last_load ?? card.load });
  root.dataset.state = model.state;
  root.querySelector("h3").textContent = model.id;
  root.querySelector(".default").hidden = !model.default;
  root.querySelector(".state").textContent = model.state;
  const replicas = model.wanted ? `${model.ready} of ${model.wanted} ready` : "no replicas";
  root.querySelector(".about").textContent = `${model.canonical_id} · ${replicas}`;
  showButton(card);
  showLoad(card, model);
  root.querySelector(".problem").hidden = !model.failure && !card.refusal;
  root.querySelector(".reason").textContent = model.failure?.reason ?? "";
  root.querySelector(".message").textContent = model.failure?.message ?? card.refusal;
}

function showButton(card) {
  card.action = ["unloaded", "internal_error"].includes(card.state) ? "reload" : "unload";
  card.button.textContent = card.action === "reload" ? "Load" : "Unload";
  card.button.ariaLabel = `${card.button.textContent} ${card.id}`;
  card.button.disabled = card.pending === card.action;
  card.button.hidden = card.state === "no_loader_config";
}

async function act(card) {
  const { action } = card;
  Object.assign(card, { pending: action, refusal: "" });
  showButton(card);
  try {
    await post(`v1/models/${action}`, { model_id: card.id });
  } catch (error) {
    card.refusal = problemOf(error);
  }
  if (card.pending === action) card.pending = null;
  poll();
}

function showLoad(card, { state, progress }) {
  const phases = Object.entries(card.load?.seconds ?? {});
  const total = phases.reduce((sum, [, seconds]) => sum + seconds, 0);
  const now = state === "reloading" ? progress : null;
  card.root.querySelector(".load").hidden = !card.load;
  const parts = phases.map(([phase, seconds]) => phaseParts(phase, seconds, total, now?.phase === phase));
  const texts = parts.map((part) => part.text);
  const past = state === "loaded" ? "loaded in" : "last load";
  texts.push(element("span", "total", `${now ? "so far" : past} ${secondsText(total)}`));
  if (now?.bytes_total) texts.push(element("span", "total", bytesText(now.bytes_done, now.bytes_total)));
  card.root.querySelector(".bar").replaceChildren(...parts.map((part) => part.segment));
  card.root.querySelector(".phases").replaceChildren(...texts);
  const bar = card.root.querySelector("progress");
  bar.hidden = !now?.bytes_total;
  if (now?.bytes_total) Object.assign(bar, { max: now.bytes_total, value: now.bytes_done });
}

function phaseParts(phase, seconds, total, now) {
  const segment = element("i", "");
  const text = element("span", now ? "now" : "", `${words(phase)} ${secondsText(seconds)}`);
  segment.dataset.phase = text.dataset.phase = phase;
  segment.style.flexGrow = seconds / total;
  return { segment, text };
}

function showModelTraffic(line, { rate, requests, inFlight, waiting, p50, p99 }) {
  line.hidden = !requests && !inFlight;
  const parts = [`${rateText(rate)} requests/s`, `${inFlight} in flight`];
  if (waiting) parts.push(`${waiting} waiting`);
  if (p50 !== null) parts.push(`first byte p50 ${secondsText(p50)}, p99 ${secondsText(p99)}`);
  line.textContent = parts.join(" · ");
}

// ---- Chat ----

let conversation = []; // OpenAI messages
let running = null; // the AbortController of the answer that streams now

function showChoice(models) {
  const select = byId("chat-model");
  const ids = models.map((model) => model.id);
  if (String(ids) === String([...select.options].map((option) => option.value))) return;
  const chosen = ids.includes(select.value) ? select.value : models.find((model) => model.default)?.id;
  select.replaceChildren(...ids.map((id) => new Option(id, id, false, id === chosen)));
}

async function send() {
  const content = byId("message").value.trim();
  const model = byId("chat-model").value;
  if (!content || !model || running) return;
  byId("message").value = "";
  const question = { role: "user", content };
  append(addBubble("user"), "text", content);
  const answer = { model, bubble: addBubble("assistant"), text: "", began: performance.now(), done: false };
  running = new AbortController();
  showStatus(`Waiting for ${model}`);
  try {
    await stream({ model, messages: [...conversation, question], stream: true }, answer, running.signal);
    if (answer.first) append(answer.bubble, "measure", `first token ${secondsText((answer.first - answer.began) / 1000)}`);
  } catch (error) {
    if (error.name === "AbortError") append(answer.bubble, "measure", "stopped");
    else append(answer.bubble, "failed", error.message);
  }
  running = null;
  showStatus("");
  if (answer.text && answer.bubble.isConnected) conversation.push(question, { role: "assistant", content: answer.text });
}

async function stream(request, answer, signal) {
  const response = await post("v1/chat/completions", request, signal);
  for await (const line of lines(response.body)) {
    if (line.startsWith(":")) showStatus(line.slice(1).trim());
    else if (line.startsWith("data:")) take(line.slice(5).trim(), answer);
  }
  if (!answer.done) throw new Error("The answer was cut off before its end.");
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    const parts = (rest + read.value).split(/\r?\n/);
    rest = parts.pop();
    yield* parts;
  }
}

function take(data, answer) {
  answer.done ||= data === "[DONE]";
  if (answer.done) return;
  const event = JSON.parse(data);
  if (event.error) throw new Error(event.error.message);
  const { content, reasoning_content: thought } = event.choices[0]?.delta ?? {};
  if (!content && !thought) return;
  if (!answer.first) showStatus(`${answer.model} answers`);
  answer.first ??= performance.now();
  answer.text += content ?? "";
  append(answer.bubble, thought ? "thought" : "text", thought ?? content);
}

function addBubble(role) {
  byId("log").querySelector(".empty")?.remove();
  const bubble = element("div", `said ${role}`);
  byId("log").append(bubble);
  return bubble;
}

// Adds to the bubble's last part when that is of the same kind, and keeps the end in view for whoever is there.
function append(bubble, kind, text) {
  const log = byId("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  if (bubble.lastChild?.className !== kind) bubble.append(element("span", kind));
  bubble.lastChild.append(text);
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function showStatus(status) {
  byId("chat-status").textContent = status;
  byId("log").ariaBusy = running !== null;
  byId("send").hidden = running !== null;
  byId("stop").hidden = running === null;
}

function clearChat() {
  running?.abort();
  conversation = [];
  byId("log").replaceChildren();
}

function sendOnEnter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
}

byId("chat-form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
byId("message").addEventListener("keydown", sendOnEnter);
byId("stop").addEventListener("click", () => running?.abort());
byId("clear").addEventListener("click", clearChat);
byId("open-key").addEventListener("click", () => byId("key-dialog").showModal());
byId("cancel-key").addEventListener("click", () => byId("key-dialog").close());
byId("key-dialog").querySelector("form").addEventListener("submit", useKey);
document.addEventListener("visibilitychange", () => document.hidden || poll());
poll();
