// Light or dark, and the colours that are drawn with.

const listeners = new Set();

export function theme() {
  return document.documentElement.dataset.bsTheme;
}

/** Call `redraw` whenever the theme changes; returns how to stop that. */
export function onTheme(redraw) {
  listeners.add(redraw);
  return () => listeners.delete(redraw);
}

function apply(name) {
  document.documentElement.dataset.bsTheme = name;
  for (const redraw of listeners) redraw(name);
}

export function switchTheme() {
  const name = theme() === "dark" ? "light" : "dark";
  try {
    localStorage.setItem("penstock-theme", name);
  } catch {
    // It holds for this visit.
  }
  apply(name);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
  try {
    if (localStorage.getItem("penstock-theme")) return;
  } catch {
    // Then nothing was chosen.
  }
  apply(event.matches ? "dark" : "light");
});

/** The value of a custom property of the style sheet: a colour by its name there. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** The colour of the nth of several curves. */
export function nth(index) {
  return colour(`line-${(index % 8) + 1}`);
}
