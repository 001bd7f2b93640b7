"use strict";
// Everything that this page does: pictures in, answers out. It talks to the service that it came from, and to nobody else.

const facts = JSON.parse(document.getElementById("facts").textContent);
const byId = (id) => document.getElementById(id);
const STAGES = ["receive", "queue", "decode", "inference"];
const TOP_K = 5;
const AT_ONCE = 4; // requests of this page
const GRID = 8; // places of the mask, each way
const MASK = 2; // its side, in places
const OCCLUSION_PX = 256; // longest side of the masked copies
let key = "";

// One request. Resolves to {found, timing} or rejects with a Refusal; both are told to the reader as they are.

class Refusal extends Error {
  constructor(message, { status = 0, retryAfter = 0 } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function ask(body, type, query) {
  const headers = { "Content-Type": type };
  if (key) headers["X-API-Key"] = key;
  let reply;
  try {
    reply = await fetch(`/predict${facts.at}?${query}`, { method: "POST", headers, body });
  } catch {
    throw new Refusal("The service cannot be reached. Is it running, and are you online?");
  }
  const found = await reply.json().catch(() => ({}));
  if (!reply.ok) {
    const retryAfter = Number(reply.headers.get("Retry-After")) || 0;
    const when = retryAfter ? ` Try again in ${retryAfter} s.` : "";
    throw new Refusal((found.detail || `Refused with status ${reply.status}.`) + when, { status: reply.status, retryAfter });
  }
  return { found, timing: timingOf(reply.headers.get("Server-Timing") || "") };
}

function timingOf(header) {
  const parts = header.split(",").map((part) => part.trim().split(";dur="));
  return Object.fromEntries(parts.filter(([name]) => STAGES.includes(name)).map(([name, ms]) => [name, Number(ms)]));
}

// A few requests at a time; the rest wait here, not in the service.

const waiting = [];
let under = 0;

function enqueue(task) {
  waiting.push(task);
  next();
}

function next() {
  while (under < AT_ONCE && waiting.length) {
    under += 1;
    waiting.shift()().finally(() => {
      under -= 1;
      next();
    });
  }
}

// Answers.

function add(blob, name) {
  byId("none").hidden = true;
  const article = byId("result").content.firstElementChild.cloneNode(true);
  const part = (selector) => article.querySelector(selector);
  const image = part("img");
  image.src = URL.createObjectURL(blob);
  image.alt = name;
  part("h3").textContent = name;
  byId("results").prepend(article);
  const run = () => {
    article.className = "";
    article.setAttribute("aria-busy", "true");
    part(".state").textContent = "Asking …";
    part(".again").hidden = true;
    enqueue(() => answer(article, part, blob, name));
  };
  part(".again").addEventListener("click", run);
  part(".why").addEventListener("click", () => enqueue(() => explain(article, part, image)));
  run();
}

async function answer(article, part, blob, name) {
  try {
    const { found, timing } = await ask(blob, blob.type || "application/octet-stream", `top_k=${TOP_K}`);
    const [best] = found.predictions;
    const verdict = found.unknown
      ? `Unknown: ${percent(best.probability)} for the likeliest, ${best.class}, is below this model's threshold.`
      : `${best.class}, ${percent(best.probability)}`;
    part(".state").textContent = found.unknown ? verdict : "";
    part("h3").textContent = found.unknown ? "unknown" : best.class;
    article.dataset.best = String(best.index);
    showBars(part(".bars"), found.predictions);
    showTiming(part, timing);
    showCode(part, name);
    part(".actions").hidden = false;
    say(`${name}: ${verdict}`);
  } catch (error) {
    refuse(article, part, error, name);
  }
  article.setAttribute("aria-busy", "false");
}

function refuse(article, part, error, name) {
  if (!(error instanceof Refusal)) throw error;
  article.className = "refused";
  part(".state").textContent = error.message;
  part(".again").hidden = false;
  if (error.status === 401) {
    byId("key").hidden = false;
    byId("secret").focus();
  }
  say(`${name}: ${error.message}`);
}

const say = (text) => (byId("said").textContent = text);
const percent = (share) => (share > 0.9995 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`);

function made(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function showBars(list, predictions) {
  list.replaceChildren(
    ...predictions.map((prediction) => {
      const item = document.createElement("li");
      const fill = made("div", "fill");
      fill.style.width = `${100 * prediction.probability}%`;
      const track = made("div", "track");
      track.append(fill);
      item.append(made("span", "name", prediction.class), track, made("span", "value", percent(prediction.probability)));
      return item;
    }),
  );
}

function showTiming(part, timing) {
  const told = STAGES.map((stage) => `${stage} ${(timing[stage] || 0).toFixed(1)} ms`).join(", ");
  const stack = part(".stack");
  stack.setAttribute("aria-label", `Time in the service: ${told}`);
  stack.replaceChildren(
    ...STAGES.map((stage) => {
      const piece = document.createElement("div");
      piece.style.flexGrow = String(timing[stage] || 0);
      piece.style.background = `var(--${stage})`;
      return piece;
    }),
  );
  part(".timing p").textContent = told;
  part(".timing").hidden = false;
}

function showCode(part, name) {
  const file = /^[\w.-]+$/.test(name) ? name : "photo.jpg";
  const url = `${location.origin}/predict${facts.at}`;
  const withKey = facts.keyed ? ['-H "X-API-Key: $KEY" ', ', headers={"X-API-Key": key}'] : ["", ""];
  part(".curl").textContent = `curl ${withKey[0]}-F file=@${file} ${url}`;
  part(".python").textContent =
    `requests.post("${url}", files={"file": open("${file}", "rb")}${withKey[1]}).json()["predictions"]`;
  part(".code").hidden = false;
}

// What an answer hung on: how far its probability falls where a part of the picture is masked (Zeiler and Fergus 2014,
// Visualizing and Understanding Convolutional Networks, 4.2). The copies go one request after another, few at a time, so
// that others' pictures come between them.

async function explain(article, part, image) {
  const told = part(".whytold");
  const button = part(".why");
  button.disabled = true;
  told.hidden = false;
  told.textContent = "Looking …";
  try {
    const falls = await occlusion(image, Number(article.dataset.best), (share) => {
      told.textContent = `Looking … ${Math.round(100 * share)} %`;
    });
    told.textContent = showHeat(part(".heat"), falls);
    say(told.textContent);
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    told.textContent = error.message;
  }
  button.disabled = false;
}

async function occlusion(image, index, progress) {
  const scale = Math.min(1, OCCLUSION_PX / Math.max(image.naturalWidth, image.naturalHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
  const context = canvas.getContext("2d");
  const copy = (row, column) => {
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    if (row !== undefined) {
      context.fillStyle = "#808080";
      const [width, height] = [canvas.width / GRID, canvas.height / GRID];
      context.fillRect(column * width, row * height, MASK * width, MASK * height);
    }
    return canvas.toDataURL("image/png");
  };
  const places = [];
  for (let row = 0; row <= GRID - MASK; row += 1) for (let column = 0; column <= GRID - MASK; column += 1) places.push([row, column]);
  const copies = [copy(), ...places.map(([row, column]) => copy(row, column))];
  const scores = [];
  for (let start = 0; start < copies.length; start += facts.together) {
    const body = JSON.stringify({ images: copies.slice(start, start + facts.together) });
    const { found } = await ask(body, "application/json", `top_k=${facts.classes}`);
    for (const result of found.results) {
      if (result.error) throw new Refusal(result.error.detail);
      scores.push(result.predictions.find((prediction) => prediction.index === index).probability);
    }
    progress(scores.length / copies.length);
  }
  const [whole, ...masked] = scores;
  const falls = Array.from({ length: GRID }, () => Array(GRID).fill(0));
  const covered = Array.from({ length: GRID }, () => Array(GRID).fill(0));
  places.forEach(([top, left], number) => {
    for (let row = top; row < top + MASK; row += 1) {
      for (let column = left; column < left + MASK; column += 1) {
        falls[row][column] += Math.max(0, whole - masked[number]);
        covered[row][column] += 1;
      }
    }
  });
  return falls.map((line, row) => line.map((sum, column) => sum / covered[row][column]));
}

function showHeat(canvas, falls) {
  const most = Math.max(...falls.flat());
  canvas.width = canvas.height = GRID;
  const context = canvas.getContext("2d");
  falls.forEach((line, row) =>
    line.forEach((fall, column) => {
      // What did not matter is darkened: visible on pictures of every colour.
      context.fillStyle = `rgba(0, 0, 0, ${most > 0 ? 0.8 * (1 - fall / most) : 0.8})`;
      context.fillRect(column, row, 1, 1);
    }),
  );
  canvas.hidden = false;
  if (most < 0.005) return "No part of it matters: with any one masked the answer stays as sure.";
  const at = falls.flat().indexOf(most);
  const [row, column] = [Math.floor(at / GRID), at % GRID];
  const where = `${["top", "middle", "bottom"][Math.floor((3 * row) / GRID)]} ${["left", "centre", "right"][Math.floor((3 * column) / GRID)]}`;
  return `It hung most on the part at the ${where}: masked, the answer's probability falls by ${(100 * most).toFixed(0)} points.`;
}

// Pictures come in.

const take = (files) => [...files].forEach((file) => add(file, file.name || "pasted picture"));

for (const id of ["files", "camera"]) {
  byId(id).addEventListener("change", (event) => {
    take(event.target.files);
    event.target.value = "";
  });
}

for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files);
  });
}

document.addEventListener("paste", (event) => take(event.clipboardData.files));

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("secret").value;
  byId("key").hidden = true;
  document.querySelectorAll(".refused .again").forEach((button) => button.click());
});

// Drawing, with a pointer or with arrows and space.

const canvas = byId("canvas");
const pen = canvas.getContext("2d");
const GROUND = "#3a4a5c";
const BRUSH_PX = 16;
const STEP_PX = 8;
const brush = { x: canvas.width / 2, y: canvas.height / 2, down: false };

function clear() {
  pen.fillStyle = GROUND;
  pen.fillRect(0, 0, canvas.width, canvas.height);
}

function line(from, to) {
  pen.strokeStyle = byId("brush").value;
  pen.lineWidth = BRUSH_PX;
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(from.x, from.y);
  pen.lineTo(to.x + 0.01, to.y);
  pen.stroke();
}

function placeOf(event) {
  const box = canvas.getBoundingClientRect();
  return { x: ((event.clientX - box.left) * canvas.width) / box.width, y: ((event.clientY - box.top) * canvas.height) / box.height };
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  Object.assign(brush, placeOf(event), { down: true });
  line(brush, brush);
});
canvas.addEventListener("pointermove", (event) => {
  if (!brush.down) return;
  const to = placeOf(event);
  line(brush, to);
  Object.assign(brush, to);
});
for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => (brush.down = false));

canvas.addEventListener("keydown", (event) => {
  const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [0, 0];
  if (event.key === " ") brush.down = !brush.down;
  else if (!x && !y) return;
  event.preventDefault();
  const inside = (value, size) => Math.min(size, Math.max(0, value));
  const to = { x: inside(brush.x + x * STEP_PX, canvas.width), y: inside(brush.y + y * STEP_PX, canvas.height) };
  if (brush.down) line(brush, to);
  Object.assign(brush, to);
  canvas.setAttribute("aria-label", `Drawing area, brush ${brush.down ? "down" : "up"} at ${Math.round(to.x)}, ${Math.round(to.y)}`);
});
canvas.addEventListener("blur", () => (brush.down = false));

byId("clear").addEventListener("click", clear);
byId("classify").addEventListener("click", () => canvas.toBlob((blob) => add(blob, "drawing.png"), "image/png"));

// How long a pass takes by its batch size, as measured at the service's start.

byId("speed").hidden = !facts.info;
byId("speed").addEventListener("toggle", async () => {
  const part = (selector) => byId("speed").querySelector(selector);
  if (!byId("speed").open || !part("table").hidden) return;
  const reply = await fetch(`/info${facts.at}`, { headers: key ? { "X-API-Key": key } : {} }).catch(() => null);
  const { speed, detail } = reply ? await reply.json() : {};
  if (!speed) {
    part("p").textContent = detail || "Not known: no worker is ready, or the service cannot be reached.";
    if (reply && reply.status === 401) byId("key").hidden = false;
    return;
  }
  part("p").textContent = speedTold(speed);
  part("tbody").replaceChildren(
    ...speed.curve.map(([size, ms]) => {
      const row = document.createElement("tr");
      row.append(...[size, ms, Math.round((1000 * size * speed.passes) / ms)].map((cell) => made("td", "", String(cell))));
      return row;
    }),
  );
  drawCurve(part("svg"), speed);
  part("table").hidden = false;
});

function speedTold({ batch_size, passes, images_per_second, objective }) {
  const told = `Batches of up to ${batch_size}, ${passes} passes at a time: about ${Math.round(images_per_second)} images a second with decoding and HTTP.`;
  if (!objective) return told;
  const { p99_ms, predicted_ms, met } = objective;
  return `${told} At worst ${predicted_ms} ms are expected; the objective of ${p99_ms} ms ${met ? "is met" : "cannot be met here"}.`;
}

function drawCurve(svg, { curve, batch_size }) {
  const most = Math.max(...curve.map(([, ms]) => ms));
  const at = ([, ms], index) => [40 + (240 * index) / Math.max(1, curve.length - 1), 130 - (100 * ms) / most];
  const put = (tag, attributes, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    svg.append(element);
  };
  put("polyline", { points: curve.map(at).join(" ") });
  curve.forEach((point, index) => {
    const [x, y] = at(point, index);
    put("circle", { cx: x, cy: y, r: point[0] === batch_size ? 6 : 3 });
    put("text", { x, y: 150 }, point[0]);
    if (index === 0 || index === curve.length - 1 || point[0] === batch_size) put("text", { x, y: y - 10 }, `${point[1]} ms`);
  });
  svg.setAttribute("aria-label", `A pass takes ${curve.map(([size, ms]) => `${ms} ms for ${size}`).join(", ")} images.`);
  svg.toggleAttribute("hidden", false);
}

// Samples of the demo model's shapes, drawn here: the data set's own generator is not part of the service.

const around = (corners, radius, turn = -Math.PI / 2) =>
  Array.from({ length: corners }, (_, number) => {
    const [angle, reach] = [turn + (2 * Math.PI * number) / corners, Array.isArray(radius) ? radius[number % radius.length] : radius];
    return [Math.cos(angle) * reach, Math.sin(angle) * reach];
  });
const SHAPES = {
  circle: around(60, 1),
  triangle: around(3, 1),
  square: around(4, 1, -Math.PI / 4),
  pentagon: around(5, 1),
  star: around(10, [1, 0.42]),
  cross: [[-0.3, -1], [0.3, -1], [0.3, -0.3], [1, -0.3], [1, 0.3], [0.3, 0.3], [0.3, 1], [-0.3, 1], [-0.3, 0.3], [-1, 0.3], [-1, -0.3], [-0.3, -0.3]],
};

function drawSample(points) {
  const drawn = document.createElement("canvas");
  drawn.width = drawn.height = 64;
  const context = drawn.getContext("2d");
  context.fillStyle = "#39506b";
  context.fillRect(0, 0, 64, 64);
  context.fillStyle = "#e2b866";
  context.beginPath();
  for (const [x, y] of points) context.lineTo(32 + 20 * x, 33 + 20 * y);
  context.fill();
  return drawn;
}

for (const name of facts.samples) {
  const button = document.createElement("button");
  const drawn = drawSample(SHAPES[name]);
  button.type = "button";
  button.setAttribute("aria-label", `Classify a drawn ${name}`);
  button.append(drawn);
  button.addEventListener("click", () => drawn.toBlob((blob) => add(blob, `${name}.png`), "image/png"));
  byId("samples").querySelector(".row").append(button);
  byId("samples").hidden = false;
}

clear();
