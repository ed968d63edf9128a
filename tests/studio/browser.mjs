// The page of mien studio in headless Chromium, as people use it.
//
//     node browser.mjs ADDRESS FOLDER_OF_NODE_MODULES PICTURES [PART_OF_A_CHECKS_NAME]
//
// Each check prints a line; the exit code is 1 if one fails. The browser is the variable CHROMIUM's.

import assert from "node:assert/strict";
import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";

const [address, modules, pictures, part = ""] = process.argv.slice(2);
const require = createRequire(path.join(modules, "node_modules", "anchor.js"));
const { chromium } = require("playwright-core");
const validator = require("gltf-validator");
const axe = await readFile(require.resolve("axe-core/axe.min.js"), "utf-8");
const photo = new URL("../../examples/astronaut.png", import.meta.url).pathname;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
  ],
});

/** A page of a new user; errors of its scripts and requests to other hosts fail the check. */
async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(120_000);
  const faults = [];
  page.on("pageerror", (error) => faults.push(error.message));
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  page.on("request", (request) => {
    if (!/^(blob|data):/.test(request.url()) && !request.url().startsWith(address)) faults.push(`asks ${request.url()}`);
  });
  await page.goto(address);
  return { page, faults, close: () => context.close() };
}

const state = (page, name) => page.waitForSelector(`body[data-state="${name}"]`);
const head = (page) => page.waitForSelector("body[data-head]");
const send = (page, file) => page.setInputFiles("#file", file);

/** Share of the pixels of a head's picture that differ between two states. */
async function changed(page, act, canvas = "#stage") {
  const shot = async () => {
    await page.waitForTimeout(400);
    // Two frames, so that a slow machine has drawn what was asked for before.
    await page.evaluate(() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn))));
    return page.evaluate((selector) => {
      const source = document.querySelector(selector);
      const copy = Object.assign(document.createElement("canvas"), { width: 100, height: 100 });
      copy.getContext("2d").drawImage(source, 0, 0, 100, 100);
      return [...copy.getContext("2d").getImageData(0, 0, 100, 100).data];
    }, canvas);
  };
  const before = await shot();
  await act();
  const after = await shot();
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

const checks = {
  async "a photo becomes a head that moves, and a file that is valid"() {
    const { page, faults, close } = await open();
    await send(page, photo);
    await head(page);
    await state(page, "done");
    assert.equal(await page.locator("#drawing .box").count(), 1);
    const jaw = await changed(page, () => slide(page, '[data-expression="jawOpen"]', 1));
    assert.ok(jaw > 0.005, `jawOpen moves ${jaw} of the picture`);
    const light = await changed(page, () => slide(page, "#light-side", 120));
    assert.ok(light > 0.02, `the light changes ${light} of the picture`);
    for (const view of ["Left profile", "Back", "Front"]) {
      const turn = await changed(page, () => page.getByRole("button", { name: view, exact: true }).click());
      assert.ok(turn > 0.05, `${view} changes ${turn} of the picture`);
    }
    const [download] = await Promise.all([
      page.waitForEvent("download"),
      page.getByRole("link", { name: "GLB", exact: true }).click(),
    ]);
    const glb = await readFile(await download.path());
    const { issues } = await validator.validateBytes(new Uint8Array(glb));
    assert.deepEqual([issues.numErrors, issues.numWarnings], [0, 0]);
    await page.screenshot({ path: path.join(pictures, "head.png") });
    assert.deepEqual(faults, []);
    await close();
  },

  async "the head lies over its photo"() {
    const { page, faults, close } = await open();
    await send(page, photo);
    await state(page, "done");
    await page.getByRole("button", { name: "Over the photo" }).click();
    await page.getByRole("button", { name: "Photo colours" }).click();
    await slide(page, "#wipe", 0);
    await page.waitForTimeout(800);
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
    await page.screenshot({ path: path.join(pictures, "over.png") });
    assert.ok(difference < 12, `head and photo differ by ${difference} of 255`);
    assert.deepEqual(faults, []);
    await close();
  },

  async "sliders change the shape at once, and its files can be downloaded"() {
    const { page, faults, close } = await open();
    await send(page, photo);
    await state(page, "done");
    const older = await changed(page, () => slide(page, '[data-shape="phenotype:age"]', 1));
    assert.ok(older > 0.01, `the age changes ${older} of the picture`);
    const reset = await changed(page, () => page.getByRole("button", { name: "Reset the shape" }).click());
    assert.ok(Math.abs(reset - older) < 0.002, `the reset changes ${reset} of the picture, the slider ${older}`);
    await slide(page, '[data-shape="phenotype:age"]', 1);
    await slide(page, '[data-shape="identity:2"]', -0.5);
    await page.screenshot({ path: path.join(pictures, "shape.png") });
    const glbOf = async () => {
      const link = page.getByRole("link", { name: "GLB", exact: true });
      const [download] = await Promise.all([page.waitForEvent("download"), link.click()]);
      return readFile(await download.path());
    };
    const before = await glbOf();
    const job = await page.getAttribute("#downloads", "data-job");
    await page.getByRole("button", { name: "Make files of this shape" }).click();
    await page.waitForSelector(`#downloads:not([data-job="${job}"])`);
    const after = await glbOf();
    const { issues } = await validator.validateBytes(new Uint8Array(after));
    assert.deepEqual([issues.numErrors, issues.numWarnings], [0, 0]);
    const [was, is] = [before, after].map((glb) => JSON.parse(glb.subarray(20, 20 + glb.readUInt32LE(12))));
    assert.deepEqual(is.meshes[0].extras.targetNames, was.meshes[0].extras.targetNames);
    assert.ok(!is.meshes[0].extras.targetNames.some((name) => name.includes(":")), "head.glb has targets of the shape");
    assert.notDeepEqual(is.asset.extras.identity, was.asset.extras.identity);
    assert.deepEqual(is.asset.extras.expression, was.asset.extras.expression);
    assert.deepEqual(faults, []);
    await close();
  },

  async "two steps side by side turn together"() {
    const { page, faults, close } = await open();
    await send(page, photo);
    await state(page, "done");
    await page.getByRole("button", { name: "Compare" }).click();
    await page.waitForSelector('body[data-compared="network"]');
    await page.locator("#compared").selectOption("fit");
    await page.waitForSelector('body[data-compared="fit"]');
    const turn = await changed(page, () => page.getByRole("button", { name: "Left profile" }).click(), "#other-stage");
    assert.ok(turn > 0.05, `the other head turns by ${turn} of the picture`);
    await page.getByRole("button", { name: "Front", exact: true }).click();
    await page.waitForTimeout(400);
    await page.screenshot({ path: path.join(pictures, "compare.png") });
    assert.deepEqual(faults, []);
    await close();
  },

  async "the albedo has no light"() {
    const { page, faults, close } = await open();
    await send(page, photo);
    await state(page, "done");
    const relit = await changed(page, () => slide(page, "#light-side", 100));
    const look = await changed(page, () => page.getByRole("button", { name: "Albedo" }).click());
    const dark = await changed(page, () => slide(page, "#light-side", -100));
    assert.ok(relit > 0.02 && look > 0.02, `the light changes ${relit} of the picture, the albedo ${look}`);
    assert.equal(dark, 0, "the albedo changes with the light");
    await page.screenshot({ path: path.join(pictures, "albedo.png") });
    assert.deepEqual(faults, []);
    await close();
  },

  async "a placed landmark moves the face"() {
    const { page, faults, close } = await open();
    await send(page, photo);
    await state(page, "done");
    const job = page.url();
    await page.getByRole("button", { name: "Landmarks", exact: true }).click();
    const mouth = page.getByRole("slider", { name: "Landmark 48" });
    await mouth.focus();
    for (let k = 0; k < 5; k++) await page.keyboard.press("ArrowLeft");
    await page.getByRole("button", { name: "Fit again with these landmarks" }).click();
    await state(page, "done");
    assert.notEqual(page.url(), job);
    assert.deepEqual(faults, []);
    await close();
  },

  async "a file that is no photo is told, and the next photo works"() {
    const { page, close } = await open();
    await writeFile(path.join(pictures, "bad.jpg"), "this is no photo");
    await send(page, path.join(pictures, "bad.jpg"));
    await state(page, "failed");
    assert.match(await page.locator("#status").textContent(), /not a picture/);
    await send(page, photo);
    await head(page);
    await writeFile(path.join(pictures, "large.jpg"), Buffer.alloc(6_000_000));
    await send(page, path.join(pictures, "large.jpg"));
    await state(page, "failed");
    assert.match(await page.locator("#status").textContent(), /5 MB/);
    await close();
  },

  async "a page that is loaded again in the middle goes on"() {
    const { page, close } = await open();
    await send(page, photo);
    await head(page);
    await page.reload();
    await head(page);
    await state(page, "done");
    assert.ok((await page.locator("#downloads a").count()) > 5);
    await close();
  },

  async "two users at once get a head each"() {
    const both = await Promise.all([open(), open()]);
    await Promise.all(both.map(({ page }) => send(page, photo)));
    await Promise.all(both.map(({ page }) => state(page, "done")));
    assert.notEqual(both[0].page.url(), both[1].page.url());
    await Promise.all(both.map(({ close }) => close()));
  },

  async "a photo can be taken with the webcam"() {
    const { page, close } = await open();
    await page.getByRole("button", { name: "Use the webcam" }).click();
    await state(page, "camera");
    await page.getByRole("button", { name: "Take the photo" }).click();
    await state(page, "failed"); // Chromium's test picture shows no face
    assert.match(await page.locator("#status").textContent(), /no face/i);
    await close();
  },

  async "axe finds no barrier, in light and dark, wide and narrow"() {
    for (const [colorScheme, width, height] of [["light", 1440, 900], ["dark", 390, 844]]) {
      const { page, close } = await open({ colorScheme, viewport: { width, height } });
      const scan = async (name) => {
        // As a debugger does, since the page's policy allows no other scripts.
        await page.evaluate(axe);
        const { violations } = await page.evaluate(() => globalThis.axe.run());
        const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`);
        assert.deepEqual(found, [], `${name}, ${colorScheme}`);
        await page.screenshot({ path: path.join(pictures, `${name}-${colorScheme}.png`) });
      };
      await scan("start");
      await send(page, photo);
      await state(page, "done");
      await scan("done");
      const across = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.equal(across, 0, "the page scrolls sideways");
      await close();
    }
  },
};

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
