// One reconstruction: where it is, and what came of it. And the list of all.

class JobView {
  constructor(left) {
    this.left = left; // called when there is no such job
    this.id = null;
    this.shown = null;
    this.timer = null;
  }

  open(id) {
    this.close();
    this.id = id;
    this.poll();
  }

  close() {
    clearTimeout(this.timer);
    this.id = null;
    this.shown = null;
    byId("job").hidden = true;
    byId("viewer").hidden = true;
    byId("viewer-notice").hidden = true;
    byId("viewer").removeAttribute("src");
    byId("heading").replaceChildren();
    byId("actions").replaceChildren();
    document.body.classList.remove("viewing");
  }

  async poll() {
    const id = this.id;
    let wait = 400;
    try {
      const job = await ask(`reconstructions/${encodeURIComponent(id)}`);
      if (id !== this.id) return; // another one was opened meanwhile
      this.show(job);
      if (["done", "failed", "cancelled"].includes(job.state)) return;
    } catch (error) {
      if (id !== this.id) return;
      if (error.status === 404) return this.left();
      say(byId("job-lead"), `No answer from the server; trying again. (${error.message})`);
      wait = 2000;
    }
    this.timer = setTimeout(() => this.poll(), wait);
  }

  show(job) {
    const was = this.shown;
    this.shown = job;
    byId("heading").replaceChildren(badgeOf(job), make("span", { className: "name" }, titleOf(job)));
    if (!was || was.state !== job.state) byId("actions").replaceChildren(...this.actions(job));
    if (job.state === "done") return this.showResult(job);
    byId("job").hidden = false;
    byId("job-title").textContent = titleOf(job);
    byId("job-lead").textContent = leadOf(job);
    say(byId("job-notice"), job.error || "");
    byId("job-warnings").hidden = !job.warnings.length;
    byId("job-warnings").replaceChildren("Warnings", make("ul", {}, ...job.warnings.map((text) => make("li", {}, text))));
    this.showStages(job.progress || []);
    return null;
  }

  showStages(stages) {
    const rows = stages.map((stage, k) => {
      const over = k < stages.length - 1 || stage.done >= stage.total;
      return make("div", { className: `stage ${over ? "over" : ""}` },
        make("span", { className: "label" }, stage.stage),
        make("progress", { max: Math.max(stage.total, 1), value: over ? Math.max(stage.total, 1) : stage.done }),
        make("span", { className: "time" }, seconds(stage.seconds)));
    });
    byId("stages").replaceChildren(...rows);
  }

  showResult(job) {
    byId("job").hidden = true;
    document.body.classList.add("viewing");
    say(byId("viewer-notice"), job.error || "");
    const viewer = byId("viewer");
    if (viewer.hidden) viewer.src = addressOf(job, "view");
    viewer.hidden = false;
  }

  actions(job) {
    if (job.state === "waiting" || job.state === "running") {
      const cancel = make("button", { type: "button", id: "cancel" }, "Cancel");
      cancel.addEventListener("click", async () => {
        cancel.disabled = true;
        await ask(addressOf(job, "cancel"), "POST").catch((error) => say(byId("job-notice"), error.message));
      });
      return [cancel];
    }
    const remove = make("button", { type: "button", onclick: () => askToDelete(job, this.left) }, "Delete");
    if (job.state !== "done") return [remove];
    return [
      make("button", { type: "button", onclick: () => showFiles(job) }, "Files"),
      make("a", { className: "button primary", href: addressOf(job, "result.zip"), download: "" }, "Download"),
      remove,
    ];
  }
}

function leadOf(job) {
  if (job.state === "waiting") {
    return job.place_in_queue === 1 ? "It is the next." : `${counted(job.place_in_queue - 1, "other")} before it.`;
  }
  if (job.state === "running") return "This page may be closed: the work goes on, and is found again in the list.";
  if (job.state === "cancelled") return "It was cancelled; its photos are deleted.";
  return "";
}

async function showFiles(job) {
  const { files } = await ask(addressOf(job, "files"));
  const isMap = (file) => /_\d{3,}\.\w+$/.test(file.name); // of one photo; behind what is of all
  files.sort((a, b) => isMap(a) - isMap(b));
  const path = (name) => name.split("/").map(encodeURIComponent).join("/");
  const rows = files.map((file) =>
    make("li", {},
      make("a", { href: addressOf(job, `files/${path(file.name)}`), download: "" }, file.name),
      make("span", {}, bytes(file.bytes))));
  const dialog = byId("dialog");
  dialog.replaceChildren(
    make("h2", {}, "Files"),
    make("ul", { className: "files" }, ...rows),
    make("div", { className: "buttons" }, make("button", { type: "button", onclick: () => dialog.close() }, "Close")),
  );
  dialog.showModal();
}

class JobList {
  constructor() {
    this.timer = null;
    this.text = "";
  }

  open() {
    this.poll();
  }

  close() {
    clearTimeout(this.timer);
  }

  async poll() {
    clearTimeout(this.timer);
    try {
      const { reconstructions } = await ask("reconstructions");
      this.show(reconstructions);
    } catch {
      // shown as it was; the next try may have more luck
    }
    clearTimeout(this.timer);
    if (!byId("start").hidden) this.timer = setTimeout(() => this.poll(), 2000);
  }

  show(jobs) {
    const text = JSON.stringify(jobs);
    if (text === this.text) return; // so that nobody clicks on a row that is being replaced
    this.text = text;
    byId("past").hidden = !jobs.length;
    byId("list").replaceChildren(...jobs.map((job) => this.row(job)));
  }

  row(job) {
    const when = new Date(job.created).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
    const facts = [when, counted(job.photos.length, "file"), seconds(job.seconds.work), factOf(job)].filter(Boolean);
    const remove = make("button", { type: "button" }, job.state === "running" || job.state === "waiting" ? "Cancel" : "Delete");
    remove.addEventListener("click", () => {
      if (remove.textContent === "Delete") askToDelete(job, () => this.poll());
      else ask(addressOf(job, "cancel"), "POST").then(() => this.poll());
    });
    return make("div", { className: "row" },
      badgeOf(job),
      make("div", { className: "what" },
        make("a", { href: `#${job.id}` }, titleOf(job)),
        make("span", { className: "quiet" }, facts.join(" · "))),
      make("div", { className: "buttons" },
        job.state === "done" ? make("a", { className: "button", href: addressOf(job, "result.zip"), download: "" }, "Download") : null,
        remove));
  }
}

function factOf(job) {
  if (job.state === "done" && job.outcome) return `${job.outcome.num_registered} of ${job.outcome.num_photos} placed`;
  if (job.state === "waiting") return `number ${job.place_in_queue} in the queue`;
  if (job.state === "running" && job.progress && job.progress.length) return job.progress[job.progress.length - 1].stage;
  return job.error || "";
}
