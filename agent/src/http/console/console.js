// The console of the agent: reads events, keeps the registry's state, and shows one page of it at a time. Begin with
// registry.js and views.js.

import { POLL_MS, follow, loadDepartures, loadNamespaces, poll } from "./connection.js";
import { $, clean, element, options } from "./elements.js";
import { forgetGone, state } from "./registry.js";
import { render, shown } from "./rendering.js";
import { changed, renderWith, view } from "./view.js";
import { VIEWS } from "./views.js";

function navigate() {
  const [, name, argument] = location.hash.split("/");
  view.name = Object.hasOwn(VIEWS, name) ? name : "services";
  try {
    view.service = decodeURIComponent(argument ?? "");
  } catch {
    view.service = argument;
  }
  view.page = 0;
  view.filter = "all";
  view.search = $("search").value = "";
  const current = VIEWS[view.name];
  view.sort = Object.keys(current.sorts)[0];
  options($("filter"), current.filters, view.filter);
  options($("sort"), current.sorts, view.sort);
  shown.clear();
  $("table").tBodies[0].replaceChildren();
  const heads = current.columns.map((column) =>
    element(
      "th",
      { role: "columnheader", scope: "col", class: column.startsWith("#") ? "number" : "" },
      column.replace("#", ""),
    ),
  );
  $("table").tHead.replaceChildren(element("tr", { role: "row" }, ...heads));
  for (const tab of ["services", "queues", "clients", "timeline"]) {
    const is = tab === view.name || (tab === "services" && view.name === "service");
    if (is) $("tab-" + tab).setAttribute("aria-current", "page");
    else $("tab-" + tab).removeAttribute("aria-current");
  }
  document.title = (view.name === "service" ? clean(view.service) : current.columns[0]) + " – enlist";
  $("main").setAttribute("aria-label", document.title);
  if (view.name === "service") loadDepartures(view.service);
  poll();
  render();
}

// Uses the storage of the browser, which it may block.
function stored(use) {
  try {
    return use(localStorage);
  } catch {
    return null;
  }
}

// Shows the view that the user has opened. The focus would be lost with the row that had it.
function open() {
  navigate();
  $("main").focus();
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName);
  if (event.key === "Escape") {
    if (view.search) {
      view.search = $("search").value = "";
      changed();
    } else if (typing) document.activeElement.blur();
    else if (view.name !== "services") location.hash = "#/services";
  } else if (typing || !$("shortcuts").checked) {
    return;
  } else if (event.key === "/") {
    event.preventDefault();
    $("search").focus();
  } else if ("1234".includes(event.key)) {
    const tab = [...document.querySelectorAll("nav a:not([hidden])")][Number(event.key) - 1];
    if (tab) location.hash = tab.hash;
  } else if (event.key === "j" || event.key === "k") {
    const rows = [...document.querySelectorAll("#table tbody tr")];
    const now = rows.findIndex((row) => row.contains(document.activeElement));
    const row = rows[now < 0 ? (event.key === "j" ? 0 : rows.length - 1) : now + (event.key === "j" ? 1 : -1)];
    if (!row) return;
    const target = row.querySelector("a, button") ?? row;
    if (target === row) row.tabIndex = -1;
    target.focus();
  }
}

function start() {
  renderWith(render);
  state.namespace = new URLSearchParams(location.search).get("namespace") || "default";
  addEventListener("hashchange", open);
  addEventListener("keydown", keys);
  $("search").addEventListener("input", () => {
    view.search = $("search").value;
    view.page = 0;
    view.asked = true;
    changed();
  });
  $("filter").addEventListener("change", () => {
    view.filter = $("filter").value;
    view.page = 0;
    view.asked = true;
    changed();
  });
  $("sort").addEventListener("change", () => {
    view.sort = $("sort").value;
    view.page = 0;
    changed();
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // its address is no view
    $("main").focus();
  });
  $("shortcuts").checked = stored((storage) => storage.getItem("shortcuts")) !== "off";
  $("shortcuts").addEventListener("change", () =>
    stored((storage) => storage.setItem("shortcuts", $("shortcuts").checked ? "on" : "off")),
  );
  $("previous").addEventListener("click", () => {
    view.page -= 1;
    render();
  });
  $("next").addEventListener("click", () => {
    view.page += 1;
    render();
  });
  $("namespace").addEventListener("change", () => {
    location.search = "?namespace=" + encodeURIComponent($("namespace").value);
  });
  $("login").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("token", $("token").value.trim());
    location.reload();
  });
  navigate();
  loadNamespaces();
  follow();
  setInterval(() => {
    forgetGone();
    if (!document.hidden) changed();
  }, 1000);
  setInterval(poll, POLL_MS);
}

start();
