// The registry as the agent's events describe it, and the latest changes.

const TIMELINE = 2000; // kept changes
const DEPARTURES = 50; // kept ends of instances of a service
const NAMES = 200; // services whose ended instances are kept
const GONE_MS = 15000; // time for which an ended instance stays visible

export const state = {
  namespace: "default",
  services: new Map(),
  loading: null, // services of a snapshot that is not complete yet
  freshness: null,
  omitted: 0,
  synced: false,
  live: false,
  listStale: false,
  received: 0, // time of the last bytes of the stream
  lost: null, // the loss of the stream: kind, time, reason
  lastId: "",
  timeline: [],
  queues: null,
  clients: null,
  limits: [],
  departures: new Map(), // ends of instances by service
  departuresRead: new Set(), // services whose earlier ends were read
  departuresProblem: "",
  gaps: 0, // complete states after the first
};

// Takes one event, as its text.
export function take(text) {
  let kind = "";
  let id = state.lastId;
  let data = null;
  for (const line of text.split("\n")) {
    if (line.startsWith("event: ")) kind = line.slice(7);
    else if (line.startsWith("id:")) id = line.slice(3).trim();
    else if (line.startsWith("data: ")) data = JSON.parse(line.slice(6));
  }
  if (data === null) return;
  state.lastId = id;
  if (kind === "snapshot") {
    state.loading = new Map();
  } else if (kind === "added" || kind === "updated") {
    put(data.service, data.instance);
  } else if (kind === "removed") {
    remove(data.service, data.instance, data.reason);
  } else if (kind === "freshness" && data.service !== null) {
    service(data.service).freshness = { ...data, at: Date.now() };
  } else if (kind === "synced") {
    if (state.loading) replaced();
    state.freshness = { ...data.freshness, at: Date.now() };
    state.omitted = data.omitted;
    state.synced = state.live = true;
    state.lost = null;
  } else if (kind === "freshness") {
    state.listStale = data.state !== "live";
    state.freshness = { ...data, at: Date.now() };
  } else if (kind === "heartbeat") {
    state.freshness = { ...data, at: Date.now() };
  }
}

// A complete state has replaced the known one. What happened in between is not known.
function replaced() {
  state.services = state.loading;
  state.loading = null;
  if (!state.synced) return;
  state.gaps += 1;
  state.departures.clear();
  state.departuresRead.clear();
  log("gap", "", "", "the connection was lost; changes until now are not listed");
}

// Records the loss of the stream. Later losses before the next state have the time of the first.
export function lose(kind, reason, since) {
  state.lost = { kind, reason, since: state.lost?.since ?? since };
  state.live = false;
}

function service(name) {
  const services = state.loading ?? state.services;
  let found = services.get(name);
  if (!found) {
    found = { name, instances: new Map(), gone: new Map(), freshness: null, changed: 0, summary: null };
    services.set(name, found);
  }
  return found;
}

function touch(found) {
  found.summary = null;
  if (!state.loading) found.changed = Date.now();
}

function put(name, instance) {
  const found = service(name),
    old = found.instances.get(instance.id);
  found.instances.set(instance.id, instance);
  found.gone.delete(instance.id);
  touch(found);
  log(old ? "updated" : "added", name, instance.id, old ? difference(old, instance) : instance.endpoints.join(", "));
}

function remove(name, instance, reason) {
  const found = service(name);
  found.instances.delete(instance.id);
  if (!state.loading) {
    found.gone.set(instance.id, { instance, at: Date.now(), reason });
    const departures = state.departures.get(name) ?? [];
    departures.unshift({ instance, at_ms: Date.now(), reason });
    keepDepartures(name, departures);
  }
  touch(found);
  log(reason, name, instance.id, instance.endpoints.join(", "));
}

// Keeps the ends of instances of a service, and those of the services that had the latest ones.
export function keepDepartures(name, departures) {
  state.departures.delete(name);
  state.departures.set(name, departures.slice(0, DEPARTURES));
  for (const [oldest] of state.departures) {
    if (state.departures.size <= NAMES) break;
    state.departures.delete(oldest);
    state.departuresRead.delete(oldest);
  }
}

function difference(old, now) {
  const parts = [];
  if (old.created !== now.created) parts.push("registered again");
  for (const key of ["health", "weight", "version", "zone", "presence"]) {
    if (old[key] !== now[key]) parts.push(key + " " + (old[key] ?? "none") + " → " + (now[key] ?? "none"));
  }
  if (old.endpoints.join() !== now.endpoints.join()) parts.push("endpoints " + now.endpoints.join(", "));
  for (const key of new Set([...Object.keys(old.metadata), ...Object.keys(now.metadata)])) {
    if (old.metadata[key] !== now.metadata[key]) parts.push(key + "=" + (now.metadata[key] ?? "none"));
  }
  return parts.join("; ");
}

let sequence = 0;

function log(kind, name, id, detail) {
  if (state.loading) return;
  state.timeline.push({ key: ++sequence, at: Date.now(), kind, service: name, id, detail });
  if (state.timeline.length > TIMELINE) state.timeline.splice(0, TIMELINE / 4);
}

// Counts of a service.
export function summary(found) {
  if (found.summary) return found.summary;
  const all = {
    instances: 0,
    serving: 0,
    draining: 0,
    not_serving: 0,
    held: 0,
    weight: 0,
    versions: new Map(),
    zones: new Map(),
  };
  for (const one of found.instances.values()) {
    all.instances += 1;
    all[one.health] += 1;
    if (one.presence === "held") all.held += 1;
    if (one.health === "serving") all.weight += one.weight;
    if (one.version) all.versions.set(one.version, (all.versions.get(one.version) ?? 0) + 1);
    if (one.zone) all.zones.set(one.zone, (all.zones.get(one.zone) ?? 0) + 1);
  }
  return (found.summary = all);
}

// Returns true if an operator should look at a service.
export function problem(found) {
  const all = summary(found);
  return all.serving < all.instances || all.held > 0 || all.instances === 0 || found.freshness?.state === "stale";
}

// Forgets ended instances that were visible for long enough, and services that have none.
export function forgetGone() {
  for (const [name, found] of state.services) {
    for (const [id, gone] of found.gone) if (Date.now() - gone.at > GONE_MS) found.gone.delete(id);
    if (!found.instances.size && !found.gone.size) state.services.delete(name);
  }
}
