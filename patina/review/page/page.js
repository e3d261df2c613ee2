// The proof-reading page: captions in a list, edits in a history, and nothing written before Save.
"use strict";

const byId = (id) => document.getElementById(id);
const rows = [];     // {index, name, text, saved, tokens, theirs, parts}: `saved` is what the table holds
const done = [];     // steps that can be undone, each a list of {row, before, after}
const undone = [];
const TYPING_PAUSE = 1000;  // milliseconds: what is typed without one is undone together
const WAIT = 200;
const table = { version: "", path: "", trigger: null, limit: 0 };
let saving = false;

async function start() {
  listen();
  const answer = await ask("captions");
  if (!answer.ok) return say(answer.value.error, true);
  const { version, table: path, names, trigger, limit, captions, tokens } = answer.value;
  Object.assign(table, { version, path, limit, trigger: trigger ? pattern(trigger, false, true) : null });
  document.title = `${path} · captions`;
  for (const option of byId("kind").options) option.hidden = option.value === "untriggered" && !trigger;
  names.forEach((name, index) => {
    const row = { index, name, text: captions[index], saved: captions[index], tokens: tokens[index], theirs: null };
    row.parts = card(row);
    rows.push(row);
    show(row);
  });
  byId("cards").append(...rows.map((row) => row.parts.card));
  filter();
  tell();
}

// --- Talking to the server -------------------------------------------------------------------------------------------

async function ask(what, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  try {
    const reply = await fetch(what, options);
    return { ok: reply.ok, status: reply.status, value: await reply.json() };
  } catch {
    return { ok: false, status: 0, value: { error: "The server does not answer. Your edits are still in this page." } };
  }
}

async function save() {
  const sent = rows.filter((row) => edited(row) && row.theirs === null).map((row) => ({ row, text: row.text }));
  if (saving) return;
  if (!sent.length) return tell(rows.some((row) => row.theirs !== null) ? "" : "Nothing to save.");
  saving = true;
  tell("Saving…");
  const captions = Object.fromEntries(sent.map(({ row, text }) => [row.index, text]));
  const answer = await ask("save", { version: table.version, captions });
  saving = false;
  if (answer.status === 409) return merge(answer.value);
  if (!answer.ok) return say(`Not saved. ${answer.value.error}`, true);
  table.version = answer.value.version;
  for (const { row, text } of sent) {
    row.saved = answer.value.captions[row.index];
    if (row.text === text) row.text = row.saved;  // the server trims it
    show(row);
  }
  tell(`Saved ${plural(sent.length, "caption")}.`);
}

// The table was changed by another program: take over what it changed where nothing was edited here, as a step that can
// be undone; where both changed, ask.
function merge({ version, captions }) {
  const step = [];
  table.version = version;
  for (const row of rows) {
    const theirs = captions[row.index];
    const ours = edited(row);
    if (theirs === row.saved) continue;
    row.saved = theirs;
    if (!ours) step.push({ row, before: row.text, after: theirs });
    row.theirs = ours && row.text !== theirs ? theirs : null;
    show(row);
  }
  commit(step);
  const clashes = rows.filter((row) => row.theirs !== null).length;
  const asking = clashes ? ` ${plural(clashes, "caption")} changed in both: choose which to keep.` : "";
  const first = rows.find((row) => row.theirs !== null);
  if (first) first.parts.card.scrollIntoView({ block: "center" });
  const taken = step.length ? ` ${plural(step.length, "caption")} taken over from it (Undo brings yours back).` : "";
  say(`Not saved yet: another program changed the table.${taken}${asking} Then save again.`, true);
}

const count = later(async () => {
  const asked = rows.filter((row) => row.tokens === null).map((row) => ({ row, text: row.text }));
  if (!asked.length) return;
  const answer = await ask("count", { captions: asked.map(({ text }) => text) });
  if (!answer.ok) return;
  asked.forEach(({ row, text }, at) => {
    if (row.text !== text) return;
    row.tokens = answer.value.tokens[at];
    show(row);
  });
});

// --- Edits and their history -----------------------------------------------------------------------------------------

function commit(changes, typed = false) {
  const step = changes.filter(({ before, after }) => before !== after);
  if (!step.length) return;
  const last = done.at(-1);
  const now = Date.now();
  if (typed && last?.typed && last[0].row === step[0].row && now - last.time < TYPING_PAUSE && !undone.length) {
    last[0].after = step[0].after;
    last.time = now;
  } else {
    done.push(Object.assign(step, { typed, time: now }));
  }
  undone.length = 0;
  for (const { row, after } of step) write(row, after);
  tell();
}

function turn(from, to, side) {
  const step = from.pop();
  if (!step) return;
  step.typed = false;
  to.push(step);
  for (const change of step) write(change.row, change[side]);
  const { area, card } = step[0].row.parts;
  card.hidden = false;
  area.focus();
  tell();
}

const undo = () => turn(done, undone, "before");
const redo = () => turn(undone, done, "after");

function write(row, text) {
  row.text = text;
  row.tokens = null;
  show(row);
  count();
  measure();
}

function replaceAll() {
  const what = sought();
  if (what) commit(visible().map((row) => ({ row, before: row.text, after: row.text.replace(what, () => byId("put").value) })));
}

const edited = (row) => row.text !== row.saved;
const visible = () => rows.filter((row) => !row.parts.card.hidden);
const oneLine = (text) => text.replace(/\s*[\r\n]+\s*/g, " ");

// --- What is shown ---------------------------------------------------------------------------------------------------

function card(row) {
  const root = byId("card").content.cloneNode(true);
  const part = (selector) => root.querySelector(selector);
  const parts = { card: part(".card"), area: part("textarea"), shade: part(".shade"), tokens: part(".tokens"), clash: part(".clash"), theirs: part(".theirs") };
  part(".name").textContent = part(".name").title = row.name;
  parts.area.setAttribute("aria-label", `Caption of ${row.name}`);
  parts.area.addEventListener("input", () => {
    commit([{ row, before: row.text, after: oneLine(parts.area.value) }], true);
    show(row);
  });
  parts.area.addEventListener("keydown", (event) => keys(event, row));
  part(".take").addEventListener("click", () => settle(row, row.theirs));
  part(".keep").addEventListener("click", () => settle(row, row.text));
  picture(part("img"), part(".broken"), row);
  return parts;
}

function picture(image, broken, row) {
  const address = `thumb/${row.index}`;
  image.addEventListener("error", async () => {
    image.hidden = true;
    broken.hidden = false;
    const answer = await ask(address);
    broken.textContent = answer.value.error;
  });
  image.src = address;
}

function settle(row, text) {
  row.theirs = null;
  commit([{ row, before: row.text, after: text }]);
  show(row);
  tell();
  row.parts.area.focus();
}

function show(row) {
  const { card, area, tokens, clash, theirs } = row.parts;
  if (area.value !== row.text) area.value = row.text;
  card.classList.toggle("edited", edited(row));
  card.classList.toggle("clashing", row.theirs !== null);
  clash.hidden = row.theirs === null;
  theirs.textContent = row.theirs || "(no caption)";
  if (row.tokens !== null) {
    tokens.textContent = `${row.tokens} / ${table.limit}`;
    tokens.title = row.tokens > table.limit ? `Stable Diffusion reads ${table.limit} tokens; the rest is cut off` : "tokens";
    tokens.classList.toggle("long", row.tokens > table.limit);
  }
  shade(row);
}

function shade(row) {
  const what = sought();
  const found = what ? ranges(row.text, what, "found") : [];
  const triggers = table.trigger ? ranges(row.text, table.trigger, "trigger") : [];
  const free = triggers.filter((range) => found.every((other) => range.end <= other.start || other.end <= range.start));
  const pieces = [];
  let at = 0;
  for (const { start, end, kind } of [...found, ...free].sort((one, other) => one.start - other.start)) {
    const mark = document.createElement("mark");
    mark.className = kind;
    mark.textContent = row.text.slice(start, end);
    pieces.push(row.text.slice(at, start), mark);
    at = end;
  }
  row.parts.shade.replaceChildren(...pieces, `${row.text.slice(at)}\u200b`);
}

function ranges(text, what, kind) {
  return [...text.matchAll(what)].map((match) => ({ start: match.index, end: match.index + match[0].length, kind }));
}

function pattern(text, matchCase, whole) {
  const words = text.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
  const edge = "[\\p{L}\\p{N}_]";
  return new RegExp(whole ? `(?<!${edge})${words}(?!${edge})` : words, matchCase ? "gu" : "giu");
}

function sought() {
  const text = byId("find").value;
  return text ? pattern(text, byId("case").checked, byId("whole").checked) : null;
}

function filter() {
  const text = byId("filter").value.toLowerCase();
  const kinds = {
    all: () => true,
    edited,
    empty: (row) => !row.text.trim(),
    untriggered: (row) => table.trigger && row.text.search(table.trigger) < 0,
    long: (row) => row.tokens > table.limit,
  };
  const wanted = kinds[byId("kind").value];
  for (const row of rows) row.parts.card.hidden = !(wanted(row) && `${row.name}\n${row.text}`.toLowerCase().includes(text));
  byId("shown").textContent = `${visible().length} of ${rows.length}`;
  byId("nothing").hidden = visible().length > 0;
  measureNow();
}

function measureNow() {
  const what = sought();
  const counts = what ? visible().map((row) => ranges(row.text, what).length).filter(Boolean) : [];
  const total = counts.reduce((sum, number) => sum + number, 0);
  byId("replace").disabled = !total;
  byId("replace").textContent = total ? `Replace ${total}` : "Replace";
  byId("matches").textContent = !what ? "" : total ? `${total} in ${plural(counts.length, "caption")}` : "none found";
}

const measure = later(measureNow);

function tell(words = "") {
  const waiting = rows.filter(edited).length;
  const clashes = rows.filter((row) => row.theirs !== null).length;
  byId("undo").disabled = !done.length;
  byId("redo").disabled = !undone.length;
  byId("save").disabled = !waiting;
  byId("save").textContent = waiting ? `Save ${waiting}` : "Save";
  const state = clashes ? `${plural(clashes, "caption")} changed in the table too: choose which to keep.` : waiting ? `${plural(waiting, "caption")} not saved.` : "All saved.";
  say(words || `${table.path}: ${state}`, clashes > 0);
}

function say(words, bad = false) {
  byId("status").textContent = words;
  byId("status").classList.toggle("bad", bad);
}

const plural = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

function later(act) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, WAIT);
  };
}

// --- Keys ------------------------------------------------------------------------------------------------------------

function listen() {
  byId("undo").addEventListener("click", undo);
  byId("redo").addEventListener("click", redo);
  byId("save").addEventListener("click", save);
  byId("replace").addEventListener("click", replaceAll);
  byId("filter").addEventListener("input", later(filter));
  byId("kind").addEventListener("change", filter);
  const seek = later(() => {
    rows.forEach(shade);
    measureNow();
  });
  for (const id of ["find", "case", "whole"]) byId(id).addEventListener("input", seek);
  document.addEventListener("keydown", shortcuts);
  // The browser's own undo, from its menu, knows nothing of what was replaced.
  document.addEventListener("beforeinput", (event) => {
    if (event.target.tagName !== "TEXTAREA" || !event.inputType.startsWith("history")) return;
    event.preventDefault();
    (event.inputType === "historyUndo" ? undo : redo)();
  });
  addEventListener("beforeunload", (event) => {
    if (rows.some(edited)) event.preventDefault();
  });
}

function shortcuts(event) {
  if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
  const key = event.key.toLowerCase();
  const field = event.target.matches("input[type=text], input[type=search]");
  const act = key === "s" ? save : field ? null : key === "y" || (key === "z" && event.shiftKey) ? redo : key === "z" ? undo : null;
  if (!act) return;
  event.preventDefault();
  act();
}

// Tab goes from caption to caption by itself; Enter too, since a caption is one line, and the arrows at either end of it.
function keys(event, row) {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  const { selectionStart: from, selectionEnd: to, value } = event.target;
  const forward = event.key === "Enter" || (event.key === "ArrowDown" && from === value.length);
  const back = event.key === "ArrowUp" && to === 0;
  if (!forward && !back) return;
  event.preventDefault();
  const all = visible();
  const next = all[all.indexOf(row) + (forward ? 1 : -1)];
  if (!next) return;
  next.parts.area.focus();
  next.parts.area.setSelectionRange(next.text.length, next.text.length);
}

start();
