// Requests to the agent: one stream of events, and reads of the data that the stream does not have.

import { $, clean } from "./elements.js";
import { state, take } from "./registry.js";
import { changed, view } from "./view.js";

export const POLL_MS = 2000; // interval of reads of queues and clients
const SILENCE_MS = 40000; // without an event for so long, the connection counts as broken

// Tests read the page once: a stream of events would not end.
export const once = new URLSearchParams(location.search).has("once");

function headers(more) {
  const token = sessionStorage.getItem("token");
  return token ? { authorization: "Bearer " + token, ...more } : { ...more };
}

export async function read(path) {
  const response = await fetch(path, { headers: headers(), cache: "no-store" });
  if (response.status === 401) askForToken();
  const body = await response.json();
  if (!response.ok)
    throw Object.assign(new Error(body.error?.message ?? response.statusText), { status: response.status });
  return body;
}

function askForToken() {
  if (!$("login").hidden) return;
  $("login-message").textContent = sessionStorage.getItem("token")
    ? "The agent refuses this token."
    : "The agent requires a token.";
  $("login").hidden = false;
  $("token").focus();
}

// Follows the events for as long as the page is open.
export async function follow() {
  let delay = 1000;
  for (;;) {
    const namespace = state.namespace;
    try {
      await readEvents(namespace);
      if (once && state.synced) return;
      if (state.synced) delay = 1000;
    } catch (error) {
      state.problem = error.message;
    }
    if (namespace !== state.namespace) continue;
    if (state.live || state.disconnected === null) state.disconnected = Date.now();
    state.live = false;
    changed();
    await new Promise((done) => setTimeout(done, delay));
    delay = Math.min(delay * 2, 10000);
  }
}

async function readEvents(namespace) {
  const abort = new AbortController();
  state.received = Date.now();
  state.loading = null;
  const watchdog = setInterval(() => {
    if (Date.now() - state.received > SILENCE_MS) abort.abort();
  }, 1000);
  try {
    const more = state.lastId ? { "last-event-id": state.lastId } : {};
    const response = await fetch("v1/events?namespace=" + encodeURIComponent(namespace), {
      headers: headers(more),
      cache: "no-store",
      signal: abort.signal,
    });
    if (response.status === 401) askForToken();
    if (!response.ok) throw new Error((await response.json()).error?.message ?? response.statusText);
    $("login").hidden = true;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      state.received = Date.now();
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) take(event);
      changed();
      if (once && state.synced) {
        abort.abort();
        return;
      }
    }
  } finally {
    clearInterval(watchdog);
  }
}

// Reads what the shown view needs besides the events.
export async function poll() {
  const wants = view.name;
  if (wants === "queues" && !document.hidden) {
    const query = "?namespace=" + encodeURIComponent(state.namespace);
    const [locks, elections] = await Promise.allSettled([read("v1/locks" + query), read("v1/elections" + query)]);
    state.queues = { locks, elections, at: Date.now() };
    changed();
  } else if (wants === "clients" && !document.hidden) {
    try {
      state.clients = { list: (await read("v1/clients")).clients };
    } catch (error) {
      state.clients = { list: [], error };
    }
    changed();
  }
}

export async function loadNamespaces() {
  let names = [];
  try {
    names = (await read("v1/namespaces")).namespaces;
  } catch {
    // A layout without them: only the chosen one.
  }
  const all = new Set([...names, "default", state.namespace]);
  const select = $("namespace");
  const options = [...all].sort().map((name) => new Option(clean(name), name, false, name === state.namespace));
  select.replaceChildren(...options);
}

export async function loadDepartures(name) {
  if (state.departures.has(name)) return;
  state.departures.set(name, []);
  try {
    const path = "v1/services/" + encodeURIComponent(state.namespace) + "/" + encodeURIComponent(name);
    const body = await read(path);
    const later = state.departures.get(name) ?? [];
    const known = new Set(later.map((one) => one.instance.id + one.instance.created));
    const earlier = body.departures.filter((one) => !known.has(one.instance.id + one.instance.created));
    state.departures.set(name, [...later, ...earlier].slice(0, 50));
    changed();
  } catch {
    state.departures.delete(name);
  }
}
