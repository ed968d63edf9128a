/** The server: a photo, a changed shape or a person in several photos is one job, and its events tell how far it is. */

export interface Outline {
  box: [number, number, number, number];
  landmarks: [number, number][];
}

export interface Detected {
  /** Number of the photo; 0 for a photo that was sent alone. */
  photo: number;
  width: number;
  height: number;
  faces: Outline[];
}

/** What a photo counts for the person of several photos. */
export interface Matched {
  photo: number;
  /** Which of its faces is the person. */
  face: number | null;
  weight: number;
  /** Why it was left out or counts for little. */
  reason: string;
  best: boolean;
}

/** How long to wait if the server has no place. */
const FULL_MS = 3000;

export const STEPS = ["network", "fit", "detail"] as const;
export type Step = (typeof STEPS)[number];

/** The head that the page shows after a step. */
export function stepFile(step: Step): string {
  return `${step}.glb`;
}

export interface FaceHead {
  /** Number of the face; of a person in several photos, the number of the photo. */
  face: number;
  step: Step;
  files: string[];
  view: number[][];
  projection: number[][];
  landmark_error: number;
  notes: string[];
}

/** How far a stage of the work on a video is. */
export interface Frames {
  stage: string;
  done: number;
  total: number | null;
  per_second: number | null;
  seconds_left: number | null;
}

/** A person of a video whose files were written. */
export interface TrackedPerson {
  person: number;
  files: string[];
  frames: number;
  spans_s: [number, number][];
  interpolated_s: [number, number][];
}

export interface Placed {
  landmark: number;
  x: number;
  y: number;
}

/** What to say if there is no answer. */
export const NO_ANSWER = "mien studio does not respond; is it running?";

export interface Listener {
  stage(stage: string, share: number): void;
  detected(found: Detected): void;
  matched(found: Matched): void;
  head(head: FaceHead): void;
  frames(frames: Frames): void;
  video(video: { width: number; height: number }): void;
  person(person: TrackedPerson): void;
  overlay(): void;
  finished(warnings: string[]): void;
  failed(reason: string): void;
  /** The server does not respond any more; it is asked again. */
  lost(): void;
  /** The server responds again. */
  found(): void;
}

export interface JobState {
  id: string;
  kind: "photo" | "shape" | "person" | "video";
  state: "collecting" | "waiting" | "running" | "stopping" | "done" | "failed" | "cancelled";
  position: number;
  photos: { photo: number }[];
  error: string | null;
}

/** What is known of a job; null if there is none. */
export async function state(job: string): Promise<JobState | null> {
  const answer = await ask(`/api/jobs/${job}`);
  return answer.ok ? answer.json() : null;
}

/** Stop a job, and remove what was sent and its results. */
export function remove(job: string): void {
  void fetch(`/api/jobs/${job}`, { method: "DELETE" });
}

/** Send a photo. If too many wait, it is tried again until there is a place. */
export async function submit(photo: Blob): Promise<string> {
  return started(await whenThereIsPlace(() => ask("/api/jobs", { method: "POST", body: photo })));
}

/** Send the photos of a person one by one, and start the work. */
export async function submitPerson(photos: Blob[], sent: (count: number) => void): Promise<string> {
  const person = await started(await whenThereIsPlace(() => ask("/api/people", { method: "POST" })));
  for (const [number, body] of photos.entries()) {
    const answer = await ask(`/api/people/${person}/photos/${number}`, { method: "PUT", body });
    if (!answer.ok) {
      remove(person);
      throw new Error(`photo ${number + 1}: ${await reasonOf(answer)}`);
    }
    sent(number + 1);
  }
  return started(await whenThereIsPlace(() => ask(`/api/people/${person}/start`, { method: "POST" })));
}

export async function submitVideo(video: Blob): Promise<string> {
  return started(await whenThereIsPlace(() => ask("/api/videos", { method: "POST", body: video })));
}

export function videoAddress(job: string): string {
  return `/api/videos/${job}/video`;
}

export function overlayAddress(job: string): string {
  return `/api/videos/${job}/overlay.mp4`;
}

export function trackedFileAddress(job: string, person: number, name: string): string {
  return `/api/videos/${job}/people/${person}/${name}`;
}

export function personPhotoAddress(job: string, photo: number): string {
  return `/api/people/${job}/photos/${photo}`;
}

/** Fit the faces again with placed landmarks, a list per face. */
export async function pin(job: string, faces: Placed[][]): Promise<string> {
  const headers = { "Content-Type": "application/json" };
  return started(await ask(`/api/jobs/${job}/pins`, { method: "POST", headers, body: JSON.stringify(faces) }));
}

/** The ways to find a face. The page sends its photos in the first one. */
export const MODES = ["auto", "fit", "net"] as const;
export type Mode = (typeof MODES)[number];

/** Reconstruct the photo of a job again in another mode. */
export async function again(job: string, mode: Mode): Promise<string> {
  return started(await ask(`/api/jobs/${job}/again?mode=${mode}`, { method: "POST" }));
}

/** Write a finished face again with another shape. */
export async function reshape(job: string, face: number, strengths: ReadonlyMap<string, number>): Promise<string> {
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify(Object.fromEntries(strengths));
  return started(await ask(`/api/jobs/${job}/faces/${face}/shape`, { method: "POST", headers, body }));
}

export function photoAddress(job: string): string {
  return `/api/jobs/${job}/photo`;
}

export function fileAddress(job: string, face: number, name: string): string {
  return `/api/jobs/${job}/faces/${face}/${name}`;
}

/** Listen to a job until it ends. Returns how to stop listening. */
export function listen(job: string, listener: Partial<Listener>): () => void {
  const source = new EventSource(`/api/jobs/${job}/events`);
  const on = <T>(name: string, take: (data: T) => void, last = false) =>
    source.addEventListener(name, (event) => {
      if (last) source.close();
      take(JSON.parse((event as MessageEvent<string>).data) as T);
    });
  on<{ stage: string; share: number }>("stage", ({ stage, share }) => listener.stage?.(stage, share));
  on<Detected>("detected", (found) => listener.detected?.(found));
  on<Matched>("matched", (found) => listener.matched?.(found));
  on<FaceHead>("head", (head) => listener.head?.(head));
  on<Frames>("frames", (frames) => listener.frames?.(frames));
  on<{ width: number; height: number }>("video", (video) => listener.video?.(video));
  on<TrackedPerson>("person", (person) => listener.person?.(person));
  on("overlay", () => listener.overlay?.());
  on<{ warnings: string[] }>("finished", ({ warnings }) => listener.finished?.(warnings), true);
  on<{ reason: string }>("failed", ({ reason }) => listener.failed?.(reason), true);
  on("cancelled", () => listener.failed?.("the work was stopped."), true);
  let lost = false;
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) return void whyClosed(job).then((reason) => listener.failed?.(reason));
    lost = true; // the browser connects again by itself, for ever
    listener.lost?.();
  });
  source.addEventListener("open", () => {
    if (lost) listener.found?.();
    lost = false;
  });
  return () => source.close();
}

async function whyClosed(job: string): Promise<string> {
  const answer = await fetch(`/api/jobs/${job}`).catch(() => null);
  if (answer?.status === 404) return "this result has expired; send the photo again.";
  return NO_ANSWER;
}

/** The words of an error. */
export function words(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

async function ask(address: string, request?: RequestInit): Promise<Response> {
  return fetch(address, request).catch(() => {
    throw new Error(NO_ANSWER);
  });
}

async function started(answer: Response): Promise<string> {
  if (!answer.ok) throw new Error(await reasonOf(answer));
  return ((await answer.json()) as { id: string }).id;
}

async function reasonOf(answer: Response): Promise<string> {
  const body: { detail?: unknown } = await answer.json().catch(() => ({}));
  return typeof body.detail === "string" ? body.detail : `the server answered ${answer.status}.`;
}

async function whenThereIsPlace(ask: () => Promise<Response>): Promise<Response> {
  for (;;) {
    const answer = await ask();
    if (answer.status !== 503) return answer;
    await new Promise((go) => setTimeout(go, FULL_MS));
  }
}
