// The shown view with its filters, and the plan of the next rendering.

const RENDER_MS = 200; // minimum time between two renderings

// asked: the user has changed the search or the filter, so that the number of rows is announced.
export const view = { name: "services", service: "", page: 0, search: "", filter: "all", sort: "", asked: false };
export const expanded = new Set();

let render = () => {};
let planned = false;
let rendered = 0;

// Sets the function that renders the page.
export function renderWith(renderer) {
  render = renderer;
}

export function changed() {
  if (planned) return;
  planned = true;
  setTimeout(
    () => {
      planned = false;
      rendered = Date.now();
      render();
    },
    Math.max(0, rendered + RENDER_MS - Date.now()),
  );
}

export function matcher() {
  const words = view.search.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return () => true;
  return (...texts) => {
    const text = texts.filter(Boolean).join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  };
}
