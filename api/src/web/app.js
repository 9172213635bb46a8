// Lists pools, images with their chains, and jobs; follows /v1/events and asks again for what changed.

import { follow } from "./events.js";
import { chains, empty, jobRow, poolItem } from "./rows.js";
import { all, forget, get, keep, NotSignedIn, token, tokenNeeded } from "./session.js";

const $ = (id) => document.getElementById(id);

async function showImages() {
  const rows = chains(await all("/v1/images"));
  $("image-rows").replaceChildren(...(rows.length ? rows : [empty(6, "No image yet.")]));
}

async function showJobs() {
  const { items } = await get("/v1/jobs?page_size=10");
  $("jobs").replaceChildren(...(items.length ? items.map(jobRow) : [empty(5, "No job yet.")]));
}

async function showPools() {
  const { items } = await get("/v1/pools");
  $("pools").replaceChildren(...items.map(poolItem));
}

function say(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

function connected(state, text) {
  $("connection").textContent = text;
  $("connection").dataset.state = state;
}

let watching = null;

function signedOut(text) {
  watching?.abort();
  watching = null;
  forget();
  $("views").hidden = true;
  $("sign-out").hidden = true;
  $("metrics").hidden = true;
  $("sign-in").hidden = false;
  connected("off", "Not signed in");
  say(text);
  $("token").focus();
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
      if (watching) say("");
    } catch (error) {
      if (error instanceof NotSignedIn) { if (watching) signedOut(error.message); }
      else if (watching) say(`Could not be read: ${error.message}`);
    }
    setTimeout(() => { running = false; if (again) { again = false; run(); } }, 330);
  };
}

const images = throttled(showImages);
const jobs = throttled(showJobs);
const pools = throttled(showPools);

function start() {
  watching = new AbortController();
  $("sign-in").hidden = true;
  $("views").hidden = false;
  $("sign-out").hidden = !token();
  // A link cannot carry the token.
  $("metrics").hidden = tokenNeeded();
  connected("wait", "Connecting…");
  follow("/v1/events", {
    open() { connected("on", "Live"); images(); jobs(); pools(); },
    event(kind) { if (kind.startsWith("job.")) jobs(); else { images(); pools(); } },
    broken() { connected("wait", "Not connected; trying again…"); },
    refused(error) { signedOut(error.message); },
  }, watching.signal);
}

$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  keep($("token").value.trim());
  $("token").value = "";
  say("");
  start();
});
$("sign-out").addEventListener("click", () => signedOut(""));

if (tokenNeeded() && !token()) signedOut(""); else start();
