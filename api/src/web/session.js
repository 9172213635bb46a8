// Who calls: the token of this tab, and requests that carry it.

const KEY = "vdiskd-token";

export const token = () => sessionStorage.getItem(KEY);
export const keep = (value) => sessionStorage.setItem(KEY, value);
export const forget = () => sessionStorage.removeItem(KEY);

/** Whether a request without a token has a chance. */
export const tokenNeeded = () => document.documentElement.dataset.access === "token";

/** The service refused who asked. */
export class NotSignedIn extends Error {}

/** An answer that is no error; others become one with the problem's own words. */
export async function ask(path, accept, options = {}) {
  const headers = { accept, ...options.headers };
  if (token()) headers.authorization = `Bearer ${token()}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const text = problem.detail ?? response.statusText;
  throw response.status === 401 || response.status === 403 ? new NotSignedIn(text) : new Error(text);
}

export async function get(path) {
  return (await ask(path, "application/json")).json();
}

/** All items of a list, as far as a page can show them. */
export async function all(path, most = 5000) {
  const items = [];
  let next = null;
  do {
    const page = await get(`${path}?page_size=500${next ? `&page_token=${encodeURIComponent(next)}` : ""}`);
    items.push(...page.items);
    next = page.next_page_token;
  } while (next && items.length < most);
  return items;
}
