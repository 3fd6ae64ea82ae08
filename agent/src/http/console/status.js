// The header's text on the connection and the data, from the state alone.

import { duration, short } from "./elements.js";

export const SILENCE_MS = 12000; // without an event for so long, the connection counts as broken; one comes every 5 s
const QUIET_MS = 7000; // an event is overdue

export function age(freshness, live, now) {
  const passed = freshness.state === "live" && live ? 0 : now - freshness.at;
  return freshness.age_ms + passed;
}

const because = (reason) => (reason ? " (" + short(reason, 200) + ")" : "");

// Returns the text of the header, its kind, and the warning; without a warning, that is empty.
export function status(state, now) {
  if (state.lost) return lost(state, now);
  if (!state.synced || !state.freshness) return { kind: "warn", text: "connecting", warning: "" };
  const quiet = now - state.received;
  if (quiet > QUIET_MS) return { kind: "warn", text: "no event for " + duration(quiet), warning: "" };
  const shown = duration(age(state.freshness, state.live, now));
  if (state.freshness.state === "live") return { kind: "good", text: "live, age " + shown, warning: "" };
  const warning =
    "Changes of " +
    staleParts(state) +
    " do not arrive" +
    because(state.freshness.cause) +
    ". The oldest data were confirmed " +
    shown +
    " ago; the last known state is shown.";
  return { kind: "bad", text: "stale " + shown, warning };
}

// Returns what is announced when it begins: the kind of the state, without durations and numbers, which change all the
// time. It is null while an event is overdue, which is decided later.
export function announcement(state, now) {
  if (state.lost) {
    return {
      unreachable: "No connection to the agent.",
      ended: "The agent ended the connection.",
      refused: "The agent refuses to send events.",
      silent: "The agent sends nothing.",
    }[state.lost.kind];
  }
  if (!state.synced || !state.freshness || now - state.received > QUIET_MS) return null;
  return state.freshness.state === "live" ? "" : "The data are stale: changes do not arrive.";
}

function lost(state, now) {
  const { kind, reason, since } = state.lost;
  const time = duration(now - since);
  const [text, cause] = {
    unreachable: ["disconnected", "No connection to the agent for " + time + because(reason)],
    ended: ["disconnected", "The agent ended the stream of events " + time + " ago; connecting again"],
    refused: ["refused", "The agent has sent no events for " + time + ": " + short(reason, 200)],
    silent: ["disconnected", "The agent has sent nothing for " + time],
  }[kind];
  return { kind: "bad", text, warning: cause + (state.services.size ? ". The data below are old." : ".") };
}

// Names what is stale: the list of services, some services, or both.
function staleParts(state) {
  const all = [...state.services.values()].filter((one) => one.freshness);
  const stale = all.filter((one) => one.freshness.state !== "live").length;
  const services = stale + " of " + all.length + " services";
  if (!stale) return "the list of services";
  return state.listStale ? "the list of services and of " + services : services;
}

const REFUSED = {
  xds_connections: "connections for xDS",
  xds_streams: "streams of xDS",
  xds_names: "requests of xDS with too many names",
  xds_name_bytes: "names of xDS for which there was no memory",
  xds_request_bytes: "requests of xDS that did not end",
  xds_services: "services for further clients of xDS",
  http_connections: "connections for HTTP",
  http_event_clients: "event clients",
  http_views: "requests for further services and namespaces",
};

// Returns the text on what the limits of the agent hide or have refused; empty if they did not.
export function limitNotice(state) {
  const refused = state.limits
    .filter((limit) => limit.refused > 0)
    .map((limit) => limit.refused + " " + (REFUSED[limit.name] ?? limit.name) + " (limit " + limit.max + ")");
  const omitted = state.omitted
    ? state.omitted + " services of this namespace are not shown: they are above the limit, or the store refuses them. "
    : "";
  return omitted + (refused.length ? "Refused since the start of the agent: " + refused.join("; ") + "." : "");
}
