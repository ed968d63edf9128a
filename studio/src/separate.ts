/** Photos that were sent together and become separate heads, a job each. */

import * as api from "./api";
import type { Strip } from "./strip";

/** How often the heads of other photos are asked for; a job that nobody asks for is stopped after 15 s. */
const LOOK_MS = 3000;

export class Separate {
  #jobs: string[] = [];

  /** @param strip Shows the photos and how far they are. */
  constructor(readonly strip: Strip) {
    setInterval(() => void this.#look(), LOOK_MS);
  }

  /** In the order of the photos; empty for a photo that was refused. */
  get jobs(): readonly string[] {
    return this.#jobs;
  }

  /** Nobody looks at these any more. */
  clear(): void {
    for (const job of this.#jobs) if (job) api.remove(job);
    this.#jobs = [];
  }

  /**
   * Send the photos, until other ones are opened.
   *
   * @param first Sends the first photo and shows it.
   * @param sent Is called after each one.
   */
  async submit(photos: Blob[], first: (submit: () => Promise<string>) => Promise<void>, sent: () => void): Promise<void> {
    const jobs: string[] = [];
    this.#jobs = jobs;
    for (const [index, photo] of photos.entries()) {
      if (this.#jobs !== jobs) return;
      if (index === 0) {
        await first(() => api.submit(photo).then((job) => (jobs.push(job), job)));
        if (jobs.length === 0) return;
        this.strip.choose(0);
      } else {
        try {
          jobs.push(await api.submit(photo));
        } catch (error) {
          jobs.push("");
          this.strip.say(index, api.words(error), true);
        }
      }
      sent();
    }
  }

  /** Show them again after the page was loaded again. */
  restore(jobs: string[], shown: string): void {
    this.#jobs = jobs;
    if (jobs.length === 0) return;
    this.strip.fill(jobs.length);
    jobs.forEach((job, index) => job && this.strip.picture(index, api.photoAddress(job)));
    this.strip.choose(jobs.indexOf(shown));
  }

  /** Ask how far the photos are that are not shown. */
  async #look(): Promise<void> {
    const jobs = this.#jobs;
    for (const [index, job] of jobs.entries()) {
      if (job === "") continue;
      const known = await api.state(job).catch(() => undefined);
      if (this.#jobs !== jobs || known === undefined) return; // without a server there is no news
      const words = { running: "At work", failed: "Failed", done: "" } as Record<string, string>;
      const state = known?.state ?? "failed";
      this.strip.say(index, words[state] ?? `${(known?.position ?? 0) + 1}. in line`, state === "failed");
      if (known?.state === "done") this.strip.picture(index, api.photoAddress(job));
    }
  }
}
