// The service's events as a stream that carries the token, which EventSource cannot, and that goes on where it broke off.

import { ask, NotSignedIn } from "./session.js";

/** Longest pause before the next try, in milliseconds. */
const LONGEST = 15000;

/** Blocks of a text/event-stream: `{ id, event, data }`. A block may come in several pieces. */
export async function* blocks(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const whole = text.split(/\r?\n\r?\n/);
    text = whole.pop();
    for (const block of whole) {
      const fields = block.split(/\r?\n/).filter((line) => !line.startsWith(":")).map((line) => line.match(/^([^:]*):? ?(.*)$/s));
      const found = Object.fromEntries(fields.map(([, name, content]) => [name, content]));
      if (found.event) yield found;
    }
  }
}

/** Calls `on.open`, `on.event(kind)` and `on.broken` until `on.refused` says that the token does not count, or `signal` ends it. */
export async function follow(path, on, signal) {
  let last = null;
  let pause = 500;
  while (!signal.aborted) {
    try {
      const headers = last === null ? {} : { "last-event-id": last };
      const response = await ask(path, "text/event-stream", { headers, signal });
      pause = 500;
      on.open();
      for await (const { id, event } of blocks(response.body)) {
        last = id ?? last;
        on.event(event);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof NotSignedIn) return on.refused(error);
    }
    on.broken();
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(pause * 2, LONGEST);
  }
}
