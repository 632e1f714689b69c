// Puts the page together. The address says what is shown: `#` the start, `#ID` a reconstruction.

async function start() {
  setTheme(stored("theme"));
  byId("theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
  byId("dialog").addEventListener("click", (event) => event.target === byId("dialog") && byId("dialog").close());
  const about = await ask("about");
  const photos = new Photos(about, (job) => (location.hash = job.id));
  const list = new JobList();
  const view = new JobView(() => (location.hash = ""));
  byId("about").textContent =
    `mast3r-sfm ${about.version}; model ${about.model.name} on ${about.model.device}, weights under ${about.model.licence}`;

  function show() {
    const id = decodeURIComponent(location.hash.slice(1));
    list.close();
    view.close();
    byId("start").hidden = Boolean(id);
    byId("about").hidden = Boolean(id);
    if (id) view.open(id);
    else list.open();
  }

  addEventListener("hashchange", show);
  show();
  window.page = { about, photos, view, list, ready: true }; // for the console, and for tests
}

// ------------------------------------------------------------------ dark and light, as in the report
function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function setTheme(theme) {
  if (theme !== "dark" && theme !== "light") return;
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // a browser that keeps nothing
  }
}

function stored(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

start().catch((error) => {
  byId("start").hidden = false;
  say(byId("notice"), `The page could not be put together: ${error.message}`);
  console.error(error);
});
