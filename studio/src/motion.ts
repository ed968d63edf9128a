/** The animation of a head: its curves, and the head at a time. */

import * as THREE from "three";
import type { GLTF } from "three/addons/loaders/GLTFLoader.js";

/** mien's files hold the pose before a cut until a millisecond before the frame after it. */
const HOLD_S = 0.0015;

export class Motion {
  readonly #mixer: THREE.AnimationMixer;
  readonly #track: THREE.KeyframeTrack;
  readonly #mesh: THREE.Mesh;

  /** Names of the expressions. */
  readonly names: readonly string[];

  /** Is called when the head has moved. */
  moved: () => void = () => {};

  private constructor(
    root: THREE.Object3D,
    clip: THREE.AnimationClip,
    track: THREE.KeyframeTrack,
    mesh: THREE.Mesh,
    private readonly camera: THREE.PerspectiveCamera,
  ) {
    this.#mixer = new THREE.AnimationMixer(root);
    this.#mixer.clipAction(clip).play();
    [this.#track, this.#mesh] = [track, mesh];
    this.names = Object.keys(mesh.morphTargetDictionary ?? {});
  }

  /** The first animation of a file; null if there is none. */
  static of(gltf: GLTF): Motion | null {
    const clip = gltf.animations[0];
    const camera = gltf.cameras.find((one) => one instanceof THREE.PerspectiveCamera);
    if (!clip || !camera) return null;
    // The skin has all expressions, the eyes only those that move them.
    let widest: [THREE.KeyframeTrack, THREE.Mesh] | null = null;
    for (const track of clip.tracks.filter(({ name }) => name.endsWith(".morphTargetInfluences"))) {
      const mesh = THREE.PropertyBinding.findNode(gltf.scene, track.name.split(".")[0]!) as THREE.Mesh | null;
      if (mesh && (!widest || track.getValueSize() > widest[0].getValueSize())) widest = [track, mesh];
    }
    return widest ? new Motion(gltf.scene, clip, ...widest, camera) : null;
  }

  /** Times of the frames, seconds; without the keys that hold a pose until a cut. */
  get times(): number[] {
    const keys = [...this.#track.times];
    return keys.filter((time, k) => k === keys.length - 1 || keys[k + 1]! - time > HOLD_S);
  }

  /** The head as at a time of the video. */
  setTime(seconds: number): void {
    const end = this.#track.times[this.#track.times.length - 1]!;
    this.#mixer.setTime(Math.max(Math.min(seconds, end - 1e-4), 0)); // at its end an animation begins again
    this.moved();
  }

  /** The camera that filmed the head, for the viewer. */
  get photoCamera(): { view: number[][]; projection: number[][] } {
    this.camera.updateProjectionMatrix();
    return { view: rows(new THREE.Matrix4()), projection: rows(this.camera.projectionMatrix) };
  }

  /** Times and strengths of an expression. */
  curve(name: string): [number, number][] {
    const column = this.names.indexOf(name);
    const width = this.#track.getValueSize();
    return [...this.#track.times].map((time, row) => [time, this.#track.values[row * width + column] ?? 0]);
  }

  /** The present strength of an expression. */
  strength(name: string): number {
    const index = this.#mesh.morphTargetDictionary?.[name];
    return index === undefined ? 0 : (this.#mesh.morphTargetInfluences?.[index] ?? 0);
  }
}

function rows(matrix: THREE.Matrix4): number[][] {
  const values = matrix.clone().transpose().elements; // three.js stores columns
  return [0, 4, 8, 12].map((start) => values.slice(start, start + 4));
}
