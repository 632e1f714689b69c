// What stands around the 3D view: the chosen photo, the sheet, the matrix, the plan, the tables. All text goes in as
// text, never as HTML: names of files may hold anything.

const KINDS = ["photo", "depth", "confidence"];

function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return size >= 1e-4 || size === 0 ? String(Number(value.toPrecision(digits))) : value.toExponential(digits - 1);
}

function share(value) {
  return value === null ? "–" : `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;
}

function metres(value) {
  return value < 0.01 ? `${number(1000 * value, 3)} mm` : `${number(value, 4)} m`;
}

// Of a view: the level that its badge shows, and the reasons; null if there is nothing to say.
function judgement(view) {
  if (!view.registered) return { level: "poor", label: "not placed", reasons: ["It does not connect to the scene."] };
  if (view.verdict) return { ...view.verdict, label: view.verdict.level };
  if (view.doubt) return { level: "doubtful", label: "doubtful", reasons: [view.doubt] };
  return null;
}

function badge(judged) {
  return judged && make("span", { className: `badge ${judged.level}` }, judged.label || judged.level);
}

// ------------------------------------------------------------------ the chosen photo
class PhotoPanel {
  // actions: stand(view), step(by), close()
  constructor(holder, source, actions) {
    Object.assign(this, { holder, source, actions, kind: "photo" });
  }

  show(view) {
    this.holder.hidden = !view;
    if (!view) return;
    const judged = judgement(view);
    const button = (text, title, act) => make("button", { type: "button", title, onclick: act }, text);
    const picture = make("img", { alt: "" });
    const tabs = KINDS.map((kind) => button(kind[0].toUpperCase() + kind.slice(1), "", () => turnTo(kind)));
    const turnTo = (kind) => {
      this.kind = kind;
      tabs.forEach((tab, k) => tab.setAttribute("aria-pressed", KINDS[k] === kind));
      const address = this.source.large(view.index, kind);
      picture.hidden = !address;
      if (address) picture.src = address;
      picture.alt = `${kind} of ${view.name}`;
    };
    this.holder.replaceChildren(
      make("div", { className: "head" },
        make("h2", {}, view.name), badge(judged), button("×", "Close (Esc)", this.actions.close)),
      make("div", { className: "group", role: "group", ariaLabel: "Picture" }, ...tabs),
      picture,
      ...(judged ? judged.reasons.map((reason) => make("p", { className: "reason" }, reason)) : []),
      factList({
        "Photo": `${view.index + 1}, ${view.size[0]} × ${view.size[1]}`,
        "Focal length": `${number(view.focal_px, 5)} px${plusMinus(view.focal_std_px)}`,
        "Position known to": view.position_std === null ? "–" : metres(view.position_std),
        "Error of tracks": view.track_error_px === null ? "–" : `${number(view.track_error_px)} px of the photo`,
        "Error of matches": `${number(view.median_reprojection_error_px)} px of the small image`,
        "Matches": number(view.num_matches),
        "Pixels in the scene": share(view.share_kept),
      }),
      make("div", { className: "foot" },
        button("‹", "Previous photo", () => this.actions.step(-1)),
        view.camera && button("Stand here", "Look from where this photo was taken", () => this.actions.stand(view)),
        button("›", "Next photo", () => this.actions.step(1))),
    );
    turnTo(this.kind);
  }
}

function plusMinus(value) {
  return value === null ? "" : ` ± ${number(value, 2)}`;
}

function factList(facts) {
  const rows = Object.entries(facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
  return make("dl", {}, ...rows);
}

// ------------------------------------------------------------------ the sheet
function fillSheet(holder, report, source, choose) {
  const wanted = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      target.src = target.dataset.address;
      wanted.unobserve(target);
    }
  }, { rootMargin: "600px" });
  holder.replaceChildren(...report.views.map((view) => {
    const [width, height] = view.picture_size;
    const pictures = KINDS.map((kind) => {
      const address = source.small(view.index, kind);
      if (!address) return null;
      const image = make("img", { alt: `${kind} of ${view.name}`, width, height });
      image.dataset.address = address;
      wanted.observe(image);
      return image;
    });
    const error = view.track_error_px === null ? view.median_reprojection_error_px : view.track_error_px;
    const caption = view.registered
      ? `error ${number(error, 2)} px, ${share(view.share_kept)} in the scene` : "not part of the scene";
    const card = make("button", { type: "button", className: "card", onclick: () => choose(view) },
      make("span", { className: "strip" }, ...pictures),
      make("span", { className: "name" }, make("span", {}, view.name), badge(judgement(view))),
      make("span", { className: "quiet" }, caption));
    card.dataset.view = view.index;
    return card;
  }));
}

// ------------------------------------------------------------------ the matrix of matches
class Matrix {
  constructor(canvas, reading, lead, report, choose) {
    Object.assign(this, { canvas, reading, report, choose });
    const { pairs, views } = report;
    this.n = views.length;
    this.cells = new Map(pairs.i.map((i, k) => [i * this.n + pairs.j[k], k]));
    this.knowsFound = pairs.found.some((value) => value !== null);
    const left = pairs.num_all - pairs.i.length;
    this.most = Math.max(1, ...pairs.used, ...pairs.found);
    lead.textContent = (this.knowsFound
      ? `Above the diagonal: matches found; below: those confirmed. ` : `Matches of every two photos. `) +
      `${number(pairs.num_used)} of ${number(pairs.num_all)} pairs take part` +
      (left ? `; the ${number(pairs.i.length)} strongest are drawn` : "") + `. Full colour: ${number(this.most)} matches.`;
    canvas.addEventListener("pointermove", (event) => this.read(...this.cellAt(event)));
    canvas.addEventListener("pointerdown", (event) => this.read(...this.cellAt(event)));
    canvas.addEventListener("click", (event) => {
      const [row] = this.cellAt(event);
      if (row >= 0 && row < this.n) choose(views[row]);
    });
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!by) return;
      event.preventDefault();
      event.stopPropagation();
      const [row, column] = this.cell || [0, 0];
      this.read(clamp(row + by[0], 0, this.n - 1), clamp(column + by[1], 0, this.n - 1));
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  cellAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const place = (at, from, size) => Math.floor(((at - from) / size) * this.n);
    return [place(event.clientY, box.top, box.height), place(event.clientX, box.left, box.width)];
  }

  // Matches of a cell: found above the diagonal, confirmed below it; null where no pair was looked at.
  value(row, column) {
    const k = this.cells.get(Math.min(row, column) * this.n + Math.max(row, column)) ??
      this.cells.get(Math.max(row, column) * this.n + Math.min(row, column));
    if (k === undefined) return null;
    const { found, confirmed, used } = this.report.pairs;
    const least = confirmed[k] === null ? used[k] : Math.max(confirmed[k], used[k]);
    return { k, shown: row < column && found[k] !== null ? Math.max(found[k], used[k]) : least };
  }

  read(row, column) {
    if (!(row >= 0 && row < this.n && column >= 0 && column < this.n)) return;
    this.cell = [row, column];
    const { views, pairs } = this.report;
    const names = `${views[row].name} and ${views[column].name}`;
    const found = row === column ? null : this.value(row, column);
    if (row === column) this.reading.textContent = views[row].name;
    else if (!found) this.reading.textContent = `${names}: not looked at`;
    else {
      const { k } = found;
      const parts = [
        pairs.found[k] !== null && `${number(pairs.found[k])} found`,
        pairs.confirmed[k] !== null && `${number(pairs.confirmed[k])} confirmed`,
        pairs.features[k] !== null && pairs.features[k] !== undefined && `${number(pairs.features[k])} of local features`,
        pairs.used[k] ? `${number(pairs.used[k])} took part` : "took no part",
      ];
      this.reading.textContent = `${names}: ${parts.filter(Boolean).join(", ")}`;
    }
    this.draw();
  }

  draw() {
    const context = fitted(this.canvas);
    if (!context) return;
    const style = getComputedStyle(document.documentElement);
    const size = this.canvas.width, cell = size / this.n;
    context.fillStyle = style.getPropertyValue("--sunken");
    context.fillRect(0, 0, size, size);
    const colour = style.getPropertyValue("--accent");
    const gap = cell > 6 ? 1 : 0;
    for (let row = 0; row < this.n; row++) {
      for (let column = 0; column < this.n; column++) {
        const found = row === column ? null : this.value(row, column);
        if (row !== column && !found) continue;
        context.globalAlpha = found ? 0.05 + 0.95 * found.shown / this.most : 1;
        context.fillStyle = found ? colour : style.getPropertyValue("--line");
        context.fillRect(column * cell, row * cell, Math.max(1, cell - gap), Math.max(1, cell - gap));
      }
    }
    context.globalAlpha = 1;
    if (!this.cell) return;
    context.strokeStyle = style.getPropertyValue("--text");
    context.lineWidth = Math.max(1, devicePixelRatio);
    context.strokeRect(this.cell[1] * cell, this.cell[0] * cell, cell - gap, cell - gap);
  }
}

// ------------------------------------------------------------------ the plan
class Plan {
  constructor(canvas, reading, report, choose) {
    Object.assign(this, { canvas, reading, report, chunks: [], chosen: null });
    this.placed = report.views.filter((view) => view.camera);
    canvas.addEventListener("pointermove", (event) => this.read(this.viewAt(event)));
    canvas.addEventListener("click", (event) => {
      const view = this.viewAt(event);
      if (view) choose(view);
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  add(chunk) {
    this.chunks.push(chunk);
    clearTimeout(this.later);
    this.later = setTimeout(() => this.draw(), 100);
  }

  choose(view) {
    this.chosen = view;
    this.read(view);
    this.draw();
  }

  read(view) {
    this.reading.textContent = view ? view.name : "\u00a0";
  }

  viewAt(event) {
    if (!this.toPlan) return null;
    const box = this.canvas.getBoundingClientRect();
    const at = [event.clientX - box.left, event.clientY - box.top].map((value) => value * this.canvas.width / box.width);
    let best = null, least = 16 * devicePixelRatio;
    for (const view of this.placed) {
      const [x, y] = this.toPlan(view.camera.centre);
      const away = Math.hypot(x - at[0], y - at[1]);
      if (away < least) [best, least] = [view, away];
    }
    return best;
  }

  // A share of the points of every chunk: at most 60,000 in all.
  *samples() {
    const all = this.chunks.reduce((sum, chunk) => sum + chunk.count, 0);
    for (const chunk of this.chunks) {
      const count = Math.ceil(chunk.count * Math.min(1, 60000 / Math.max(1, all)));
      for (let k = 0; k < count; k++) {
        yield [0, 2].map((axis) => chunk.offset[axis] + chunk.scale[axis] * chunk.positions[3 * k + axis]);
      }
    }
  }

  draw() {
    const context = fitted(this.canvas);
    if (!context || !this.placed.length) return;
    const style = getComputedStyle(document.documentElement);
    const size = this.canvas.width, ratio = devicePixelRatio;
    const points = [...this.samples()];
    const ends = [0, 1].map((axis) => {
      const values = points.map((point) => point[axis]).sort((a, b) => a - b);
      const cameras = this.placed.map((view) => view.camera.centre[2 * axis]);
      const inner = values.length ? [values[Math.floor(0.01 * values.length)], values[Math.floor(0.99 * values.length)]] : [];
      return [Math.min(...cameras, ...inner), Math.max(...cameras, ...inner)];
    });
    const extent = Math.max(...ends.map(([low, high]) => high - low), 1e-6) * 1.12;
    const middle = ends.map(([low, high]) => (low + high) / 2);
    const scale = size / extent;
    this.toPlan = ([x, , z]) => [size / 2 + (x - middle[0]) * scale, size / 2 + (z - middle[1]) * scale];
    context.fillStyle = style.getPropertyValue("--sunken");
    context.fillRect(0, 0, size, size);
    context.fillStyle = style.getPropertyValue("--quiet");
    context.globalAlpha = 0.25;
    for (const [x, z] of points) context.fillRect(...this.toPlan([x, 0, z]), 1.2 * ratio, 1.2 * ratio);
    context.globalAlpha = 1;
    const length = clamp(size / 18, 10 * ratio, 26 * ratio);
    for (const view of [...this.placed].sort((a, b) => (a === this.chosen) - (b === this.chosen))) {
      const { centre, forward, right, width_at_1: width } = view.camera;
      const [x, y] = this.toPlan(centre);
      const level = Math.hypot(forward[0], forward[2]);
      const name = view === this.chosen ? "--chosen" : isDoubtful(view) ? "--doubtful" : "--accent";
      const colour = style.getPropertyValue(name);
      context.fillStyle = context.strokeStyle = colour;
      if (level > 0.1) {
        const side = (sign) => [0, 2].map((axis) => forward[axis] + sign * right[axis] * width / 2);
        context.globalAlpha = 0.35;
        context.beginPath();
        context.moveTo(x, y);
        for (const [dx, dy] of [side(-1), side(1)]) context.lineTo(x + dx * length, y + dy * length);
        context.closePath();
        context.fill();
        context.globalAlpha = 1;
      }
      context.beginPath();
      context.arc(x, y, (view === this.chosen ? 5 : 3.5) * ratio, 0, 2 * Math.PI);
      context.fill();
    }
    this.drawScaleBar(context, style, scale, size, ratio);
  }

  drawScaleBar(context, style, scale, size, ratio) {
    const target = (size / 4) / scale;
    const power = 10 ** Math.floor(Math.log10(target));
    const length = [5, 2, 1].map((one) => one * power).find((one) => one <= target);
    const y = size - 14 * ratio, x = 14 * ratio;
    context.strokeStyle = context.fillStyle = style.getPropertyValue("--text");
    context.lineWidth = 2 * ratio;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + length * scale, y);
    context.stroke();
    context.font = `${12 * ratio}px system-ui, sans-serif`;
    context.fillText(`${number(length)} m`, x, y - 6 * ratio);
  }
}

// A canvas with as many pixels as the screen shows of it; null while it has no size.
function fitted(canvas) {
  const size = Math.round(canvas.clientWidth * devicePixelRatio);
  if (!size) return null;
  if (canvas.width !== size) canvas.width = canvas.height = size;
  return canvas.getContext("2d");
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

// ------------------------------------------------------------------ tables
const COLUMNS = [
  ["#", (view) => view.index, (view) => String(view.index + 1)],
  ["Photo", (view) => view.name, (view) => view.name],
  ["Judgement", (view) => (judgement(view) || { label: "" }).label, (view) => badge(judgement(view)) || "–"],
  ["Error of tracks, px", (view) => view.track_error_px, (view) => number(view.track_error_px)],
  ["Error of matches, px", (view) => view.median_reprojection_error_px,
    (view) => number(view.median_reprojection_error_px)],
  ["Tracked features", (view) => view.num_track_observations, (view) => number(view.num_track_observations)],
  ["Matches", (view) => view.num_matches, (view) => number(view.num_matches)],
  ["In the scene", (view) => view.share_kept, (view) => share(view.share_kept)],
  ["Mean confidence", (view) => view.mean_confidence, (view) => number(view.mean_confidence)],
  ["Focal length, px", (view) => view.focal_px, (view) => `${number(view.focal_px, 5)}${plusMinus(view.focal_std_px)}`],
  ["k1", (view) => view.distortion_k1, (view) => number(view.distortion_k1)],
  ["Position ±", (view) => view.position_std, (view) => view.position_std === null ? "–" : metres(view.position_std)],
];

function fillTable(table, report, choose, order = { column: 0, down: false }) {
  const value = COLUMNS[order.column][1];
  const views = [...report.views].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null); // what is not known comes last
    return (x < y ? -1 : x > y ? 1 : 0) * (order.down ? -1 : 1);
  });
  const heads = COLUMNS.map(([name], column) => {
    const now = column === order.column;
    const sort = () => fillTable(table, report, choose, { column, down: now && !order.down });
    const mark = now ? (order.down ? " ↓" : " ↑") : "";
    return make("th", { scope: "col", ariaSort: now ? (order.down ? "descending" : "ascending") : "none" },
      make("button", { type: "button", onclick: sort }, name + mark));
  });
  const rows = views.map((view) => {
    const cells = COLUMNS.map(([name, , shown]) => name === "Photo"
      ? make("th", { scope: "row" }, make("button", { type: "button", onclick: () => choose(view) }, shown(view)))
      : make("td", {}, shown(view)));
    return make("tr", {}, ...cells);
  });
  table.replaceChildren(make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
}

function fillFacts(holder, report) {
  const blocks = [];
  const seconds = Object.entries(report.seconds);
  if (seconds.length) {
    const most = Math.max(...seconds.map(([, value]) => value), 1e-9);
    const rows = seconds.map(([name, value]) => {
      const bar = make("span", { className: "share" });
      bar.style.width = `${(100 * value) / most}%`;
      return make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, `${value.toFixed(1)} s`),
        make("td", { className: "bar" }, bar));
    });
    blocks.push(make("div", {}, make("h3", {}, "Times"), make("table", { className: "times" }, make("tbody", {}, ...rows))));
  }
  const settings = [];
  for (const [name, values] of Object.entries(report.settings)) {
    if (!Object.keys(values).length) continue;
    const open = name === "Model";
    settings.push(make("details", { open }, make("summary", {}, name), factList(values)));
  }
  holder.replaceChildren(...blocks, make("div", {}, ...settings));
}

// Warnings, and the judgement of the whole with its reasons.
function fillNotices(holder, report) {
  const { verdict, warnings, warnings_left_out: more } = report;
  const items = [];
  if (verdict && verdict.reasons.length) {
    items.push(make("div", { className: `notice ${verdict.level}` },
      make("strong", {}, { good: "Good", doubtful: "Doubtful", poor: "Poor" }[verdict.level] || verdict.level),
      make("ul", {}, ...verdict.reasons.map((reason) => make("li", {}, reason)))));
  }
  if (warnings.length) {
    const list = make("ul", {}, ...warnings.map((warning) => make("li", {}, warning)));
    if (more) list.append(make("li", {}, `and ${more} more, see run.json`));
    items.push(make("details", { className: "notice doubtful", open: warnings.length <= 3 },
      make("summary", {}, warnings.length === 1 ? "1 warning" : `${warnings.length + more} warnings`), list));
  }
  holder.replaceChildren(...items);
  holder.hidden = !items.length;
}
