// The console: a conversation with the model, and a look at the server. What a model wrote becomes text, never HTML.

import { account, events, messages, parameters, parts, refusal } from "./text.js";

/** Where this tab keeps the key. */
const KEY = "tramontane-key";
/** How often the server is looked at, in milliseconds. */
const LOOK_EVERY = 5000;
/** How near to the end a reader follows what is written, in pixels. */
const NEAR = 80;

/** Whether a finger points: then the keyboard is on the screen, and in the way. */
const touch = matchMedia("(pointer: coarse)");

const at = (id) => document.getElementById(id);
const form = at("settings").querySelector("form");

/** What has been said: the last may still be running. Each has its place in the page as `view`. */
let exchanges = [];
/** What stops the answer that is being written. */
let running = null;
/** The models' facts, by name; empty until the server has told. */
let models = new Map();
/** Whether the server wants a key that was not given. */
let locked = false;
/** The question for a key that stands on the screen. */
let asking = null;

/** An error whose message is for people. */
class Failure extends Error {}

// --- The server ---

/** Fetches `path`; asks for a key where one is wanted. */
async function call(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(path, { cache: "no-store", ...options, headers });
    } catch (failed) {
      if (failed.name === "AbortError") throw failed;
      throw new Failure("The server cannot be reached.");
    }
    if (response.ok) return response;
    const said = await response.json().catch(() => ({}));
    const why = refusal(response.status, response.headers.get("retry-after"), said.error);
    if (response.status !== 401 || !(await unlock(key === null ? "" : "The key was not accepted."))) throw new Failure(why);
  }
}

/** Asks for a key; whether one was given. Who asks meanwhile gets the same answer. */
function unlock(why) {
  asking ??= new Promise((answered) => {
    const door = at("door");
    at("door-why").textContent = why;
    door.returnValue = "";
    door.addEventListener("close", () => answered(door.returnValue === "given"), { once: true });
    door.showModal();
  }).then((given) => {
    asking = null;
    locked = !given;
    showKey();
    return given;
  });
  return asking;
}

at("door").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("door-key").value);
  at("door-key").value = "";
  at("door").close("given");
});
at("door-close").addEventListener("click", () => at("door").close());

function showKey() {
  const has = sessionStorage.getItem(KEY) !== null;
  at("key").hidden = !(has || locked);
  at("key").textContent = has ? "Forget the key" : "Enter a key";
}

at("key").addEventListener("click", async () => {
  if (sessionStorage.getItem(KEY) !== null) sessionStorage.removeItem(KEY);
  else if (await unlock("It is sent with every request.")) learn();
  showKey();
});

/** Whether the server answers, in a word. */
async function readiness() {
  try {
    const response = await fetch("readyz", { cache: "no-store" });
    if (response.ok) return "ready";
    return response.status === 503 ? (await response.text()).trim().slice(0, 40) : `answers with ${response.status}`;
  } catch {
    return "cannot be reached";
  }
}

/** Shows how the server fares; learns its models when it has become ready, or somebody has a key now. */
async function look() {
  const word = await readiness();
  const became = word === "ready" && at("state").dataset.is !== "ready";
  at("state").dataset.is = word === "ready" ? "ready" : "away";
  if (at("state").textContent !== word) at("state").textContent = word;
  if (became || (word === "ready" && models.size === 0 && !locked && !asking)) await learn();
  if (at("server").open && models.size > 0) await showLoad();
}

/** Learns which models there are. */
async function learn() {
  try {
    const response = await call("v1/models");
    const listed = await response.json();
    models = new Map(listed.data.map((model) => [model.id, model]));
  } catch (failed) {
    at("state").textContent = failed instanceof Failure ? failed.message : "gives no list of models";
    return;
  }
  const chosen = at("model").value;
  at("model").replaceChildren(...Array.from(models.keys(), (name) => new Option(name, name, false, name === chosen)));
  at("model").disabled = models.size === 0;
  showFacts();
}

/** A list of terms and what they are. */
function list(place, rows) {
  const pairs = rows.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([term, value]) => {
    const [name, what] = [document.createElement("dt"), document.createElement("dd")];
    name.textContent = term;
    what.textContent = value;
    const pair = document.createElement("div");
    pair.append(name, what);
    return pair;
  });
  place.replaceChildren(...pairs);
}

function showFacts() {
  const model = models.get(at("model").value);
  if (!model) return;
  const capabilities = model.capabilities;
  list(at("facts"), [
    ["Name", model.id],
    ["Context", `${model.max_model_len} tokens`],
    ["Experts stored as", model.quantization],
    ["Licence", model.license ?? "not said"],
    ["Weights", model.hash],
    ["Loaded", new Date(model.created * 1000).toLocaleString()],
    ["Chats", capabilities.completion_chat ? "yes" : "no: it has no chat template"],
    ["Calls tools", capabilities.function_calling ? "yes" : "no"],
  ]);
}

async function showLoad() {
  let version;
  try {
    version = await (await call("version")).json();
  } catch {
    list(at("load"), [["Server", "does not tell"]]);
    return;
  }
  const engine = version.engine;
  const rows = [["Version", `${version.name} ${version.version}`]];
  if (engine) {
    rows.push(["Running", engine.running], ["Waiting", engine.waiting]);
    rows.push(["KV blocks", `${engine.kv_used} of ${engine.kv_total}`], ["Tokens generated", engine.generated]);
    rows.push(["Prompt tokens from the cache", `${engine.prefix_hits} of ${engine.prefix_queries}`], ["Preemptions", engine.preemptions]);
  }
  list(at("load"), rows);
}

// --- The conversation ---

function copyOf(template) {
  return at(template).content.firstElementChild.cloneNode(true);
}

/** Has `node` say `text`. What it says already stays where it is, so that a reader's selection does. */
function write(node, text) {
  const old = node.textContent;
  if (node.firstChild && text.startsWith(old)) node.firstChild.appendData(text.slice(old.length));
  else if (text !== old) node.textContent = text;
}

/** Has the page show what `exchange` holds by now. */
function draw(exchange) {
  const follow = document.documentElement.scrollHeight - innerHeight - scrollY < NEAR;
  const place = exchange.view.querySelector(".body");
  const wanted = parts(exchange.answer);
  wanted.forEach((part, index) => {
    if (place.children[index]?.dataset.kind !== part.kind) {
      while (place.children.length > index) place.lastElementChild.remove();
      const made = copyOf(`a-${part.kind}`);
      made.dataset.kind = part.kind;
      place.append(made);
    }
    const node = place.children[index];
    write(node.querySelector(".said") ?? node, part.text);
    if (part.kind === "code") write(node.querySelector("span"), part.language || "code");
  });
  while (place.children.length > wanted.length) place.lastElementChild.remove();
  write(exchange.view.querySelector(".failure"), exchange.failure);
  write(exchange.view.querySelector(".meter"), account(exchange));
  if (follow) scrollTo(0, document.documentElement.scrollHeight);
}

/** Asks the last of `exchanges`, and writes its answer as it comes. */
async function answer(exchange) {
  running = new AbortController();
  Object.assign(exchange, { answer: "", failure: "", usage: null, asked: performance.now(), first: undefined, last: undefined, reason: null });
  exchange.view.querySelector(".answer h3").textContent = at("model").value || "Model";
  busy(true);
  draw(exchange);
  let frame = 0;
  try {
    await read(exchange, () => {
      frame ||= requestAnimationFrame(() => {
        frame = 0;
        draw(exchange);
      });
    });
  } catch (failed) {
    exchange.reason = failed.name === "AbortError" ? "stopped" : "failed";
    if (failed instanceof Failure) exchange.failure = failed.message;
    else if (exchange.reason === "failed") exchange.failure = "The connection was lost.";
  }
  cancelAnimationFrame(frame);
  running = null;
  busy(false);
  draw(exchange);
  at("heard").textContent = exchange.failure || exchange.answer || "The answer is empty.";
}

/** Reads the answer to the last of `exchanges`; `changed` is called with every piece of it. */
async function read(exchange, changed) {
  const body = parameters(new FormData(form));
  if (at("model").value) body.model = at("model").value;
  body.messages = messages(at("system").value, exchanges.slice(0, -1), exchange.question);
  body.stream = true;
  body.stream_options = { continuous_usage_stats: true };
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal: running.signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const take = events();
  // To the end also when all is said: the connection is free for the next question then.
  let whole = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done && whole) return;
    if (done) throw new Failure("The answer broke off.");
    for (const data of take(value)) {
      whole = data === "[DONE]";
      if (whole) continue;
      const said = JSON.parse(data);
      if (said.error) throw new Failure(refusal(500, null, said.error));
      add(exchange, said);
      changed();
    }
  }
}

function add(exchange, chunk) {
  exchange.usage = chunk.usage ?? exchange.usage;
  const [choice] = chunk.choices;
  if (!choice) return;
  const delta = choice.delta;
  exchange.reason = choice.finish_reason ?? exchange.reason;
  if (!delta.content) return;
  exchange.answer += delta.content;
  exchange.last = performance.now();
  exchange.first ??= exchange.last;
}

/** Shows whether an answer is being written. */
function busy(is) {
  at("chat").setAttribute("aria-busy", is);
  at("send").hidden = is;
  at("stop").hidden = !is;
  at("new").disabled = is;
  // What was hidden has lost the focus.
  if (document.activeElement === document.body && !touch.matches) at("question").focus();
}

/** Whether the settings can be sent; shows which cannot. */
function sound() {
  if (!form.checkValidity()) at("settings").open = true;
  return form.reportValidity();
}

function ask(question) {
  const view = copyOf("an-exchange");
  view.querySelector(".question .said").textContent = question;
  const exchange = { question, answer: "", view };
  exchanges.push(exchange);
  at("empty").hidden = true;
  at("chat").append(view);
  scrollTo(0, document.documentElement.scrollHeight);
  answer(exchange);
}

function forget(count) {
  for (const { view } of exchanges.splice(exchanges.length - count)) view.remove();
  at("empty").hidden = exchanges.length > 0;
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers have no clipboard for pages that came in the clear from another machine.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  at("heard").textContent = "Copied.";
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

at("chat").addEventListener("click", ({ target }) => {
  const exchange = exchanges.find(({ view }) => view.contains(target));
  const wanted = target.dataset.do;
  if (wanted === "copy") copy(exchange.answer, target);
  if (wanted === "copy-code") copy(target.closest("figure").querySelector(".said").textContent, target);
  if (running) return;
  if (wanted === "retry" && sound()) answer(exchange);
  if (wanted === "edit") {
    at("question").value = exchange.question;
    forget(1);
    at("question").focus();
  }
});

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (running || question === "" || !sound()) return;
  at("question").value = "";
  ask(question);
});

at("question").addEventListener("keydown", (event) => {
  // On a touch screen's keyboard Enter is the only way to a new line.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch.matches) return;
  event.preventDefault();
  at("ask").requestSubmit();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !at("door").open) running?.abort();
});

at("stop").addEventListener("click", () => running?.abort());
at("new").addEventListener("click", () => {
  forget(exchanges.length);
  at("question").focus();
});
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => (at("system").value = ""));
at("model").addEventListener("change", showFacts);
at("server").addEventListener("toggle", look);
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && look());
setInterval(() => document.visibilityState === "visible" && look(), LOOK_EVERY);

if (matchMedia("(min-width: 60rem)").matches) at("settings").open = at("server").open = true;
showKey();
look();
