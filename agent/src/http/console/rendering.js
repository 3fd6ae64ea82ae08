// Renders the shown view. Only one page of rows exists, and a row is made anew only if it has changed.

import { $, duration, element, short } from "./elements.js";
import { state } from "./registry.js";
import { view } from "./view.js";
import { VIEWS, age } from "./views.js";

const ROWS = 100; // rows of a page

export const shown = new Map();

export function render() {
  const current = VIEWS[view.name];
  const { all, rows } = current.rows();
  const pages = Math.max(1, Math.ceil(rows.length / ROWS));
  view.page = Math.min(view.page, pages - 1);
  const page = rows.slice(view.page * ROWS, (view.page + 1) * ROWS);
  const body = $("table").tBodies[0];
  const wanted = new Set(page.map(current.key));
  for (const [key, row] of shown)
    if (!wanted.has(key)) {
      row.node.remove();
      shown.delete(key);
    }
  page.forEach((one, index) => {
    const key = current.key(one),
      stamp = current.stamp(one);
    let row = shown.get(key);
    if (!row) shown.set(key, (row = { node: element("tr"), stamp: null }));
    if (row.stamp !== stamp) {
      fill(row.node, current, one);
      row.stamp = stamp;
    }
    if (body.children[index] !== row.node) body.insertBefore(row.node, body.children[index] ?? null);
  });
  const unknown = !state.synced && ["services", "service", "timeline"].includes(view.name);
  document.querySelector(".scroll").classList.toggle("none", rows.length === 0);
  $("empty").hidden = rows.length > 0;
  $("empty").textContent = unknown ? "Not known yet" : all > rows.length ? "Nothing matches" : current.empty;
  $("count").textContent =
    (rows.length === all ? all : rows.length + " of " + all) +
    (state.omitted && view.name === "services" ? ", " + state.omitted + " above the limit" : "");
  $("pages").hidden = pages < 2;
  $("page").textContent = "Page " + (view.page + 1) + " of " + pages;
  $("previous").disabled = view.page === 0;
  $("next").disabled = view.page >= pages - 1;
  replace($("head"), current.head?.() ?? []);
  replace($("foot"), current.foot?.() ?? []);
  status();
}

// Replaces the content unless it is equal, so that the focus stays.
function replace(target, nodes) {
  const next = element("div", {}, ...nodes);
  if (target.firstChild?.isEqualNode(next)) return;
  target.replaceChildren(next);
}

function fill(row, current, one) {
  row.className = current.gone?.(one) ? "gone" : "";
  const focused = row.contains(document.activeElement);
  const cells = current.cells(one).map((content, index) => {
    const name = current.columns[index];
    const cell = element("td", { "data-label": name.replace("#", "") }, content);
    if (name.startsWith("#")) cell.classList.add("number");
    if (!cell.textContent) cell.classList.add("blank");
    return cell;
  });
  row.replaceChildren(...cells);
  if (focused) row.querySelector("a, button")?.focus();
}

function status() {
  const chipNode = $("freshness"),
    banner = $("banner"),
    fresh = state.freshness;
  let text = "",
    kind = "good",
    warning = "";
  if (state.disconnected !== null) {
    kind = "bad";
    text = "disconnected";
    warning =
      "No connection to the agent since " +
      duration(Date.now() - state.disconnected) +
      (state.problem ? " (" + short(state.problem, 200) + ")" : "") +
      (state.services.size ? ". The data below are old." : ".");
  } else if (!state.synced || !fresh) {
    kind = "warn";
    text = "connecting";
  } else if (fresh.state === "live") {
    text = "live, age " + duration(age(fresh));
  } else {
    kind = "bad";
    text = "stale " + duration(age(fresh));
    warning =
      "The data are stale: last confirmed " +
      duration(age(fresh)) +
      " ago. The store does not answer" +
      (fresh.cause ? " (" + short(fresh.cause, 200) + ")" : "") +
      ". Instances below are the last known ones.";
  }
  chipNode.className = "chip " + kind;
  if (chipNode.textContent !== text) chipNode.textContent = text;
  banner.hidden = !warning;
  if (banner.textContent !== warning) banner.textContent = warning;
}
