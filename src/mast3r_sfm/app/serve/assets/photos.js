// The photos that are to be sent: dropped or chosen, shown, sorted out, sent.

const MOST_THUMBS = 60;

class Photos {
  constructor(about, submitted) {
    this.limits = about.limits;
    this.suffixes = about.suffixes;
    this.submitted = submitted;
    this.files = [];
    this.sending = null;
    const films = new Set(["mp4", "mov", "m4v", "mkv", "webm", "avi", "mts", "m2ts", "mpg", "mpeg", "wmv", "3gp", "ogv"]);
    this.isClip = (file) => films.has(suffixOf(file).slice(1));
    byId("files").accept = ["image/*", "video/*", ...this.suffixes].join(",");
    byId("accepted").textContent =
      `jpg, heic, png, webp, tiff, RAW; clips as mp4 and mov. Up to ${counted(this.limits.max_photos, "photo")} and ` +
      `${bytes(this.limits.max_upload_mb * 1e6)}.`;
    byId("choose").addEventListener("click", () => byId("files").click());
    byId("files").addEventListener("change", () => {
      this.add([...byId("files").files]);
      byId("files").value = ""; // so that the same file can be chosen again
    });
    byId("clear").addEventListener("click", () => this.clear());
    byId("send").addEventListener("click", () => this.send());
    byId("stop").addEventListener("click", () => this.sending && this.sending.stop());
    this.listenForDrops();
  }

  listenForDrops() {
    const zone = byId("drop");
    let depth = 0; // of elements that the pointer has entered
    const over = (by) => zone.classList.toggle("over", (depth = Math.max(0, depth + by)) > 0);
    addEventListener("dragenter", () => over(1));
    addEventListener("dragleave", () => over(-1));
    addEventListener("dragover", (event) => event.preventDefault()); // else the browser opens the photo instead
    addEventListener("drop", async (event) => {
      event.preventDefault();
      over(-depth);
      if (byId("start").hidden || this.sending) return;
      this.add(await filesOf(event.dataTransfer));
    });
  }

  add(files) {
    const known = new Set(this.files.map(keyOf));
    const strange = [];
    for (const file of files) {
      if (file.name.startsWith(".")) continue;
      if (!this.suffixes.includes(suffixOf(file))) strange.push(file.name);
      else if (!known.has(keyOf(file))) {
        known.add(keyOf(file));
        this.files.push(file);
      }
    }
    this.files.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
    const shown = strange.slice(0, 3).join(", ") + (strange.length > 3 ? ", ..." : "");
    this.show(strange.length ? `Left out, because they are no photos: ${shown}` : "");
  }

  clear() {
    this.files = [];
    this.show();
  }

  show(message = "") {
    const clips = this.files.filter(this.isClip).length;
    const photos = this.files.length - clips;
    const size = this.files.reduce((sum, file) => sum + file.size, 0);
    const parts = [photos && counted(photos, "photo"), clips && counted(clips, "clip")].filter(Boolean);
    byId("chosen").hidden = !this.files.length;
    byId("chosen-title").textContent = `${parts.join(" and ")}, ${bytes(size)}`;
    byId("fps").hidden = !clips;
    const faults = [
      message,
      photos && clips && "Clips beside photos are not used: send one or the other.",
      this.files.length > this.limits.max_photos && `More than ${counted(this.limits.max_photos, "file")}, which is the limit.`,
      size > this.limits.max_upload_mb * 1e6 && `More than ${bytes(this.limits.max_upload_mb * 1e6)}, which is the limit.`,
    ].filter(Boolean);
    say(byId("notice"), faults.join(" "));
    byId("send").disabled = this.files.length > this.limits.max_photos || size > this.limits.max_upload_mb * 1e6;
    for (const image of byId("thumbs").querySelectorAll("img")) URL.revokeObjectURL(image.src);
    byId("thumbs").replaceChildren(...this.files.slice(0, MOST_THUMBS).map((file) => this.thumb(file)));
    const more = this.files.length - MOST_THUMBS;
    if (more > 0) byId("thumbs").append(make("div", { className: "thumb" }, make("span", {}, `and ${more} more`)));
  }

  thumb(file) {
    const remove = make("button", { type: "button", title: `Leave out ${file.name}`, "aria-label": `Leave out ${file.name}` }, "×");
    remove.addEventListener("click", () => {
      this.files = this.files.filter((one) => one !== file);
      this.show();
    });
    const tile = make("div", { className: "thumb", title: file.name }, make("span", {}, file.name), remove);
    if (!this.isClip(file)) {
      const image = make("img", { alt: "", loading: "lazy", decoding: "async", src: URL.createObjectURL(file) });
      image.addEventListener("error", () => image.remove()); // of a kind that this browser does not show
      remove.before(image);
    }
    return tile;
  }

  async send() {
    const busy = (is) => {
      byId("sending").hidden = !is;
      for (const id of ["send", "clear", "choose"]) byId(id).disabled = is;
    };
    const progress = (share) => {
      byId("sent").value = share;
      byId("sent-share").textContent = share < 1 ? `${Math.floor(100 * share)} %` : "checked …";
    };
    say(byId("notice"), "");
    busy(true);
    progress(0);
    this.sending = send(this.files, optionsOf(byId("form")), progress);
    try {
      const job = await this.sending.sent;
      this.clear();
      this.submitted(job);
    } catch (error) {
      say(byId("notice"), error.message);
    } finally {
      this.sending = null;
      busy(false);
    }
  }
}

function optionsOf(form) {
  const data = new FormData(form);
  const options = { refine_cameras: data.has("refine_cameras"), sky: data.has("sky"), exports: data.getAll("exports") };
  const scene = data.get("scene");
  if (scene === "points") options.as_pointcloud = true;
  else options.scene = scene;
  if (data.has("shared")) options.intrinsics_groups = "shared";
  const fps = Number(data.get("fps"));
  if (fps > 0) options.fps = fps;
  return options;
}

const suffixOf = (file) => (/\.[^.]+$/.exec(file.name.toLowerCase()) || [""])[0];
const keyOf = (file) => `${file.name}/${file.size}/${file.lastModified}`;

// The files of a drop, those in dropped folders as well.
async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return (await Promise.all(entries.map(filesBelow))).flat();
}

async function filesBelow(entry) {
  if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed)); // a hundred at a time
    if (!some.length) break;
    found.push(...some);
  }
  return (await Promise.all(found.map(filesBelow))).flat();
}
