// Lists pools, images with their chains, and jobs; follows /v1/events and asks again for what changed.

const $ = (id) => document.getElementById(id);

const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

const size = (bytes) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return `${unit ? bytes.toFixed(1) : bytes} ${units[unit]}`;
};

const state = (value) => el("span", { class: `state state-${value}` }, value);

const moment = (text) => text ? el("time", { datetime: text }, new Date(text).toLocaleTimeString()) : "–";

async function get(path) {
  const response = await fetch(path, { headers: { accept: "application/json" } });
  const body = await response.json();
  if (!response.ok) throw new Error(body.detail ?? response.statusText);
  return body;
}

async function all(path) {
  const items = [];
  let token = null;
  do {
    const page = await get(`${path}?page_size=500${token ? `&page_token=${encodeURIComponent(token)}` : ""}`);
    items.push(...page.items);
    token = page.next_page_token;
  } while (token && items.length < 5000);
  return items;
}

function empty(columns, text) {
  return el("tr", {}, el("td", { colspan: columns, class: "empty" }, text));
}

function imageRow(image, depth) {
  const name = el("th", { scope: "row" });
  if (depth > 0) {
    name.append(el("span", { class: "branch", "aria-hidden": "true" }, "  ".repeat(depth - 1) + "└ "));
  }
  name.append(image.name, " ", el("br"), el("code", {}, image.id));
  if (image.problem) name.append(el("p", { class: "problem" }, image.problem));
  const shown = state(image.state);
  const where = el("td", {}, shown);
  if (depth > 0) where.append(el("small", {}, ` overlay, depth ${depth}`));
  return el("tr", {}, name, el("td", {}, image.format || "?"), where,
    el("td", { class: "number" }, size(image.virtual_size)), el("td", { class: "number" }, size(image.allocated_size)),
    el("td", {}, image.pool));
}

function chains(images) {
  const overlays = Map.groupBy(images, (image) => image.backing_id ?? "");
  const known = new Set(images.map((image) => image.id));
  const rows = [];
  const pending = images.filter((image) => !known.has(image.backing_id)).map((image) => [image, 0]).reverse();
  while (pending.length) {
    const [image, depth] = pending.pop();
    rows.push(imageRow(image, depth));
    pending.push(...(overlays.get(image.id) ?? []).map((overlay) => [overlay, depth + 1]).reverse());
  }
  return rows;
}

function progress(job) {
  const { done_bytes: done, total_bytes: total, bytes_per_second: rate, eta_seconds: eta } = job.progress;
  if (total === null) return "–";
  const percent = total ? Math.floor((done / total) * 100) : 100;
  const bar = el("progress", { max: Math.max(total, 1), value: total ? done : 1, "aria-label": `${job.kind}: ${percent} %` });
  const words = [` ${percent} % of ${size(total)}`];
  if (job.state === "running" && rate) words.push(`, ${size(rate)}/s`);
  if (job.state === "running" && eta !== null) words.push(`, ${eta} s left`);
  return el("span", {}, bar, words.join(""));
}

function jobRow(job) {
  const outcome = el("td", {}, state(job.state));
  if (job.error) outcome.append(el("p", { class: "problem" }, job.error.detail));
  const steps = job.steps.map((step) => step.text).slice(-2).join("; ");
  return el("tr", {}, el("th", { scope: "row" }, job.kind, " ", el("br"), el("code", {}, job.id)), outcome,
    el("td", { class: "number" }, progress(job)), el("td", {}, moment(job.started_at)), el("td", {}, steps || "–"));
}

function poolItem(pool) {
  return el("li", {}, el("strong", {}, pool.name), `: ${pool.image_count} images, ${size(pool.allocated)} on disk, ${size(pool.free)} free`);
}

async function showImages() {
  const rows = chains(await all("/v1/images"));
  $("image-rows").replaceChildren(...(rows.length ? rows : [empty(6, "No image yet.")]));
}

async function showJobs() {
  const { items } = await get("/v1/jobs?page_size=20");
  $("jobs").replaceChildren(...(items.length ? items.map(jobRow) : [empty(5, "No job yet.")]));
}

async function showPools() {
  const { items } = await get("/v1/pools");
  $("pools").replaceChildren(...items.map(poolItem));
}

// Changes come in bursts: each part is asked for again at most three times a second.
function throttled(show) {
  let running = false;
  let again = false;
  return async function run() {
    if (running) { again = true; return; }
    running = true;
    try {
      await show();
      $("problem").hidden = true;
    } catch (error) {
      $("problem").textContent = `Could not be read: ${error.message}`;
      $("problem").hidden = false;
    }
    setTimeout(() => { running = false; if (again) { again = false; run(); } }, 330);
  };
}

const images = throttled(showImages);
const jobs = throttled(showJobs);
const pools = throttled(showPools);

const events = new EventSource("/v1/events");
events.onopen = () => { $("connection").textContent = "Live"; images(); jobs(); pools(); };
events.onerror = () => { $("connection").textContent = "Not connected; trying again…"; };
for (const kind of ["job.queued", "job.state", "job.progress"]) events.addEventListener(kind, jobs);
for (const kind of ["image.created", "image.updated", "image.deleted"]) {
  events.addEventListener(kind, () => { images(); pools(); });
}
images(); jobs(); pools();
