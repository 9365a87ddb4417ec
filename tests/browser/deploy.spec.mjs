// The main path: link, drop, look, deploy, call, logs, a changed build, roll back.
import { readFileSync, writeFileSync, mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import AxeBuilder from "@axe-core/playwright";
import { expect, test } from "@playwright/test";

import { guest, start } from "./ketch.mjs";

let ketch;
test.beforeAll(async () => {
  ketch = await start();
});
test.afterAll(async ({}, info) => {
  if (info.status !== info.expectedStatus) console.log(ketch.log());
  await ketch.stop();
});

/** The same component with other bytes: one more custom section. */
function changed(path) {
  const copy = join(mkdtempSync(join(tmpdir(), "ketch-build-")), "hello.wasm");
  const note = Buffer.from("\x05builda second build");
  writeFileSync(copy, Buffer.concat([readFileSync(path), Buffer.from([0, note.length]), note]));
  return copy;
}

/** Calls a function over and over until stopped; every answer must be good. */
function load(name) {
  let running = true;
  const failures = [];
  let count = 0;
  const loop = (async () => {
    while (running) {
      const answer = await ketch.call(name).catch((error) => ({ status: 0, body: String(error) }));
      count += 1;
      if (answer.status !== 200) failures.push(answer);
    }
  })();
  return async () => {
    running = false;
    await loop;
    expect(count).toBeGreaterThan(0);
    expect(failures).toEqual([]);
  };
}

test("a dropped component becomes a URL, a new revision and a rollback", async ({ page }) => {
  const errors = [];
  const foreign = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("request", (request) => new URL(request.url()).host !== new URL(ketch.link).host && foreign.push(request.url()));

  await page.goto(ketch.link);
  await expect(page.getByRole("link", { name: "Deploy" }).first()).toBeVisible();
  expect(page.url()).not.toContain("token");

  await page.goto(new URL("/deploy", ketch.link).href);
  await page.locator(".zone").drop({ files: [guest("hello")] });
  await expect(page.getByText("wasi:http/incoming-handler").first()).toBeVisible();
  await expect(page.getByText("What it asks for")).toBeVisible();
  expect(ketch.kubectl("get", "pods", "-o", "name").trim()).toBe("");
  await expect(page.locator("#app-name")).toHaveValue("hello");
  await page.screenshot({ path: "test-results/deploy.png", fullPage: true });
  await page.getByRole("button", { name: "Deploy", exact: true }).click();
  await expect(page.getByText("It runs")).toBeVisible();
  expect((await ketch.call("hello")).status).toBe(200);

  await page.getByRole("link", { name: "Go to the app" }).click();
  await page.getByRole("link", { name: "Logs" }).click();
  await ketch.call("hello", "/seen-in-the-console");
  await expect(page.getByText("/seen-in-the-console").first()).toBeVisible();

  await page.getByRole("link", { name: "Overview", exact: true }).last().click();
  await expect(page.getByText("hello-00001").first()).toBeVisible();
  await page.screenshot({ path: "test-results/app.png" });

  const stop = load("hello");
  await page.getByRole("link", { name: "New revision" }).click();
  await page.locator("#file").setInputFiles(changed(guest("hello")));
  await page.getByRole("button", { name: "Deploy new revision" }).click();
  await expect(page.getByText("It runs")).toBeVisible();
  await page.getByRole("link", { name: "Go to the app" }).click();
  await page.getByRole("link", { name: "Revisions" }).click();
  await expect(page.getByText("hello-00002").first()).toBeVisible();
  // Only a revision without traffic can be rolled back to.
  await page.getByRole("button", { name: "Roll back to this", disabled: false }).first().click();
  await expect
    .poll(() => ketch.kubectl("get", "function", "hello", "-o", "jsonpath={.status.traffic[0].revisionName}"))
    .toBe("hello-00001");
  await stop();
  expect(errors).toEqual([]);
  expect(foreign).toEqual([]);
});

test("what is no component is refused in words", async ({ page }) => {
  await login(page);
  await page.goto(new URL("/deploy", ketch.link).href);
  const text = join(mkdtempSync(join(tmpdir(), "ketch-text-")), "notes.wasm");
  writeFileSync(text, "just some notes\n");
  await page.locator("#file").setInputFiles(text);
  await expect(page.getByRole("alert").first()).toBeVisible();
  expect(await page.getByRole("alert").first().innerText()).toMatch(/wasm|WebAssembly/i);
});

test("pages have no accessibility faults, in light, dark and at phone width", async ({ page }) => {
  await login(page);
  for (const [scheme, width] of [["light", 1440], ["dark", 1440], ["light", 390]]) {
    await page.emulateMedia({ colorScheme: scheme });
    await page.setViewportSize({ width, height: 900 });
    for (const path of ["/", "/deploy", "/apps", "/apps/default/hello/overview", "/apps/default/hello/invoke"]) {
      await page.goto(new URL(path, ketch.link).href);
      await page.waitForLoadState("networkidle").catch(() => {});
      await expect(page.locator("main")).toBeVisible();
      const name = `${path.replaceAll("/", "-").slice(1) || "overview"}-${scheme}-${width}`;
      await page.screenshot({ path: `test-results/${name}.png` });
      const found = await new AxeBuilder({ page }).withTags(["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa"]).analyze();
      expect(found.violations.map((v) => `${path}: ${v.id}: ${v.nodes.map((n) => n.target).join(" ")}`)).toEqual([]);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth);
      expect(wide, `${path} scrolls sideways at ${width}`).toBe(false);
    }
  }
});

/** Logs in with a new link. */
async function login(page) {
  await page.goto(ketch.newLink());
  await expect(page.getByRole("link", { name: "Deploy" }).first()).toBeVisible();
}
