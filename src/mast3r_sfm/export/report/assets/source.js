"use strict";
// Where the page has its data from: from itself (a report), or from the server that sent it (`mast3r-sfm view`).
// Both give the same: `document`, `chunks`, `points(k)` as an ArrayBuffer, and addresses of pictures.

class EmbeddedSource {
  constructor() {
    this.document = JSON.parse(textOf("document"));
    this.chunks = JSON.parse(textOf("chunks") || "[]");
    this.pictures = JSON.parse(textOf("pictures") || "{}");
  }

  async points(number) {
    const text = atob(textOf(`points-${number}`));
    const bytes = new Uint8Array(text.length);
    for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
    document.getElementById(`points-${number}`).remove(); // its text is not needed any more
    return bytes.buffer;
  }

  small(index, kind) {
    return (this.pictures[index] || {})[kind] || null;
  }

  large(index, kind) {
    return this.small(index, kind);
  }
}

class ServerSource {
  static async connect() {
    const source = new ServerSource();
    const answer = await (await asked("data.json")).json();
    source.document = answer.document;
    source.chunks = answer.chunks;
    return source;
  }

  async points(number) {
    return (await asked(`points/${number}`)).arrayBuffer();
  }

  small(index, kind) {
    return `small/${kind}/${index}`;
  }

  large(index, kind) {
    return `large/${kind}/${index}`;
  }
}

async function openSource() {
  return document.getElementById("document") ? new EmbeddedSource() : ServerSource.connect();
}

async function asked(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: ${answer.status} ${answer.statusText}`);
  return answer;
}

function textOf(id) {
  const element = document.getElementById(id);
  return element && element.textContent;
}
