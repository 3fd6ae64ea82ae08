// The views: rows, columns and filters of each.

import { POLL_MS } from "./connection.js";
import { chip, chips, clean, clock, compare, duration, element, short } from "./elements.js";
import { problem, state, summary } from "./registry.js";
import { age } from "./status.js";
import { changed, expanded, matcher, view } from "./view.js";

function healthChips(all) {
  const nodes = [];
  if (all.serving) nodes.push(chip(all.serving + " serving", "good"));
  if (all.draining) nodes.push(chip(all.draining + " draining", "warn"));
  if (all.not_serving) nodes.push(chip(all.not_serving + " not serving", "bad"));
  if (all.held) nodes.push(chip(all.held + " held", "warn"));
  if (!all.instances) nodes.push(chip("no instance", "bad"));
  return chips(nodes);
}

function counts(map) {
  const sorted = [...map].sort((a, b) => b[1] - a[1]);
  const nodes = sorted.slice(0, 4).map(([name, count]) => chip(short(name, 24) + " × " + count));
  if (sorted.length > 4) nodes.push(chip("+ " + (sorted.length - 4)));
  return chips(nodes);
}

function freshnessChip(freshness) {
  if (!freshness || !state.live) return chip("unknown", "warn");
  if (freshness.state === "live") return chip("live", "good");
  return chip("stale " + duration(age(freshness, state.live, Date.now())), "bad");
}

// Returns the reasons for which reads failed.
function failures(reads) {
  return reads.filter((one) => one.status === "rejected").map((one) => one.reason.message);
}

function failureNotes(messages) {
  return messages.map((message) => element("p", { class: "chip bad" }, "Not read: " + clean(message)));
}

const readAt = (at) => "Read every " + POLL_MS / 1000 + " s; last " + clock(at) + ".";

function serviceLink(name) {
  return element("a", { href: "#/service/" + encodeURIComponent(name) }, short(name, 120));
}

const SILENT_MS = 11000;

export const VIEWS = {
  services: {
    filters: { all: "all", problems: "with problems", changed: "changed in the last minute" },
    sorts: { name: "name", instances: "instances", changed: "change seen" },
    columns: ["Service", "Health", "Versions", "Zones", "#Weight", "Change seen", "Freshness"],
    empty: "No service",
    known: () => state.synced,
    rows() {
      const rows = [...state.services.values()].filter((one) => one.instances.size > 0 || one.gone.size > 0);
      const match = matcher();
      const found = rows.filter(
        (one) =>
          match(one.name, ...summary(one).versions.keys(), ...summary(one).zones.keys()) &&
          (view.filter !== "problems" || problem(one)) &&
          (view.filter !== "changed" || Date.now() - one.changed < 60000),
      );
      const by = { instances: (a, b) => b.instances.size - a.instances.size, changed: (a, b) => b.changed - a.changed };
      return { all: rows.length, rows: found.sort(by[view.sort] ?? ((a, b) => compare(a.name, b.name))) };
    },
    key: (one) => one.name,
    stamp: (one) =>
      JSON.stringify([
        one.changed,
        one.freshness?.state,
        state.live,
        summary(one).instances,
        Math.floor((Date.now() - one.changed) / 5000),
      ]),
    cells: (one) => {
      const all = summary(one);
      return [
        serviceLink(one.name),
        healthChips(all),
        counts(all.versions),
        counts(all.zones),
        String(all.weight),
        one.changed ? duration(Date.now() - one.changed) + " ago" : "",
        freshnessChip(one.freshness),
      ];
    },
  },
  service: {
    filters: { all: "all", serving: "serving", draining: "draining", not_serving: "not serving", held: "held" },
    sorts: { id: "id", weight: "weight", version: "version", zone: "zone" },
    columns: ["Instance", "Endpoints", "#Weight", "Share", "Version", "Zone", "Health", "#Revision", "Metadata"],
    empty: "No instance",
    known: () => state.synced && (state.services.has(view.service) || !state.omitted),
    rows() {
      const found = state.services.get(view.service);
      if (!found) return { all: 0, rows: [] };
      const match = matcher();
      const here = [...found.instances.values()].map((instance) => ({ instance, gone: null }));
      const gone = [...found.gone.values()].map((gone) => ({ instance: gone.instance, gone }));
      const wanted = ({ instance }) =>
        view.filter === "all" || instance.health === view.filter || instance.presence === view.filter;
      const rows = [...here, ...gone].filter(
        (one) =>
          wanted(one) &&
          match(
            one.instance.id,
            one.instance.version,
            one.instance.zone,
            ...one.instance.endpoints,
            ...Object.entries(one.instance.metadata).map(([key, value]) => key + "=" + value),
          ),
      );
      const by = {
        weight: (a, b) => b.instance.weight - a.instance.weight,
        version: (a, b) => compare(a.instance.version, b.instance.version),
        zone: (a, b) => compare(a.instance.zone, b.instance.zone),
      };
      const total = summary(found).weight;
      rows.forEach((one) => {
        one.share = one.gone || one.instance.health !== "serving" || !total ? 0 : one.instance.weight / total;
      });
      return {
        all: here.length + gone.length,
        rows: rows.sort((a, b) => by[view.sort]?.(a, b) || compare(a.instance.id, b.instance.id)),
      };
    },
    key: (one) => one.instance.id,
    stamp: (one) =>
      JSON.stringify([
        one.instance.modified,
        one.instance.created,
        one.instance.presence,
        one.gone?.at,
        one.share,
        expanded.has(one.instance.id),
      ]),
    gone: (one) => one.gone !== null,
    cells: ({ instance, share, gone }) => {
      const percent = (share * 100).toFixed(share > 0 && share < 0.1 ? 2 : 1) + " %";
      const kind = { serving: "good", draining: "warn", not_serving: "bad" }[instance.health];
      const health = gone
        ? [chip(...endOf(gone))]
        : [
            chip(instance.health.replace("_", " "), kind),
            ...(instance.presence === "held" ? [chip("held", "warn")] : []),
          ];
      return [
        element("strong", {}, short(instance.id, 120)),
        element("span", { class: "code" }, instance.endpoints.map(clean).join("\n")),
        String(instance.weight),
        gone
          ? ""
          : element(
              "span",
              {},
              element("progress", { max: "1", value: String(share), "aria-hidden": "true" }),
              " " + percent,
            ),
        short(instance.version, 60),
        short(instance.zone, 60),
        chips(health),
        String(instance.created),
        metadata(instance),
      ];
    },
    head() {
      const found = state.services.get(view.service);
      const back = element("a", { href: "#/services" }, "← Services");
      const title = element("h1", {}, short(view.service, 255));
      if (!found) return [back, title, element("p", { class: "soft" }, absence())];
      return [
        back,
        title,
        chips([
          ...healthChips(summary(found)).children,
          freshnessChip(found.freshness),
          ...counts(summary(found).versions).children,
          ...counts(summary(found).zones).children,
        ]),
      ];
    },
    foot() {
      const departures = state.departures.get(view.service) ?? [];
      const unread = state.departuresProblem ? ["earlier departures: " + state.departuresProblem] : [];
      if (!departures.length) return failureNotes(unread);
      const items = departures
        .slice(0, 20)
        .map((one) =>
          element(
            "li",
            {},
            element("span", { class: "soft" }, clock(one.at_ms) + " "),
            chip(...endOf(one)),
            " ",
            element("strong", {}, short(one.instance.id, 120)),
            " " +
              one.instance.endpoints.map(clean).join(", ") +
              (one.instance.version ? ", version " + short(one.instance.version, 60) : ""),
          ),
        );
      return [
        element("h2", {}, "Recent departures"),
        element("ul", { class: "plain" }, ...items),
        ...failureNotes(unread),
      ];
    },
  },
  queues: {
    filters: { all: "all", locks: "locks", elections: "elections", waiting: "with waiting contenders" },
    sorts: { name: "name", waiting: "waiting" },
    columns: ["Name", "Kind", "Holder", "#Token", "#Since revision", "Waiting"],
    empty: "No lock and no election has a contender",
    known: () => state.queues !== null && !failures([state.queues.locks, state.queues.elections]).length,
    rows() {
      const list = (settled, kind) =>
        settled?.status === "fulfilled" ? settled.value[kind].map((one) => ({ ...one, kind })) : [];
      const all = [...list(state.queues?.locks, "locks"), ...list(state.queues?.elections, "elections")].map((one) => ({
        ...one,
        front: one.kind === "locks" ? one.holders : one.leader ? [one.leader] : [],
      }));
      const match = matcher();
      const found = all.filter(
        (one) =>
          (view.filter === "all" || view.filter === one.kind || (view.filter === "waiting" && one.waiting.length)) &&
          match(one.name, ...[...one.front, ...one.waiting].map((entry) => entry.process ?? entry.value)),
      );
      return {
        all: all.length,
        rows: found.sort(
          (a, b) => (view.sort === "waiting" ? b.waiting.length - a.waiting.length : 0) || compare(a.name, b.name),
        ),
      };
    },
    key: (one) => one.kind + "/" + one.name,
    stamp: (one) => JSON.stringify([one.front, one.waiting, one.delayed]),
    cells: (one) => {
      const who = (entry) => short(entry.process ?? entry.value ?? "unnamed", 80) || "unnamed";
      const lines = (text) => element("span", {}, one.front.map(text).join("\n"));
      const shared = one.front.some((entry) => entry.mode === "shared") ? " (shared)" : "";
      const waiting = one.waiting
        .slice(0, 5)
        .map((entry) =>
          element("li", {}, who(entry) + " ", element("span", { class: "soft" }, "token " + entry.token)),
        );
      if (one.waiting.length > 5)
        waiting.push(element("li", { class: "soft" }, "and " + (one.waiting.length - 5) + " more"));
      return [
        element("strong", {}, short(one.name, 120)),
        (one.kind === "locks" ? "lock" : "election") + shared,
        one.delayed ? chip("delayed", "warn") : element("span", { class: "code" }, one.front.map(who).join("\n")),
        lines((entry) => String(entry.token)),
        lines((entry) => String(entry.created)),
        one.waiting.length ? element("ol", {}, ...waiting) : element("span", { class: "soft" }, "none"),
      ];
    },
    head() {
      if (!state.queues) return [element("p", { class: "soft" }, "Reading the queues …")];
      const failed = failures([state.queues.locks, state.queues.elections]);
      return failed.length ? failureNotes(failed) : [element("p", { class: "soft" }, readAt(state.queues.at))];
    },
  },
  clients: {
    filters: { all: "all", rejected: "with rejections" },
    sorts: { node: "node", rejected: "rejections" },
    columns: ["Node", "Library", "Address", "Zone", "Open", "Subscriptions", "#Rejections", "Last rejection"],
    empty: "No stream of xDS is open",
    known: () => state.clients?.clients.status === "fulfilled",
    rows() {
      const list = state.clients?.clients.value?.clients ?? [];
      // Streams of one node have one key each, also once an earlier client is gone.
      const counts = new Map();
      const all = list.map((one) => {
        const name = one.node + " " + one.peer + " " + one.services.slice(0, 8).join(" ");
        counts.set(name, (counts.get(name) ?? 0) + 1);
        return { ...one, id: name + " " + counts.get(name) };
      });
      const match = matcher();
      const found = all.filter(
        (one) => (view.filter === "all" || one.rejected) && match(one.node, one.user_agent, one.zone, ...one.services),
      );
      return {
        all: all.length,
        rows: found.sort((a, b) => (view.sort === "rejected" ? b.rejected - a.rejected : 0) || compare(a.node, b.node)),
      };
    },
    key: (one) => one.id,
    stamp: (one) =>
      JSON.stringify([
        [one.node, one.user_agent, one.peer, one.zone, one.services, one.subscriptions, one.rejected, one.last_rejection?.message],
        [duration(one.connected_ms), silence(one), duration(one.last_rejection?.age_ms ?? 0)],
      ]),
    cells: (one) => [
      element("strong", {}, short(one.node, 120) || "unnamed"),
      short(one.user_agent, 80),
      clean(one.peer),
      short(one.zone, 60),
      chips([element("span", {}, duration(one.connected_ms)), ...(silence(one) ? [chip(silence(one), "bad")] : [])]),
      element(
        "span",
        {},
        one.services
          .slice(0, 8)
          .map((name) => short(name, 60))
          .join("\n") + (one.subscriptions > 8 ? "\nand " + (one.subscriptions - 8) + " more" : ""),
      ),
      String(one.rejected),
      one.last_rejection
        ? element(
            "span",
            { class: "code" },
            duration(one.last_rejection.age_ms) +
              " ago, " +
              clean(one.last_rejection.type) +
              ": " +
              short(one.last_rejection.message, 400),
          )
        : "",
    ],
    head() {
      if (!state.clients) return [element("p", { class: "soft" }, "Reading the clients …")];
      const { clients, at } = state.clients;
      if (clients.status === "rejected") return failureNotes(failures([clients]));
      const text = "One row per stream; some libraries open one per service. " + readAt(at);
      const notSent = clients.value.not_sent;
      return [
        viewsNote(clients.value.views),
        ...(notSent ? [element("p", { class: "chip bad" }, notSent + " assignments are too large to be sent")] : []),
        element("p", { class: "soft" }, text),
      ];
    },
  },
  timeline: {
    filters: { all: "all", added: "added", updated: "updated", departed: "departed", lost: "lost", unknown: "unknown" },
    sorts: { newest: "newest first", oldest: "oldest first" },
    columns: ["Time", "Change", "Service", "Instance", "Detail"],
    empty: "No change since this page was opened",
    known: () => state.synced,
    rows() {
      const match = matcher();
      const found = state.timeline.filter(
        (one) => (view.filter === "all" || one.kind === view.filter) && match(one.service, one.id, one.detail),
      );
      return { all: state.timeline.length, rows: view.sort === "oldest" ? found : found.reverse() };
    },
    key: (one) => one.key,
    stamp: () => "",
    cells: (one) => [
      clock(one.at),
      chip(one.kind, { added: "good", updated: "", lost: "bad" }[one.kind] ?? "warn"),
      one.service ? serviceLink(one.service) : "",
      short(one.id, 120),
      short(one.detail, 400),
    ],
  },
};

// Returns the staleness of the assignments, and its kind.
export function viewsNote({ followed, stale, unknown, oldest_age_ms }) {
  const oldest = followed > unknown ? "; the oldest was confirmed " + duration(oldest_age_ms) + " ago" : "";
  const text = followed + " assignments: " + stale + " stale, " + unknown + " not known yet" + oldest;
  return element("p", { class: stale || unknown ? "chip bad" : "soft" }, text);
}

// Returns the silence of a client that has not answered a ping; empty otherwise. A ping comes after 10 s.
function silence(client) {
  return client.silent_ms > SILENT_MS ? "silent for " + duration(client.silent_ms) : "";
}

// Returns the word for the end of an instance, and its kind.
function endOf({ reason }) {
  return { departed: ["left", ""], lost: ["lost", "bad"] }[reason] ?? ["gone", "warn"];
}

// Returns the reason for which a service is not shown.
function absence() {
  if (!state.synced) return "The service is not known yet.";
  if (state.omitted) {
    return "Not known: the agent omits services above its limit or refused by the store, and this can be one of them.";
  }
  return "The service has no instance.";
}

function metadata(instance) {
  const all = Object.entries(instance.metadata);
  const open = expanded.has(instance.id);
  const nodes = (open ? all : all.slice(0, 4)).map(([key, value]) =>
    chip(open ? clean(key) + "=" + clean(value) : short(key, 40) + "=" + short(value, 40)),
  );
  const more = all.length > 4 || all.some(([key, value]) => key.length > 40 || value.length > 40);
  if (more) {
    const button = element(
      "button",
      { type: "button", "aria-expanded": String(open) },
      open ? "less" : "all " + all.length,
    );
    button.addEventListener("click", () => {
      if (!expanded.delete(instance.id)) expanded.add(instance.id);
      changed();
    });
    nodes.push(button);
  }
  return chips(nodes);
}
