// The review page: shows one pair at a time and sends what is decided about it. What pairs say is only ever put in as text.

const byId = (id) => document.getElementById(id);
const meta = (name) => document.querySelector(`meta[name=${name}]`).content;
const about = JSON.parse(meta("about"));
const view = { show: "all", state: "any", text: "" };
const drafts = new Map(); // row -> text that was left unsaved
const DECIDED = { accept: "✓ accepted", reject: "✕ rejected", edit: "✎ edited", none: "" };
const SAVED = { accept: "Accepted", reject: "Rejected", edit: "Edited", none: "Decision cleared" };
const CONTROL = /[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g; // also those that turn a text around

let shown = null; // the server's answer for the pair that is on the screen
let row = null;
let last = Promise.resolve();
let pending = 0; // actions that have not ended: meanwhile no key may decide, because what it was meant for may be gone
let search = new AbortController();

// The server.

async function call(path, body) {
  const options = body === undefined ? { signal: search.signal } : { method: "POST", headers: { "X-Review-Token": meta("token") }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The review does not answer, so nothing more is saved. Start `nexa review` again and reload this page.");
  }
  const value = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(value.error), { status: answer.status });
  return value;
}

async function load(from, move = "stay") {
  keepDraft();
  const asked = new URLSearchParams({ ...view, move });
  if (from !== null) asked.set("row", from);
  if (view.text) say(`Searching for “${view.text}” …`);
  const pair = await call(`/pair?${asked}`);
  if (pair.row === null && move !== "stay" && move.startsWith("previous")) return say("This is the first pair shown.");
  trouble("");
  const isSamePrompt = shown !== null && pair.row !== null && shown.row !== null && pair.row_id === shown.row_id && pair.samples[0].row === shown.samples[0].row;
  shown = pair;
  if (pair.row !== null) row = pair.row;
  draw();
  if (view.text && move === "stay") say(`${number(pair.matching)} ${pair.matching === 1 ? "pair has" : "pairs have"} “${view.text}”`);
  else if (move !== "stay" && pair.row !== null) say("");
  if (!isSamePrompt) scrollTo(0, 0);
  if (isSamePrompt || (pair.row !== null && pair.row !== pair.samples[0].row)) currentCard()?.scrollIntoView({ block: "nearest" });
}

// One thing after the other; what goes wrong is told on the page.
function work(action) {
  count(1);
  last = last.then(action).catch(tell).finally(() => count(-1));
  return last;
}

function count(more) {
  pending += more;
  byId("main").ariaBusy = pending > 0;
}

async function tell(error) {
  if (error.name === "AbortError") return;
  if (error.status === 409 && row !== null) await load(row).catch(() => {});
  trouble(error.message);
}

// What can be done.

function go(move) {
  if (pending < 20) work(() => load(row, row === null ? "stay" : move));
}

// Do something about the pair that is seen; nothing while another action has not ended, or the pair is being edited.
function act(action) {
  const sample = current();
  if (!pending && sample && !isEditing()) work(() => action(sample));
}

const decide = (decision) => act((sample) => save([{ sample, decision }], "next"));

async function save(decisions, move) {
  const kept = decisions.find(({ sample, decision }) => decision === "accept" && sample.edited !== null);
  const changes = decisions.filter((each) => each !== kept && (each.decision !== each.sample.decision || each.decision === "edit"));
  const told = kept ? "Accepted as you edited it" : SAVED[decisions[0].decision];
  if (changes.length) {
    await call("/decide", changes.map(({ sample, decision, completion }) => ({ row: sample.row, decision, completion, version: sample.version })));
    changes.forEach(({ sample }) => drafts.delete(sample.row));
    if (isEditing()) openEditor().hidden = true;
  }
  await load(row, move);
  say(changes.length ? `${told}, saved.` : `${told} before.`);
}

const acceptOnly = () => act(async (sample) => {
  if (shown.num_samples < 2) return;
  if (shown.num_samples > shown.samples.length) return say("There are more samples than fit here: decide on each.");
  const others = shown.samples.filter((each) => each !== sample);
  await save([{ sample, decision: "accept" }, ...others.map((each) => ({ sample: each, decision: "reject" }))], "next-prompt");
});

const clear = () => act(async (sample) => {
  if (sample.decision !== "none") await save([{ sample, decision: "none" }], "stay");
});

function undo() {
  if (pending || isEditing()) return;
  work(async () => {
    const { row: back } = await call("/undo", {});
    await load(back);
    say("Undone, saved.");
  });
}

// The edit box.

const currentCard = () => document.querySelector(".sample[aria-current]");
const openEditor = () => currentCard()?.querySelector(".editor");
const isEditing = () => openEditor()?.hidden === false;

function edit() {
  const card = currentCard();
  const sample = current();
  if (pending || !sample || isEditing()) return;
  const box = card.querySelector("textarea");
  box.value = drafts.get(sample.row) ?? sample.edited ?? sample.completion ?? "";
  card.querySelector(".hint").textContent = drafts.has(sample.row) ? "Your draft, not saved yet." : "";
  card.querySelector(".editor").hidden = false;
  card.querySelector(".answer").hidden = true;
  box.focus();
  box.setSelectionRange(box.value.length, box.value.length);
  bar();
}

// Remember what stands in the box where it is not what is saved; whether it is.
function keepDraft() {
  if (!isEditing()) return false;
  const sample = current();
  const { value } = currentCard().querySelector("textarea");
  const isDraft = value !== asEdited(sample.edited ?? sample.completion ?? "");
  if (isDraft) drafts.set(sample.row, value);
  else drafts.delete(sample.row);
  return isDraft;
}

function leave() {
  const isDraft = keepDraft();
  draw();
  say(isDraft ? "Not saved. The draft waits here: e goes on with it." : "Nothing changed.");
}

function saveEdit() {
  if (pending) return;
  const sample = current();
  const text = currentCard().querySelector("textarea").value;
  const was = sample.edited ?? sample.completion ?? "";
  if (text === asEdited(was)) return leave();
  const completion = was.includes("\r\n") ? text.replaceAll("\n", "\r\n") : text; // a text box makes all ends of lines alike
  work(() => save([{ sample, decision: "edit", completion }], "next"));
}

const asEdited = (text) => text.replaceAll("\r\n", "\n").replaceAll("\r", "\n");

// Drawing.

const current = () => shown?.samples?.find((sample) => sample.row === shown.row);
const number = (value) => value.toLocaleString("en");

function make(name, text, className) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

const visible = (text) => text.replaceAll("\r\n", "\n").replace(CONTROL, (sign) => (sign < " " ? String.fromCharCode(0x2400 + sign.charCodeAt(0)) : "\ufffd"));

// Put a text into an element, with what was searched for marked.
function write(element, text) {
  element.replaceChildren();
  const whole = visible(text);
  const sought = view.text && new RegExp(view.text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "giu");
  let end = 0;
  for (const found of sought ? whole.matchAll(sought) : []) {
    element.append(whole.slice(end, found.index), make("mark", found[0]));
    end = found.index + found[0].length;
  }
  element.append(whole.slice(end));
}

function draw() {
  const { progress } = shown;
  const reviewed = progress.total - progress.left;
  byId("progress-text").textContent = `${number(reviewed)} of ${number(progress.total)} reviewed`;
  byId("progress").ariaValueMax = progress.total;
  byId("progress").ariaValueNow = reviewed;
  for (const [name, count] of [["accept", progress.accepted], ["edit", progress.edited], ["reject", progress.rejected]]) {
    document.querySelector(`#progress .${name}`).style.width = `${(100 * count) / Math.max(1, progress.total)}%`;
  }
  byId("pair").hidden = shown.row === null;
  byId("end").hidden = shown.row !== null;
  if (shown.row === null) drawEnd();
  else drawPair();
  const hash = new URLSearchParams(Object.entries({ ...view, row: shown.row ?? "" }).filter(([name, value]) => value !== "" && value !== { show: "all", state: "any" }[name]));
  history.replaceState(null, "", `#${hash}`);
  bar();
}

function drawPair() {
  const isMany = shown.num_samples > 1;
  byId("pair").classList.toggle("many", isMany);
  const place = shown.position === null ? "not among those shown" : `pair ${number(shown.position)} of ${number(shown.matching)}`;
  byId("where").textContent = place;
  write(byId("prompt"), shown.prompt);
  byId("row-id").textContent = shown.row_id;
  byId("extra").replaceChildren(...Object.entries(shown.extra).map(([name, value]) => {
    const pair = make("div");
    pair.append(make("dt", visible(name)), make("dd", visible(value)));
    return pair;
  }));
  byId("samples").replaceChildren(...shown.samples.map((sample) => drawSample(sample, isMany)));
}

function drawSample(sample, isMany) {
  const card = byId("sample").content.cloneNode(true).firstElementChild;
  const isCurrent = sample.row === shown.row;
  card.classList.add(sample.decision);
  if (isCurrent) card.setAttribute("aria-current", "true");
  card.querySelector("h2").textContent = isMany ? `Sample ${sample.sample_index + 1} of ${shown.num_samples}` : "Answer";
  card.setAttribute("aria-label", card.querySelector("h2").textContent);
  card.querySelector(".decision").textContent = (DECIDED[sample.decision] || "") + (drafts.has(sample.row) ? " · draft" : "");
  drawVerdict(card.querySelector(".verdict"), sample.verdict);
  drawAnswer(card.querySelector(".answer"), sample.edited ?? sample.completion, sample);
  if (sample.edited !== null) {
    card.querySelector(".original").hidden = false;
    drawAnswer(card.querySelector(".original .text"), sample.completion, sample);
  }
  card.querySelector(".facts").replaceChildren(...facts(sample));
  card.querySelector(".editor").addEventListener("submit", (event) => { event.preventDefault(); saveEdit(); });
  card.querySelector(".leave").addEventListener("click", leave);
  if (isMany && !isCurrent) card.addEventListener("click", () => { if (!getSelection().toString()) choose(sample); });
  return card;
}

function drawVerdict(line, verdict) {
  line.hidden = verdict === null;
  if (verdict === null) return;
  if (verdict.kept) return line.append(make("span", "✓ Kept", "yes"), " by the filter");
  line.append(make("span", "✕ Rejected", "no"), " by ", make("b", verdict.step), `: ${[verdict.reason, verdict.detail].filter(Boolean).map(visible).join(" — ")}`);
}

function drawAnswer(place, text, sample) {
  place.classList.toggle("none", !text);
  if (text) write(place, text);
  else place.textContent = text === "" ? "An empty answer." : `No answer. ${visible(sample.error ?? "")}`;
}

function facts(sample) {
  const tokens = sample.completion_tokens == null ? null : `${number(sample.prompt_tokens ?? 0)} in, ${number(sample.completion_tokens)} out`;
  const told = {
    status: sample.status,
    finish: sample.finish_reason,
    tokens,
    cost: sample.cost_usd == null ? null : `$${sample.cost_usd.toFixed(6)}`,
    time: sample.latency_seconds == null ? null : `${sample.latency_seconds.toFixed(2)} s`,
    model: sample.model ?? sample.teacher,
  };
  return Object.entries(told).filter(([, value]) => value != null).map(([name, value]) => {
    const fact = make("div", undefined, name === "status" && value !== "answered" ? "warn" : "");
    fact.append(make("dt", name), make("dd", visible(String(value))));
    return fact;
  });
}

function drawEnd() {
  const { matching, left, progress } = shown;
  const [title, text] = progress.total === 0 ? ["There are no pairs", "The dataset is empty."]
    : progress.left === 0 ? ["All pairs are reviewed", `${number(progress.accepted)} accepted, ${number(progress.edited)} edited, ${number(progress.rejected)} rejected.`]
    : matching === 0 ? ["No pair is like this", "Search for something else, or show others."]
    : left === 0 ? ["All pairs shown are reviewed", `${number(progress.left)} others are not.`]
    : ["This was the last pair shown", `${number(left)} of those shown are not reviewed.`];
  byId("end-title").textContent = title;
  byId("end-text").textContent = text;
  byId("end-next").hidden = progress.left > 0 || progress.total === 0;
  byId("go-left").hidden = shown.first_left === null;
  byId("go-left").textContent = "Go to the first unreviewed";
  byId("go-all").hidden = view.show === "all" && view.state === "any" && !view.text;
}

// Which buttons can be used.
function bar() {
  const sample = current();
  for (const id of ["accept", "reject", "edit", "only"]) byId(id).disabled = !sample || isEditing();
  byId("undo").disabled = isEditing();
  byId("clear").disabled = !sample || sample.decision === "none" || isEditing();
  byId("only").hidden = !sample || shown.num_samples < 2;
}

function choose(sample) {
  if (!pending) work(() => load(sample.row));
}

const say = (text) => { byId("said").textContent = text; };

function trouble(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = !text;
  if (text) say("");
}

// The view.

function look() {
  search.abort();
  search = new AbortController();
  Object.assign(view, { show: byId("show").value, state: byId("state").value, text: byId("text").value.trim() });
  return work(() => load(null));
}

let waiting = null;
function lookSoon() {
  clearTimeout(waiting);
  waiting = setTimeout(look, 250);
}

function fillView() {
  const groups = Map.groupBy(about.choices, (choice) => choice.group);
  for (const [group, choices] of groups) {
    const place = group ? Object.assign(make("optgroup"), { label: group }) : byId("show");
    for (const { value, name, count } of choices) place.append(Object.assign(make("option", `${visible(name)} (${number(count)})`), { value }));
    if (group) byId("show").append(place);
  }
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of ["show", "state", "text"]) {
    if (given.has(name)) byId(name).value = given.get(name);
    view[name] = byId(name).value || view[name];
    byId(name).value = view[name];
  }
  return /^\d+$/.test(given.get("row") ?? "") ? Number(given.get("row")) : null;
}

// Keys and clicks.

const KEYS = {
  a: () => decide("accept"), r: () => decide("reject"), e: edit, c: clear, u: undo, A: acceptOnly,
  j: () => go("next"), ArrowRight: () => go("next"), ArrowDown: () => go("next"), J: () => go("next-prompt"),
  k: () => go("previous"), ArrowLeft: () => go("previous"), ArrowUp: () => go("previous"), K: () => go("previous-prompt"),
  "/": () => { byId("text").focus(); byId("text").select(); }, "?": () => byId("help").showModal(),
  m: () => setMono(!document.body.classList.contains("mono")),
};
const MAY_REPEAT = new Set(["j", "k", "J", "K", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"]);

function pressed(event) {
  if (event.isComposing || byId("help").open) return;
  const target = event.target;
  if (target.matches("textarea")) {
    if (event.key === "Escape") leave();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) saveEdit();
    else return;
    return event.preventDefault();
  }
  if (target.matches("input, select")) {
    if (event.key === "Escape" || (event.key === "Enter" && target.matches("input"))) {
      event.preventDefault();
      target.blur();
    }
    return;
  }
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key.startsWith("Arrow") && target.closest("#prompt, [role=toolbar], summary")) return;
  const sample = /^[1-9]$/.test(event.key) && shown?.samples?.[Number(event.key) - 1];
  const action = sample ? () => choose(sample) : KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  if (isEditing() && event.key !== "?") return; // what is being edited is neither left nor decided on by a key
  if (!event.repeat || MAY_REPEAT.has(event.key)) action();
}

function setMono(isMono) {
  document.body.classList.toggle("mono", isMono);
  localStorage.setItem("review-mono", isMono ? "1" : "");
}

function listen() {
  document.addEventListener("keydown", pressed);
  const clicks = {
    accept: KEYS.a, reject: KEYS.r, edit, clear, undo, only: acceptOnly, next: KEYS.j, previous: KEYS.k,
    "help-button": KEYS["?"], "go-left": () => work(() => load(shown.first_left)),
    "go-all": () => { byId("view").reset(); look(); },
  };
  for (const [id, action] of Object.entries(clicks)) {
    byId(id).addEventListener("click", (event) => {
      if (event.detail) event.currentTarget.blur(); // so that Space after a click scrolls, and does not press it again
      action();
    });
  }
  byId("view").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["show", "state"]) byId(id).addEventListener("change", lookSoon);
  byId("text").addEventListener("input", lookSoon);
  addEventListener("beforeunload", (event) => {
    keepDraft();
    if (drafts.size) event.preventDefault();
  });
}

byId("next-command").textContent = about.next_command;
setMono(Boolean(localStorage.getItem("review-mono")));
const start = fillView();
listen();
await work(() => load(start));
document.documentElement.dataset.ready = "true";
