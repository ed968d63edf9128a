// Opens a page of this folder in headless Chromium with a file, and prints what its `read` returns as JSON.
//
//     node browser.mjs PAGE FILE [--screenshot PNG WIDTH HEIGHT]
//
// The packages are those of build/interop-node, the browser is the variable CHROMIUM's. Nothing comes from the network.

import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";

const [page, file, ...options] = process.argv.slice(2);
const here = path.dirname(fileURLToPath(import.meta.url));
const packages = path.resolve(here, "../../build/interop-node/node_modules");
const puppeteer = createRequire(path.join(packages, "anchor.js"))("puppeteer-core");
const folders = {
  modules: packages,
  pages: path.resolve(path.dirname(page)),
  examples: path.resolve(here, "../../examples"),
  files: path.resolve(path.dirname(file)),
};
const types = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".json": "application/json" };

const server = createServer(async (request, response) => {
  const [, folder, ...rest] = decodeURIComponent(new URL(request.url, "http://localhost").pathname).split("/");
  const place = path.join(folders[folder] ?? "/nowhere", ...rest);
  try {
    const content = await readFile(place);
    response.writeHead(200, { "Content-Type": types[path.extname(place)] ?? "application/octet-stream" }).end(content);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));

const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"],
});
let failed = false;
try {
  const tab = await browser.newPage();
  tab.on("pageerror", (error) => console.error(String(error)));
  tab.on("console", (message) => console.error(message.text()));
  const [png, width, height] = options[0] === "--screenshot" ? options.slice(1) : [];
  await tab.setViewport({ width: Number(width ?? 64), height: Number(height ?? 64) });
  await tab.goto(`http://127.0.0.1:${server.address().port}/pages/${path.basename(page)}?file=/files/${encodeURIComponent(path.basename(file))}`);
  await tab.waitForFunction("window.read !== undefined", { timeout: 60000 });
  process.stdout.write(JSON.stringify(await tab.evaluate(() => window.read())));
  if (png) await tab.screenshot({ path: png, omitBackground: true });
} catch (error) {
  console.error(String(error));
  failed = true;
}
await browser.close();
server.close();
process.exitCode = failed ? 1 : 0;
