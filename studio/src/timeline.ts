/** The timeline of a video: play, pause, steps, speed, and curves of the chosen expressions under it. */

import { button } from "./controls";
import type { Motion } from "./motion";

const SVG = "http://www.w3.org/2000/svg";
const SPEEDS = [0.25, 0.5, 1, 2];
const FIRST_CURVES = ["jawOpen", "mouthSmileLeft", "eyeBlinkLeft"];
const MOST_CURVES = 4;
/** Keeps a seek beyond the boundary of its frame: times of frames are rounded differently by browsers. */
const INTO_FRAME_S = 0.001;
const HEIGHT = 100;

export interface Span {
  from: number;
  to: number;
}

export class Timeline {
  readonly #play: HTMLButtonElement;
  readonly #scrub = document.createElement("input");
  readonly #time = document.createElement("span");
  readonly #curves = document.createElementNS(SVG, "svg");
  readonly #now = line("line", { y1: 0, y2: HEIGHT, class: "now" });
  readonly #legend = document.createElement("div");
  readonly #more = document.createElement("select");
  #chosen: string[] = [];
  #motion: Motion | null = null;
  #spans: Span[] = [];
  #interpolated: Span[] = [];
  #readouts = new Map<string, HTMLElement>();

  /**
   * @param place Is filled.
   * @param video What is played; the timeline follows it.
   */
  constructor(
    readonly place: HTMLElement,
    readonly video: HTMLVideoElement,
  ) {
    this.#play = button("Play", () => void this.toggle());
    this.#play.className = "primary";
    const steps = [button("Frame back", () => this.step(-1)), button("Frame forward", () => this.step(1))];
    const speed = document.createElement("select");
    speed.setAttribute("aria-label", "Speed");
    speed.append(...SPEEDS.map((factor) => new Option(`${factor} ×`, String(factor), factor === 1, factor === 1)));
    speed.addEventListener("change", () => (video.playbackRate = Number(speed.value)));
    Object.assign(this.#scrub, { type: "range", min: "0", max: "1", step: "0.001", value: "0" });
    this.#scrub.setAttribute("aria-label", "Time");
    this.#scrub.addEventListener("input", () => (video.currentTime = this.#scrub.valueAsNumber));
    this.#scrub.addEventListener("keydown", (event) => this.#stepByKey(event));
    this.#time.className = "time";
    this.#more.setAttribute("aria-label", "Add a curve");
    this.#more.addEventListener("change", () => this.#toggleCurve(this.#more.value));
    this.#curves.setAttribute("preserveAspectRatio", "none");
    this.#curves.setAttribute("role", "img");
    this.#curves.addEventListener("pointerdown", (event) => this.#seekBy(event));
    this.#curves.addEventListener("pointermove", (event) => event.buttons === 1 && this.#seekBy(event));
    this.#legend.className = "row";
    const bar = document.createElement("div");
    bar.className = "row";
    bar.append(this.#play, ...steps, speed, this.#time);
    place.replaceChildren(bar, this.#scrub, this.#curves as unknown as HTMLElement, this.#legend);
    for (const name of ["play", "pause", "ended"]) video.addEventListener(name, () => this.#follow());
    for (const name of ["seeked", "loadedmetadata", "durationchange"]) video.addEventListener(name, () => this.#moved());
    document.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Show another motion; null while there is none. */
  show(motion: Motion | null, spans: Span[], interpolated: Span[]): void {
    this.#motion = motion;
    [this.#spans, this.#interpolated] = [spans, interpolated];
    const names = motion?.names ?? [];
    this.#chosen = this.#chosen.filter((name) => names.includes(name));
    if (this.#chosen.length === 0) this.#chosen = FIRST_CURVES.filter((name) => names.includes(name));
    this.#draw();
    this.#moved();
  }

  async toggle(): Promise<void> {
    if (this.video.paused) await this.video.play();
    else this.video.pause();
  }

  /** Go to the next frame, or to the one before. */
  step(by: 1 | -1): void {
    this.video.pause();
    const times = this.#motion?.times ?? [];
    const shown = times.findLastIndex((time) => time <= this.video.currentTime + INTO_FRAME_S);
    const next = times[shown + by];
    if (next !== undefined) this.video.currentTime = next + INTO_FRAME_S;
  }

  #key(event: KeyboardEvent): void {
    if (document.body.dataset["kind"] !== "video" || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target as HTMLElement;
    // Sliders, lists, buttons and the head have their own keys.
    if (target.closest("input, select, button, canvas, a, summary")) return;
    this.#stepByKey(event);
  }

  #stepByKey(event: KeyboardEvent): void {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key] as 1 | -1 | undefined;
    if (step) this.step(step);
    else if (event.key === " ") void this.toggle();
    else return;
    event.preventDefault();
  }

  /** Each drawn frame while the video plays. */
  #follow(): void {
    this.#play.textContent = this.video.paused ? "Play" : "Pause";
    this.#moved();
    if (!this.video.paused && !this.video.ended) requestAnimationFrame(() => this.#follow());
  }

  #moved(): void {
    const { currentTime, duration } = this.video;
    const length = Number.isFinite(duration) ? duration : 1;
    this.#scrub.max = String(length);
    this.#scrub.value = String(currentTime);
    this.#time.textContent = `${currentTime.toFixed(2)} of ${length.toFixed(2)} s`;
    this.#scrub.setAttribute("aria-valuetext", `${currentTime.toFixed(2)} seconds`);
    this.#curves.setAttribute("viewBox", `0 0 ${length} ${HEIGHT}`);
    for (const end of ["x1", "x2"]) this.#now.setAttribute(end, String(currentTime));
    this.#motion?.setTime(currentTime);
    const seen = this.#spans.some(({ from, to }) => currentTime >= from && currentTime <= to);
    document.body.toggleAttribute("data-lost", this.#motion !== null && !seen);
    for (const [name, place] of this.#readouts) {
      const value = this.#motion?.strength(name) ?? 0;
      place.textContent = value.toFixed(2);
      place.dataset["value"] = value.toFixed(5);
    }
  }

  #seekBy(event: PointerEvent): void {
    const { left, width } = this.#curves.getBoundingClientRect();
    this.video.currentTime = (Math.min(Math.max(event.clientX - left, 0), width) / width) * this.video.duration;
  }

  #toggleCurve(name: string): void {
    if (!name) return;
    const without = this.#chosen.filter((one) => one !== name);
    this.#chosen = without.length < this.#chosen.length ? without : [...this.#chosen, name].slice(-MOST_CURVES);
    this.#draw();
    this.#moved();
  }

  #draw(): void {
    const motion = this.#motion;
    const mark = (span: Span, kind: string) => line("rect", { x: span.from, y: 0, width: span.to - span.from, height: HEIGHT, class: kind });
    const cuts = this.#spans.slice(1).map(({ from }) => line("line", { x1: from, x2: from, y1: 0, y2: HEIGHT, class: "cut" }));
    const drawn = this.#chosen.map((name, k) => {
      const curve = motion?.curve(name) ?? [];
      const points = curve.map(([time, value]) => `${time},${(HEIGHT * (1 - 0.96 * value) - 2).toFixed(2)}`);
      return line("polyline", { points: points.join(" "), class: `curve c${k}` });
    });
    const all = [...this.#spans.map((span) => mark(span, "seen")), ...this.#interpolated.map((span) => mark(span, "guessed")), ...cuts, ...drawn];
    this.#curves.replaceChildren(...(motion ? [...all, this.#now] : []));
    this.#curves.setAttribute("aria-label", this.#description());
    this.#readouts.clear();
    const entries = this.#chosen.map((name, k) => this.#entry(name, k));
    const rest = (motion?.names ?? []).filter((name) => !this.#chosen.includes(name));
    this.#more.replaceChildren(new Option("Add a curve", ""), ...rest.map((name) => new Option(name, name)));
    this.#legend.replaceChildren(...(motion ? [...entries, this.#more] : []));
  }

  #entry(name: string, index: number): HTMLElement {
    const made = button("", () => this.#toggleCurve(name));
    made.className = `curve c${index}`;
    made.title = "Remove this curve";
    const value = document.createElement("output");
    value.dataset["curve"] = name;
    value.setAttribute("aria-live", "off");
    this.#readouts.set(name, value);
    made.append(`${name} `, value);
    return made;
  }

  #description(): string {
    if (!this.#motion) return "No curves yet";
    const peaks = this.#chosen.map((name) => {
      const [time, value] = (this.#motion?.curve(name) ?? []).reduce((best, one) => (one[1] > best[1] ? one : best), [0, 0]);
      return `${name} at most ${value.toFixed(2)}, at ${time.toFixed(1)} s`;
    });
    const lost = this.#interpolated.length + Math.max(this.#spans.length - 1, 0);
    return `Curves over time: ${peaks.join("; ")}. ${lost} cuts and gaps.`;
  }
}

function line(name: string, attributes: Record<string, string | number>): SVGElement {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  if (name !== "rect") made.setAttribute("vector-effect", "non-scaling-stroke");
  return made;
}
