"use strict";
// The REST API (docs/serve.md), and helpers that the parts of the page share.

const byId = (id) => document.getElementById(id);

// An element; text is never taken for markup.
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, method = "GET") {
  const answer = await fetch(path, { method });
  if (answer.status === 401) location.reload(); // which asks for the token
  if (!answer.ok) throw new Refusal(answer.status, await reasonOf(answer));
  return answer.status === 204 ? null : answer.json();
}

async function reasonOf(answer) {
  try {
    const { detail } = await answer.json();
    return typeof detail === "string" ? detail : JSON.stringify(detail);
  } catch {
    return `${answer.status} ${answer.statusText}`;
  }
}

const addressOf = (job, what = "") => `reconstructions/${job.id}${what && `/${what}`}`;

// Sends photos and options; `progress` hears the share that has been sent. `stop()` of what is returned ends it.
function send(files, options, progress) {
  const form = new FormData();
  form.append("options", JSON.stringify(options));
  for (const file of files) form.append("files", file, file.name);
  const request = new XMLHttpRequest(); // fetch does not tell how much has been sent
  const sent = new Promise((done, failed) => {
    request.upload.addEventListener("progress", (event) => progress(event.loaded / event.total));
    request.addEventListener("load", () => {
      const answer = request.response;
      if (request.status === 202 && answer) return done(answer);
      failed(new Refusal(request.status, (answer && answer.detail) || `${request.status} ${request.statusText}`));
    });
    request.addEventListener("error", () => failed(new Refusal(0, "The connection broke off; is the server still there?")));
    request.addEventListener("abort", () => failed(new Refusal(0, "")));
  });
  request.open("POST", "reconstructions");
  request.responseType = "json";
  request.send(form);
  return { sent, stop: () => request.abort() };
}

// ------------------------------------------------------------------ words
const counted = (count, word) => (count === 1 ? `1 ${word}` : `${count} ${word}s`);

function bytes(count) {
  for (const [limit, unit] of [[1e6, "kB"], [1e9, "MB"]]) {
    if (count < limit) return `${((count / limit) * 1e3).toFixed(1)} ${unit}`;
  }
  return `${(count / 1e9).toFixed(1)} GB`;
}

function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value < 100) return `${value.toFixed(1)}\u00a0s`;
  return `${Math.floor(value / 60)}\u00a0min ${Math.floor(value % 60)}\u00a0s`;
}

function titleOf(job) {
  const [first, ...others] = job.photos;
  return others.length ? `${first} and ${others.length} more` : first;
}

// What a job is called: its verdict if there is one, else its state.
function badgeOf(job) {
  const word = (job.state === "done" && job.outcome && job.outcome.verdict) || job.state;
  return make("span", { className: `badge ${word === "done" ? "good" : word}` }, word);
}

function say(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

function askFirst(question, action, yes) {
  const dialog = byId("dialog");
  const answer = (does) => () => {
    dialog.close();
    if (does) does();
  };
  dialog.replaceChildren(
    make("h2", {}, question),
    make("div", { className: "buttons" },
      make("button", { type: "button", onclick: answer(null) }, "No"),
      make("button", { type: "button", className: "primary", onclick: answer(yes) }, action)),
  );
  dialog.showModal();
}

function askToDelete(job, then) {
  askFirst("Delete this reconstruction with its photos?", "Delete", async () => {
    await ask(addressOf(job), "DELETE").catch((error) => error.status === 404 || Promise.reject(error));
    then();
  });
}
