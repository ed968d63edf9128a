/** A video beside the head that moves in time with it, one person at a time. */

import * as api from "./api";
import { button, element } from "./controls";
import { type Span, Timeline } from "./timeline";
import type { Viewer } from "./viewer";

export class VideoView {
  readonly #clip = element<HTMLVideoElement>("clip");
  readonly #timeline = new Timeline(element("timeline"), this.#clip);
  #people = new Map<number, api.TrackedPerson>();
  #chosen = 0;
  #job = "";
  #overlay = "";
  #unplayable = false;

  /**
   * @param viewer Shows the head.
   * @param offer Takes names and addresses of the files of the chosen person.
   */
  constructor(
    readonly viewer: Viewer,
    readonly offer: (files: [string, string][]) => void,
  ) {
    this.#clip.addEventListener("error", () => {
      this.#unplayable = this.#clip.hasAttribute("src");
      this.#useOverlay();
    });
  }

  /** Show a video; its people come later. */
  open(address: string): void {
    this.close();
    this.#clip.src = address;
  }

  close(): void {
    this.#people.clear();
    [this.#chosen, this.#overlay, this.#unplayable] = [0, "", false];
    this.#clip.pause();
    this.#clip.removeAttribute("src");
    this.#clip.load();
    this.#timeline.show(null, [], []);
    document.body.removeAttribute("data-lost");
  }

  /** The files of a person are there, or more of them. */
  async person(job: string, person: api.TrackedPerson): Promise<void> {
    this.#job = job;
    const known = this.#people.has(person.person);
    this.#people.set(person.person, person);
    this.#buttons();
    if (person.person !== this.#chosen) return;
    if (known) this.#offer();
    else await this.#choose(person.person);
  }

  /** The video with the shapes over it is there. */
  overlay(job: string): void {
    this.#overlay = api.overlayAddress(job);
    this.#offer();
    this.#useOverlay();
  }

  /** What the browser cannot play, such as ProRes, is replaced by the overlay, which is H.264. */
  #useOverlay(): void {
    if (!this.#unplayable) return;
    const words = this.#overlay ? "The browser cannot play this file; the overlay is shown" : "The browser cannot play this file";
    element("step").textContent = words;
    if (this.#overlay) this.#clip.src = this.#overlay;
    this.#unplayable = false;
  }

  async #choose(number: number): Promise<void> {
    this.#chosen = number;
    const person = this.#people.get(number);
    if (!person) return;
    this.#buttons();
    const answer = await fetch(api.trackedFileAddress(this.#job, number, "head.glb")).catch(() => null);
    if (!answer?.ok || this.#chosen !== number) return; // it has expired, the server has ended, or another person was chosen meanwhile
    await this.viewer.load(await answer.arrayBuffer());
    this.#timeline.show(this.viewer.motion, person.spans_s.map(span), person.interpolated_s.map(span));
    document.body.dataset["person"] = String(number);
    this.#offer();
  }

  #buttons(): void {
    const numbers = [...this.#people.keys()].sort((a, b) => a - b);
    const buttons = numbers.map((number) => {
      const made = button(`Person ${number + 1}`, () => void this.#choose(number));
      made.setAttribute("aria-pressed", String(number === this.#chosen));
      return made;
    });
    element("faces").replaceChildren(...(buttons.length > 1 ? buttons : []));
  }

  #offer(): void {
    const person = this.#people.get(this.#chosen);
    if (!person) return;
    const order = ["head.glb", "blendshapes.csv", "tracking.npz", "sheet.png"].filter((name) => person.files.includes(name));
    const files = order.map((name): [string, string] => [name, api.trackedFileAddress(this.#job, this.#chosen, name)]);
    if (this.#overlay) files.push(["overlay.mp4", this.#overlay]);
    this.offer(files);
  }
}

function span([from, to]: [number, number]): Span {
  return { from, to };
}
