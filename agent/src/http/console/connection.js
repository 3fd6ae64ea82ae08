// Requests to the agent: one stream of events, and reads of the data that the stream does not have.

import { $, clean } from "./elements.js";
import { keepDepartures, lose, state, take } from "./registry.js";
import { SILENCE_MS } from "./status.js";
import { changed, view } from "./view.js";

export const POLL_MS = 2000; // interval of reads of queues, clients and limits
const READ_MS = 10000; // time after which a read has failed

function headers(more) {
  const token = sessionStorage.getItem("token");
  return token ? { authorization: "Bearer " + token, ...more } : { ...more };
}

export async function read(path) {
  const response = await fetch(path, { headers: headers(), cache: "no-store", signal: AbortSignal.timeout(READ_MS) });
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
      if (state.synced) delay = 1000;
      lose("ended", "", Date.now());
    } catch (error) {
      const silent = Date.now() - state.received > SILENCE_MS;
      if (error instanceof Refusal) lose("refused", error.message, Date.now());
      else if (silent) lose("silent", "", state.received);
      else lose("unreachable", error.message, Date.now());
    }
    if (namespace !== state.namespace) continue;
    changed();
    await new Promise((done) => setTimeout(done, delay));
    delay = Math.min(delay * 2, 10000);
  }
}

// A response of the agent that is not a stream of events.
class Refusal extends Error {}

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
    state.received = Date.now();
    if (!response.ok) throw new Refusal((await response.json()).error?.message ?? response.statusText);
    $("login").hidden = true;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      state.received = Date.now();
      const events = (text + value).split("\n\n");
      text = events.pop();
      const gaps = state.gaps;
      for (const event of events) take(event);
      if (gaps !== state.gaps && view.name === "service") loadDepartures(view.service);
      changed();
    }
  } finally {
    clearInterval(watchdog);
  }
}

let polling = false;

// Reads what the page needs besides the events.
export async function poll() {
  if (polling || document.hidden) return;
  polling = true;
  const wants = view.name;
  try {
    if (wants === "queues") {
      const query = "?namespace=" + encodeURIComponent(state.namespace);
      const [locks, elections] = await Promise.allSettled([read("v1/locks" + query), read("v1/elections" + query)]);
      state.queues = { locks, elections, at: Date.now() };
    } else if (wants === "clients") {
      const [clients] = await Promise.allSettled([read("v1/clients")]);
      state.clients = { clients, at: Date.now() };
    }
    state.limits = (await read("v1/limits")).limits;
  } catch {
    // The stream of events shows that the agent is gone.
  } finally {
    polling = false;
  }
  changed();
  if (wants !== view.name) poll();
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
  state.departuresProblem = "";
  if (state.departuresRead.has(name)) return;
  state.departuresRead.add(name);
  try {
    const path = "v1/services/" + encodeURIComponent(state.namespace) + "/" + encodeURIComponent(name);
    const body = await read(path);
    const later = state.departures.get(name) ?? [];
    const known = new Set(later.map((one) => one.instance.id + one.instance.created));
    const earlier = body.departures.filter((one) => !known.has(one.instance.id + one.instance.created));
    keepDepartures(name, [...later, ...earlier]);
  } catch (error) {
    state.departuresRead.delete(name);
    state.departuresProblem = error.message;
  }
  changed();
}
