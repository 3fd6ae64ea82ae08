// Renders the shown view. Only one page of rows exists, and a row is made anew only if it has changed.

import { $, element } from "./elements.js";
import { state } from "./registry.js";
import { view } from "./view.js";
import { announcement, limitNotice, status } from "./status.js";
import { VIEWS } from "./views.js";

const ROWS = 100; // rows of a page

export const shown = new Map();

export function render() {
  keepFocus(renderView);
  header();
}

// Changes the page. The focus stays on its element, also if that is moved, or goes to the one that has replaced it.
function keepFocus(change) {
  const before = document.activeElement;
  const region = before?.closest("#head, #foot, #table");
  change();
  if (!region || document.activeElement !== document.body) return;
  const replaces = (one) => one.textContent === before.textContent;
  const next = before.isConnected ? before : [...region.querySelectorAll("a, button")].find(replaces);
  (next ?? $("main")).focus({ preventScroll: true });
}

function renderView() {
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
    if (!row) shown.set(key, (row = { node: element("tr", { role: "row" }), stamp: null }));
    if (row.stamp !== stamp) {
      fill(row.node, current, one);
      row.stamp = stamp;
    }
    if (body.children[index] !== row.node) body.insertBefore(row.node, body.children[index] ?? null);
  });
  document.querySelector(".scroll").classList.toggle("none", rows.length === 0);
  $("empty").hidden = rows.length > 0;
  $("empty").textContent = !current.known() ? "Not known" : all > rows.length ? "Nothing matches" : current.empty;
  const counted = current.known() || all > 0;
  $("count").textContent = !counted ? "" : rows.length === all ? all : rows.length + " of " + all;
  if (view.asked && counted) {
    setText($("spoken"), $("count").textContent + " rows");
    view.asked = false;
  }
  $("pages").hidden = pages < 2;
  $("page").textContent = "Page " + (view.page + 1) + " of " + pages;
  $("previous").disabled = view.page === 0;
  $("next").disabled = view.page >= pages - 1;
  replace($("head"), current.head?.() ?? []);
  replace($("foot"), current.foot?.() ?? []);
}

// Replaces the content unless it is equal.
function replace(target, nodes) {
  const next = element("div", {}, ...nodes);
  if (target.firstChild?.isEqualNode(next)) return;
  target.replaceChildren(next);
}

function fill(row, current, one) {
  row.className = current.gone?.(one) ? "gone" : "";
  const focused = row !== document.activeElement && row.contains(document.activeElement);
  const cells = current.cells(one).map((content, index) => {
    const name = current.columns[index];
    const cell = element(
      "td",
      { role: "cell", "aria-colindex": index + 1, "data-label": name.replace("#", "") },
      content,
    );
    if (name.startsWith("#")) cell.classList.add("number");
    if (!cell.textContent) cell.classList.add("blank");
    return cell;
  });
  row.replaceChildren(...cells);
  if (focused) row.querySelector("a, button")?.focus();
}

let announced = ""; // the state that was announced last
let limited = false;

function header() {
  const { kind, text, warning } = status(state, Date.now());
  setText($("freshness"), text);
  $("freshness").className = "chip " + kind;
  $("banner").hidden = !warning;
  setText($("banner"), warning);
  const spoken = announcement(state, Date.now());
  if (spoken !== null && spoken !== announced) {
    setText($("alert"), spoken);
    setText($("spoken"), spoken ? "" : "The data are live again.");
    announced = spoken;
  }
  const notice = limitNotice(state);
  if (notice && !limited) setText($("spoken"), "Limits of the agent hide or have refused something.");
  limited = Boolean(notice);
  $("limits").hidden = !notice;
  setText($("limits"), notice);
}

// Sets a text unless it is equal, so that it is not announced again.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
