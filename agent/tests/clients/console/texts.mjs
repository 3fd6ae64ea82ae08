// Texts of the console: each states what the agent has said, and nothing else. Run by `cargo xtask clients console`.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

// Elements with the texts that they contain.
class Fake {
  children = [];
  append(...children) {
    this.children.push(...children);
  }
  replaceChildren(...children) {
    this.children = children;
  }
  setAttribute() {}
  addEventListener() {}
  get textContent() {
    return this.children.map((child) => child.textContent ?? String(child)).join("");
  }
}
globalThis.document = { getElementById: () => new Fake(), createElement: () => new Fake() };
globalThis.location = { search: "", hash: "" };
const { lose, state, take } = await import(process.env.ENLIST_CONSOLE + "/registry.js");
const { announcement, limitNotice, status } = await import(process.env.ENLIST_CONSOLE + "/status.js");

const { VIEWS, viewsNote } = await import(process.env.ENLIST_CONSOLE + "/views.js");
const { view } = await import(process.env.ENLIST_CONSOLE + "/view.js");

const fulfilled = (value) => ({ status: "fulfilled", value });
const rejected = (message) => ({ status: "rejected", reason: new Error(message) });
const text = (nodes) => nodes.map((node) => node.textContent ?? node).join("\n");

const fresh = { ...state };

function reset() {
  Object.assign(state, fresh, { services: new Map(), timeline: [], departures: new Map(), departuresRead: new Set() });
  state.received = Date.now();
}

function event(kind, data, id) {
  const line = id === undefined ? "" : "id: " + id + "\n";
  take("event: " + kind + "\n" + line + "data: " + JSON.stringify({ namespace: "default", service: null, ...data }));
}

const instance = (id) => ({
  id,
  endpoints: ["grpc://10.0.0.1:80"],
  weight: 100,
  version: null,
  zone: null,
  health: "serving",
  metadata: {},
  created: 1,
  modified: 1,
  presence: "live",
});

// A page that knows two services.
function synced() {
  reset();
  event("snapshot", { services: 2, instances: 2 }, "");
  for (const service of ["a", "b"]) {
    event("added", { service, instance: instance(service + "-1") }, "");
    event("freshness", { service, state: "live", age_ms: 5 });
  }
  event("freshness", { state: "live", age_ms: 5 });
  event("synced", { freshness: { state: "live", age_ms: 5 }, omitted: 0 }, "ab.1");
}

test("a page that knows nothing says so", () => {
  reset();
  assert.equal(status(state, Date.now()).text, "connecting");
});

test("live data are live", () => {
  synced();
  assert.deepEqual(status(state, Date.now()), { kind: "good", text: "live, age < 1 s", warning: "" });
});

test("a silent connection is not live", () => {
  synced();
  assert.equal(status(state, state.received + 6000).kind, "good");
  assert.equal(status(state, state.received + 9000).text, "no event for 9 s");
  lose("silent", "", state.received);
  const { text, warning } = status(state, state.received + 13000);
  assert.equal(text, "disconnected");
  assert.equal(warning, "The agent has sent nothing for 13 s. The data below are old.");
});

test("a refusal is no missing connection", () => {
  reset();
  lose("refused", "the store has not answered yet", Date.now());
  const { text, warning } = status(state, Date.now());
  assert.equal(text, "refused");
  assert.equal(warning, "The agent has sent no events for < 1 s: the store has not answered yet.");
});

test("the reason of an earlier loss is not shown later", () => {
  synced();
  lose("unreachable", "fetch failed", Date.now());
  assert.match(status(state, Date.now()).warning, /^No connection to the agent for < 1 s \(fetch failed\)/);
  event("synced", { freshness: { state: "live", age_ms: 5 }, omitted: 0 }, "ab.2");
  lose("ended", "", Date.now());
  assert.doesNotMatch(status(state, Date.now()).warning, /fetch failed/);
});

test("the time of a loss is that of the first one", () => {
  synced();
  const now = Date.now();
  lose("silent", "", now - 13000);
  lose("unreachable", "fetch failed", now);
  assert.match(status(state, now).warning, /for 13 s/);
});

test("the stale part is named with its cause", () => {
  synced();
  event("freshness", { service: "a", state: "stale", age_ms: 9000, cause: "permission denied" });
  event("synced", { freshness: { state: "stale", age_ms: 9000, cause: "permission denied" }, omitted: 0 }, "ab.2");
  const { warning } = status(state, Date.now());
  assert.match(warning, /^Changes of 1 of 2 services do not arrive \(permission denied\)\. /);
  assert.doesNotMatch(warning, /does not answer/);
  event("freshness", { service: "a", state: "live", age_ms: 1 });
  event("freshness", { state: "stale", age_ms: 9000 });
  event("synced", { freshness: { state: "stale", age_ms: 9000 }, omitted: 0 }, "ab.3");
  assert.match(status(state, Date.now()).warning, /^Changes of the list of services do not arrive\. /);
});

test("a gap of the timeline is shown", () => {
  synced();
  event("removed", { service: "a", instance: instance("a-1"), reason: "unknown" }, "");
  event("snapshot", { services: 0, instances: 0 }, "");
  event("synced", { freshness: { state: "live", age_ms: 5 }, omitted: 0 }, "cd.1");
  assert.deepEqual(state.timeline.map((one) => one.kind), ["unknown", "gap"]);
});

test("refusals and omitted services are shown", () => {
  synced();
  assert.equal(limitNotice(state), "");
  event("synced", { freshness: { state: "live", age_ms: 5 }, omitted: 3 }, "ab.2");
  state.limits = [
    { name: "xds_services", max: 10, used: 10, refused: 2 },
    { name: "http_views", max: 5, used: 1, refused: 0 },
  ];
  const notice = limitNotice(state);
  assert.match(notice, /3 services of this namespace/);
  assert.match(notice, /2 services for further clients of xDS \(limit 10\)\.$/);
});

test("an unread queue is not empty", () => {
  reset();
  assert.equal(VIEWS.queues.known(), false);
  state.queues = { locks: rejected("no answer"), elections: fulfilled({ elections: [] }), at: Date.now() };
  assert.equal(VIEWS.queues.known(), false);
  assert.match(text(VIEWS.queues.head()), /Not read: no answer/);
  state.queues = { locks: fulfilled({ locks: [] }), elections: fulfilled({ elections: [] }), at: Date.now() };
  assert.equal(VIEWS.queues.known(), true);
});

test("unread clients are not absent", () => {
  reset();
  assert.equal(VIEWS.clients.known(), false);
  state.clients = { clients: rejected("no answer"), at: Date.now() };
  assert.equal(VIEWS.clients.known(), false);
  assert.match(text(VIEWS.clients.head()), /Not read: no answer/);
});

test("a client that does not answer is marked", () => {
  reset();
  const client = { node: "n", user_agent: "u", zone: "", peer: "127.0.0.1:1", connected_ms: 60000, services: ["a"] };
  const quiet = { ...client, rejected: 0, last_rejection: null, silent_ms: 9000 };
  const gone = { ...quiet, silent_ms: 13000 };
  assert.doesNotMatch(text(VIEWS.clients.cells(quiet)), /silent/);
  assert.match(text(VIEWS.clients.cells(gone)), /silent for 13 s/);
  assert.notEqual(VIEWS.clients.stamp(quiet), VIEWS.clients.stamp(gone));
  assert.notEqual(VIEWS.clients.stamp(quiet), VIEWS.clients.stamp({ ...quiet, peer: "127.0.0.1:2" }));
});

test("an omitted service is not called empty", () => {
  synced();
  view.service = "c";
  assert.match(text(VIEWS.service.head()), /The service has no instance/);
  event("synced", { freshness: { state: "live", age_ms: 5 }, omitted: 1 }, "ab.2");
  assert.equal(VIEWS.service.known(), false);
  assert.match(text(VIEWS.service.head()), /Not known/);
  reset();
  assert.match(text(VIEWS.service.head()), /not known yet/);
});

test("only the begin of an outage is announced", () => {
  synced();
  const now = Date.now();
  assert.equal(announcement(state, now), "");
  assert.equal(announcement(state, now + 8000), null);
  event("heartbeat", { state: "stale", age_ms: 1000, cause: "refused" });
  const begin = announcement(state, now);
  assert.match(begin, /stale/);
  event("heartbeat", { state: "stale", age_ms: 900000, cause: "refused" });
  assert.equal(announcement(state, now), begin);
  lose("unreachable", "reset", now);
  assert.equal(announcement(state, now), announcement(state, now + 60000));
});

test("stale and unknown assignments are counted", () => {
  const note = (views) => text([viewsNote(views)]);
  const stale = note({ followed: 3, stale: 1, unknown: 1, oldest_age_ms: 90000 });
  assert.equal(stale, "3 assignments: 1 stale, 1 not known yet; the oldest was confirmed 90 s ago");
  const none = note({ followed: 0, stale: 0, unknown: 0, oldest_age_ms: 0 });
  assert.equal(none, "0 assignments: 0 stale, 0 not known yet");
});

// Contrast of two colours, as WCAG 2.2 defines it.
function contrast(one, other) {
  const channel = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const luminance = (colour) => {
    const [r, g, b] = [1, 3, 5].map((at) => channel(parseInt(colour.slice(at, at + 2), 16) / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}

test("texts can be read on their backgrounds", () => {
  const css = readFileSync(process.env.ENLIST_CONSOLE + "/console.css", "utf8");
  for (const kind of ["good", "warn", "bad", "gone"]) {
    const colours = (name) => [...css.matchAll(new RegExp("--" + name + ": (#[0-9a-f]{6})", "g"))].map((one) => one[1]);
    const [texts, backs] = [colours(kind), colours(kind + "-back")];
    assert.equal(texts.length, 2, "light and dark");
    texts.forEach((text, at) => assert.ok(contrast(text, backs[at]) >= 4.5, kind + contrast(text, backs[at])));
  }
});

test("ended instances of many services are bounded", () => {
  synced();
  for (let number = 0; number < 1000; number += 1) {
    const service = "s" + number;
    event("added", { service, instance: instance("i") }, "");
    event("removed", { service, instance: instance("i"), reason: "departed" }, "");
  }
  assert.equal(state.departures.size, 200);
  assert.ok(state.departures.has("s999"));
});
