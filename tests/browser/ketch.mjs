// A `ketch up` with a directory and ports of its own, and ways to look at it.
import { spawn, execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = new URL("../../", import.meta.url).pathname;
const binary = join(root, "target/debug/ketch");

/** Path of a built sample workload. */
export const guest = (name) => join(root, "workloads/dist", `${name}.wasm`);

/** Starts one; resolves when it has printed its link. */
export async function start() {
  const directory = mkdtempSync(join(tmpdir(), "ketch-browser-"));
  const ports = ["--api-addr", "--ui-addr", "--http-addr", "--https-addr", "--quic-addr", "--dns-addr"].flatMap((flag) => [flag, "127.0.0.1:0"]);
  const child = spawn(binary, ["up", "--data-dir", directory, "--node-name", "browser", ...ports]);
  let output = "";
  const link = await new Promise((resolve, reject) => {
    child.stdout.on("data", (chunk) => {
      output += chunk;
      const found = output.match(/http:\S+\/login\?token=\S+/);
      if (found) resolve(found[0]);
    });
    child.stderr.on("data", (chunk) => (output += chunk));
    child.on("exit", (code) => reject(new Error(`ketch up ended with ${code}:\n${output}`)));
  });
  const run = JSON.parse(readFileSync(join(directory, "run.json"), "utf8"));
  return {
    link,
    gateway: run["http-addr"],
    log: () => output,
    kubectl: (...args) =>
      execFileSync("kubectl", args, { env: { ...process.env, KUBECONFIG: join(directory, "admin.kubeconfig") } }).toString(),
    newLink: () =>
      execFileSync(binary, ["token", "console"], { env: { ...process.env, KUBECONFIG: join(directory, "admin.kubeconfig") } })
        .toString()
        .trim(),
    call: (name, path = "/") => call(run["http-addr"], `${name}.default.localhost`, path),
    stop: async () => {
      const ended = new Promise((resolve) => child.removeAllListeners("exit").on("exit", resolve));
      child.kill("SIGTERM");
      await ended;
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

/** One GET through the gateway: status and body. */
function call(address, host, path) {
  const [hostname, port] = address.split(":");
  return new Promise((resolve, reject) => {
    const request = http.get({ hostname, port, path, headers: { host: `${host}:${port}` }, agent: false }, (response) => {
      let body = "";
      response.on("data", (chunk) => (body += chunk));
      response.on("end", () => resolve({ status: response.statusCode, body }));
    });
    request.on("error", reject);
  });
}
