// The page: draws what the server says and keeps it up to date. Text from outside becomes text nodes, never markup.

import {bar, columns, short, swatch} from "./charts.js";

const LEVELS = {informational: 0, low: 3, medium: 5, high: 8, critical: 10};
const KEPT = 300; // incidents that stay on the page
const view = JSON.parse(document.getElementById("view").textContent);
const csrf = document.querySelector('meta[name="csrf"]').content;
const at = (id) => document.getElementById(id);
const incidents = new Map(); // id -> {row, item}
let acknowledged = view.acknowledged;
let line = view.timeline;
let span = "24h";
let latest = view.seq;
let state = view;
const narrow = matchMedia("(max-width: 700px)");

function make(name, text, kind) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function put(element, text) { // without a change nothing is said again to who listens
  if (element.textContent !== text) element.textContent = text;
}

function count(number, what) {
  return `${short(number)} ${what}${number === 1 ? "" : "s"}`;
}

function age(seconds) {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * size || seconds === size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${Math.floor(seconds)} s`;
}

function clock(ms) {
  const then = new Date(ms);
  const today = then.toDateString() === new Date().toDateString();
  return today ? then.toLocaleTimeString([], {hour12: false}) : then.toLocaleDateString([], {month: "short", day: "numeric"});
}

function whole(ms) {
  return new Date(ms).toLocaleString([], {hour12: false});
}

async function ask(path, body) {
  const options = body && {
    method: "POST", headers: {"Content-Type": "application/json", "X-CSRF-Token": csrf}, body: JSON.stringify(body),
  };
  const answer = await fetch(path, {credentials: "same-origin", cache: "no-store", ...options});
  if (answer.status === 401) location.assign("/login");
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error || `error ${answer.status}`);
  return found;
}

// alerts -------------------------------------------------------------------------------------------

function makeItem(row) {
  const item = make("li");
  const button = make("button", undefined, "row");
  button.type = "button";
  for (const kind of ["at", "level", "what", "source", "count number", "state"]) button.append(make("span", "", kind));
  button.addEventListener("click", () => showDetails(incidents.get(row.incident).row.id));
  item.append(button, make("div", undefined, "seen"));
  return item;
}

function fillItem({row, item}) {
  const [time, level, what, source, number, condition] = item.firstChild.children;
  put(time, clock(row.at_ms));
  time.title = whole(row.at_ms);
  put(level, row.level);
  level.className = `level level-${row.level}`;
  what.replaceChildren(make("span", row.title), make("span", row.reason ? `  ${row.reason}` : "", "why"));
  put(source, row.source);
  source.title = row.source;
  put(number, narrow.matches ? count(row.count, "event") : short(row.count));
  put(condition, row.state);
  item.classList.toggle("closed", row.state === "close");
  fillSeen(row, item.lastChild);
}

function fillSeen(row, cell) {
  const seen = acknowledged[row.incident];
  const words = seen ? `✓ ${seen.who}` : "";
  if (cell.dataset.shown === (words || "button")) return;
  cell.dataset.shown = words || "button";
  if (seen) {
    cell.replaceChildren(words);
    cell.title = `acknowledged by ${seen.who}, ${whole(seen.at_ms)}`;
    return;
  }
  const button = make("button", "Acknowledge");
  button.type = "button";
  button.setAttribute("aria-label", `Acknowledge ${row.title}`);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await ask("/api/acknowledge", {incident: row.incident});
      acknowledged = {...acknowledged, [row.incident]: {who: "you", at_ms: Date.now()}};
      cell.parentElement.firstChild.focus({preventScroll: true});
      fillSeen(row, cell);
      say(`acknowledged: ${row.title}`);
    } catch (error) {
      button.disabled = false;
      banner(`Not acknowledged: ${error.message}`);
    }
  });
  cell.replaceChildren(button);
}

function take(rows, isNew) {
  const list = at("alerts");
  const focused = document.activeElement;
  for (const row of rows) { // oldest first: each goes to the top
    const known = incidents.get(row.incident);
    const entry = known ? {row, item: known.item} : {row, item: makeItem(row)};
    incidents.delete(row.incident);
    incidents.set(row.incident, entry);
    fillItem(entry);
    if (isNew) {
      entry.item.classList.remove("fresh");
      requestAnimationFrame(() => entry.item.classList.add("fresh"));
    }
    list.prepend(entry.item);
  }
  for (const [key, {item}] of incidents) {
    if (incidents.size <= KEPT) break;
    item.remove();
    incidents.delete(key);
  }
  if (focused && focused !== document.activeElement && list.contains(focused)) focused.focus({preventScroll: true});
  const opened = rows.filter((row) => row.state === "open");
  if (isNew && opened.length) {
    const last = opened[opened.length - 1];
    say(opened.length === 1 ? `New alert, ${last.level}: ${last.title}, from ${last.source}` : `${opened.length} new alerts, the latest ${last.level}: ${last.title}`);
  }
  filter();
}

function filter() {
  const least = Number(at("level").value);
  const words = at("text").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const {row, item} of incidents.values()) {
    const text = `${row.title} ${row.rule} ${row.source} ${row.reason} ${row.state}`.toLowerCase();
    const fits = LEVELS[row.level] >= least && words.every((word) => text.includes(word));
    item.hidden = !fits;
    shown += fits;
  }
  put(at("shown"), incidents.size ? (shown === incidents.size ? `latest ${shown}` : `${shown} of ${incidents.size}`) : "");
  const empty = at("no-alerts");
  empty.hidden = shown > 0;
  put(empty, incidents.size ? "No alert fits this filter." : "No alerts yet. They appear here by themselves.");
  tiles();
}

let words = "";
let saying = 0;
function say(text) { // politely: what comes in a burst is said once
  words = text;
  clearTimeout(saying);
  saying = setTimeout(() => put(at("said"), words), 400);
}

function facts(pairs) {
  const list = make("dl");
  for (const [name, value] of pairs) list.append(make("dt", name), make("dd", value));
  return list;
}

async function showDetails(id) {
  const body = at("details-body");
  let found;
  try {
    found = await ask(`/api/alerts/${encodeURIComponent(id)}`);
  } catch (error) {
    banner(error.message);
    return;
  }
  put(at("details-title"), found.title);
  const level = make("span", found.level, `level level-${found.level}`);
  const top = make("p");
  top.append(level, make("span", `  ${whole(found.at_ms)}  ·  ${found.state}  ·  ${count(found.count, "event")}`, "dim"));
  body.replaceChildren(top);
  if (found.about) body.append(make("p", found.about));
  if (found.acknowledged) body.append(make("p", `Acknowledged by ${found.acknowledged.who}, ${whole(found.acknowledged.at_ms)}`, "dim"));
  if (found.falsepositives.length) body.append(make("h3", "False alarms"), make("p", found.falsepositives.join("; ")));
  body.append(make("h3", "Facts"), facts(found.facts));
  if (found.evidence.length) body.append(make("h3", `Evidence, ${count(found.evidence.length, "event")}`));
  for (const event of found.evidence) {
    const box = make("div", undefined, "event");
    const head = make("p");
    head.append(make("span", event.kind), make("span", `+${(event.after_ms / 1000).toFixed(3)} s`, "dim"), make("span", event.grade, "dim"));
    box.append(head, facts(event.facts));
    body.append(box);
  }
  for (const [name, content] of [["All fields", facts(found.rest)], ["The document as JSON", make("pre", found.document)]]) {
    const more = make("details");
    more.append(make("summary", name), content);
    body.append(more);
  }
  at("details").showModal();
  at("details").scrollTop = 0;
}

// time line ----------------------------------------------------------------------------------------

const NAMES = {"1h": "last hour", "24h": "last 24 hours", "7d": "last 7 days"};
const levelFill = (name) => `fill-${name}`;
const seriesFill = (name, all) => `fill-${all.indexOf(name) % 6}`;

function legend(box, series, fills) {
  const labels = Object.keys(series);
  box.replaceChildren(...labels.map((name) => {
    const key = make("span", undefined, "key");
    key.append(swatch(fills(name, labels)), make("span", `${name} ${short(series[name].reduce((a, b) => a + b, 0))}`));
    return key;
  }));
}

function timeLine() {
  if (!line) return;
  columns(at("alerts-chart"), "Alerts by level", line, line.alerts, levelFill);
  columns(at("packets-chart"), "Packets by protocol", line, line.packets, seriesFill);
  legend(at("alerts-legend"), line.alerts, levelFill);
  legend(at("packets-legend"), line.packets, seriesFill);
  put(at("sources-span"), `packets, ${NAMES[span]}`);
  const most = Math.max(1, ...line.sources.map(([, packets]) => packets));
  at("sources").replaceChildren(...line.sources.map(([address, packets]) => {
    const item = make("li");
    const label = make("div", undefined, "label");
    label.append(make("span", address), make("span", short(packets), "dim"));
    item.append(label, bar(packets / most, "fill-0"));
    return item;
  }));
  at("no-sources").hidden = line.sources.length > 0;
  tiles();
}

async function newTimeLine() {
  const wanted = span;
  try {
    const found = await ask(`/api/timeline?span=${wanted}`);
    if (wanted !== span) return;
    line = found;
    timeLine();
  } catch (error) {
    if (!document.hidden) put(at("live"), "no answer");
  }
}

// the sensor ---------------------------------------------------------------------------------------

const GOOD = new Set(["ready", "idle", "sending", "ok", "connected", "delivering", "up"]);
const BAD = new Set(["failed", "failing", "backoff", "ended", "broken"]);
const tone = (word) => (BAD.has(word) ? "pill bad" : GOOD.has(word) ? "pill" : "pill warn");

function faults() {
  const found = [];
  if (state.error) found.push(state.error);
  if (state.sensor_error) return [...found, `the appliance does not answer: ${state.sensor_error}`];
  const s = state.status;
  if (!s) return found;
  for (const probe of s.probes) if (!["ready", "unsupported"].includes(probe.state)) found.push(`probe ${probe.name} is ${probe.state} ${probe.reason}`);
  for (const process of s.processes) if (process.state !== "ready") found.push(`${process.name} is ${process.state}`);
  for (const output of s.outputs) if (BAD.has(output.state)) found.push(`output ${output.name} is ${output.state} ${output.last_error}`);
  if (!s.balanced) found.push("the ledger does not balance");
  if (s.rules.stale) found.push(`rules are stale: ${s.rules.problems[0] || ""}`);
  if (s.firewall_error) found.push(`the firewall fails: ${s.firewall_error}`);
  return found;
}

function part(name, word, more) {
  const item = make("li");
  const text = make("div");
  text.append(make("span", name), make("small", more));
  text.lastChild.title = more;
  item.append(text, make("span", word, tone(word)));
  return item;
}

function sensor() {
  const wrong = faults();
  put(at("health"), wrong.length ? `${wrong.length} fault${wrong.length > 1 ? "s" : ""}` : "all well");
  at("health").className = wrong.length ? "pill bad" : "pill";
  at("banner").hidden = !wrong.length;
  put(at("banner"), wrong.slice(0, 5).join(" · "));
  const s = state.status;
  put(at("host"), s ? s.host : view.host);
  if (!s) {
    at("parts").replaceChildren();
    put(at("ledger"), "");
    return;
  }
  at("parts").replaceChildren(
    ...s.probes.map((p) => part(`probe ${p.name}`, p.state, `${short(p.events)} events${p.lost ? `, ${short(p.lost)} lost` : ""}${p.restarts ? `, ${p.restarts} restarts` : ""}${p.reason ? `: ${p.reason}` : ""}`)),
    ...s.processes.map((p) => part(p.name, p.state, "process")),
    ...s.outputs.map((o) => part(`output ${o.name}`, o.state || "?", `${short(o.delivered)} delivered, ${short(o.waiting)} waiting${o.dead ? `, ${o.dead} dead` : ""}${o.dropped ? `, ${o.dropped} dropped` : ""}${o.last_error ? `: ${o.last_error}` : ""}`)),
  );
  put(at("ledger"), s.balanced ? "ledger balanced" : "ledger NOT balanced");
  at("ledger").className = s.balanced ? "pill" : "pill bad";
  put(at("footer"), `kwsiem ${s.version} · running since ${whole(Date.parse(s.since))} · ${s.rules.count} rules`);
}

let drawnBlocks = "";
function blocks() {
  const found = state.blocks;
  const seen = JSON.stringify(found && found.blocks.map((b) => [b.network, age(b.left_s), b.mode]));
  put(at("mode"), found ? `${found.mode}, ${found.total}` : "");
  at("no-blocks").hidden = Boolean(found && found.blocks.length);
  put(at("no-blocks"), found ? "Nobody is blocked." : "Not known.");
  if (seen === drawnBlocks) return;
  drawnBlocks = seen;
  const focused = document.activeElement && document.activeElement.dataset.network;
  at("blocks").replaceChildren(...(found ? found.blocks : []).map((block) => {
    const item = make("li");
    const text = make("div");
    const why = `${age(block.left_s)} left · ${block.mode} · ${block.rule || block.origin}${block.reason ? ` · ${block.reason}` : ""}`;
    text.append(make("b", block.network), make("small", why));
    text.lastChild.title = why;
    const button = make("button", "Release");
    button.type = "button";
    button.dataset.network = block.network;
    button.setAttribute("aria-label", `Release ${block.network}`);
    button.addEventListener("click", () => askRelease(block));
    item.append(text, button);
    return item;
  }));
  if (found && found.total > found.blocks.length) at("blocks").append(make("li", `and ${found.total - found.blocks.length} more: kwsiem blocks`, "dim"));
  if (focused) {
    const again = [...at("blocks").querySelectorAll("button")].find((button) => button.dataset.network === focused);
    if (!document.querySelector("dialog[open]")) (again || at("blocks-title")).focus({preventScroll: true});
  }
}

let asked = "";
function askRelease(block) {
  asked = block.network;
  put(at("question-title"), `Release ${block.network}?`);
  put(at("question-text"), `It may reach this host again at once. Blocked ${block.rule ? `by rule ${block.rule}` : `by ${block.origin}`}${block.reason ? `: ${block.reason}` : ""}.`);
  at("question-error").hidden = true;
  at("yes").disabled = false;
  at("question").showModal();
  at("question").querySelector("[data-close]").focus();
}

at("yes").addEventListener("click", async () => {
  at("yes").disabled = true;
  try {
    await ask("/api/release", {network: asked});
    at("question").close();
    state = {...state, blocks: state.blocks && {...state.blocks, total: state.blocks.total - 1, blocks: state.blocks.blocks.filter((b) => b.network !== asked)}};
    blocks();
    tiles();
    at("blocks-title").focus({preventScroll: true});
    say(`${asked} is released`);
  } catch (error) {
    at("yes").disabled = false;
    at("question-error").hidden = false;
    put(at("question-error"), `Not released: ${error.message}`);
  }
});

function tiles() {
  const sum = (series) => Object.values(series || {}).reduce((all, values) => all + values.reduce((a, b) => a + b, 0), 0);
  const open = [...incidents.values()].filter(({row}) => row.state !== "close");
  const worst = ["critical", "high", "medium", "low", "informational"].map((level) => [level, open.filter(({row}) => row.level === level).length]).filter(([, n]) => n);
  const s = state.status;
  const ready = s ? s.probes.filter((p) => p.state === "ready").length : 0;
  const waiting = s ? s.outputs.reduce((all, o) => all + o.waiting, 0) : 0;
  const shown = [
    [open.length, "open incidents", worst.map(([level, n]) => `${n} ${level}`).join(", ") || "none among the latest", open.some(({row}) => LEVELS[row.level] >= 8)],
    [short(sum(line && line.alerts)), "alerts", NAMES[span]],
    [short(sum(line && line.packets)), "packets", NAMES[span]],
    [state.blocks ? short(state.blocks.total) : "–", "blocks", state.blocks ? `blocking ${state.blocks.mode}` : ""],
    [s ? `${ready}/${s.probes.length}` : "–", "probes ready", s ? `${s.rules.count} rules` : "", s && s.probes.some((p) => BAD.has(p.state))],
    [s ? short(waiting) : "–", "waiting", s ? `${s.outputs.length} outputs, ledger ${s.balanced ? "balanced" : "NOT balanced"}` : "", s && !s.balanced],
  ];
  const seen = JSON.stringify(shown);
  if (at("tiles").dataset.seen === seen) return;
  at("tiles").dataset.seen = seen;
  at("tiles").replaceChildren(...shown.map(([value, name, more, isBad]) => {
    const tile = make("div", undefined, "tile");
    tile.append(make("span", name), make("b", String(value), isBad ? "bad" : ""), make("small", more));
    tile.lastChild.title = more;
    return tile;
  }));
}

function banner(text) {
  at("banner").hidden = false;
  put(at("banner"), text);
}

// rules --------------------------------------------------------------------------------------------

async function attack() {
  let tactics;
  try {
    tactics = await ask("/api/attack");
  } catch (error) {
    put(at("attack-note"), error.message);
    return;
  }
  put(at("attack-note"), "incidents since these rules began to run");
  at("attack").replaceChildren(...tactics.map((tactic) => {
    const box = make("section", undefined, tactic.techniques.length ? "tactic" : "tactic none");
    box.append(make("h3", tactic.name));
    for (const one of tactic.techniques) {
      const cell = make("div", undefined, `technique${one.alerts >= 10 ? " hot" : one.alerts ? " warm" : ""}`);
      const more = make("small");
      more.append(make("span", [one.id, count(one.rules, "rule")].filter(Boolean).join(" · ")));
      if (one.alerts) more.append(make("em", count(one.alerts, "incident")));
      cell.append(make("b", one.name || one.id || "Tactic alone"), more);
      box.append(cell);
    }
    if (!tactic.techniques.length) box.append(make("small", "no rule", "dim"));
    return box;
  }));
}

// staying up to date -------------------------------------------------------------------------------

function takeState(found) {
  state = found;
  acknowledged = found.acknowledged || acknowledged;
  for (const {row, item} of incidents.values()) fillSeen(row, item.lastChild);
  sensor();
  blocks();
  tiles();
}

function listen() {
  const stream = new EventSource(`/api/stream?after=${latest}`);
  stream.addEventListener("open", () => {
    put(at("live"), "live");
    at("live").className = "pill quiet on";
  });
  stream.addEventListener("alerts", (event) => {
    latest = Number(event.lastEventId);
    take(JSON.parse(event.data), true);
  });
  stream.addEventListener("state", (event) => takeState(JSON.parse(event.data)));
  stream.addEventListener("ended", () => location.assign("/login"));
  stream.addEventListener("error", () => {
    put(at("live"), "reconnecting");
    at("live").className = "pill warn";
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  });
}

for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
at("level").addEventListener("change", filter);
at("text").addEventListener("input", filter);
for (const button of at("spans").children) {
  button.addEventListener("click", () => {
    span = button.dataset.span;
    for (const other of at("spans").children) other.setAttribute("aria-pressed", String(other === button));
    newTimeLine();
  });
}
// On a telephone the alerts come first, for eyes and for the keyboard alike.
function arrange() {
  const [time, alerts] = [at("time-title"), at("alerts-title")].map((title) => title.closest("section"));
  if (narrow.matches) time.before(alerts);
  else time.after(alerts);
  for (const entry of incidents.values()) fillItem(entry);
}
narrow.addEventListener("change", arrange);
let drawing = 0;
new ResizeObserver(() => {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(timeLine);
}).observe(at("alerts-chart"));

take([...view.alerts].reverse(), false);
arrange();
takeState(view);
timeLine();
attack();
setInterval(newTimeLine, 30000);
setInterval(attack, 60000);
listen();
