/** The page of the studio: photos in, heads out. */

import "./style.css";
import "./studio.css";
import "./several.css";
import * as api from "./api";
import { button, element, lookAndViewButtons } from "./controls";
import { Comparison } from "./compare";
import { Downloads } from "./downloads";
import { Inputs } from "./inputs";
import { Modes } from "./modes";
import { ExpressionPanel } from "./panel";
import { Person } from "./person";
import { PhotoView } from "./photo";
import { Separate } from "./separate";
import { ShapePanel } from "./shape";
import { Status } from "./status";
import { Strip } from "./strip";
import { VideoView } from "./video";
import { Viewer } from "./viewer";

const STEP_WORDS: Record<api.Step, string> = { network: "First estimate", fit: "Fitted", detail: "Fitted, with detail" };
/** As many as the server takes of one person. */
const MOST_PHOTOS = 50;
type Kind = "photo" | "person" | "video";

class Studio {
  readonly #viewer = new Viewer(element<HTMLCanvasElement>("stage"));
  readonly #panel = new ExpressionPanel(this.#viewer, element("presets"), element("sliders"));
  readonly #shape = new ShapePanel(this.#viewer, element("shape"), () => void this.#reshape());
  readonly #comparison = new Comparison(
    this.#viewer,
    element<HTMLCanvasElement>("other-stage"),
    element<HTMLSelectElement>("compared"),
    element("compared-note"),
    STEP_WORDS,
    () => this.#panel.weights,
  );
  readonly #photo = new PhotoView(
    element<HTMLImageElement>("photo"),
    document.getElementById("drawing") as unknown as SVGSVGElement,
    (face) => this.#kind === "photo" && void this.#choose(face),
    (count) => (element<HTMLButtonElement>("refit").disabled = count === 0),
  );
  readonly #status = new Status();
  readonly #downloads = new Downloads(element("downloads"));
  readonly #strip = new Strip(element("strip"), (index) => void this.#chooseInStrip(index));
  readonly #person = new Person(this.#strip);
  readonly #separate = new Separate(this.#strip);
  readonly #video = new VideoView(this.#viewer, (files) => this.#downloads.files(files));
  readonly #modes = new Modes(
    this.#viewer,
    lookAndViewButtons(this.#viewer, element("looks"), element("views")),
    () => this.#viewer.motion?.photoCamera ?? this.#heads.get(this.#face) ?? null,
    (mode) => {
      this.#photo.edit(mode === "landmarks");
      if (mode === "compare") void this.#compare();
    },
  );
  #job = "";
  #kind: Kind = "photo";
  #found = new Map<number, api.Detected>();
  #heads = new Map<number, api.FaceHead>();
  #face = 0;
  #local: string[] = [];
  #stop = () => {};
  #shown = Promise.resolve();

  start(): void {
    new Inputs(
      (files) => this.#open(files),
      (state) => {
        this.#status.state = state;
        if (state === "camera") this.#say("Look into the camera");
      },
      (problem) => this.#say(problem, true),
    );
    this.#light();
    element("refit").addEventListener("click", () => void this.#run(() => api.pin(this.#job, this.#photo.placed), "photo", false));
    element("stop").addEventListener("click", () => api.remove(this.#job)); // the event `cancelled` comes then
    this.#status.state = "empty";
    void this.#goOn();
  }

  /** Where the page was before it was loaded again. */
  async #goOn(): Promise<void> {
    const place = new URLSearchParams(location.hash.slice(1));
    const job = place.get("job");
    if (!job) return;
    this.#status.state = "working";
    const known = await api.state(job).catch((error: unknown) => this.#status.fail(api.words(error)));
    if (known === undefined) return;
    if (!known) return this.#fail("there is no such job any more, or it has expired; send the photo again.");
    this.#job = job;
    if (known.kind === "person") this.#strip.fill(Math.max(...known.photos.map(({ photo }) => photo)) + 1);
    this.#separate.restore(place.get("jobs")?.split(",") ?? [], job);
    if (known.kind === "video") this.#video.open(api.videoAddress(job));
    this.#listen(job, known.kind === "shape" ? "photo" : known.kind, true);
  }

  #open(files: Blob[]): void {
    this.#local.forEach((address) => URL.revokeObjectURL(address));
    this.#local = files.map((file) => URL.createObjectURL(file));
    // Nobody looks at it any more.
    if (this.#kind !== "photo" && this.#status.state === "working") api.remove(this.#job);
    this.#separate.clear();
    this.#stop();
    this.#video.close();
    const videos = files.filter(isVideo);
    this.#strip.fill(files.length > 1 && videos.length === 0 ? files.length : 0);
    if (videos.length > 0 && files.length > 1) return this.#fail("a video is opened by itself; choose it alone.");
    if (videos.length === 1) {
      this.#video.open(this.#local[0]!);
      void this.#run(() => api.submitVideo(files[0]!), "video", true);
      return;
    }
    if (files.length === 1) {
      this.#photo.show(this.#local[0]!);
      void this.#run(() => api.submit(files[0]!), "photo", true);
      return;
    }
    if (files.length > MOST_PHOTOS) {
      this.#strip.fill(0);
      return this.#fail(`these are ${files.length} photos; choose at most ${MOST_PHOTOS} at once.`);
    }
    this.#local.forEach((address, index) => this.#strip.picture(index, address));
    element("choice-title").textContent = `${files.length} photos: who is in them?`;
    element("same-person").onclick = () => this.#submitPerson(files);
    element("separate").onclick = () => void this.#submitSeparate(files);
    this.#say("Photos stay on this machine.");
    this.#status.state = "choose";
    element("same-person").focus();
  }

  #submitPerson(photos: Blob[]): void {
    this.#photo.show(this.#local[0]!);
    const sent = (count: number) => this.#say(`Sending the photos: ${count} of ${photos.length}`);
    void this.#run(() => api.submitPerson(photos, sent), "person", true);
  }

  async #submitSeparate(photos: Blob[]): Promise<void> {
    this.#photo.show(this.#local[0]!);
    await this.#separate.submit(
      photos,
      (submit) => this.#run(submit, "photo", true),
      () => this.#remember(),
    );
  }

  async #chooseInStrip(index: number): Promise<void> {
    if (this.#kind === "person") return this.#choose(index);
    const job = this.#separate.jobs[index];
    if (!job || job === this.#job) return;
    this.#stop();
    this.#status.state = "working";
    this.#photo.show(this.#local[index] ?? api.photoAddress(job));
    this.#listen(job, "photo", true);
    this.#strip.choose(index);
  }

  async #run(submit: () => Promise<string>, kind: Kind, fresh: boolean): Promise<void> {
    this.#stop();
    this.#showKind(kind);
    if (fresh) this.#forget();
    this.#status.state = "working";
    this.#say(kind === "video" ? "Sending the video" : "Sending the photo");
    try {
      this.#listen(await submit(), kind, fresh);
    } catch (error) {
      this.#fail(api.words(error));
    }
  }

  #showKind(kind: Kind): void {
    document.body.dataset["kind"] = kind;
    this.#modes.name(kind === "video" ? "video" : "photo");
  }

  /** Nothing of the earlier photo may stand beside the new one. */
  #forget(): void {
    delete document.body.dataset["head"];
    document.body.removeAttribute("data-missing");
    element("step").textContent = "The head comes in a moment";
    this.#panelled(false);
    this.#heads.clear();
    this.#found.clear();
    this.#person.clear();
    this.#face = 0;
    element("faces").replaceChildren();
    element("notes").replaceChildren();
  }

  #panelled(usable: boolean): void {
    document.querySelector("aside")!.inert = !usable;
  }

  #listen(job: string, kind: Kind, fresh: boolean): void {
    this.#job = job;
    this.#kind = kind;
    this.#showKind(kind);
    if (kind !== "photo" && this.#modes.mode !== "over") this.#modes.choose("head");
    if (fresh) this.#forget();
    this.#status.begin();
    this.#downloads.clear();
    element<HTMLButtonElement>("refit").disabled = true;
    this.#remember();
    const latest = new Map<number, api.FaceHead>();
    this.#stop = api.listen(job, {
      stage: (stage, share) => this.#status.stage(stage, share, kind === "video" ? "video" : "photo"),
      detected: (found) => this.#detected(found),
      matched: (found) => this.#match(found),
      head: (head) => {
        latest.set(head.face, head);
        this.#shown = this.#shown.then(async () => {
          if (latest.get(head.face) === head) await this.#head(job, head); // else a better one has come meanwhile
        });
      },
      frames: (frames) => this.#status.frames(frames),
      video: ({ width, height }) => document.body.style.setProperty("--aspect", String(width / height)),
      person: (person) => {
        this.#shown = this.#shown.then(async () => {
          if (job !== this.#job) return;
          await this.#video.person(job, person);
          document.body.dataset["head"] = "detail";
          this.#panelled(true);
          element("step").textContent = "Tracked";
          this.#modes.headChanged();
        });
      },
      overlay: () => this.#video.overlay(job),
      finished: (warnings) => {
        this.#shown = this.#shown.then(() => {
          if (job !== this.#job) return;
          this.#status.state = "done";
          this.#say(warnings.length ? warnings.join(" ") : "Done", warnings.length > 0);
        });
      },
      failed: (reason) => this.#fail(reason),
      lost: () => this.#say(`${api.NO_ANSWER} The page tries again.`, true),
      found: () => this.#say("mien studio responds again"),
    });
  }

  /** Keep the place in the address, for when the page is loaded again. */
  #remember(): void {
    const { jobs } = this.#separate;
    const others = jobs.length > 0 ? `&jobs=${jobs.join(",")}` : "";
    history.replaceState(null, "", `#job=${this.#job}${others}`);
  }

  #detected(found: api.Detected): void {
    this.#found.set(found.photo, found);
    if (this.#kind === "person") {
      this.#strip.picture(found.photo, api.personPhotoAddress(this.#job, found.photo));
      if (found.faces.length === 0) this.#strip.say(found.photo, "No face", true);
      if (found.photo === this.#face) this.#showPhoto();
      return;
    }
    this.#showPhoto();
    const count = found.faces.length;
    this.#say(count === 1 ? "One face found" : `${count} faces found`);
    if (count < 2) return;
    const buttons = found.faces.map((_, k) => button(`Face ${k + 1}`, () => void this.#choose(k)));
    element("faces").replaceChildren(...buttons);
    this.#pressFace();
  }

  /** The photo that is shown: of a person the chosen one, else the only one. */
  #showPhoto(): void {
    const person = this.#kind === "person";
    const found = this.#found.get(person ? this.#face : 0);
    if (!found) return;
    this.#photo.show(person ? api.personPhotoAddress(this.#job, found.photo) : api.photoAddress(this.#job));
    this.#photo.outline(found.width, found.height, found.faces);
    this.#photo.choose(person ? this.#person.faceIn(this.#face) : this.#face);
    document.body.style.setProperty("--aspect", String(found.width / found.height));
  }

  #match(found: api.Matched): void {
    this.#person.match(found);
    if (found.best) this.#shown = this.#shown.then(() => this.#choose(found.photo));
  }

  async #head(job: string, head: api.FaceHead): Promise<void> {
    if (job !== this.#job) return; // another photo was chosen meanwhile
    this.#heads.set(head.face, head);
    if (this.#kind === "person" && this.#heads.size === 1) await this.#choose(head.face);
    else if (head.face === this.#face) await this.#show(head);
  }

  async #choose(face: number): Promise<void> {
    if (this.#kind === "person" && !this.#strip.count) return;
    this.#face = face;
    const head = this.#heads.get(face);
    if (this.#kind === "person") {
      this.#strip.choose(face);
      this.#showPhoto();
      document.body.toggleAttribute("data-missing", !head);
      element("notes").replaceChildren(...this.#person.reasons(this.#face).map(paragraph));
    } else {
      this.#photo.choose(face);
      this.#pressFace();
    }
    if (head) await this.#show(head);
  }

  async #show(head: api.FaceHead): Promise<void> {
    const answer = await fetch(api.fileAddress(this.#job, head.face, api.stepFile(head.step))).catch(() => null);
    if (!answer?.ok) return; // the job has expired, or the server has ended
    if (head !== this.#heads.get(this.#face)) return; // another one was chosen meanwhile
    document.body.removeAttribute("data-missing");
    await this.#viewer.load(await answer.arrayBuffer());
    this.#panel.refresh();
    this.#shape.refresh();
    document.body.dataset["head"] = head.step;
    this.#panelled(true);
    element("step").textContent = this.#stepWords(head);
    element("notes").replaceChildren(...[...this.#person.reasons(this.#face), ...head.notes].map(paragraph));
    this.#modes.headChanged();
    if (this.#modes.mode === "compare") await this.#compare();
    if (head.step === "detail") this.#downloads.head(this.#job, head);
  }

  #stepWords(head: api.FaceHead): string {
    if (this.#kind === "video") return "First estimate, from one frame";
    if (this.#kind === "photo") return STEP_WORDS[head.step];
    if (head.step === "network") return `First estimate, from photo ${head.face + 1} alone`;
    return `One head from ${this.#person.used} photos, as in photo ${head.face + 1}`;
  }

  async #compare(): Promise<void> {
    const head = this.#heads.get(this.#face);
    if (head) await this.#comparison.refresh(this.#job, head);
  }

  /** Let the server write the files of the face with the present shape, and offer these. */
  async #reshape(): Promise<void> {
    this.#say("Writing the files of this shape");
    try {
      const job = await api.reshape(this.#job, this.#face, this.#shape.strengths);
      api.listen(job, {
        head: (head) => this.#downloads.head(job, head),
        finished: () => this.#say("The downloads are of the changed shape now"),
        failed: (reason) => this.#say(reason, true),
      });
    } catch (error) {
      this.#say(api.words(error), true);
    }
  }

  #light(): void {
    const [side, height] = [element<HTMLInputElement>("light-side"), element<HTMLInputElement>("light-height")];
    const move = () => this.#viewer.setLight(side.valueAsNumber, height.valueAsNumber);
    side.addEventListener("input", move);
    height.addEventListener("input", move);
  }

  #pressFace(): void {
    [...element("faces").children].forEach((one, k) => one.setAttribute("aria-pressed", String(k === this.#face)));
  }

  #say(text: string, alarming = false): void {
    this.#status.say(text, alarming);
  }

  #fail(reason: string): void {
    this.#status.fail(reason);
  }
}

function isVideo(file: Blob): boolean {
  return file.type.startsWith("video/") || /\.(mp4|m4v|mov|webm|mkv|avi)$/i.test(file instanceof File ? file.name : "");
}

function paragraph(text: string): HTMLElement {
  const made = document.createElement("p");
  made.textContent = text;
  return made;
}

new Studio().start();
