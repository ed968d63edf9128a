// Show a reconstructed face in three.js through the camera of its photo. A canvas without background, as large as the
// photo in CSS pixels and placed over it, puts the face over the photo.
//
//     const result = await (await fetch("face0/coefficients.json")).json();
//     const { face, camera } = await overPhoto(document.querySelector("canvas"), "face0/face.glb", result);

import * as THREE from "three";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";

export async function overPhoto(canvas, glb, result) {
  const [width, height] = result.image_size_px;
  const renderer = new THREE.WebGLRenderer({ canvas, alpha: true, antialias: true });
  renderer.setSize(width, height);

  const camera = new THREE.PerspectiveCamera();
  camera.projectionMatrix.set(...result.matrices.projection_opengl.flat());
  camera.projectionMatrixInverse.copy(camera.projectionMatrix).invert();

  const { scene } = await new GLTFLoader().loadAsync(glb);
  const face = scene.getObjectByName("face");
  face.matrixAutoUpdate = false;
  face.matrix.set(...result.matrices.view_opengl.flat()); // the camera stays at the origin
  scene.add(new THREE.AmbientLight(0xffffff, 3));
  scene.updateMatrixWorld(true);
  renderer.render(scene, camera);
  return { face, camera, scene, renderer };
}

// A face has two meshes, skin and eyes, each with morph influences of its own: set them on both.
export function setExpression(face, strengths) {
  face.traverse((mesh) => {
    for (const [name, strength] of Object.entries(strengths)) {
      if (mesh.isMesh) mesh.morphTargetInfluences[mesh.morphTargetDictionary[name]] = strength;
    }
  });
}
