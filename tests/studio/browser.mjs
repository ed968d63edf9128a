// The page of mien studio in headless Chromium, as people use it.
//
//     node browser.mjs ADDRESS FOLDER_OF_NODE_MODULES PICTURES [PART_OF_A_CHECKS_NAME]
//
// Each check prints a line; the exit code is 1 if one fails. The browser is the variable CHROMIUM's. Everything waits
// for a condition, and nothing for a time, so that a busy machine fails no check.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";

import { clips, peopleChecks } from "./browser_people.mjs";

const [address, modules, pictures, part = ""] = process.argv.slice(2);
const require = createRequire(path.join(modules, "node_modules", "anchor.js"));
const { chromium } = require("playwright-core");
const validator = require("gltf-validator");
const axe = await readFile(require.resolve("axe-core/axe.min.js"), "utf-8");
const photo = new URL("../../studio/public/examples/astronaut.jpg", import.meta.url).pathname;
const PATIENCE_MS = 600_000;
const WIDE = { width: 1440, height: 900 };
const NARROW = { width: 390, height: 844 };
/** The quickest work, where a check is not about the fit. */
const QUICK = "?mode=net&detail=false&formats=glb,json";

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  timeout: PATIENCE_MS,
  args: [
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--force-color-profile=srgb",
  ],
});

/** A page of a new user; errors of its scripts and requests to other hosts fail the check. */
async function open({ job, query, at = address, ...options } = {}) {
  // Small, because pictures are drawn by the processor here.
  const context = await browser.newContext({ viewport: { width: 1000, height: 620 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  const faults = [];
  page.on("pageerror", (error) => faults.push(error.message));
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  page.on("request", (request) => {
    if (!/^(blob|data):/.test(request.url()) && !request.url().startsWith(at)) faults.push(`asks ${request.url()}`);
  });
  if (query) await page.route(/\/api\/(jobs|people)$/, (route) => route.continue({ url: route.request().url() + query }));
  await page.goto(job ? `${at}studio/index.html#job=${job}` : at);
  return { page, faults, close: () => context.close() };
}

const state = (page, name) => page.waitForSelector(`body[data-state="${name}"]`);
const head = (page) => page.waitForSelector("body[data-head]");
const send = (page, file) => page.setInputFiles("#file", file);
const press = (page, name) => page.getByRole("button", { name, exact: true }).click();
const jobOf = (page) => new URL(page.url()).hash.replace("#job=", "");

/** A job whose photo was fitted with detail; the same one for all checks. */
let whole = null;
async function fitted() {
  whole ??= (async () => {
    const { id } = await (await fetch(`${address}api/jobs`, { method: "POST", body: await readFile(photo) })).json();
    await ended(id);
    return id;
  })();
  return whole;
}

/** Wait for the end of a job. */
const ended = async (id) => (await fetch(`${address}api/jobs/${id}/events`)).text();

/** A page that shows the head of `fitted`. */
async function withHead(options = {}) {
  const opened = await open({ job: await fitted(), ...options });
  await state(opened.page, "done");
  return opened;
}

/** Two frames, so that what was asked for before has been drawn. */
const drawn = (page) =>
  page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done()))));

/** Share of the pixels that differ between the picture of a canvas before and after an action, or of another canvas. */
async function changed(page, act, canvas = "#stage", other = canvas) {
  const shot = async (selector) => {
    await drawn(page);
    return page.evaluate((found) => {
      const source = document.querySelector(found);
      const copy = Object.assign(document.createElement("canvas"), { width: 100, height: 100 });
      copy.getContext("2d").drawImage(source, 0, 0, 100, 100);
      return [...copy.getContext("2d").getImageData(0, 0, 100, 100).data];
    }, selector);
  };
  const before = await shot(canvas);
  await act();
  const after = await shot(other);
  let count = 0;
  for (let k = 0; k < before.length; k += 4) count += [0, 1, 2].some((c) => Math.abs(before[k + c] - after[k + c]) > 12);
  return count / 10_000;
}

/** Move a slider as its user does. */
const slide = (page, selector, value) =>
  page.locator(selector).evaluate((slider, to) => {
    slider.closest("details")?.setAttribute("open", "");
    slider.value = to;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  }, String(value));

async function download(page, name) {
  const link = page.locator("#downloads a").filter({ hasText: new RegExp(`^${name}$`) });
  await link.evaluate((one) => one.closest("details")?.setAttribute("open", ""));
  const [file] = await Promise.all([page.waitForEvent("download"), link.click()]);
  return readFile(await file.path());
}

async function assertValid(glb) {
  const { issues } = await validator.validateBytes(new Uint8Array(glb));
  assert.deepEqual([issues.numErrors, issues.numWarnings], [0, 0]);
}

/** Turn the head once per frame until `until` (in the page) holds, and measure the frames. */
const turning = (page, until) =>
  page.evaluate(async (condition) => {
    const ended = new Function(`return ${condition}`);
    const [stage, gaps] = [document.querySelector("#stage"), []];
    let blocked = 0;
    const observer = new PerformanceObserver((list) => list.getEntries().forEach(({ duration }) => (blocked += duration)));
    observer.observe({ type: "longtask" });
    const begin = performance.now();
    for (let last = begin; !ended(gaps.length, performance.now() - begin); ) {
      stage.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
      const now = await new Promise(requestAnimationFrame);
      gaps.push(Math.max(now - last, 0));
      last = now;
    }
    observer.disconnect();
    const sorted = [...gaps].sort((a, b) => a - b);
    const ms = performance.now() - begin;
    return { frames: gaps.length, ms, median: sorted[gaps.length >> 1], longest: sorted.at(-1), blocked };
  }, until);

const checks = {
  async "a photo becomes a head that can be turned while it is fitted"() {
    const { page, faults, close } = await open();
    await send(page, photo);
    await head(page);
    const fit = await turning(page, 'document.body.dataset.state === "done"');
    whole = Promise.resolve(jobOf(page));
    const idle = await turning(page, "arguments[0] >= 20 && arguments[1] > 2000");
    for (const [when, { frames, ms, median, longest, blocked }] of Object.entries({ fit, idle })) {
      const numbers = [`${(ms / 1000).toFixed(1)} s`, `${frames} frames`, `median gap ${median.toFixed(0)} ms`];
      const longer = [`longest ${longest.toFixed(0)} ms`, `long tasks ${((100 * blocked) / ms).toFixed(0)} % of the time`];
      console.log(`        ${when}: ${[...numbers, ...longer].join(", ")}`);
    }
    assert.ok(fit.frames > 3 && fit.longest < 0.7 * fit.ms, "the page stands still while the photo is fitted");
    assert.equal(await page.locator("#drawing .box").count(), 1);
    await press(page, "Front"); // it has turned by a number of frames that depends on the machine
    const jaw = await changed(page, () => slide(page, '[data-expression="jawOpen"]', 1));
    assert.ok(jaw > 0.005, `jawOpen moves ${jaw} of the picture`);
    const light = await changed(page, () => slide(page, "#light-side", 120));
    assert.ok(light > 0.02, `the light changes ${light} of the picture`);
    await press(page, "Three-quarter");
    for (const view of ["Left profile", "Back", "Front"]) {
      const turn = await changed(page, () => press(page, view));
      assert.ok(turn > 0.05, `${view} changes ${turn} of the picture`);
    }
    await assertValid(await download(page, "GLB"));
    assert.deepEqual(faults, []);
    await close();
  },

  async "the head lies over its photo"() {
    const { page, faults, close } = await withHead();
    await press(page, "Over the photo");
    await slide(page, "#wipe", 0);
    await page.waitForFunction(() => document.querySelector("#photo").naturalWidth > 0);
    await drawn(page);
    // Colours of head and photo at the middle of the face.
    const difference = await page.evaluate(() => {
      const [image, stage] = [document.querySelector("#photo"), document.querySelector("#stage")];
      const colours = [image, stage].map((source) => {
        const copy = Object.assign(document.createElement("canvas"), { width: 512, height: 512 });
        copy.getContext("2d").drawImage(source, 0, 0, 512, 512);
        return copy.getContext("2d").getImageData(205, 95, 50, 45).data;
      });
      let sum = 0;
      for (let k = 0; k < colours[0].length; k++) sum += k % 4 < 3 ? Math.abs(colours[0][k] - colours[1][k]) : 0;
      return sum / (colours[0].length * 0.75);
    });
    assert.ok(difference < 12, `head and photo differ by ${difference} of 255`);
    const box = await page.locator("#view").boundingBox();
    await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
    await page.mouse.down();
    await page.mouse.move(box.x + 0.8 * box.width, box.y + box.height / 2);
    await page.mouse.up();
    assert.equal(await page.locator("#wipe").inputValue(), "80");
    await press(page, "Head");
    assert.equal(await page.getByRole("button", { name: "Relit" }).getAttribute("aria-pressed"), "true");
    assert.deepEqual(faults, []);
    await close();
  },

  async "sliders change the shape at once, and its files can be downloaded"() {
    const { page, faults, close } = await withHead();
    const older = await changed(page, () => slide(page, '[data-shape="phenotype:age"]', 1));
    assert.ok(older > 0.01, `the age changes ${older} of the picture`);
    const reset = await changed(page, () => press(page, "Reset the shape"));
    assert.ok(Math.abs(reset - older) < 0.002, `the reset changes ${reset} of the picture, the slider ${older}`);
    await slide(page, '[data-shape="phenotype:age"]', 1);
    await slide(page, '[data-shape="identity:2"]', -0.5);
    const before = await download(page, "GLB");
    const job = await page.getAttribute("[data-job]", "data-job");
    await press(page, "Make files of this shape");
    await page.waitForSelector(`[data-job]:not([data-job="${job}"])`);
    const after = await download(page, "GLB");
    await assertValid(after);
    const [was, is] = [before, after].map((glb) => JSON.parse(glb.subarray(20, 20 + glb.readUInt32LE(12))));
    assert.deepEqual(is.meshes[0].extras.targetNames, was.meshes[0].extras.targetNames);
    assert.ok(!is.meshes[0].extras.targetNames.some((name) => name.includes(":")), "head.glb has targets of the shape");
    assert.notDeepEqual(is.asset.extras.identity, was.asset.extras.identity);
    assert.deepEqual(is.asset.extras.expression, was.asset.extras.expression);
    assert.deepEqual(faults, []);
    await close();
  },

  async "steps and modes side by side turn together"() {
    const { page, faults, close } = await withHead();
    await press(page, "Compare");
    await page.waitForSelector('body[data-compared="network"]');
    await page.locator("#compared").selectOption("fit");
    await page.waitForSelector('body[data-compared="fit"]');
    const turn = await changed(page, () => press(page, "Left profile"), "#other-stage");
    assert.ok(turn > 0.05, `the other head turns by ${turn} of the picture`);
    await press(page, "Front");
    await page.locator("#compared").selectOption("mode:net");
    await page.waitForSelector('body[data-compared="mode:net"]');
    const differs = await changed(page, async () => {}, "#stage", "#other-stage");
    assert.ok(differs > 0.01, `both modes differ in ${differs} of the picture`);
    assert.equal(jobOf(page), await fitted(), "the page has left its job");
    assert.deepEqual(faults, []);
    await close();
  },

  async "the albedo has no light"() {
    const { page, faults, close } = await withHead();
    const relit = await changed(page, () => slide(page, "#light-side", 100));
    const look = await changed(page, () => press(page, "Albedo"));
    const dark = await changed(page, () => slide(page, "#light-side", -100));
    assert.ok(relit > 0.02 && look > 0.02, `the light changes ${relit} of the picture, the albedo ${look}`);
    assert.equal(dark, 0, "the albedo changes with the light");
    assert.deepEqual(faults, []);
    await close();
  },

  async "a placed landmark moves the face"() {
    const { page, faults, close } = await open({ query: QUICK });
    await send(page, photo);
    await state(page, "done");
    const before = jobOf(page);
    await press(page, "Landmarks");
    await page.getByRole("slider", { name: "Landmark 48" }).focus();
    for (let k = 0; k < 5; k++) await page.keyboard.press("ArrowLeft");
    await press(page, "Fit again with these landmarks");
    await page.waitForFunction((job) => !location.hash.endsWith(job), before);
    await state(page, "done");
    const [was, is] = await Promise.all(
      [before, jobOf(page)].map(async (job) => (await fetch(`${address}api/jobs/${job}`)).json()),
    );
    const [from, to] = [was, is].map((job) => job.outlines[0].landmarks[48]);
    assert.ok(to[0] < from[0] - 1 && Math.abs(to[1] - from[1]) < 0.1, `landmark 48 moves from ${from} to ${to}`);
    assert.deepEqual(faults, []);
    await close();
  },

  async "a file that is no photo is told, and the next photo works"() {
    const { page, close } = await open({ query: QUICK });
    await writeFile(path.join(pictures, "bad.jpg"), "this is no photo");
    await send(page, path.join(pictures, "bad.jpg"));
    await state(page, "failed");
    assert.match(await page.locator("#status").textContent(), /not a picture/);
    await page.getByText("not a picture").filter({ visible: true }).first().waitFor();
    await send(page, photo);
    await head(page);
    await writeFile(path.join(pictures, "large.jpg"), Buffer.alloc(6_000_000));
    await send(page, path.join(pictures, "large.jpg"));
    await state(page, "failed");
    assert.match(await page.locator("#status").textContent(), /5 MB/);
    assert.equal(await page.locator("#stage").isVisible(), false, "the head of the photo before is still there");
    await close();
  },

  async "a page that is loaded again in the middle goes on"() {
    const { page, close } = await open({ query: "?detail=false&formats=glb,obj,json" });
    await send(page, photo);
    await head(page);
    const job = jobOf(page);
    const end = ended(job); // it listens, too, since the server stops a job whose page is away for 15 s
    await page.reload();
    await state(page, "done");
    await end;
    assert.equal(jobOf(page), job);
    assert.equal(await page.getAttribute("body", "data-head"), "detail");
    assert.ok((await page.locator("#downloads a").count()) > 2);
    await close();
  },

  async "a result that has expired is told"() {
    const { page, close } = await open({ job: "gone" });
    await state(page, "failed");
    assert.match(await page.locator("#status").textContent(), /has expired/);
    await close();
  },

  async "a server that is killed, comes back or ends is told"() {
    const serve = async (port) => {
      const server = spawn(process.env.PYTHON ?? "python3", ["-m", "tests.studio.fake_server", port]);
      const [line] = await once(server.stdout, "data");
      return { at: String(line).trim(), end: (signal) => (server.kill(signal), once(server, "exit")) };
    };
    const slow = path.join(pictures, "slow.jpg");
    await writeFile(slow, "slow"); // for tests/studio/fake_worker.py
    const first = await serve("0");
    const { page, close } = await open({ at: first.at });
    const said = (part) => page.waitForFunction((text) => document.querySelector("#status").textContent.includes(text), part);
    await send(page, slow);
    await page.waitForFunction(() => location.hash.startsWith("#job="));
    await first.end("SIGKILL");
    await said("mien studio does not respond");
    assert.equal(await page.getAttribute("body", "data-state"), "working");
    const second = await serve(new URL(first.at).port);
    await said("has expired");
    const before = new URL(page.url()).hash;
    await send(page, slow);
    await page.waitForFunction((hash) => location.hash !== hash, before);
    await second.end("SIGTERM");
    await said("mien studio was ended");
    await send(page, slow);
    await said("mien studio does not respond");
    await close();
  },

  async "two users at once get a head each, of their own photos"() {
    const photos = [photo, path.join(pictures, "larger.png")];
    clips("photos", photos[1], path.join(pictures, "empty.png"));
    const both = await Promise.all(photos.map(() => open({ query: QUICK })));
    await Promise.all(both.map(({ page }, k) => send(page, photos[k])));
    await Promise.all(both.map(({ page }) => state(page, "done")));
    const sizes = await Promise.all(
      both.map(async ({ page }) => {
        const { width, height } = await (await fetch(`${address}api/jobs/${jobOf(page)}`)).json();
        return `${width}x${height}`;
      }),
    );
    assert.deepEqual(sizes, ["512x512", "480x480"]);
    const found = await Promise.all(both.map(async ({ page }) => JSON.parse(await download(page, "Coefficients, JSON"))));
    assert.notDeepEqual(found[0].identity, found[1].identity);
    for (const { faults } of both) assert.deepEqual(faults, []);
    await Promise.all(both.map(({ close }) => close()));
  },

  async "a photo can be taken with the webcam"() {
    const { page, close } = await open({ query: QUICK });
    await press(page, "Use the webcam");
    await state(page, "camera");
    await press(page, "Back");
    await state(page, "empty");
    await press(page, "Use the webcam");
    await state(page, "camera");
    await press(page, "Take the photo");
    await state(page, "failed"); // Chromium's test picture shows no face
    assert.match(await page.locator("#status").textContent(), /no face/i);
    await close();
  },

  async "an example and the head are reached with the keyboard alone"() {
    const { page, faults, close } = await open({ query: QUICK });
    const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim());
    const seen = [];
    for (let k = 0; k < 3; k++) {
      await page.keyboard.press("Tab");
      seen.push(await focused());
    }
    assert.deepEqual(seen, ["choose", "camera", "example"]);
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.equal(outline, "solid", "the focus is not seen");
    await page.keyboard.press("Enter");
    await state(page, "done");
    for (let k = 0; k < 40 && (await focused()) !== "stage"; k++) await page.keyboard.press("Tab");
    const turn = await changed(page, () => page.keyboard.press("ArrowLeft"));
    assert.ok(turn > 0.01, `an arrow key turns the head by ${turn} of the picture`);
    assert.deepEqual(faults, []);
    await close();
  },

  async "axe finds no barrier, and the page looks as before"() {
    const { page, close } = await open({ viewport: WIDE, reducedMotion: "reduce" });
    await sameFont(page);
    const layouts = {};
    const look = async (name) => {
      await drawn(page);
      // As a debugger does, since the page's policy allows no other scripts.
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => globalThis.axe.run());
      const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`);
      assert.deepEqual(found, [], name);
      const across = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.equal(across, 0, `${name} scrolls sideways`);
      layouts[name] = await page.evaluate(boxes);
      await page.screenshot({ path: path.join(pictures, `${name}.png`) });
    };
    await page.waitForFunction(() => [...document.images].every((one) => !one.src || one.complete));
    await look("start-light");
    await page.emulateMedia({ colorScheme: "dark" });
    await page.setViewportSize(NARROW);
    await look("start-dark-narrow");
    await page.setViewportSize(WIDE);
    await page.emulateMedia({ colorScheme: "light" });
    await page.evaluate((job) => (location.hash = `job=${job}`), await fitted());
    await page.reload();
    await sameFont(page);
    await state(page, "done");
    await page.waitForFunction(() => document.querySelector("#photo").naturalWidth > 0);
    await look("done-light");
    await page.setViewportSize(NARROW);
    await look("done-light-narrow");
    await page.emulateMedia({ colorScheme: "dark" });
    await page.setViewportSize(WIDE);
    await look("done-dark");
    await press(page, "Compare");
    await page.waitForSelector("body[data-compared]");
    await look("compare-dark");
    await writeFile(path.join(pictures, "layouts.json"), JSON.stringify(layouts));
    await close();
  },
};

/** One font everywhere, so that texts are as wide on all machines. */
async function sameFont(page) {
  const files = ["400", "600"].map((weight) => require.resolve(`@fontsource/inter/files/inter-latin-${weight}-normal.woff2`));
  const fonts = await Promise.all(files.map(async (file) => (await readFile(file)).toString("base64")));
  await page.evaluate(async (encoded) => {
    for (const [k, text] of encoded.entries()) {
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      document.fonts.add(await new FontFace("Baseline", bytes, { weight: ["400", "600"][k] }).load());
    }
    const sheet = new CSSStyleSheet();
    sheet.replaceSync("* { font-family: Baseline !important; font-variant-ligatures: none }");
    document.adoptedStyleSheets = [sheet];
  }, fonts);
}

/** Boxes of the elements that are shown, by name: left, top, width, height; run in the page. */
function boxes() {
  const named = [...document.querySelectorAll("[id], header, aside, aside h2")].filter(
    (one) => !one.closest("svg, #sliders, #downloads > *") && one.checkVisibility({ visibilityProperty: true }),
  );
  return Object.fromEntries(
    named.map((one) => {
      const { x, y, width, height } = one.getBoundingClientRect();
      const name = one.id || (one.tagName === "H2" ? one.textContent : one.tagName.toLowerCase());
      return [name, [x, y, width, height].map(Math.round)];
    }),
  );
}

/** Barriers that axe finds on a page, and its picture. */
async function scan(page, name) {
  await page.evaluate(axe); // as a debugger does, since the page's policy allows no other scripts
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`), []);
  await page.screenshot({ path: path.join(pictures, `${name}.png`) });
}

Object.assign(checks, peopleChecks({ address, open, state, send, press, photo, pictures, scan }));
let failed = 0;
const chosen = Object.entries(checks).filter(([name]) => name.includes(part));
for (const [name, check] of chosen) {
  const begin = Date.now();
  try {
    await check();
    console.log(`passed  ${name} (${((Date.now() - begin) / 1000).toFixed(1)} s)`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED  ${name}: ${error.message}`);
  }
}
await browser.close();
console.log(`${chosen.length - failed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
