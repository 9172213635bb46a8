// Records as rows of tables. Texts go in as text: nothing of a name is ever markup.

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

const moment = (text) => text ? el("time", { datetime: text, title: text }, new Date(text).toLocaleTimeString()) : "–";

const named = (name, id) => el("th", { scope: "row" }, name, el("br"), el("code", {}, id));

export const empty = (columns, text) => el("tr", {}, el("td", { colspan: columns, class: "empty" }, text));

function imageRow(image, depth) {
  const name = named(image.name, image.id);
  if (depth > 0) {
    name.className = "overlay";
    name.style.setProperty("--depth", depth);
  }
  if (image.problem) name.append(el("p", { class: "problem" }, image.problem));
  const where = el("td", {}, state(image.state));
  if (depth > 0) where.append(el("small", {}, ` overlay, depth ${depth}`));
  if (image.encrypted) where.append(el("small", {}, " encrypted"));
  if (image.protected) where.append(el("small", {}, " protected"));
  return el("tr", {}, name, el("td", {}, image.format || "?"), where,
    el("td", { class: "number" }, size(image.virtual_size)), el("td", { class: "number" }, size(image.allocated_size)),
    el("td", {}, image.pool));
}

/** Images with overlays under their base. */
export function chains(images) {
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

export function jobRow(job) {
  const outcome = el("td", {}, state(job.state));
  if (job.error) outcome.append(el("p", { class: "problem" }, job.error.detail));
  const steps = job.steps.slice(-2).map((step) => el("li", {}, step.text));
  return el("tr", {}, named(job.kind, job.id), outcome, el("td", {}, progress(job)), el("td", {}, moment(job.started_at)),
    el("td", {}, steps.length ? el("ol", { class: "steps" }, ...steps) : "–"));
}

export function poolItem(pool) {
  const used = pool.capacity - pool.free;
  return el("li", { class: "card" }, el("strong", {}, pool.name),
    el("meter", { min: 0, max: Math.max(pool.capacity, 1), high: pool.capacity * 0.9, value: used, "aria-label": `${pool.name}: room taken` }),
    el("span", {}, `${pool.image_count} ${pool.image_count === 1 ? "image" : "images"}, ${size(pool.allocated)} on disk, ${size(pool.free)} free`));
}
