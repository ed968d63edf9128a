/** The state of the page, the words about it, and the bar of progress. */

import type { Frames } from "./api";
import { element } from "./controls";

export type State = "empty" | "choose" | "camera" | "working" | "done" | "failed";

/** Words for a stage, and where it begins and ends on the way, by its usual share of the time. */
const STAGES: Record<string, [string, number, number]> = {
  reading: ["Reading the photo", 0, 0.04],
  perception: ["Finding faces", 0.04, 0.1],
  network: ["Estimating the head", 0.1, 0.14],
  landmarks: ["Fitting landmarks", 0.14, 0.2],
  "light and albedo": ["Fitting the light", 0.2, 0.25],
  photometric: ["Fitting the photo", 0.25, 0.55],
  maps: ["Adding detail", 0.55, 0.8],
  writing: ["Writing files", 0, 0], // after each step
};

export class Status {
  #done = 0;

  get state(): State {
    return document.body.dataset["state"] as State;
  }

  set state(state: State) {
    document.body.dataset["state"] = state;
  }

  say(text: string, alarming = false): void {
    element("status").textContent = text;
    element("status").classList.toggle("alarming", alarming);
  }

  fail(reason: string): void {
    this.state = "failed";
    element("trouble").textContent = `The head could not be made: ${reason}`;
    this.say(`The head could not be made: ${reason}`, true);
  }

  /** The bar begins again. */
  begin(): void {
    this.#done = 0;
  }

  /** Tell a stage of the work, and which share of it is done. */
  stage(stage: string, share: number, medium: "photo" | "video"): void {
    const [words, begin, end] = STAGES[stage] ?? [stage, 0, 0];
    this.#done = Math.max(this.#done, begin + share * (end - begin)); // it never goes back
    element<HTMLProgressElement>("progress").value = this.#done;
    this.say(words.replace("photo", medium));
  }

  /** Tell how far a stage of the work on a video is. */
  frames(frames: Frames): void {
    const total = frames.total ?? 0;
    element<HTMLProgressElement>("progress").value = total > 0 ? frames.done / total : 0;
    this.say(framesWords(frames));
  }
}

function framesWords({ stage, done, total, per_second, seconds_left }: Frames): string {
  const words = stage.charAt(0).toUpperCase() + stage.slice(1).replace(/person (\d+)/, (_, k: string) => `person ${Number(k) + 1}`);
  const count = total === null ? (done > 0 ? `${done} frames` : "") : `${done} of ${total} frames`;
  const speed = per_second === null ? "" : `${per_second.toFixed(0)} per second`;
  const left = seconds_left === null ? "" : `${Math.ceil(seconds_left)} s left`;
  return [words, count, speed, left].filter((part) => part !== "").join(", ");
}
