// Asks the server. An answer that is an error becomes an Error with the server's own words.

export class Failure extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function read(answer) {
  if (answer.status === 401) location.assign("/sign-in");
  const text = await answer.text();
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    throw new Failure(answer.status, `the server answered ${answer.status}: ${text.slice(0, 200)}`);
  }
  if (answer.ok) return body;
  const detail = typeof body.detail === "string" ? body.detail : JSON.stringify(body.detail);
  throw new Failure(answer.status, detail);
}

/** GET /api/`path`; parameters that are null or undefined are left out. */
export async function get(path, parameters = {}, signal = undefined) {
  const known = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined);
  const query = new URLSearchParams(known).toString();
  const clean = path.replace(/^\/?(api\/)?/, "");
  return read(await fetch(`/api/${clean}${query ? `?${query}` : ""}`, { signal, credentials: "same-origin" }));
}

/** Ask something of the run; resolves to what it answered. */
export async function command(asked) {
  const answer = await fetch("/api/commands", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(asked),
    credentials: "same-origin",
  });
  return (await read(answer)).text;
}
