// One HTTP request, with every header under the test's control (fetch does not let go of Host).
import { request } from "node:http";

export function http(port, path, { method = "GET", headers = {}, body, timeout = 5000 } = {}) {
  return new Promise((resolve, reject) => {
    const payload = body === undefined ? undefined : JSON.stringify(body);
    const type = payload === undefined ? {} : { "content-type": "application/json" };
    const req = request({ host: "127.0.0.1", port, path, method, agent: false, headers: { ...type, ...headers } }, (res) => {
      let text = "";
      res.setEncoding("utf8");
      res.on("data", (data) => (text += data));
      res.on("error", reject);
      res.on("end", () => resolve({ status: res.statusCode, headers: res.headers, text, json: parsed(text) }));
    });
    req.setTimeout(timeout, () => req.destroy(new Error(`${method} ${path}: no answer in ${timeout} ms`)));
    req.on("error", reject);
    req.end(payload);
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
