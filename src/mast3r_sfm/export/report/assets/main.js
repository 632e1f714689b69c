// Puts the page together.

const byId = (id) => document.getElementById(id);

const KEYS = [
  ["drag, wheel, two fingers", "turn, zoom, shift the scene"],
  ["double click", "turn around this point"],
  ["1, 2", "orbit; walk from photo to photo"],
  ["← →", "previous, next photo"],
  ["W A S D, Q E", "walk; down and up"],
  ["M", "measure: click two points"],
  ["C", "draw the cameras, or not"],
  ["+ −", "point size"],
  ["[ ]", "confidence"],
  ["R", "first view again"],
  ["F", "full screen"],
  ["T", "dark or light"],
  ["Esc", "close, stop measuring"],
  ["?", "these keys"],
];

async function start() {
  showKeys();
  setTheme(stored("theme"));
  const source = await openSource();
  const report = source.document;
  describe(report);
  const plan = new Plan(byId("map"), byId("map-reading"), report, (view) => choose(view, true));
  const panel = new PhotoPanel(byId("photo"), source, {
    stand: (view) => viewer && viewer.standAt(view),
    step: (by) => step(by),
    close: () => choose(null),
  });
  let chosen = null;
  let viewer = null;

  function chosenNow(view) {
    chosen = view;
    panel.show(view);
    plan.choose(view);
    byId("where").textContent = view ? `${view.name} (${view.index + 1} of ${report.views.length})` : "";
  }

  function choose(view, show = false) {
    if (viewer && (!view || view.camera)) viewer.choose(view);
    else if (viewer) viewer.choose(null);
    if (chosen !== view) chosenNow(view); // a photo without a camera, or a page without a 3D view
    if (show && view) byId("scene").scrollIntoView({ block: "nearest" });
  }

  function step(by) {
    if (viewer && viewer.walk.enabled) return viewer.step(by);
    const count = report.views.length;
    const now = chosen ? report.views.indexOf(chosen) : by > 0 ? -1 : 0;
    choose(report.views[(now + by + count) % count]);
  }

  const matrix = new Matrix(byId("matrix"), byId("matrix-reading"), byId("matches-lead"), report, (view) => choose(view, true));
  fillSheet(byId("sheet"), report, source, (view) => choose(view, true));
  fillTable(byId("table"), report, (view) => choose(view, true));
  fillFacts(byId("facts"), report);
  fillNotices(byId("notices"), report);

  try {
    viewer = new Viewer(byId("view"), report, {
      chosen: chosenNow,
      photo: (view) => source.small(view.index, "photo"),
      drawn: (count) => {
        const kept = report.kept_points;
        byId("drawn").textContent = `${number(count)} of ${number(kept)} points drawn`;
      },
      measured: showDistance,
      walking: (walking) => {
        byId("orbit").setAttribute("aria-pressed", !walking);
        byId("walk").setAttribute("aria-pressed", walking);
        byId("step").hidden = !walking;
      },
      framed: placeRuler,
    });
  } catch (error) {
    // without WebGL everything else still works
    say(byId("empty"), `The 3D view cannot be shown: ${error.message}`);
  }

  function showDistance(distance, ends) {
    byId("distance").textContent = distance === null ? "" : metres(distance);
    if (viewer && viewer.measuring) {
      say(byId("hint"), ["Click the first point.", "Click the second point.", `Distance: ${metres(distance ?? 0)}`][ends]);
    }
  }

  function placeRuler() {
    const ends = viewer ? viewer.endsInView() : [];
    const [a, b = a] = ends;
    byId("distance").hidden = ends.length < 2;
    byId("ruler").toggleAttribute("hidden", !ends.length);
    if (!ends.length) return;
    for (const line of byId("ruler").querySelectorAll("line")) {
      for (const [name, value] of [["x1", a[0]], ["y1", a[1]], ["x2", b[0]], ["y2", b[1]]]) line.setAttribute(name, value);
    }
    [a, b].forEach(([x, y], k) => {
      byId("ruler").querySelectorAll("circle")[k].setAttribute("cx", x);
      byId("ruler").querySelectorAll("circle")[k].setAttribute("cy", y);
    });
    const [x, y] = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
    byId("distance").style.transform = `translate(-50%, -130%) translate(${x}px, ${y}px)`;
  }

  function measure(on) {
    if (!viewer) return;
    byId("measure").setAttribute("aria-pressed", on);
    byId("view").classList.toggle("measuring", on);
    byId("hint").hidden = true;
    viewer.setMeasuring(on);
  }

  function setConfidence() {
    const level = Number(byId("confidence").value);
    const [low, high] = report.confidence || [1, 1];
    byId("confidence-value").textContent = number(low * (high / low) ** (level / 255), 3);
    if (viewer) viewer.setThreshold(level);
  }

  function nudge(id, by) {
    const slider = byId(id);
    slider.value = Number(slider.value) + by;
    slider.dispatchEvent(new Event("input"));
  }

  const act = {
    orbit: () => viewer && viewer.setWalking(false),
    walk: () => viewer && viewer.setWalking(true),
    measure: () => measure(!(viewer && viewer.measuring)),
    cameras: () => {
      const shown = byId("cameras").getAttribute("aria-pressed") !== "true";
      byId("cameras").setAttribute("aria-pressed", shown);
      if (viewer) viewer.showCameras(shown);
    },
    reset: () => {
      measure(false);
      choose(null);
      for (const [id, value] of [["size", 1], ["confidence", 0]]) {
        byId(id).value = value;
        byId(id).dispatchEvent(new Event("input"));
      }
      if (viewer) viewer.reset();
    },
    full: toggleFullScreen,
    help: () => byId("keys").showModal(),
    previous: () => step(-1),
    next: () => step(1),
    theme: () => {
      setTheme(isDark() ? "light" : "dark");
      repaint();
    },
  };
  for (const [id, does] of Object.entries(act)) byId(id).addEventListener("click", does);
  byId("size").addEventListener("input", () => viewer && viewer.setSize(Number(byId("size").value)));
  byId("confidence").addEventListener("input", setConfidence);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  addEventListener("storage", (event) => { // another page of this server, or the one around this one, was switched
    if (event.key !== "theme") return;
    setTheme(event.newValue);
    repaint();
  });

  const keys = {
    1: act.orbit, 2: act.walk, m: act.measure, c: act.cameras, r: act.reset, f: act.full, t: act.theme, "?": act.help,
    arrowleft: act.previous, arrowright: act.next,
    "+": () => nudge("size", 0.2), "=": () => nudge("size", 0.2), "-": () => nudge("size", -0.2),
    "[": () => nudge("confidence", -8), "]": () => nudge("confidence", 8),
    escape: () => {
      if (viewer && viewer.measuring) measure(false);
      else if (viewer && viewer.walk.enabled) viewer.setWalking(false);
      else choose(null);
      byId("stage").classList.remove("filled");
    },
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
    const elsewhere = event.target.closest && event.target.closest("input, select, textarea, #settings, #quality");
    if (elsewhere && event.key !== "?") return;
    const key = event.key.toLowerCase();
    if (viewer && viewer.walk.enabled && "wasdqe".includes(key)) {
      viewer.walk.held.add(key);
      viewer.redraw();
      return event.preventDefault();
    }
    if (keys[key]) {
      event.preventDefault();
      keys[key]();
    }
  });
  addEventListener("keyup", (event) => viewer && viewer.walk.held.delete(event.key.toLowerCase()));
  addEventListener("blur", () => viewer && viewer.walk.held.clear());

  function repaint() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    matrix.draw();
    plan.draw();
    if (!viewer) return;
    viewer.setColours({
      background: colour("--sky"), camera: colour("--accent"), doubtful: colour("--doubtful"), chosen: colour("--chosen"),
    });
  }

  repaint();
  setConfidence();
  if (!report.views.some((view) => view.camera)) say(byId("empty"), "No photo has a place in the scene.");
  else if (!report.kept_points) say(byId("empty"), "No pixel is confident enough to be shown; the cameras are.");
  if (viewer) {
    viewer.setBounds(source.chunks);
    viewer.reset();
    for (let k = 0; k < source.chunks.length; k++) {
      const buffer = await source.points(k);
      viewer.addChunk(source.chunks[k], buffer);
      plan.add(viewer.chunks[k]);
      if (k % 8 === 7) await new Promise(requestAnimationFrame); // let the page breathe
    }
  }
  window.page = { report, viewer, source, ready: true }; // for the console, and for tests
}

function describe(report) {
  const { views, verdict, pairs } = report;
  const placed = views.filter((view) => view.registered);
  const title = `Reconstruction of ${views.length === 1 ? "one photo" : `${views.length} photos`}`;
  document.title = byId("title").textContent = title;
  const focals = placed.map((view) => view.focal_px);
  const middle = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
  const tracked = placed.map((view) => view.track_error_px).filter((value) => value !== null);
  const total = Object.values(report.seconds).reduce((sum, value) => sum + value, 0);
  const facts = [
    [`${placed.length} of ${views.length}`, "photos placed"],
    [`${number(pairs.num_used)} of ${number(pairs.num_all)}`, "pairs used"],
    tracked.length && [`${number(middle(tracked), 2)} px`, "error of tracks, median"],
    focals.length && [[...new Set([Math.min(...focals), Math.max(...focals)].map((f) => number(f, 4)))].join(" – ") + " px",
      "focal length"],
    [number(report.kept_points), "confident pixels"],
    total && [`${total.toFixed(total < 100 ? 1 : 0)} s`, "computed in"],
  ].filter(Boolean);
  byId("lead").replaceChildren(...facts.map(([value, name]) => make("span", {}, make("strong", {}, value), ` ${name}`)));
  if (verdict) byId("badge").replaceWith(badge(verdict));
}

function say(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

function showKeys() {
  const dialog = byId("keys");
  const close = make("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Close");
  dialog.append(make("h2", {}, "Keys"), factList(Object.fromEntries(KEYS)), close);
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}

// ------------------------------------------------------------------ dark and light
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
    // a page opened as a file may have no memory
  }
}

function stored(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function toggleFullScreen() {
  const stage = byId("stage");
  if (document.fullscreenElement) return document.exitFullscreen();
  const fill = () => stage.classList.toggle("filled"); // telephones that show only films on the full screen
  return stage.requestFullscreen ? stage.requestFullscreen().catch(fill) : fill();
}

start().catch((error) => {
  say(byId("empty"), `The page could not be put together: ${error.message}`);
  console.error(error);
});
