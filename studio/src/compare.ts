/** A second viewer beside the first one, which shows the same face after an earlier step. */

import * as api from "./api";
import { Viewer } from "./viewer";

export class Comparison {
  #viewer: Viewer | null = null;
  #shown = "";

  constructor(
    readonly main: Viewer,
    readonly canvas: HTMLCanvasElement,
    readonly choice: HTMLSelectElement,
    readonly words: Record<api.Step, string>,
    readonly strengths: () => ReadonlyMap<string, number>,
  ) {}

  /** Offer the earlier steps of a face, and show the chosen one. */
  async refresh(job: string, head: api.FaceHead): Promise<void> {
    const steps = api.STEPS.filter((step) => step !== head.step && head.files.includes(api.stepFile(step)));
    const before = this.choice.value;
    this.choice.replaceChildren(...steps.map((step) => new Option(this.words[step], step)));
    if (steps.some((step) => step === before)) this.choice.value = before;
    this.choice.disabled = steps.length === 0;
    this.choice.onchange = () => void this.#show(job, head.face);
    await this.#show(job, head.face);
  }

  async #show(job: string, face: number): Promise<void> {
    const step = this.choice.value;
    if (step === "") return;
    const address = api.fileAddress(job, face, api.stepFile(step as api.Step));
    if (this.#shown === address) return;
    const answer = await fetch(address);
    if (!answer.ok) return; // the job has expired
    const first = this.#viewer === null;
    const viewer = (this.#viewer ??= new Viewer(this.canvas));
    await viewer.load(await answer.arrayBuffer(), this.strengths());
    if (first) this.main.pair(viewer);
    this.#shown = address;
    document.body.dataset["compared"] = step;
  }
}
