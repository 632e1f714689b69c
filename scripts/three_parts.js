// The parts of three.js that report.html uses; scripts/bundle_three.sh makes one file of them.
export {
  Box3, BufferAttribute, BufferGeometry, Color, DoubleSide, Euler, Float32BufferAttribute, LineBasicMaterial,
  LineSegments, MathUtils, Matrix4, Mesh, MeshBasicMaterial, PerspectiveCamera, Points, Quaternion,
  Raycaster, REVISION, Scene, ShaderMaterial, Sphere, SRGBColorSpace, TextureLoader, Vector2, Vector3, WebGLRenderer,
} from "three";
export { OrbitControls } from "three/examples/jsm/controls/OrbitControls.js";
