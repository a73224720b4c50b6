// The service's own interface. The key stays in this tab, and goes out as a header: no other site can make a browser send it.

const BASE = new URL("../", location.href);
const KEY = "bonbon admin key";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

async function ask(method, path, body) {
  const headers = {};
  if (key.get() && path.startsWith("admin/")) headers.authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const options = { method, headers, credentials: "omit", cache: "no-store", body: body && JSON.stringify(body) };
  let response;
  try {
    response = await fetch(new URL(path, BASE), options);
  } catch {
    throw new ApiError(0, "The service does not answer. The page tries again every few seconds.");
  }
  if (response.ok || (path === "health/ready" && response.status === 503)) return response;
  const content = await response.json().catch(() => ({}));
  throw new ApiError(response.status, content.error?.message ?? `The service answered with the status ${response.status}.`);
}

async function call(method, path, body) {
  return (await ask(method, path, body)).json().catch(() => ({}));
}

// The events of a stream, one after the other. An error among them is thrown.
export async function* events(path, body) {
  const reader = (await ask("POST", path, body)).body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    const whole = (text + value).split("\n\n");
    text = whole.pop();
    for (const one of whole.filter((lines) => lines.startsWith("data: "))) {
      const event = JSON.parse(one.slice("data: ".length));
      if (event.error) throw new ApiError(0, event.error.message);
      yield event;
    }
  }
}

export const get = (path) => call("GET", path);
export const post = (path, body) => call("POST", path, body ?? {});

// What is not there yet (too few groups, no such endpoint) is null, not an error.
export async function maybe(path) {
  try {
    return await get(path);
  } catch (error) {
    if (error.status === 400 || error.status === 404) return null;
    throw error;
  }
}
