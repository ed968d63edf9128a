// Checks of the page with several photos of one person, and with a video; browser.mjs runs them.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import path from "node:path";

/** How much a strength on the page may differ from tracking.npz: the file of the head is rounded. */
const TOLERANCE = 0.002;

/** Ask tests/studio/clips.py. */
export const clips = (...words) => execFileSync(process.env.PYTHON ?? "python3", ["-m", "tests.studio.clips", ...words], { encoding: "utf-8" });

export function peopleChecks({ address, open, state, send, press, photo, pictures, scan }) {
  const made = (name) => path.join(pictures, name);

  return {
    async "photos of one person become one head, and a photo without a face is told"() {
      const { page, faults, close } = await open({ query: "?mode=net&detail=false" });
      clips("photos", made("larger.png"), made("empty.png"));
      await send(page, [made("empty.png"), photo, made("larger.png")]);
      await state(page, "choose");
      await press(page, "One person in all photos");
      await page.waitForSelector("body[data-head]");
      await state(page, "done");
      const words = await page.locator("#strip span").allTextContents();
      assert.deepEqual([words[0], ...words.slice(1).map((one) => one.replace(/\d+/, "N")).sort()], ["Left out", "Best, N %", "Counts N %"]);
      const shown = () => page.evaluate(() => [document.querySelector("#photo").src, document.querySelector("#step").textContent]);
      const seen = [];
      for (const number of [2, 3]) {
        await page.locator(`#strip button:nth-child(${number})`).click();
        await page.waitForFunction((k) => document.querySelector("#step").textContent.includes(`as in photo ${k}`), number);
        seen.push(await shown());
        assert.ok((await page.locator("#downloads a").count()) >= 5);
      }
      assert.ok(seen[0][0].endsWith("/photos/1") && seen[1][0].endsWith("/photos/2"), String(seen));
      assert.match(seen[1][1], /One head from 2 photos/);
      const job = new URL(page.url()).hash.replace("#job=", "");
      const identities = await Promise.all(
        [1, 2].map(async (k) => (await (await fetch(`${address}api/jobs/${job}/faces/${k}/coefficients.json`)).json()).identity),
      );
      assert.deepEqual(identities[0], identities[1]);
      await press(page, "Over the photo");
      await page.locator("#strip button:nth-child(1)").click();
      await page.waitForSelector("body[data-missing]");
      assert.match(await page.locator("#notes").textContent(), /Photo 1: no face was found/);
      assert.equal(await page.locator("#stage").isVisible(), false);
      await scan(page, "person");
      await page.reload();
      await state(page, "done");
      assert.equal(await page.locator("#strip button").count(), 3);
      assert.deepEqual(faults, []);
      await close();
    },

    async "photos become separate heads"() {
      const { page, faults, close } = await open({ query: "?mode=net&detail=false&formats=glb,json" });
      clips("photos", made("larger.png"), made("empty.png"));
      await send(page, [photo, made("larger.png")]);
      await state(page, "choose");
      await press(page, "Separate heads");
      await state(page, "done");
      const first = await page.locator("#downloads a").first().getAttribute("href");
      await page.locator("#strip button:nth-child(2)").click();
      await state(page, "done");
      await page.waitForFunction((before) => {
        const link = document.querySelector("#downloads a");
        return link && link.getAttribute("href") !== before;
      }, first);
      assert.deepEqual(faults, []);
      await close();
    },

    async "a head moves in time with its video"() {
      const { page, faults, close } = await open();
      clips("video", made("clip.mp4"));
      await send(page, made("clip.mp4"));
      await page.waitForSelector("body[data-head]");
      await state(page, "done");
      const job = new URL(page.url()).hash.replace("#job=", "");
      const track = await fetch(`${address}api/videos/${job}/people/0/tracking.npz`);
      const { times, names, expression } = JSON.parse(
        execFileSync(process.env.PYTHON ?? "python3", ["-m", "tests.studio.clips", "track"], {
          input: Buffer.from(await track.arrayBuffer()), encoding: "utf-8", maxBuffer: 2 ** 26,
        }),
      );
      const expected = (name, time) => {
        const column = names.indexOf(name);
        const after = Math.min(Math.max(times.findIndex((one) => one > time), 1), times.length - 1);
        const [a, b] = [times[after - 1], times[after]];
        const share = Math.min(Math.max((time - a) / (b - a), 0), 1);
        return expression[after - 1][column] * (1 - share) + expression[after][column] * share;
      };
      const shown = () =>
        page.evaluate(() => ({
          time: document.querySelector("#clip").currentTime,
          values: Object.fromEntries([...document.querySelectorAll("output[data-curve]")].map((one) => [one.dataset.curve, Number(one.dataset.value)])),
        }));
      const jaw = [];
      for (const time of [0.1, 0.5, 0.9]) {
        await page.evaluate(
          (to) =>
            new Promise((done) => {
              const [video, slider] = [document.querySelector("#clip"), document.querySelector("#timeline input")];
              video.addEventListener("seeked", () => requestAnimationFrame(done), { once: true });
              slider.value = to;
              slider.dispatchEvent(new Event("input", { bubbles: true }));
            }),
          String(time),
        );
        const now = await shown();
        assert.ok(Math.abs(now.time - time) < 0.01, `the video is at ${now.time} s instead of ${time}`);
        assert.ok(Object.keys(now.values).length === 3, JSON.stringify(now));
        for (const [name, value] of Object.entries(now.values)) {
          const right = expected(name, now.time);
          assert.ok(Math.abs(value - right) < TOLERANCE, `${name} is ${value} at ${now.time} s instead of ${right}`);
        }
        jaw.push(now.values["jawOpen"]);
      }
      assert.ok(Math.max(...jaw) - Math.min(...jaw) > 10 * TOLERANCE, `the mouth hardly moves: ${jaw}`);
      const before = await shown();
      await page.locator("#timeline input").focus();
      await page.keyboard.press("ArrowLeft");
      await page.waitForFunction((was) => document.querySelector("#clip").currentTime < was - 0.02, before.time);
      const step = before.time - (await shown()).time;
      assert.ok(step > 0.02 && step < 0.1, `a step back of ${step} s`);
      await scan(page, "video");
      const paused = (await shown()).time;
      await press(page, "Play");
      await page.waitForFunction((was) => document.querySelector("#clip").currentTime !== was, paused);
      await press(page, "Over the video");
      const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("link", { name: "Overlay video" }).click()]);
      assert.equal(download.suggestedFilename(), "overlay.mp4");
      await page.reload();
      await state(page, "done");
      await page.waitForFunction(() => document.querySelectorAll("output[data-curve]").length === 3);
      assert.deepEqual(faults, []);
      await close();
    },
  };
}
