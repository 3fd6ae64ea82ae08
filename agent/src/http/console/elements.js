// Texts and elements. Texts of the registry are foreign: they are inserted as text only, and invisible characters are
// shown as numbers.

export const $ = (id) => document.getElementById(id);

const HIDDEN = /[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu;

export function clean(text) {
  return String(text ?? "").replace(HIDDEN, (c) => "\\u{" + c.codePointAt(0).toString(16) + "}");
}

export function short(text, length) {
  const all = clean(text);
  return all.length > length ? all.slice(0, length) + "…" : all;
}

export function duration(ms) {
  if (ms < 1000) return "< 1 s";
  const s = Math.floor(ms / 1000);
  if (s < 120) return s + " s";
  return s < 7200 ? Math.floor(s / 60) + " min" : Math.floor(s / 3600) + " h";
}

export function clock(ms) {
  const d = new Date(ms);
  return [d.getHours(), d.getMinutes(), d.getSeconds()].map((n) => String(n).padStart(2, "0")).join(":");
}

export function element(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (key === "class") node.className = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

export function chip(text, kind) {
  return element("span", { class: "chip " + (kind ?? "") }, clean(text));
}

export function chips(nodes) {
  return element("div", { class: "chips" }, ...nodes);
}

export function options(select, entries, value) {
  select.replaceChildren(
    ...Object.entries(entries).map(([key, label]) => new Option(label, key, false, key === value)),
  );
}

export function compare(a, b) {
  return (a ?? "") < (b ?? "") ? -1 : (a ?? "") > (b ?? "") ? 1 : 0;
}
