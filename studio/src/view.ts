/** The page of one result as a single file: the head is inside it, compressed and as base64. */

import "./style.css";
import { element, lookAndViewButtons } from "./controls";
import { ExpressionPanel } from "./panel";
import { Viewer } from "./viewer";

async function embedded(): Promise<ArrayBuffer> {
  const text = element<HTMLScriptElement>("head-data").textContent ?? "";
  const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return fromPlanes(new Uint8Array(await new Response(stream).arrayBuffer()));
}

/** The bytes in their order again: `mien.export.html` puts the first bytes of all words first. */
function fromPlanes(planes: Uint8Array): ArrayBuffer {
  const words = planes.length / 4;
  const bytes = new Uint8Array(planes.length);
  for (let k = 0; k < 4; k++) for (let word = 0; word < words; word++) bytes[4 * word + k] = planes[k * words + word]!;
  return bytes.buffer;
}

async function start(): Promise<void> {
  const viewer = new Viewer(element<HTMLCanvasElement>("stage"));
  const panel = new ExpressionPanel(viewer, element("presets"), element("sliders"));
  await viewer.load(await embedded());
  lookAndViewButtons(viewer, element("looks"), element("views"));
  panel.refresh();
  document.body.dataset["state"] = "ready";
}

start().catch((error: unknown) => {
  const note = element("note");
  note.textContent = `The head cannot be shown: ${error instanceof Error ? error.message : String(error)}`;
  note.hidden = false;
  document.body.dataset["state"] = "failed";
});
