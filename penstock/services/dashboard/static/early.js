// Runs before anything is drawn, so that a page that is to be dark is never seen light.
(function () {
  let chosen = null;
  try {
    chosen = localStorage.getItem("penstock-theme");
  } catch {
    // No storage: the system's choice counts.
  }
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.bsTheme = dark ? "dark" : "light";
})();
