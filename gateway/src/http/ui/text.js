// What the console makes of texts and numbers. Pure: it knows neither the page nor the network.

/** Shortest time in which a speed is measured, in milliseconds. */
const SHORTEST = 50;

/** Reads server-sent events: a function that takes pieces of a stream's text, and returns the data of the events that have ended. */
export function events() {
  let rest = "";
  let data = [];
  return (piece) => {
    const lines = (rest + piece).split(/\r?\n/);
    rest = lines.pop();
    const ended = [];
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      else if (line === "" && data.length > 0) {
        ended.push(data.join("\n"));
        data = [];
      }
    }
    return ended;
  };
}

/** An answer's parts: texts, and the code between fences (Markdown's ``` and ~~~); a fence that is still open reaches to the end. */
export function parts(answer) {
  const found = [];
  let lines = [];
  let fence = null;
  const close = (part) => {
    const text = lines.join("\n");
    lines = [];
    if (part.kind === "code") found.push({ ...part, text });
    else if (text.trim() !== "") found.push({ ...part, text: text.trim() });
  };
  for (const line of answer.split("\n")) {
    const [, mark, language] = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`\s]*)[^`]*$/.exec(line) ?? [];
    if (fence && mark && line.trim() === mark && mark.startsWith(fence.mark)) {
      close({ kind: "code", language: fence.language });
      fence = null;
    } else if (!fence && mark) {
      close({ kind: "text" });
      fence = { mark, language };
    } else lines.push(line);
  }
  close(fence ? { kind: "code", language: fence.language } : { kind: "text" });
  return found;
}

/** The messages that ask `question` after `exchanges`. Questions that were not answered are left out: roles take turns. */
export function messages(system, exchanges, question) {
  const answered = exchanges.filter((past) => past.answer !== "");
  const turns = answered.map((past) => [{ role: "user", content: past.question }, { role: "assistant", content: past.answer }]);
  const first = system.trim() === "" ? [] : [{ role: "system", content: system }];
  return [...first, ...turns.flat(), { role: "user", content: question }];
}

/** The parameters that a form's `[name, value]` set: what is empty is left to the server. */
export function parameters(entries) {
  const set = {};
  for (const [name, value] of entries) {
    if (value.trim() === "") continue;
    set[name] = name === "stop" ? value.split(/\r?\n/).filter((line) => line !== "") : Number(value);
  }
  return set;
}

/** What to tell a person whose request was answered with `status`; `error` is what the answer's body says, if it does. */
export function refusal(status, retryAfter, error) {
  if (status === 401) return "The server wants a key.";
  const reasons = { 429: "That was too much for now", 503: "The server cannot answer now", 504: "It took too long" };
  const reason = reasons[status] ?? (status >= 500 ? "The server failed" : "The server refuses");
  const again = /^\d+$/.test(retryAfter ?? "") ? `. Try again in ${retryAfter} s` : "";
  return `${reason}: ${error?.message ?? `it says no more than ${status}`}${again}.`;
}

/** How an answer went: `usage` as the server told, moments in milliseconds. */
export function account({ usage, asked, first, last, reason }) {
  const facts = [];
  if (usage) {
    const tokens = usage.completion_tokens;
    facts.push(`${tokens} ${tokens === 1 ? "token" : "tokens"} to a prompt of ${usage.prompt_tokens}`);
    // The first token's time is the prompt's. Moments in which pieces are read say nothing of so short a time.
    if (tokens > 1 && last - first >= SHORTEST) facts.push(`${(((tokens - 1) * 1000) / (last - first)).toFixed(1)} tokens/s`);
  }
  if (first !== undefined) facts.push(`first after ${((first - asked) / 1000).toFixed(2)} s`);
  const endings = { length: "ended by the limit of tokens", stopped: "stopped by you" };
  if (reason in endings) facts.push(endings[reason]);
  return facts.join(" · ");
}
