/** The photo with the outlines of its faces, and landmarks that can be dragged. */

import type { Outline, Placed } from "./api";

const SVG = "http://www.w3.org/2000/svg";
const INNER = 17; // landmarks before it lie on the jaw, and cannot be placed
const LINES: [number, number, boolean][] = [
  [0, 17, false], [17, 22, false], [22, 27, false], [27, 31, false], [31, 36, false],
  [36, 42, true], [42, 48, true], [48, 60, true], [60, 68, true],
]; // prettier-ignore

export class PhotoView {
  #outlines: Outline[] = [];
  #size: [number, number] = [1, 1];
  #chosen = 0;
  #editing = false;
  #placed: Map<number, [number, number]>[] = [];

  constructor(
    readonly image: HTMLImageElement,
    readonly drawing: SVGSVGElement,
    readonly onChoose: (face: number) => void,
    readonly onPlaced: (count: number) => void,
  ) {
    // Over the photo as it is shown, whatever its size on the page.
    image.addEventListener("load", () => this.#draw());
  }

  show(address: string): void {
    this.image.src = address;
    this.#outlines = [];
    this.#placed = [];
    this.#draw();
  }

  outline(width: number, height: number, outlines: Outline[]): void {
    this.#size = [width, height];
    this.#outlines = outlines;
    this.#placed = outlines.map(() => new Map());
    this.#draw();
  }

  choose(face: number): void {
    this.#chosen = face;
    this.#draw();
  }

  edit(editing: boolean): void {
    this.#editing = editing;
    this.#draw();
  }

  /** The placed landmarks of each face. */
  get placed(): Placed[][] {
    return this.#placed.map((face) => [...face].map(([landmark, [x, y]]) => ({ landmark, x, y })));
  }

  #draw(): void {
    const [width, height] = this.#size;
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.drawing.replaceChildren(...this.#outlines.flatMap((face, index) => this.#face(face, index)));
  }

  #face(face: Outline, index: number): SVGElement[] {
    const [left, top, right, bottom] = face.box;
    const size = Math.max(right - left, bottom - top);
    const points = face.landmarks.map((point, k) => this.#placed[index]?.get(k) ?? point);
    const made: SVGElement[] = LINES.map(([from, to, closed]) =>
      shape(closed ? "polygon" : "polyline", {
        points: points.slice(from, to).join(" "),
        class: index === this.#chosen ? "line chosen" : "line",
        "stroke-width": size / 150,
      }),
    );
    const box = shape("rect", {
      x: left, y: top, width: right - left, height: bottom - top, rx: size / 20,
      class: index === this.#chosen ? "box chosen" : "box",
      "stroke-width": size / 90,
    }); // prettier-ignore
    box.addEventListener("click", () => this.onChoose(index));
    if (!this.#editing || index !== this.#chosen) return [...made, box];
    const handles = points.map((point, k) => this.#handle(point, k, index, size)).filter((one) => one !== null);
    return [box, ...made, ...handles];
  }

  #handle([x, y]: [number, number], landmark: number, face: number, size: number): SVGElement | null {
    if (landmark < INNER) return null;
    const moved = this.#placed[face]?.has(landmark);
    const handle = shape("circle", {
      cx: x, cy: y, r: size / 70, class: moved ? "handle moved" : "handle", tabindex: 0, role: "slider",
      "aria-label": `Landmark ${landmark}`, "aria-valuetext": `${Math.round(x)}, ${Math.round(y)}`,
    }); // prettier-ignore
    const move = (to: [number, number]) => {
      this.#placed[face]?.set(landmark, to);
      this.#draw();
      this.onPlaced(this.placed.flat().length);
    };
    handle.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      // The drawing gets the events: the handle itself is drawn anew with each move.
      this.drawing.setPointerCapture(event.pointerId);
      const drag = (now: PointerEvent) => move(this.#place(now));
      this.drawing.addEventListener("pointermove", drag);
      this.drawing.addEventListener("pointerup", () => this.drawing.removeEventListener("pointermove", drag), { once: true });
    });
    handle.addEventListener("keydown", (event) => {
      const step: Record<string, [number, number]> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const by = step[event.key];
      if (!by) return;
      event.preventDefault();
      move([x + (by[0] * size) / 200, y + (by[1] * size) / 200]);
      (this.drawing.querySelector(`[aria-label="Landmark ${landmark}"]`) as SVGElement | null)?.focus();
    });
    return handle;
  }

  #place(event: PointerEvent): [number, number] {
    const matrix = this.drawing.getScreenCTM();
    if (!matrix) return [0, 0];
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
    return [point.x, point.y];
  }
}

function shape(name: string, attributes: Record<string, string | number>): SVGElement {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  return made;
}
